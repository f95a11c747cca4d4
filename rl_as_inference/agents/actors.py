"""The policies of soft actor-critic: those made here, and those of the user's, which are asked before all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from rl_as_inference.agents.options import ActorGradient
from rl_as_inference.agents.task import Task
from rl_as_inference.factored import FactoredCategorical, JointCategorical
from rl_as_inference.guides import (
    CategoricalPolicy,
    FactoredCategoricalPolicy,
    TanhGaussianMixturePolicy,
    TanhGaussianPolicy,
)
from rl_as_inference.nouns import Policy
from rl_as_inference.state_time_network import Architecture

__all__ = ["Within", "check_actor", "chosen_gradient", "made_actor", "users_actor"]

_LOG_SCALE_BOUNDS = (-20.0, 2.0)
"""Of the Gaussian before squashing, as in soft actor-critic's own code: e² already fills the box's ends."""


def made_actor(
    task: Task,
    *,
    hidden_sizes: Sequence[int],
    components: int,
    architecture: Architecture = "plain",
    log_scale_bounds: tuple[float, float] = _LOG_SCALE_BOUNDS,
) -> nn.Module:
    """Returns a policy for a task: a categorical, one for each factor, a tanh-Gaussian, or a mixture of these.

    Raises:
        ValueError: for a mixture over discrete actions.
    """
    options: dict[str, Any] = {
        "horizon": task.horizon,
        "hidden_sizes": hidden_sizes,
        "activation": "relu",
        "architecture": architecture,
    }
    if not isinstance(task.action_space, gymnasium.spaces.Box):
        if components > 1:
            raise ValueError("policy_components > 1 needs continuous actions; leave it out")
        if task.factors is not None:
            prior = task.prior if task.has_prior else None
            return FactoredCategoricalPolicy(task.state_space, task.factors.sizes, prior=prior, **options)
        prior = None if not task.has_prior else lambda state: _in_dtype(task.prior(state), task.dtype)
        return CategoricalPolicy(task.state_space, task.num_actions, prior=prior, **options)
    options["log_scale_bounds"] = log_scale_bounds
    family: Callable[..., nn.Module] = TanhGaussianPolicy
    if components > 1:
        family, options["num_components"] = TanhGaussianMixturePolicy, components
    return family(task.state_space, (task.action_shape or (1,))[0], **options)


def _in_dtype(prior: Any, dtype: torch.dtype) -> Any:
    return dist.Categorical(logits=prior.logits.to(dtype))


def users_actor(policy: Any) -> nn.Module:
    """Returns a policy of the user's, a module.

    Raises:
        ValueError: if it has nothing to train.
    """
    if not isinstance(policy, nn.Module) or not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError("policy has no parameters to train; pass a module such as those of rl_as_inference.guides")
    return policy


class Within(nn.Module):
    """A policy of the user's, held to what masks allow: its probabilities of that, normalised.

    Args:
        inner: the policy.
        task: whose masks.
    """

    def __init__(self, inner: nn.Module, task: Task) -> None:
        super().__init__()
        self.inner, self._task = inner, task

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        chosen, prior, task = self.inner(state, t), self._task.prior(state), self._task
        if task.is_discrete:
            logits = task.log_policies(chosen) + task.log_policies(prior).to(task.dtype)
            return dist.Categorical(logits=logits) if task.factors is None else JointCategorical(logits, task.factors)
        if not isinstance(chosen, FactoredCategorical):
            return chosen  # which is refused
        logits = chosen.factors.in_row(chosen.log_factors + prior.log_factors)
        return FactoredCategorical(logits, chosen.factors)


def check_actor(task: Task, policy: Policy, state: Tensor, time: Tensor | int) -> Any:
    """Returns the distributions that a policy gives for two states.

    Raises:
        ValueError: if it fails, gives no distribution, or one of another shape than the actions'.
    """
    try:
        chosen = policy(state, time)
    except Exception as error:  # a module of the user's raises anything
        kind = f"{tuple(state.shape)} {str(state.dtype).removeprefix('torch.')}"
        raise ValueError(f"policy fails for two states, {kind}, at t = 0: {error}") from error
    if not isinstance(chosen, torch.distributions.Distribution):
        raise ValueError(f"policy must return a Distribution for (state, t), and returned {type(chosen).__name__}")
    event = task.action_shape
    if tuple(chosen.batch_shape) != (2,) or tuple(chosen.event_shape) != event:
        raise ValueError(
            f"policy gives batch shape {tuple(chosen.batch_shape)} and event shape {tuple(chosen.event_shape)} for "
            f"two states, and the actions {task.action_space} want (2,) and {event}; use .to_event(1) for boxes"
        )
    return chosen


def check_draws(task: Task, policy: Policy, state: Tensor, time: Tensor | int, *, several: bool) -> None:
    """Raises ValueError if a policy of the user's is not over these actions, or cannot be batched over seeds."""
    chosen = policy(state, time)
    kind = type(chosen).__name__
    if task.is_discrete:
        total = task.log_policies(chosen).detach().exp().sum(-1)
        if not bool(((total - 1).abs() < 1e-3).all()):
            raise ValueError(
                f"policy gives {kind} probabilities of {task.action_space} that sum to {float(total[0]):.4g}; it "
                f"must be over these actions, counted from 0"
            )
        return
    if task.factors is not None:
        if not isinstance(chosen, FactoredCategorical) or chosen.sizes != task.factors.sizes:
            raise ValueError(
                f"policy gives {kind} for {task.action_space}, of which there are too many joint actions to sum over; "
                f"give a rl_as_inference.factored.FactoredCategorical of sizes {task.factors.sizes}"
            )
        return
    if bool((chosen.sample((64,)).abs() > 1).any()):
        raise ValueError(
            f"policy gives {kind} draws outside the unit box of normalised actions; squash it, as "
            f"rl_as_inference.guides.TanhGaussianPolicy is"
        )
    if several:
        try:
            torch.func.vmap(lambda state: policy(state, time).sample(), randomness="different")(state[None])
        except RuntimeError as error:
            raise ValueError(
                f"policy: draws of {kind} cannot be batched over seeds; make one agent a seed ({error})"
            ) from error


def chosen_gradient(task: Task, chosen: Any, wanted: ActorGradient | None) -> ActorGradient:
    """Returns how to take the actor's expectation over a policy's distributions: as wanted, or the exactest there is.

    Raises:
        ValueError: if what is wanted is not possible.
    """
    by_components = hasattr(chosen, "rsample_components")
    possible: dict[ActorGradient, bool] = {  # from the exactest on
        "exact_sum": task.is_discrete,
        "factors": isinstance(chosen, FactoredCategorical),
        "components": by_components,
        "pathwise": bool(chosen.has_rsample) and isinstance(task.action_space, gymnasium.spaces.Box),
        "score": True,
    }
    natural = next(gradient for gradient, can in possible.items() if can)
    if wanted is not None and not possible[wanted]:
        raise ValueError(f"actor_gradient={wanted!r} does not go with {type(chosen).__name__}; use {natural!r}")
    return wanted or natural
