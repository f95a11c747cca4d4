"""Critics in comparisons: whether they fit the process, and what they say of a state."""

import torch
from torch import Tensor

from rl_as_inference.nouns import LearnedSoftValue, Policy, Process, SoftValue, has_no_time_limit
from rl_as_inference.objectives.soft_critics import exact_soft_value
from rl_as_inference.processes import GymnasiumProcess, MarkovDecisionProcess
from rl_as_inference.trajectories import Trajectories

__all__ = ["check_critic", "check_plan", "elbo_by_critic"]


def check_critic(process: Process, critic: SoftValue | None) -> Process:
    """Returns the process at the critic's temperature and discount, where it has none of its own.

    Raises:
        ValueError: if the critic is none, or was learned at another temperature or discount, for another objective, or
            from what the process does not give: several observations, or normalised ones.
    """
    if critic is not None and not callable(critic):
        raise ValueError(f"critic must be a callable (state, t) -> V or Q in reward units, or None; got {critic!r}")
    if not isinstance(critic, LearnedSoftValue):
        return process
    if critic.objective != "maxent":
        raise ValueError(
            f"critic was learned with objective={critic.objective!r}, whose values are not those of the ELBO; leave "
            f"critic out"
        )
    if isinstance(process, GymnasiumProcess):
        if getattr(critic, "normalized", False) and not process.has_statistics:
            raise ValueError(
                f"critic was learned from normalised observations or rewards, and {process.name} gives plain ones; "
                f"make it with statistics=agent.envs.statistics(), normalization=agent.arena.normalization"
            )
        if getattr(critic, "windowed", False):
            raise ValueError(
                f"critic values the last observations together (history, frame_stack, memory), and {process.name} "
                f"gives one at a time; agent.evaluate() plays such agents"
            )
        return process.adopt(critic)
    for name, learned, given, mend in (
        ("temperature", critic.temperature, process.temperature, "compare process.at_temperature(agent.temperature)"),
        ("discount", critic.discount, process.discount, "give both the same"),
    ):
        if abs(float(learned) - float(given)) > 1e-6 * max(abs(float(given)), 1e-12):
            raise ValueError(
                f"critic was learned with {name} {float(learned):.6g}, and the process has {float(given):.6g}; {mend}"
            )
    return process


def check_plan(process: Process, own: Tensor, given: Tensor) -> None:
    """Says whether soft values ``given`` of a plan are those that its policy has in ``process``, its ``own``.

    Raises:
        ValueError: if not: it was made for another process, temperature or discount.
    """
    tolerance = 1e-3 if own.dtype == torch.float32 else 1e-6
    far = float((own - given).abs().max())
    if not far <= tolerance * max(float(own.abs().max()), 1.0):
        raise ValueError(
            f"critic is of another process: this plan's soft values differ by {far:.3g} from those that its policy has "
            f"in this one, of temperature {float(process.temperature):.6g} and discount {float(process.discount):.6g}; "
            f"make it by exact.evaluate(process, some_policy), or give its table as a critics.TableCritic to try it"
        )


def elbo_by_critic(
    process: Process,
    policy: Policy | None,
    critic: SoftValue,
    draws: Trajectories,
    cut_off: Tensor,
) -> Tensor:
    """Returns ``V(s_0)/α`` of each trajectory over the steps that it has, ``(N,)`` in nats."""
    value = _soft_value(process, policy, critic, draws.states[0], draws) / draws.temperature
    if has_no_time_limit(critic) and bool(cut_off.any()):
        last = _soft_value(process, policy, critic, draws.states[-1], draws) / draws.temperature
        value = value - draws.discount**draws.horizon * torch.where(cut_off, last, 0.0)
    if isinstance(critic, LearnedSoftValue) and critic.action_prior == "flat":  # its soft values leave log p out
        value = value + (draws.scales * draws.log_prior).sum(0)
    return value


def _soft_value(
    process: Process, policy: Policy | None, critic: SoftValue, state: Tensor, draws: Trajectories
) -> Tensor:
    """Returns ``V(s)``, or ``E Σ_a π (Q + α (log p - log π))`` where the critic values actions, reward units."""
    value = critic(state, 0)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"critic must answer (state, t) with a tensor of soft values, of shape {tuple(draws.rewards.shape[1:])} "
            f"for one a state; it gave {type(value).__name__}"
        )
    if value.shape == draws.rewards.shape[1:]:
        return value
    prior = process.prior_at(state) if isinstance(process, MarkovDecisionProcess | GymnasiumProcess) else None
    chosen = prior if policy is None else policy(state, 0)
    logits = getattr(chosen, "logits", None)
    if prior is None or logits is None or value.shape != logits.shape:
        raise ValueError(
            f"critic must give one value a state, of shape {tuple(draws.rewards.shape[1:])}, or one a discrete "
            f"action; it gave {tuple(value.shape)}"
        )
    return exact_soft_value(value, logits, prior.logits, draws.temperature)
