"""The ELBO beside the SAC objective, the largest ELBO and the log evidence."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.objectives.estimate import Estimate
from rl_as_inference.objectives.soft_critics import exact_soft_value
from rl_as_inference.processes.programs import as_process
from rl_as_inference.tables import render
from rl_as_inference.trajectories import Trajectories

__all__ = ["ActionRule", "Comparison", "compare"]


@dataclass(frozen=True)
class ActionRule:
    """What one way of acting earns, and what the model that it comes from expects.

    Attributes:
        name: whose rule it is.
        expected_return: ``E Σ_t γ^t r_t`` in the process as it is, in reward units.
        believed_return: what its own posterior expects, luck included, in reward units.
        elbo: in nats.
    """

    name: str
    expected_return: float
    believed_return: float
    elbo: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns; every value that cannot be computed is None.

    ``log p(O) - ELBO(π) = dynamics gap + policy gap``, both ≥ 0.

    Attributes:
        problem: the process's name.
        num_trajectories: how many rollouts the estimates are from.
        temperature: α, in reward units per nat.
        discount: γ.
        elbo: by rollouts, in nats.
        elbo_standard_error: of the same, in nats.
        elbo_exact: by messages, in nats.
        elbo_critic: by the critic at the first state, in nats. A critic that knows no time limit (a
            learner's) also values what comes after the last step; its value of the last state of a
            trajectory that was cut off is taken away, so that it speaks of the same steps.
        critic_difference: ``elbo_critic - elbo``, in nats: what the critic believes too much.
        sac_objective: ``E Σ_t γ^t (r_t - α log π)``, in reward units, by the same rollouts.
        sac_standard_error: of the same, in reward units.
        prior_term: ``-α E Σ_t γ^t log p(a_t|s_t)``, in reward units: what separates the two,
            ``sac_objective = α elbo + prior_term``.
        expected_return: ``E Σ_t γ^t r_t``, in reward units, by the same rollouts.
        entropy: ``-E Σ_t γ^t log π(a_t|s_t)``, in nats, by the same rollouts.
        optimal_elbo: the largest ELBO of any policy, in nats.
        log_evidence: ``log p(O)``, in nats.
        dynamics_gap: ``log p(O) - max ELBO``, in nats: the price of not bending luck.
        policy_gap: ``max ELBO - ELBO(π)``, in nats (exact): what training or the family left.
        rules: for processes with exact answers, what each way of acting earns.
    """

    problem: str
    num_trajectories: int
    temperature: float
    discount: float
    elbo: float
    elbo_standard_error: float
    elbo_exact: float | None
    elbo_critic: float | None
    critic_difference: float | None
    sac_objective: float
    sac_standard_error: float
    prior_term: float
    expected_return: float
    entropy: float
    optimal_elbo: float | None
    log_evidence: float | None
    dynamics_gap: float | None
    policy_gap: float | None
    rules: tuple[ActionRule, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain numbers, strings and lists, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Returns the comparison as a table for people to read."""
        error = f"± {self.elbo_standard_error:.2g}"
        rows = [
            ("ELBO of the guide, by rollouts", _number(self.elbo), "nats", error),
            ("ELBO of the guide, exact", _number(self.elbo_exact), "nats", ""),
            ("ELBO of the guide, by its critic", _number(self.elbo_critic), "nats", ""),
            ("  critic - rollouts", _number(self.critic_difference), "nats", "what the critic believes too much"),
            ("largest ELBO (causal)", _number(self.optimal_elbo), "nats", "what control can reach"),
            ("log evidence log p(O)", _number(self.log_evidence), "nats", "what luck could reach"),
            ("dynamics gap", _number(self.dynamics_gap), "nats", "log p(O) - largest ELBO"),
            ("policy gap", _number(self.policy_gap), "nats", "largest ELBO - ELBO of the guide"),
            None,
            ("SAC objective", _number(self.sac_objective), "reward", f"± {self.sac_standard_error:.2g}"),
            ("  = α · ELBO", _number(self.temperature * self.elbo), "reward", f"α = {self.temperature:.6g}"),
            ("  + action-prior term", _number(self.prior_term), "reward", "-α E Σ γ^t log p(a|s)"),
            ("expected return", _number(self.expected_return), "reward", f"γ = {self.discount:.6g}"),
            ("policy entropy", _number(self.entropy), "nats", "-E Σ γ^t log π(a|s)"),
        ]
        shown = [row for row in rows if row is None or row[1] != ""]
        title = f"{self.problem}: ELBO and SAC objective, {self.num_trajectories:,} rollouts"
        text = render(title, ("quantity", "value", "unit", ""), shown, right=(1,))
        if not self.rules:
            return text
        rules = [
            (rule.name, _number(rule.elbo), _number(rule.expected_return), _number(rule.believed_return))
            for rule in self.rules
        ]
        header = ("who acts", "ELBO (nats)", "return it gets (reward)", "return it expects (reward)")
        return text + render(
            "The dynamics gap: what each action rule gets, run in the process", header, rules, right=(1, 2, 3)
        )


def compare(
    process: Any,
    policy: Any,
    *,
    num_trajectories: int = 4096,
    critic: Any = None,
) -> Comparison:
    """Returns the trajectory ELBO of ``policy`` beside SAC's objective and the exact ceilings.

    Args:
        process: a process, or a Pyro program without arguments.
        policy: a callable ``(state, t) -> Distribution``; None for the action prior.
        num_trajectories: rollouts for the estimates, ≥ 2.
        critic: soft values in reward units, ``(state, t)`` to one value a state (soft V) or one an
            action (soft Q); adds the ELBO as the critic sees it. A learner's critic has its own
            temperature and discount: a :class:`GymnasiumProcess` without any takes them over.

    Raises:
        ValueError: if there are too few trajectories, the critic's answer has another shape, or it
            was learned at another temperature or discount than the process has, or for another
            objective than the ELBO.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> comparison = compare(mdp, exact.plan(mdp), num_trajectories=100)
        >>> round(comparison.log_evidence, 3), abs(comparison.policy_gap) < 1e-6
        (2.48, True)
    """
    if num_trajectories < 2:
        raise ValueError(f"num_trajectories must be >= 2 for a standard error, got {num_trajectories}")
    process = _with_critic(as_process(process), critic)
    with torch.no_grad():
        draws, cut_off = _rollout(process, policy, num_trajectories)
        alpha, scales = draws.temperature, draws.scales
        elbo = Estimate.of(draws.log_weight())
        sac = Estimate.of((scales * (draws.rewards - alpha * draws.log_policy)).sum(0))
        prior_term = float((-alpha * scales * draws.log_prior).sum(0).mean())
        entropy = float((-scales * draws.log_policy).sum(0).mean())
        earned = float(draws.returns(discounted=True).mean())
        elbo_critic = None if critic is None else _elbo_by_critic(process, policy, critic, draws, cut_off)
        ceilings = _exact_values(process, policy)
    return Comparison(
        problem=str(getattr(process, "name", type(process).__name__)),
        num_trajectories=num_trajectories,
        temperature=float(alpha),
        discount=float(draws.discount),
        elbo=elbo.mean,
        elbo_standard_error=elbo.standard_error,
        elbo_critic=elbo_critic,
        critic_difference=None if elbo_critic is None else elbo_critic - elbo.mean,
        sac_objective=sac.mean,
        sac_standard_error=sac.standard_error,
        prior_term=prior_term,
        expected_return=earned,
        entropy=entropy,
        **ceilings,
    )


def _exact_values(process: Any, policy: Any) -> dict[str, Any]:
    """Returns the rows that need exact answers, each None where there are none."""
    empty = dict.fromkeys(("elbo_exact", "optimal_elbo", "log_evidence", "dynamics_gap", "policy_gap"))
    if not exact.is_available(process):
        return {**empty, "rules": ()}
    try:
        elbo: float | None = float(exact.elbo(process, policy))
    except ValueError:  # a policy without a linear-Gaussian form, say: its rows stay empty
        elbo = None
    causal = exact.plan(process, "causal")
    best = float(causal.objective)
    try:
        bent = exact.plan(process, "posterior")
    except ValueError:  # with no horizon the evidence may be infinite where the ELBO is not
        bent = None
    evidence = None if bent is None else float(bent.objective)
    rules = []
    for name, rule in (("the guide", policy), ("exact causal posterior", causal), ("exact posterior", bent)):
        if (rule is policy and elbo is None) or (name == "exact posterior" and rule is None):
            continue
        gets = float(exact.expected_return(process, rule))
        believes = float(exact.posterior_return(process)) if name == "exact posterior" else gets
        rules.append(ActionRule(name, gets, believes, float(exact.elbo(process, rule))))
    gets = float(exact.expected_return(process, None))
    rules.append(ActionRule("action prior", gets, gets, float(exact.elbo(process, None))))
    return {
        "elbo_exact": elbo,
        "optimal_elbo": best,
        "log_evidence": evidence,
        "dynamics_gap": None if evidence is None else evidence - best,
        "policy_gap": None if elbo is None else best - elbo,
        "rules": tuple(rules),
    }


def _with_critic(process: Any, critic: Any) -> Any:
    """Returns the process at the critic's temperature and discount, where it has none of its own."""
    objective = getattr(critic, "objective", "maxent")
    if objective != "maxent":
        raise ValueError(
            f"critic was learned with objective={objective!r}, whose values are not those of the ELBO; leave critic out"
        )
    if hasattr(process, "adopt"):
        return process if critic is None else process.adopt(critic)
    for name in ("temperature", "discount"):
        learned, given = getattr(critic, name, None), getattr(process, name, None)
        if learned is None or given is None:
            continue
        if abs(float(learned) - float(given)) > 1e-6 * max(abs(float(given)), 1e-12):
            mend = (
                "compare process.at_temperature(agent.temperature)" if name == "temperature" else "give both the same"
            )
            raise ValueError(
                f"critic was learned with {name} {float(learned):.6g}, and the process has {float(given):.6g}; {mend}"
            )
    return process


def _rollout(process: Any, policy: Any, num_trajectories: int) -> tuple[Trajectories, Tensor]:
    """Returns trajectories, and which of them would have gone on after their last step, ``(N,)`` bool."""
    if hasattr(process, "rollout_with_ends"):
        draws, cut_off = process.rollout_with_ends(policy, num_trajectories)
        return draws, cut_off
    draws = process.rollout(policy, num_trajectories)
    done = process.terminated(draws.states[-1]) if hasattr(process, "terminated") else None
    return draws, draws.mask[-1] if done is None else draws.mask[-1] & ~done


def _elbo_by_critic(process: Any, policy: Any, critic: Any, draws: Trajectories, cut_off: Tensor) -> float:
    """Returns ``E V(s_0)/α`` over the steps that the trajectories have."""
    value = _soft_value(process, policy, critic, draws.states[0], draws) / draws.temperature
    if getattr(critic, "stationary", False) and bool(cut_off.any()):
        last = _soft_value(process, policy, critic, draws.states[-1], draws) / draws.temperature
        value = value - draws.discount**draws.horizon * torch.where(cut_off, last, 0.0)
    if getattr(critic, "action_prior", "uniform") == "flat":  # its soft values leave log p out
        value = value + (draws.scales * draws.log_prior).sum(0)
    return float(value.mean())


def _soft_value(process: Any, policy: Any, critic: Any, state: Tensor, draws: Trajectories) -> Tensor:
    """Returns ``V(s)``, or ``E Σ_a π (Q + α (log p - log π))`` where the critic values actions, reward units."""
    value: Tensor = critic(state, 0)
    if value.shape == draws.rewards.shape[1:]:
        return value
    prior = process.prior(state) if hasattr(process, "prior") else None
    chosen = prior if policy is None else policy(state, 0)
    logits = getattr(chosen, "logits", None)
    if prior is None or logits is None or value.shape != logits.shape:
        raise ValueError(
            f"critic must give one value a state, of shape {tuple(draws.rewards.shape[1:])}, or one a discrete "
            f"action; it gave {tuple(value.shape)}"
        )
    return exact_soft_value(value, logits, prior.logits, draws.temperature)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if math.isinf(value):
        return f"{value:.2f}"
    if abs(value) < 1e-9:  # what rounding leaves of a zero
        return "0.0000"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.2e}"
