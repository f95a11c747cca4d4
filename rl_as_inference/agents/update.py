"""One step of learning as a pure function of tensors, for one seed or for many at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.compilation import CompileCost, accelerate, compiled_if_possible, repays
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters, Tree
from rl_as_inference.agents.replay import Replay
from rl_as_inference.batch_norm import statistics_of
from rl_as_inference.checks import deferred
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["Update"]

_BETA, _EPSILON = 0.999, 1e-8
"""Adam's β₂ and ε (Kingma & Ba 2015)."""
_MEASURE_FROM = 2_000
"""``compile="auto"`` asks from so many updates on whether compiling repays itself; fewer never do."""
_COMPILE_FROM = 10_000
"""On a GPU it compiles from so many updates on."""
_MEASURED = 12
"""Updates that tell how long one takes."""


class Update:
    """All learned numbers, and the step that changes them.

    The numbers of a seed are one vector, of which its modules' parameters are views; an update draws
    a batch, takes the gradient of the loss, one step of Adam, moves the targets, and draws the next
    actions from the new policy. That is one function of tensors, traced (and compiled) once, and
    batched over seeds where there are several. Where an algorithm has modules that wait for every ``period``-th
    update, there are two such functions: with and without them.

    Args:
        modules: of each seed, by name; their parameters become views of this object's tensors.
        algorithm: whose loss and draw it is.
        replay: where batches come from.
        observation, time, action: what acting reads and writes, ``(num_seeds, num_envs, ...)``.
        batch_size: transitions of a batch.
        learning_rate: Adam's.
        adam_beta: Adam's β₁.
        target_average: how far targets move.

    Attributes:
        tensors: all that learning changes, by name; each begins with the dimension of seeds. ``"statistics"`` are the
            running ones of normalisation layers, where there are any.
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
        adam_beta: float = 0.9,
        target_average: float,
    ) -> None:
        self.algorithm, targeted = algorithm, algorithm.targeted
        self.replay, self.batch_size = replay, batch_size
        self.learning_rate, self.target_average = learning_rate, target_average
        self.betas = (adam_beta, _BETA)
        # Called on given parameters only, so its own never count.
        self.template = {name: copy.deepcopy(module) for name, module in modules[0].items()}
        late = algorithm.delayed if algorithm.period > 1 else ()
        self.layout = FlatParameters({name: modules[0][name] for name in sorted(modules[0], key=lambda n: n in late)})
        self.target_layout = FlatParameters({name: modules[0][name] for name in targeted})
        self.statistics_layout = FlatParameters(statistics(modules[0]))
        # The modules that wait lie behind the others.
        first = min((self.layout.spans[name].start for name in late), default=self.layout.size)
        self.groups = [slice(0, first)] + ([slice(first, self.layout.size)] if late else [])
        self.late = frozenset(late)
        self.tensors = self._begun(modules)
        for vector, each in zip(self.tensors["parameters"], modules, strict=True):
            self.layout.attach(vector, each)
        for numbers, each in zip(self.tensors.get("statistics", ()), modules, strict=False):
            self.statistics_layout.attach(numbers, each)
        self.num_seeds = len(modules)
        written = [*self.tensors.values(), action]
        read = [observation, time, replay.storage]
        if self.num_seeds == 1:  # without the dimension of seeds, plain products serve, which are faster than batched
            written, read = [tensor[0] for tensor in written], [tensor[0] for tensor in read]
        # Priorities keep the dimension of seeds.
        self._priorities = replay.priorities
        self._ranked = [] if replay.priorities is None else list(replay.priorities.tensors)
        self._written, self._read = [*written, *self._ranked], [*read, replay.size, replay.position]
        self._steps: list[Callable[..., Any]] = []
        self.ready = self.compiled = False

    def _begun(self, modules: Sequence[Mapping[str, nn.Module]]) -> dict[str, Tensor]:
        """Returns all that learning changes, as it begins with modules."""
        parameters = torch.stack([self.layout.flatten(FlatParameters.tree(each)) for each in modules])
        tensors = {"parameters": parameters}
        if targeted := self.algorithm.targeted:
            tensors["targets"] = torch.cat([parameters[:, self.layout.spans[name]] for name in targeted], 1)
        if self.statistics_layout.size:
            running = [self.statistics_layout.flatten(statistics(each)) for each in modules]
            tensors["statistics"] = torch.stack(running)
        return tensors | {
            "first_moment": torch.zeros_like(parameters),
            "second_moment": torch.zeros_like(parameters),
            "decays": parameters.new_ones(len(modules), 2 * len(self.groups)),
            # With modules that wait, the last counts the updates of them.
            "sums": parameters.new_zeros(len(modules), len(self.algorithm.metrics) + bool(self.late)),
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
        self.prepare_acting()
        with unvalidated(), deferred():  # a policy's own checks of values have no answer while it is traced
            if compile:
                self._steps = compiled_if_possible(self._accelerated, self._written[0].device)
            else:
                self._steps = self._accelerated(compile=False)
        self.ready, self.compiled = True, compile

    def prepare_acting(self) -> None:
        """Traces the drawing of actions."""
        policy = [tensor for name, tensor in self._named(self._written).items() if name in _ACTING]
        acting = [*policy, *self._read[:2]]
        with unvalidated(), deferred():
            action = [self._named(self._written)["action"]]
            self._act = partial(accelerate(self._write_action, action, acting, compile=False), *action, *acting)

    def _accelerated(self, compile: bool) -> list[Callable[..., Any]]:
        steps = [
            accelerate(partial(self._write_step, whole), self._written, self._read, compile=compile)
            for whole in ([True, False] if self.late else [True])
        ]
        if compile and self._written[0].device.type != "cuda":
            # What a compiler leaves for the first call is done on copies.
            for step in steps:
                step(*(tensor.clone() for tensor in self._written), *self._read)
        return steps

    def step(self, index: int = 0) -> None:
        """Takes one step of learning, and draws actions for the present observation.

        Args:
            index: how many steps there were before: modules that wait are learned where it is a multiple of the period.
        """
        waits = bool(self.late) and index % self.algorithm.period != 0
        self._steps[waits](*self._written, *self._read)

    def measure(self) -> tuple[float, CompileCost]:
        """Returns the seconds that one update takes as it is prepared, and what compiling it costs; no number changes.

        The median of a dozen, on copies.
        """
        written, seconds, steps = [tensor.clone() for tensor in self._written], [], self._steps
        for _ in range(_MEASURED):
            start = perf_counter()
            steps[0](*written, *self._read)
            seconds.append(perf_counter() - start)
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in (*self._written, *self._read)]
        return median(seconds), CompileCost(
            f"{[step.code for step in steps if isinstance(step, fx.GraphModule)]} {shapes}"
        )

    def repays_compiling(self, num_updates: float) -> tuple[bool, CompileCost | None]:
        """Returns whether compiling repays itself in so many updates; and what it costs, if that was measured."""
        if num_updates < _MEASURE_FROM:
            return False, None
        if self._written[0].device.type != "cpu":
            return num_updates >= _COMPILE_FROM, None
        if not self.ready:
            self.prepare(compile=False)
        seconds, cost = self.measure()
        return repays(num_updates, seconds, cost), cost

    def act(self) -> None:
        """Draws actions for the present observation."""
        self._act()

    def acting(self) -> dict[str, Any]:
        """Returns what actions of the one seed are drawn by, as arrays of its own."""
        return {name: self.tensors[name][0].numpy(force=True).copy() for name in _ACTING if name in self.tensors}

    def means(self, num_updates: int) -> list[dict[str, float]]:
        """Returns the means of the reported numbers over the last updates, of each seed, and forgets them.

        Without those of what waits between, if none of these updates was its turn.
        """
        sums, names = self.tensors["sums"], self.algorithm.metrics
        rows = []
        for row in sums.tolist():
            counts = [
                row[-1] if self.late and name in self.algorithm.delayed_metrics else num_updates for name in names
            ]
            rows.append({n: v / c for n, v, c in zip(names, row, counts, strict=False) if c})
        sums.zero_()
        return rows

    def _named(self, written: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip((*self.tensors, "action"), written, strict=False))  # and then priorities

    def _write_step(self, whole: bool, *tensors: Tensor) -> None:
        function: Any = partial(self._stepped, whole)
        count, ranks = len(self.tensors) + 1, len(self._ranked)
        written, ranked, read = tensors[:count], tensors[count : count + ranks], tensors[count + ranks :]
        of_seed: Sequence[Tensor] = ranked
        if self.num_seeds > 1:
            in_dims = (0,) * ranks + (0,) * (count - 1 + 3) + (None, None)
            function = torch.func.vmap(function, in_dims=in_dims, randomness="different")
        else:
            of_seed = [tensor[0] for tensor in ranked]
        new = function(*of_seed, *written[:-1], *read)
        for old, value in zip(written, new[:count], strict=True):
            old.copy_(value)
        if self._priorities is not None:
            tree, largest, num_updates = ranked
            row, error = (each.reshape(self.num_seeds, -1) for each in new[count:])
            self._priorities.renew(tree, largest, num_updates, row, error)

    def _write_action(self, action: Tensor, *tensors: Tensor) -> None:
        function: Any = self._acted
        if self.num_seeds > 1:
            function = torch.func.vmap(function, randomness="different")
        action.copy_(function(*tensors))

    def _acted(self, parameters: Tensor, *tensors: Tensor) -> Tensor:
        """Returns one seed's actions, by what :meth:`prepare` gives."""
        *running, observation, time = tensors
        return self._drawn(parameters, running[0] if running else None, observation, time)

    def _drawn(self, parameters: Tensor, running: Tensor | None, observation: Tensor, time: Tensor) -> Tensor:
        """Returns one seed's actions."""
        networks = Networks(self.template, self.layout.unflatten(parameters), self._running(running))
        return self.algorithm.draw(networks, observation, self.algorithm.task.times(time))

    def _running(self, running: Tensor | None) -> Tree:
        """Returns running statistics by module and name."""
        return {} if running is None else self.statistics_layout.unflatten(running)

    def _stepped(self, whole: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns one seed's learned numbers after a step, and its next actions; a pure function.

        With priorities, also the rows that were drawn and their errors.

        Args:
            whole: whether modules that wait for it are learned too.
            tensors: priorities, if there are any; the learned numbers in their order; then observation, time, and
                replay's storage, size, position.
        """
        ranked, (*learned, observation, time, storage, size, position) = (
            tensors[: len(self._ranked)],
            tensors[len(self._ranked) :],
        )
        slope, seen = self._slope(whole, ranked, learned, storage, size, position)
        return (*self._moved(whole, slope, learned, observation, time), *seen)

    def _slope(
        self,
        whole: bool,
        ranked: Sequence[Tensor],
        learned: Sequence[Tensor],
        storage: Tensor,
        size: Tensor,
        position: Tensor,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Returns one seed's gradient, reported numbers and running statistics (if any), each one vector.

        And what replay's priorities look at, if there are any.
        """
        old = dict(zip(self.tensors, learned, strict=True))
        row = weight = None
        if self._priorities is not None:
            row, weight = self._priorities.draw(ranked[0], ranked[2], size, self.batch_size)
        batch = self.algorithm.batch(self.replay, storage, size, position, self.batch_size, row)
        if weight is not None:
            batch = batch._replace(weight=weight.to(storage.dtype))
        everything, running = self.layout.unflatten(old["parameters"]), self._running(old.get("statistics"))
        target_tree = self.target_layout.unflatten(old["targets"]) if "targets" in old else {}
        target_networks = Networks(self.template, target_tree, dict(running))

        def loss(tree: Tree) -> tuple[Tensor, tuple[Tensor, Tree]]:
            networks = Networks(self.template, {**everything, **tree}, dict(running))
            if whole:
                value, metrics = self.algorithm.loss(networks, target_networks, batch)
            else:
                value, metrics = self.algorithm.critic_loss(networks, target_networks, batch)
            numbers = [metrics[n].detach() if n in metrics else value.new_zeros(()) for n in self.algorithm.metrics]
            if self.late:
                numbers.append(value.new_full((), float(whole)))
            told = torch.stack(numbers)
            return value, (told if row is None else torch.cat([told, metrics["td_error"]]), networks.statistics)

        trained = {name: each for name, each in everything.items() if whole or name not in self.late}
        tree, (metrics, running) = self._gradient(loss, trained)
        seen: tuple[Tensor, ...] = ()
        if row is not None:
            count = old["sums"].shape[-1]
            metrics, seen = metrics[:count], (row, metrics[count:])
        slope = [self.layout.flatten(tree, self._stop(whole)), metrics]
        if "statistics" in old:
            slope.append(self.statistics_layout.flatten(running))
        return slope, seen

    def _stop(self, whole: bool) -> int:
        """Returns where in the vector of parameters those end that are learned."""
        return self.groups[-1 if whole else 0].stop

    def _moved(
        self, whole: bool, slope: Sequence[Tensor], learned: Sequence[Tensor], observation: Tensor, time: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns one seed's learned numbers after a step along a gradient, and its next actions."""
        old, (gradient, metrics, *running) = dict(zip(self.tensors, learned, strict=True)), slope
        new = self._adam(gradient, old, self.groups if whole else self.groups[:1])
        if self.algorithm.projects:
            moved = self.layout.unflatten(new["parameters"])
            trained = {name: each for name, each in moved.items() if whole or name not in self.late}
            new["parameters"] = self.layout.flatten({**moved, **self.algorithm.project(self.template, trained)})
        new["sums"] = old["sums"] + metrics
        if "targets" in old:
            present = torch.cat([new["parameters"][self.layout.spans[name]] for name in self.algorithm.targeted])
            new["targets"] = torch.lerp(old["targets"], present, self.target_average)
        if running:
            new["statistics"] = running[0]
        action = self._drawn(new["parameters"], new.get("statistics"), observation, time)
        return (*(new[name] for name in self.tensors), action)

    def _adam(self, gradient: Tensor, old: Mapping[str, Tensor], groups: Sequence[slice]) -> dict[str, Tensor]:
        """Returns parameters and moments after a step of Adam on the first groups; the others stay as they are.

        Kingma & Ba (2015, arXiv:1412.6980), algorithm 1, over all modules of a group at once.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in _ADAM}
        for index, group in enumerate(groups):
            first, second = old["decays"][2 * index : 2 * index + 2].unbind()
            decays = torch.stack([decay * beta for decay, beta in zip((first, second), self.betas, strict=True)])
            slope = gradient[group]
            first_moment = _normal(torch.lerp(old["first_moment"][group], slope, 1 - self.betas[0]))
            second_moment = _normal(torch.lerp(old["second_moment"][group], slope.square(), 1 - self.betas[1]))
            scale = (second_moment / (1 - decays[1])).sqrt() + _EPSILON
            parameters = old["parameters"][group] - self.learning_rate * (first_moment / (1 - decays[0])) / scale
            for name, part in zip(_ADAM, (parameters, first_moment, second_moment, decays), strict=True):
                parts[name].append(part)
        for name, found in parts.items():
            rest = old[name][2 * len(groups) if name == "decays" else groups[-1].stop :]
            found += [rest] if len(rest) else []
        return {name: found[0] if len(found) == 1 else torch.cat(found) for name, found in parts.items()}

    def _gradient(self, loss: Callable[[Tree], tuple[Tensor, Any]], tree: Tree) -> tuple[Tree, Any]:
        """Returns the gradient of a loss, and what the loss returns beside it."""
        if self.num_seeds > 1:
            return torch.func.grad(loss, has_aux=True)(tree)
        # The same numbers; and it knows functions that torch.func refuses, such as PyTorch's draws of a Beta.
        with torch.enable_grad():
            leaves = {
                module: {name: value.detach().requires_grad_() for name, value in parameters.items()}
                for module, parameters in tree.items()
            }
            value, aside = loss(leaves)
            flat = [value for parameters in leaves.values() for value in parameters.values()]
            gradients = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
        return {module: {name: next(gradients) for name in names} for module, names in leaves.items()}, aside


_ADAM = ("parameters", "first_moment", "second_moment", "decays")
_ACTING = ("parameters", "statistics")
"""What a policy is drawn from."""


def statistics(modules: Mapping[str, nn.Module]) -> Tree:
    """Returns the running statistics of modules that have any, by module and name."""
    found = {name: statistics_of(module) for name, module in modules.items()}
    return {name: each for name, each in found.items() if each}


def _normal(values: Tensor) -> Tensor:
    """Returns the values with 0 for those below the normal range of floating-point numbers.

    The moments of a unit that has died decay into that range and stay there, where a processor takes ten
    times as long for every operation.
    """
    limits = torch.finfo(values.dtype)
    shift = 2 * limits.tiny / limits.eps  # what is lost beside it is less than the smallest normal number
    return (values + shift) - shift
