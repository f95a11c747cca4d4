"""Amortized policies, one family a file. Each is a module ``(state, t) -> Distribution``."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from rl_as_inference.guides.belief import BeliefPolicy
from rl_as_inference.guides.categorical import CategoricalPolicy, TabularPolicy
from rl_as_inference.guides.energy_based import EnergyBasedPolicy, SoftmaxPolicy, SteinSampler
from rl_as_inference.guides.factored import FactoredCategoricalPolicy
from rl_as_inference.guides.flow import FlowPolicy, TanhFlow
from rl_as_inference.guides.gaussian import GaussianPolicy, TanhGaussianPolicy, TanhNormal
from rl_as_inference.guides.heads import policy_for
from rl_as_inference.guides.linear_gaussian import LinearGaussianPolicy
from rl_as_inference.guides.mixture import TanhGaussianMixturePolicy, TanhNormalMixture
from rl_as_inference.guides.recurrent import RecurrentPolicy
from rl_as_inference.nouns import Process
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, PartiallyObservedMDP, TabularMDP
from rl_as_inference.processes.programs import ProgramProcess

__all__ = [
    "BeliefPolicy",
    "CategoricalPolicy",
    "EnergyBasedPolicy",
    "FactoredCategoricalPolicy",
    "FlowPolicy",
    "GaussianPolicy",
    "LinearGaussianPolicy",
    "RecurrentPolicy",
    "SoftmaxPolicy",
    "SteinSampler",
    "TabularPolicy",
    "TanhFlow",
    "TanhGaussianMixturePolicy",
    "TanhGaussianPolicy",
    "TanhNormal",
    "TanhNormalMixture",
    "amortized_policy",
]


def amortized_policy(process: Process, *, hidden_sizes: Sequence[int] = (64, 64)) -> nn.Module:
    """Returns a policy that fits the process's spaces and sees state and time.

    Discrete actions get a :class:`CategoricalPolicy`, several at once (MultiDiscrete, MultiBinary) a
    :class:`FactoredCategoricalPolicy`, the unit box a :class:`TanhGaussianPolicy`, unbounded actions a
    :class:`GaussianPolicy`. A :class:`LinearGaussianMDP` gets the family that holds its optimum, a
    :class:`LinearGaussianPolicy`; a process whose state is hidden a :class:`RecurrentPolicy`.

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
            "process must have state_space and action_space for a policy to be chosen; a Pyro program has them through "
            "rl_as_inference.processes.as_process(program); else pass a policy of your own"
        )
    hidden = isinstance(process, ProgramProcess) and process.sees_history
    state_space: Any = None if hidden else process.state_space
    action_space: Any = process.action_space
    policy: nn.Module
    if isinstance(process, PartiallyObservedMDP):
        policy = RecurrentPolicy.of(process, hidden_sizes=hidden_sizes)
    elif hidden and isinstance(process, ProgramProcess):
        policy = RecurrentPolicy(
            process.observation_space, action_space, horizon=process.horizon, hidden_sizes=hidden_sizes
        )
    elif isinstance(process, LinearGaussianMDP):
        spread = float(process.action_prior_cov.detach().diagonal().mean().sqrt())
        sizes = math.prod(state_space.shape), math.prod(action_space.shape)
        policy = LinearGaussianPolicy(*sizes, horizon=process.horizon, initial_scale=spread)
    else:
        prior = None  # a program says its prior nowhere but in its sites
        if isinstance(process, MarkovDecisionProcess) and not process.has_uniform_prior:
            prior = process.prior_at
        options: dict[str, Any] = {"horizon": process.horizon, "hidden_sizes": hidden_sizes}
        policy = policy_for(state_space, action_space, prior=prior, **options)
    if not isinstance(process, MarkovDecisionProcess):
        return policy
    like = process.initial_probabilities if isinstance(process, TabularMDP) else process.begin(1)
    return policy.to(device=like.device, dtype=like.dtype) if like.is_floating_point() else policy
