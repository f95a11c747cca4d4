"""Path consistency and trajectory balance, as pure functions of time-major tensors.

At the causal optimum every step of every trajectory has ``V(s) = r/α + log p(a|s) - log π(a|s) + γ V(s')``, in nats, on
average over the next state. Where dynamics are deterministic it needs no average and adds up along whole trajectories,

    log Z(s_0) = Σ_t γ^t (r_t/α + log p(a_t|s_t) - log π(a_t|s_t)),      log Z(s_0) = V(s_0)

whoever drew the actions: its square is a loss that is right off-policy. Terms ``c_t`` and values ``v_t = γ^t V(s_t)/α``
are scaled as in :mod:`rl_as_inference.objectives.estimators`, and 0 behind the end.

Nachum, Norouzi, Xu & Schuurmans (2017, arXiv:1702.08892); Malkin, Jain, Bengio, Sun & Bengio (2022, arXiv:2201.13259).
"""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.histories import Histories, History
from rl_as_inference.nouns import Policy, SoftV, takes_all_steps
from rl_as_inference.objectives.action_steps import over_time
from rl_as_inference.objectives.estimators import return_to_go
from rl_as_inference.trajectories import Trajectories

__all__ = [
    "log_partition_variance",
    "log_policy_of",
    "path_consistency_loss",
    "path_residuals",
    "squared_residuals",
    "trajectory_balance",
]


def trajectory_balance(log_z: Tensor, terms_t: Tensor) -> Tensor:
    """Returns the mean of ``(log Z(s_0) - Σ_t c_t)²``, a number in nats².

    Malkin et al. (2022, arXiv:2201.13259), equation 14, whose ``P_F`` is the policy, and whose ``P_B`` and reward are
    the action prior and optimality factors of all steps together.

    Args:
        log_z: ``(*batch,)``, or one number for all, nats.
        terms_t: ``(T, *batch)``, nats.

    Example:
        >>> trajectory_balance(torch.tensor(1.0), torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
        tensor(0.6250)
    """
    return (log_z - terms_t.sum(0)).square().mean()


def log_partition_variance(terms_t: Tensor, starts: Tensor | None = None, correction: int = 1) -> Tensor:
    """Returns the variance of ``Σ_t c_t`` among trajectories of one start, averaged over trajectories, nats².

    Trajectory balance with ``log Z`` at its best for the batch: the log-variance loss, VarGrad (Richter et al. 2020,
    arXiv:2010.10436; Zhang et al. 2023, arXiv:2302.05446). On-policy with γ = 1 half its gradient is minus that of the
    ELBO, on average, with the mean of the other trajectories as baseline (Malkin et al. 2023, arXiv:2210.00580).

    Args:
        terms_t: ``(T, N)``, nats.
        starts: which of them start alike, ``(N,)`` integers from 0; all by default. Of one alone nothing is learned.
        correction: as of :func:`torch.var`: 1 for the unbiased variance.

    Example:
        >>> log_partition_variance(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([0, 0, 1]))
        tensor(0.3333)
    """
    weight = terms_t.sum(0)
    if starts is None:
        starts = torch.zeros_like(weight, dtype=torch.long)
    # As many places as trajectories: no start is counted on the host.
    zero = torch.zeros_like(weight)
    counts = zero.scatter_add(0, starts, torch.ones_like(weight))
    means = zero.scatter_add(0, starts, weight) / counts.clamp(min=1)
    larger = counts / (counts - correction).clamp(min=1)
    return ((weight - means[starts]).square() * larger[starts]).mean()


