"""Modules called on parameters that are given, and the temperature as a module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rl_as_inference.agents.parameters import Tree
from rl_as_inference.batch_norm import RewardScale, learning_statistics
from rl_as_inference.factored import FactoredCategorical, JointCategorical

__all__ = ["Multiplier", "Networks", "Temperature", "log_probabilities"]


class Networks:
    """Modules called on parameters that are given: ``networks("critics", state, action)``.

    Args:
        modules: by name.
        tree: their parameters.
        statistics: running statistics of their normalisation layers; what :meth:`learning` moves is put in their place.
    """

    def __init__(self, modules: Mapping[str, nn.Module], tree: Tree, statistics: Tree | None = None) -> None:
        self.modules, self.tree = modules, tree
        self.statistics: Tree = {} if statistics is None else statistics

    def __call__(self, name: str, *args: Any) -> Any:
        return functional_call(self.modules[name], {**self.tree[name], **self.statistics.get(name, {})}, args)

    def learning(self, name: str, *args: Any) -> Any:
        """Returns what a call does, normalised by the batch itself, from which running statistics learn.

        It is the same as a plain call of a module without such layers.
        """
        with learning_statistics(self.modules[name]) as moved:
            answer = self(name, *args)
        if moved:
            self.statistics[name] = {**self.statistics.get(name, {}), **moved}
        return answer

    def frozen(self) -> Networks:
        """Returns the same networks, through which no gradient reaches their parameters."""
        tree = {
            name: {key: value.detach() for key, value in parameters.items()} for name, parameters in self.tree.items()
        }
        return Networks(self.modules, tree, dict(self.statistics))


class Temperature(nn.Module):
    """The temperature α in reward units per nat, positive by its logarithm; a fixed one has no parameter.

    Args:
        value: where it starts.
        learned: whether there is a parameter.
        scaled: what is learned is α in units of a scale of rewards, which is 1 until it is told, and moves α with it.

    Example:
        >>> round(float(Temperature(0.2, learned=False)()), 6), len(list(Temperature(0.2, learned=True).parameters()))
        (0.2, 1)
    """

    log_temperature: Tensor

    def __init__(self, value: float, *, learned: bool, scaled: bool = False) -> None:
        super().__init__()
        self.reward_scale = RewardScale() if scaled else None
        log = torch.tensor(math.log(value), dtype=torch.float64)  # rounded by a later .to() only, if at all
        if learned:
            self.log_temperature = nn.Parameter(log)
        else:
            self.register_buffer("log_temperature", log)

    def forward(self) -> Tensor:
        alpha = self.log_temperature.exp()
        return alpha if self.reward_scale is None else self.reward_scale.value * alpha


class Multiplier(nn.Module):
    """Positive numbers that are learned at a pace of their own, such as Lagrange's of constraints.

    The parameter is ``log λ / pace``: a step of Adam's moves ``log λ`` by ``pace`` times the learning rate.

    Args:
        value: where they start.
        shape: how many.
        pace: how many times faster than other parameters their logarithms move.
        bounds: between which they stay. A constraint that does not bind would else send its multiplier so near to 0
            that it is far from there when it is needed, and one that cannot be met to infinity.

    Example:
        >>> Multiplier(10.0, (2,), pace=30.0)().detach()
        tensor([10.0000, 10.0000], dtype=torch.float64)
    """

    def __init__(
        self, value: float, shape: tuple[int, ...] = (), *, pace: float, bounds: tuple[float, float] = (1e-6, 1e9)
    ) -> None:
        super().__init__()
        self.pace, self.bounds = pace, (math.log(bounds[0]), math.log(bounds[1]))
        self.slow_log = nn.Parameter(torch.full(shape, math.log(value) / pace, dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.pace * self.slow_log).clamp(*self.bounds).exp()

    def excess(self, slow_log: Tensor) -> Tensor:
        """Returns half the squared distance of logarithms from their bounds: a loss that brings them back."""
        log = self.pace * slow_log
        return 0.5 * (log - log.clamp(*self.bounds)).square().sum()


def log_probabilities(
    chosen: Any, num_actions: int, device: torch.device | str | None = None, actions: Tensor | None = None
) -> Tensor:
    """Returns the log probabilities of all discrete actions, ``(*batch, num_actions)`` in nats.

    By the distribution's ``logits`` where they are those of a categorical, else by its ``log_prob``.

    Args:
        chosen: the distributions.
        num_actions: how many actions there are.
        device: where.
        actions: all of them, ``(num_actions, *action)``; None for integers from 0.

    Example:
        >>> log_probabilities(torch.distributions.Categorical(torch.tensor([0.25, 0.75])), 2).exp()
        tensor([0.2500, 0.7500])
    """
    if isinstance(chosen, FactoredCategorical | JointCategorical):
        return chosen.joint_logits
    logits = getattr(chosen, "logits", None)
    if isinstance(logits, Tensor) and logits.shape == (*chosen.batch_shape, num_actions):
        return logits.log_softmax(-1)
    every = torch.arange(num_actions, device=device) if actions is None else actions
    values: Tensor = chosen.log_prob(every.reshape(num_actions, *(1 for _ in chosen.batch_shape), *every.shape[1:]))
    return values.movedim(0, -1)
