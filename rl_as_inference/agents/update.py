"""One step of learning as a pure function of tensors, for one seed or for many at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.compilation import accelerate
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters, Tree
from rl_as_inference.agents.replay import Replay
from rl_as_inference.checks import deferred
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["Update"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Update:
    """All learned numbers, and the step that changes them.

    The numbers of a seed are one vector, of which its modules' parameters are views; an update draws
    a batch, takes the gradient of the loss, one step of Adam, moves the targets, and draws the next
    actions from the new policy. That is one function of tensors, traced (and compiled) once, and
    batched over seeds where there are several.

    Args:
        modules: of each seed, by name; their parameters become views of this object's tensors.
        algorithm: whose loss and draw it is.
        replay: where batches come from.
        observation, time, action: what acting reads and writes, ``(num_seeds, num_envs, ...)``.
        batch_size: transitions of a batch.
        learning_rate: Adam's.
        target_average: how far targets move.

    Attributes:
        tensors: all that learning changes, by name; each begins with the dimension of seeds.
        ready: whether :meth:`prepare` was called.
        compiled: whether the update is compiled.
    """

    def __init__(
        self,
        modules: Sequence[Mapping[str, nn.Module]],
        algorithm: Algorithm,
        replay: Replay,
        observation: Tensor,
        time: Tensor,
        action: Tensor,
        *,
        batch_size: int,
        learning_rate: float,
        target_average: float,
    ) -> None:
        self.algorithm, targeted = algorithm, algorithm.targeted
        self.replay, self.batch_size = replay, batch_size
        self.learning_rate, self.target_average = learning_rate, target_average
        # Called on given parameters only, so its own never count.
        self.template = {name: copy.deepcopy(module) for name, module in modules[0].items()}
        self.layout = FlatParameters(modules[0])
        self.target_layout = FlatParameters({name: modules[0][name] for name in targeted})
        self.tensors = self._begun(modules)
        for vector, each in zip(self.tensors["parameters"], modules, strict=True):
            self.layout.attach(vector, each)
        self.num_seeds = len(modules)
        written = [*self.tensors.values(), action]
        read = [observation, time, replay.storage]
        if self.num_seeds == 1:  # without the dimension of seeds, plain products serve, which are faster than batched
            written, read = [tensor[0] for tensor in written], [tensor[0] for tensor in read]
        self._acting = (written[-1], written[0], *read[:2])
        # Priorities keep the dimension of seeds.
        self._priorities = replay.priorities
        ranked = [] if replay.priorities is None else replay.priorities.tensors
        self._written, self._read = [*written, *ranked], [*read, replay.size, replay.position]
        self.ready = self.compiled = False

    def _begun(self, modules: Sequence[Mapping[str, nn.Module]]) -> dict[str, Tensor]:
        """Returns all that learning changes, as it begins with modules."""
        parameters = torch.stack([self.layout.flatten(FlatParameters.tree(each)) for each in modules])
        targeted = self.algorithm.targeted
        return {
            "parameters": parameters,
            "targets": torch.cat([parameters[:, self.layout.spans[name]] for name in targeted], 1),
            "first_moment": torch.zeros_like(parameters),
            "second_moment": torch.zeros_like(parameters),
            "decays": parameters.new_ones(len(modules), 2),
            "sums": parameters.new_zeros(len(modules), len(self.algorithm.metrics)),
        }

    def begin_anew(self, modules: Sequence[Mapping[str, nn.Module]]) -> None:
        """Goes on with the parameters of other modules, as if these were made just now; what was counted stays.

        Targets are theirs too, and Adam has seen nothing: the resets of Nikishin, Schwarzer, D'Oro, Bacon & Courville
        (2022, arXiv:2205.07802).
        """
        for name, tensor in self._begun(modules).items():
            if name != "sums":
                self.tensors[name].copy_(tensor)

    def prepare(self, *, compile: bool) -> None:
        """Traces the update and the drawing of actions, and compiles the former if asked; no number changes."""
        with unvalidated(), deferred():  # a policy's own checks of values have no answer while it is traced
            self._act = accelerate(self._write_action, self._acting[:1], self._acting[1:], compile=False)
            self._step = accelerate(self._write_step, self._written, self._read, compile=compile)
            if compile and self._written[0].device.type != "cuda":
                # What a compiler leaves for the first call is done on copies.
                self._step(*(tensor.clone() for tensor in self._written), *self._read)
        self.ready, self.compiled = True, compile

    def step(self) -> None:
        """Takes one step of learning, and draws actions for the present observation."""
        self._step(*self._written, *self._read)

    def act(self) -> None:
        """Draws actions for the present observation."""
        self._act(*self._acting)

    def _write_step(self, *tensors: Tensor) -> None:
        function: Any = self._stepped
        *written, observation, time, storage, size, position = tensors
        count = len(self.tensors)
        state, action, ranked = written[:count], written[count], written[count + 1 :]
        of_seed = ranked
        if self.num_seeds > 1:
            in_dims = (0,) * (count + 3) + (None, None) + (0,) * len(ranked)
            function = torch.func.vmap(function, in_dims=in_dims, randomness="different")
        else:
            of_seed = [tensor[0] for tensor in ranked]
        new = function(*state, observation, time, storage, size, position, *of_seed)
        for old, value in zip((*state, action), new[: count + 1], strict=True):
            old.copy_(value)
        if self._priorities is not None:
            row, error = (each.reshape(self.num_seeds, -1) for each in new[count + 1 :])
            self._priorities.renew(*ranked, row, error)

    def _write_action(self, action: Tensor, parameters: Tensor, observation: Tensor, time: Tensor) -> None:
        function: Any = self._drawn
        if self.num_seeds > 1:
            function = torch.func.vmap(function, randomness="different")
        action.copy_(function(parameters, observation, time))

    def _drawn(self, parameters: Tensor, observation: Tensor, time: Tensor) -> Tensor:
        """Returns one seed's actions."""
        networks = Networks(self.template, self.layout.unflatten(parameters))
        return self.algorithm.draw(networks, observation, self.algorithm.task.times(time))

    def _stepped(
        self,
        parameters: Tensor,
        targets: Tensor,
        first_moment: Tensor,
        second_moment: Tensor,
        decays: Tensor,
        sums: Tensor,
        observation: Tensor,
        time: Tensor,
        storage: Tensor,
        size: Tensor,
        position: Tensor,
        *ranked: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns one seed's learned numbers after a step, and its next actions; a pure function.

        With priorities, also the rows that were drawn and their errors.
        """
        row = weight = None
        if self._priorities is not None:
            tree, _, num_updates = ranked
            row, weight = self._priorities.draw(tree, num_updates, size, self.batch_size)
        batch = self.algorithm.batch(self.replay, storage, size, position, self.batch_size, row)
        if weight is not None:
            batch = batch._replace(weight=weight.to(storage.dtype))
        target_networks = Networks(self.template, self.target_layout.unflatten(targets))

        def loss(tree: Tree) -> tuple[Tensor, Tensor]:
            value, metrics = self.algorithm.loss(Networks(self.template, tree), target_networks, batch)
            numbers = torch.stack([metrics[name].detach() for name in self.algorithm.metrics])
            return value, numbers if row is None else torch.cat([numbers, metrics["td_error"]])

        tree, metrics = self._gradient(loss, self.layout.unflatten(parameters))
        gradient = self.layout.flatten(tree)
        # Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), over all modules at once.
        decays = torch.stack([decay * beta for decay, beta in zip(decays.unbind(), _BETAS, strict=True)])
        first_moment = _normal(torch.lerp(first_moment, gradient, 1 - _BETAS[0]))
        second_moment = _normal(torch.lerp(second_moment, gradient.square(), 1 - _BETAS[1]))
        scale = (second_moment / (1 - decays[1])).sqrt() + _EPSILON
        parameters = parameters - self.learning_rate * (first_moment / (1 - decays[0])) / scale
        learned = torch.cat([parameters[self.layout.spans[name]] for name in self.algorithm.targeted])
        targets = torch.lerp(targets, learned, self.target_average)
        action = self._drawn(parameters, observation, time)
        seen: tuple[Tensor, ...] = ()
        if row is not None:
            metrics, seen = metrics[: len(sums)], (row, metrics[len(sums) :])
        return parameters, targets, first_moment, second_moment, decays, sums + metrics, action, *seen

    def _gradient(self, loss: Callable[[Tree], tuple[Tensor, Tensor]], tree: Tree) -> tuple[Tree, Tensor]:
        """Returns the gradient of a loss, and what the loss returns beside it."""
        if self.num_seeds > 1:
            return torch.func.grad(loss, has_aux=True)(tree)
        # The same numbers; and it knows functions that torch.func refuses, such as PyTorch's draws of a Beta.
        with torch.enable_grad():
            leaves = {
                module: {name: value.detach().requires_grad_() for name, value in parameters.items()}
                for module, parameters in tree.items()
            }
            value, metrics = loss(leaves)
            flat = [value for parameters in leaves.values() for value in parameters.values()]
            gradients = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
        return {module: {name: next(gradients) for name in names} for module, names in leaves.items()}, metrics


def _normal(values: Tensor) -> Tensor:
    """Returns the values with 0 for those below the normal range of floating-point numbers.

    The moments of a unit that has died decay into that range and stay there, where a processor takes ten
    times as long for every operation.
    """
    limits = torch.finfo(values.dtype)
    shift = 2 * limits.tiny / limits.eps  # what is lost beside it is less than the smallest normal number
    return (values + shift) - shift