def path_residuals(values_t: Tensor, terms_t: Tensor, n: int = 1) -> Tensor:
    """Returns ``v_t - Σ_{k < n} c_{t+k} - v_{t+n}``, ``(T, *batch)`` in nats, the last value held fixed.

    Nachum et al. (2017, arXiv:1702.08892), equation 15, but for the value at the end of the path, through which no
    gradient passes. In the policy's gradient the residual is linear in what follows, so that luck averages out.
    In that of the squared residual in ``V(s')`` it would not: the square adds the variance of ``γ V(s')``, and makes
    values too flat (the double sampling of residual gradients, Baird 1995).

    Args:
        values_t: ``(T, *batch)``; the value after the last step is 0.
        terms_t: ``(T, *batch)``.
        n: the length of a path, ≥ 1. Above 1 it is right for deterministic dynamics alone.

    Raises:
        ValueError: if shapes do not fit, or n < 1.

    Example:
        >>> path_residuals(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.5]))
        tensor([1.0000, 0.5000])
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer >= 1, got {n!r}")
    if values_t.shape != terms_t.shape:
        raise ValueError(
            f"values_t must have the shape of terms_t, {tuple(terms_t.shape)}, got {tuple(values_t.shape)}"
        )
    n = min(n, len(terms_t))
    behind = torch.zeros_like(terms_t[:n])
    to_go = return_to_go(terms_t)
    onward = torch.cat([values_t[n:].detach(), behind])
    return values_t - (to_go - torch.cat([to_go[n:], behind])) - onward


def squared_residuals(
    terms_t: Tensor, weights_t: Tensor, values_t: Tensor | None = None, n: int = 1, starts: Tensor | None = None
) -> Tensor:
    """Returns ``½ Σ`` of squared residuals over all trajectories, a number in nats².

    Its gradient on-policy is minus that of the ELBO: for whole trajectories where γ = 1, for single steps where the
    values are the policy's own.

    Args:
        terms_t: ``c_t``, ``(T, N)``, with its gradient in the policy.
        weights_t: ``γ^t`` where the trajectory is alive, 0 elsewhere, ``(T, N)``: a step's square counts as much.
        values_t: ``γ^t V(s_t)/α``, ``(T, N)``. None for :func:`log_partition_variance`.
        n: the length of a path; from T on whole trajectories, with the first value as ``log Z(s_0)``.
        starts: as of :func:`log_partition_variance`.
    """
    if values_t is None:
        return log_partition_variance(terms_t, starts) * terms_t.shape[1] / 2
    if n >= len(terms_t):
        return trajectory_balance(values_t[0], terms_t) * terms_t.shape[1] / 2
    safe = torch.where(weights_t > 0, weights_t, 1.0)
    residuals = torch.where(weights_t > 0, path_residuals(values_t, terms_t, n), 0.0)
    return (residuals.square() / safe).sum() / 2


def path_consistency_loss(
    policy: Policy, trajectories: Trajectories, critic: SoftV | None = None, n: int | None = None
) -> Tensor:
    """Returns the mean of ``½ Σ`` of squared residuals over trajectories that anybody drew, a number in nats².

    Differentiable in the policy and in the critic. Whether the dynamics allow whole trajectories is for the caller to
    know; :func:`rl_as_inference.fit` asks.

    Args:
        policy: ``(state, t) -> Distribution``.
        trajectories: of any policy that takes every action now and then, of ``N`` ≥ 2 without a critic.
        critic: a soft V, ``(state, t)`` in reward units. None takes the variance among trajectories of one start.
        n: the length of a path, for a critic; None is 1, single steps.

    Raises:
        ValueError: if no two trajectories start alike and there is no critic.

    Example:
        >>> from rl_as_inference.models import gridworld
        >>> from rl_as_inference.guides import TabularPolicy
        >>> mdp, _ = gridworld(), torch.manual_seed(0)
        >>> loss = path_consistency_loss(TabularPolicy(mdp.num_states, 4), mdp.rollout(None, 100))
        >>> loss.requires_grad
        True
    """
    log_policy = log_policy_of(policy, trajectories)
    weights = trajectories.scales * trajectories.mask
    factors = trajectories.log_factors + trajectories.log_prior
    terms = torch.where(trajectories.mask, trajectories.scales * (factors - log_policy), 0.0)
    values, starts = None, None
    if critic is None:
        starts = alike(trajectories.states[0], trajectories.rewards[0].shape)
    else:
        found = over_time(
            critic, trajectories.states[: trajectories.horizon], range(trajectories.horizon), trajectories.views()
        )
        values = torch.where(trajectories.mask, weights * found / trajectories.temperature, 0.0)
    return squared_residuals(terms, weights, values, n or 1, starts) / trajectories.num_trajectories


def log_policy_of(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Returns ``log π(a_t|s_t)`` of trajectories that anybody drew, ``(T, N)`` in nats; 0 behind the end."""
    seen, actions = trajectories.views(), trajectories.actions
    return torch.where(trajectories.mask, log_policy_at(policy, seen, range(len(actions)), actions), 0.0)


def log_policy_at(policy: Policy, seen: Any, times: Any, actions: Tensor) -> Tensor:
    """Returns ``log π(a_t|s_t)``, ``(T, N)`` in nats, of what was seen and done at each of the times."""
    if takes_all_steps(policy) and isinstance(seen, Tensor | Histories):
        steps = torch.as_tensor(list(times), device=actions.device)[:, None].expand(actions.shape[:2])
        return policy(seen, steps).log_prob(actions)
    rows = [policy(view, t).log_prob(action) for t, view, action in zip(times, seen, actions, strict=True)]
    return torch.stack(rows)


def alike(first: Any, batch: torch.Size, ranks: Ranks = ALONE) -> Tensor:
    """Returns which trajectories start alike, integers from 0 of the flattened batch, from their first states.

    The batch is that of all ranks, one after the other.

    Args:
        first: states ``(*batch, *state)``, or one for all; where states are hidden the history before the first action.
        batch: the shape of the batch.
        ranks: of whose batches this is one.

    Raises:
        ValueError: if no two of them do.
    """
    first = first.latest if isinstance(first, History) else first
    if not isinstance(first, Tensor):
        raise ValueError(
            f"critic: which trajectories start alike is told by states that are tensors, got {type(first).__name__}; "
            f"pass critic=(state, t) -> soft V in reward units"
        )
    count = batch.numel()
    rows = first.reshape(count, -1) if first.shape[: len(batch)] == batch else first.new_zeros(count, 1)
    _, starts = ranks.whole(rows).unique(dim=0, return_inverse=True)
    if torch.is_grad_enabled() and int(starts.max()) == len(starts) - 1:
        raise ValueError(
            "critic: no two trajectories start in the same state, so that log Z(s_0) has to be learned; pass "
            "critic=(state, t) -> soft V in reward units"
        )
    return starts
