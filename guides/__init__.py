"""Amortized policies, one family a file. Each is a module ``(state, t) -> Distribution``."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
from torch import nn

from rl_as_inference.guides.categorical import CategoricalPolicy, TabularPolicy
from rl_as_inference.guides.energy_based import EnergyBasedPolicy, SoftmaxPolicy, SteinSampler
from rl_as_inference.guides.gaussian import GaussianPolicy, TanhGaussianPolicy, TanhNormal
from rl_as_inference.guides.linear_gaussian import LinearGaussianPolicy
from rl_as_inference.guides.mixture import TanhGaussianMixturePolicy, TanhNormalMixture
from rl_as_inference.nouns import Process
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP

__all__ = [
    "CategoricalPolicy",
    "EnergyBasedPolicy",
    "GaussianPolicy",
    "LinearGaussianPolicy",
    "SoftmaxPolicy",
    "SteinSampler",
    "TabularPolicy",
    "TanhGaussianMixturePolicy",
    "TanhGaussianPolicy",
    "TanhNormal",
    "TanhNormalMixture",
    "amortized_policy",
]


def amortized_policy(process: Process, *, hidden_sizes: Sequence[int] = (64, 64)) -> nn.Module:
    """Returns a policy that fits the process's spaces and sees state and time.

    Discrete actions get a :class:`CategoricalPolicy`, the unit box a :class:`TanhGaussianPolicy`,
    unbounded actions a :class:`GaussianPolicy`. A :class:`LinearGaussianMDP` gets the family that
    holds its optimum, a :class:`LinearGaussianPolicy`.

    Args:
        process: a process, or anything with ``state_space``, ``action_space`` and ``horizon``; a Pyro
            program through :func:`rl_as_inference.processes.as_process`.
        hidden_sizes: widths of the hidden layers.

    Raises:
        ValueError: if the process lacks these, or there is no policy for its action space.
    """
    # Statically: an error inside a program that is asked for its spaces must show as what it is.
    if any(inspect.getattr_static(process, name, None) is None for name in ("state_space", "action_space")):
        raise ValueError(
            "process must have state_space and action_space for a policy to be chosen; pass a policy of your own"
        )
    state_space: Any = process.state_space
    action_space: Any = process.action_space
    options: dict[str, Any] = {"horizon": process.horizon, "hidden_sizes": hidden_sizes}
    policy: nn.Module
    if isinstance(action_space, gymnasium.spaces.Discrete):
        prior = None  # a program says its prior nowhere but in its sites
        if isinstance(process, MarkovDecisionProcess) and not process.has_uniform_prior:
            prior = process.prior_at
        policy = CategoricalPolicy(state_space, int(action_space.n), prior=prior, **options)
    elif isinstance(action_space, gymnasium.spaces.Box):
        size = math.prod(action_space.shape)
        if action_space.shape == ():
            raise ValueError("action_space Box(shape=()) has no policy here; use shape (1,), one action as an event")
        if isinstance(process, LinearGaussianMDP):
            spread = float(process.action_prior_cov.detach().diagonal().mean().sqrt())
            states = math.prod(state_space.shape)
            policy = LinearGaussianPolicy(states, size, horizon=process.horizon, initial_scale=spread)
        elif bool((action_space.low == -1).all() and (action_space.high == 1).all()):
            policy = TanhGaussianPolicy(state_space, size, **options)
        else:
            policy = GaussianPolicy(state_space, size, **options)
    else:
        raise ValueError(f"action_space must be Discrete or Box, got {action_space}")
    if not isinstance(process, MarkovDecisionProcess):
        return policy
    like = process.initial_probabilities if isinstance(process, TabularMDP) else process.begin(1)
    return policy.to(device=like.device, dtype=like.dtype) if like.is_floating_point() else policy
