"""Agents whose discounting is hyperbolic, and who may or may not know it."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl_as_inference.arguments import checked_but
from rl_as_inference.checks import holds
from rl_as_inference.host import in_turn
from rl_as_inference.processes import TabularMDP

__all__ = ["hyperbolic_policy"]


@checked_but("k", "discount")
@in_turn
def hyperbolic_policy(
    mdp: TabularMDP,
    k: float | Tensor = 1.0,
    *,
    sophisticated: bool = False,
    discount: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Returns the policy of a soft planner who discounts hyperbolically, ``π_t(a|s)``, ``(T, S, A)``.

    Rewards, and the price of deciding, are worth ``δ(d) = 1 / (1 + k d)`` after a delay of ``d`` steps, and the
    delay is counted anew from wherever the agent stands, so that its later selves undo its plans. A naive agent
    believes that they will keep to them; a sophisticated one knows what they will do, and plans around it:

        Q_t^d(s,a) = δ(d) r(s,a) + E_{s'} V_{t+1}^{d+1}(s')
        naive          V_t^d(s) = max_π E_π [Q_t^d + δ(d) α (log p - log π)]
        sophisticated  V_t^d(s) = E_{π_t} [Q_t^d + δ(d) α (log p - log π_t)]
        π_t(a|s) ∝ p(a|s) exp(Q_t^0(s,a) / α)

    The planners are those of Evans, Stuhlmüller, Salvatier & Filan, "Modeling Agents with Probabilistic Programs"
    (agentmodels.org), chapter 5a, with the entropy of maximum-entropy control: at ``k = 0`` both are
    ``exact.plan(mdp).policy``, and differentiable in the process's tensors and in ``k``.

    Args:
        mdp: a process with a horizon; its own discount is not used.
        k: how steeply the near future is preferred, ≥ 0, per step.
        sophisticated: whether the agent foresees its later selves.
        discount: δ as a function of delays ``0 … T``, in place of the hyperbola; δ(0) = 1, and nowhere below 0.

    Raises:
        ValueError: if the process is not a TabularMDP with a horizon, ``k`` is no finite number >= 0, or ``discount``
            gives no such weights.

    Example:
        >>> from rl_as_inference.models import procrastination
        >>> work = procrastination(temperature=0.05)
        >>> hyperbolic_policy(work, 2.0)[0, 0, 1] < hyperbolic_policy(work, 2.0, sophisticated=True)[0, 0, 1]
        tensor(True)
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"mdp must be a TabularMDP, got {type(mdp).__name__}")
    horizon = mdp.finite_horizon("hyperbolic_policy")
    moves = mdp.kernel.dense()
    delays = torch.arange(horizon + 1, dtype=moves.dtype, device=moves.device)
    worth = 1 / (1 + _steepness(k).to(moves) * delays) if discount is None else _worth(discount, delays)
    reward, log_prior, alpha = mdp.expected_reward(), mdp.log_action_prior, mdp.temperature
    # Row d holds what is thought of step t by the self that stood d steps before it, d = 0 … t.
    values = moves.new_zeros(horizon + 1, mdp.num_states)
    policies = []
    for t in reversed(range(horizon)):
        delta = worth[: t + 1, None, None]
        q = delta * reward + torch.einsum("sax,dx->dsa", moves, values[1 : t + 2])
        log_policy = torch.log_softmax(log_prior + q[0] / alpha, -1)
        if sophisticated:
            policy = log_policy.exp()
            price = torch.where(policy > 0, log_policy - log_prior, 0.0)
            values = (policy * (torch.where(policy > 0, q, 0.0) - delta * alpha * price)).sum(-1)
        else:
            scale = torch.where(delta > 0, delta, 1.0) * alpha
            values = scale[..., 0] * torch.logsumexp(log_prior + q / scale, -1)
            if discount is not None:
                # Where nothing is worth anything, deciding costs nothing either: the best is done for what comes after.
                sure = torch.where(log_prior > -torch.inf, q, -torch.inf).amax(-1)
                values = torch.where(delta[..., 0] > 0, values, sure)
        if mdp.has_terminal:
            values = torch.where(mdp.terminal, 0.0, values)
            log_policy = torch.where(mdp.terminal[:, None], log_prior, log_policy)
        policies.append(log_policy.exp())
    return torch.stack(policies[::-1])


def _steepness(k: float | Tensor) -> Tensor:
    try:
        value = torch.as_tensor(k)
    except (TypeError, ValueError, RuntimeError):
        value = torch.empty(0)
    if value.dim() or value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"k must be a finite number >= 0 (how steeply the near future is preferred), got {k!r}")
    if not holds((value >= 0) & value.isfinite()):
        raise ValueError(f"k must be a finite number >= 0 (how steeply the near future is preferred), got {value:g}")
    return value


def _worth(discount: Callable[[Tensor], Tensor], delays: Tensor) -> Tensor:
    if not callable(discount):
        raise ValueError(f"discount must be a function of a tensor of delays, got {discount!r}")
    worth = discount(delays)
    if not isinstance(worth, Tensor) or worth.shape != delays.shape:
        got = tuple(worth.shape) if isinstance(worth, Tensor) else worth
        raise ValueError(f"discount must return a weight for each of {len(delays)} delays, got {got!r}")
    if not holds((worth >= 0) & worth.isfinite()) or not holds((worth[0] - 1).abs() < 1e-6):
        raise ValueError(f"discount must be 1 at delay 0, and finite and >= 0 at others, got {worth.tolist()}")
    return worth.to(delays)
