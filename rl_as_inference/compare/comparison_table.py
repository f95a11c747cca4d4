"""What a comparison says, and the rows in which people read it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Self

from rl_as_inference.compare.identities import Identity
from rl_as_inference.data_frames import UNITS, Frame, frame, units_of
from rl_as_inference.estimate import plus_minus
from rl_as_inference.model_card import Measure
from rl_as_inference.tables import render

__all__ = ["RULES_HEADER", "RULES_TITLE", "ActionRule", "Comparison", "ComparisonRow", "number"]

RULES_TITLE = "The dynamics gap: what each action rule gets, run in the process"
RULES_HEADER = ("who acts", "ELBO (nats)", "return it gets (reward)", "return it expects (reward)")
_TITLES = {
    "elbo_exact": "no exact rows of the guide: ",
    "log_evidence": "no log evidence: ",
    "support": "note: ",
}


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
class ComparisonRow:
    """One row of a comparison, for people to read."""

    field: str
    """The name of the value among the fields of :class:`Comparison`, or ``"scaled_elbo"``, ``α · ELBO``."""
    label: str
    """What it is; two spaces lead where it is a part of the row above."""
    value: float | None
    unit: str
    """``"nats"`` or ``"reward"``."""
    note: str = ""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`compare` returns; every value that cannot be computed is None.

    ``log p(O) - ELBO(π) = dynamics gap + policy gap``, both ≥ 0; where the state is hidden
    ``dynamics gap + information gap + policy gap``. At the prompt it is a line, printed it is the table. Whatever is
    by rollouts has its standard error beside it, in the same unit.

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
        critic_difference: ``elbo_critic - elbo``, in nats: what the critic believes
            too much. Both are of the same trajectories, so that their noise is not that of two.
        sac_objective: ``E Σ_t γ^t (r_t - α log π)``, in reward units, by the same rollouts.
        sac_standard_error: of the same, in reward units.
        prior_term: ``-α E Σ_t γ^t log p(a_t|s_t)``, in reward units: what separates the two,
            ``sac_objective = α elbo + prior_term``.
        expected_return: ``E Σ_t γ^t r_t``, in reward units, by the same rollouts.
        entropy: ``-E Σ_t γ^t log π(a_t|s_t)``, in nats, by the same rollouts.
        optimal_elbo: the largest ELBO of any policy, in nats; where the state is hidden, of any policy of the history.
        log_evidence: ``log p(O)``, in nats.
        dynamics_gap: ``log p(O) - max ELBO``, the state seen, in nats: the price of not bending luck.
        information_gap: the largest ELBO with the state seen less the largest on the history, in nats: what not seeing
            it costs. None where the state is seen.
        policy_gap: ``max ELBO - ELBO(π)``, in nats (exact): what training or the family left.
        family_gap: of the policy gap, ``max ELBO - best ELBO of the family``, in nats, where that is known
            (:func:`rl_as_inference.compare.family.best_of_family`); where it is the best that an optimiser
            found, the family's gap is no larger than this.
        training_gap: the rest of the policy gap, what training left, in nats.
        sac_exact, prior_term_exact, expected_return_exact: as by rollouts, without their noise, in reward units.
        entropy_exact: likewise, in nats.
        action_cost: ``E Σ_t γ^t (log π - log p)``, in nats, by the same rollouts: what the actions' information
            costs, ``α elbo = expected_return - α action_cost``.
        action_cost_exact: likewise, without noise.
        elbo_critic_standard_error: in nats, as the next; None, as all of these, in a comparison written before 0.2.0.
        critic_difference_standard_error: in nats.
        prior_term_standard_error: in reward units.
        expected_return_standard_error: in reward units.
        entropy_standard_error: in nats.
        action_cost_standard_error: in nats.
        identities: every identity among these values that could be asserted, and whether it holds.
        reasons: for a field that is None, why; under ``"support"`` where the policy's actions are not the
            prior's; under ``"family"`` how the family's best was had.
        rules: for processes with exact answers, what each way of acting earns.
        units: of every number here, and in the rules, by name.
    """

    units: ClassVar[Mapping[str, str]]

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
    information_gap: float | None = None
    family_gap: float | None = None
    training_gap: float | None = None
    sac_exact: float | None = None
    prior_term_exact: float | None = None
    expected_return_exact: float | None = None
    entropy_exact: float | None = None
    action_cost: float | None = None
    action_cost_exact: float | None = None
    elbo_critic_standard_error: float | None = None
    critic_difference_standard_error: float | None = None
    prior_term_standard_error: float | None = None
    expected_return_standard_error: float | None = None
    entropy_standard_error: float | None = None
    action_cost_standard_error: float | None = None
    identities: tuple[Identity, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def entropy_bits(self) -> float:
        """The policy's entropy in bits."""
        return self.entropy / math.log(2)

    @property
    def action_cost_bits(self) -> float | None:
        """What the actions' information costs, in bits."""
        return None if self.action_cost is None else self.action_cost / math.log(2)

    @property
    def broken(self) -> tuple[Identity, ...]:
        """The identities that do not hold; none, if all is well."""
        return tuple(identity for identity in self.identities if not identity.holds)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain numbers, strings and lists, for JSON."""
        return asdict(self)

    def to_frame(self) -> Frame:
        """Returns the numbers as a frame of one row, a column a field (see :mod:`rl_as_inference.data_frames`).

        ``pandas.concat`` puts several beneath each other. The rules are apart: ``pandas.DataFrame(self.rules)``.
        """
        apart = ("rules", "identities", "reasons")
        return frame({name: [value] for name, value in vars(self).items() if name not in apart})

    def measures(self) -> list[Measure]:
        """Returns what a card says of the policy: the ELBO, SAC's objective and the return, each with its error."""
        rollouts = f"{self.num_trajectories:,} rollouts"

        def measure(kind: str, label: str, name: str, error: float | None, exactly: float | None) -> Measure:
            if exactly is not None:
                return Measure(kind, label, exactly, UNITS[name], {"over": "exact"})
            sure = {} if error is None or not math.isfinite(error) else {"standard_error": error}
            return Measure(kind, label, getattr(self, name), UNITS[name], {**sure, "over": rollouts})

        discount = "undiscounted" if self.discount == 1 else f"discounted, γ = {self.discount:.6g}"
        earned, error = self.expected_return_exact, self.expected_return_standard_error
        found = [
            measure("mean_reward", f"expected return, {discount}", "expected_return", error, earned),
            measure("elbo", "ELBO", "elbo", self.elbo_standard_error, self.elbo_exact),
            measure("sac_objective", "SAC objective", "sac_objective", self.sac_standard_error, self.sac_exact),
        ]
        exact = {"optimal_elbo": "largest ELBO of any policy", "log_evidence": "log evidence"}
        for name, label in exact.items():
            if (value := getattr(self, name)) is not None:
                found.append(Measure(name, label, value, UNITS[name], {"over": "exact"}))
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Returns the comparison that :meth:`to_dict` gave, or ``comparison.json`` holds: that with ``units``.

        Raises:
            ValueError: if the dictionary is not one of a comparison.
        """
        try:
            rules = tuple(ActionRule(**rule) for rule in found["rules"])
            identities = tuple(Identity(**identity) for identity in found.get("identities", ()))
            own = {name: value for name, value in found.items() if name != "units"}
            return cls(**{**own, "rules": rules, "identities": identities})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a comparison: {type(error).__name__}: {error}") from error

    def blocks(self) -> tuple[tuple[ComparisonRow, ...], ...]:
        """Returns the rows that people read, without those that have no value: in nats, in reward units, information.

        The one list of them; the terminal's table and the report's page both show it.
        """
        alpha, row = self.temperature, ComparisonRow
        spread_of = partial(plus_minus, draws=self.num_trajectories)
        earned = spread_of(self.expected_return_standard_error, self.expected_return)
        evidence = (
            row(
                "elbo",
                "ELBO of the guide, by rollouts",
                self.elbo,
                "nats",
                spread_of(self.elbo_standard_error, self.elbo),
            ),
            row("elbo_exact", "ELBO of the guide, exact", self.elbo_exact, "nats"),
            row(
                "elbo_critic",
                "ELBO of the guide, by its critic",
                self.elbo_critic,
                "nats",
                spread_of(self.elbo_critic_standard_error, self.elbo_critic),
            ),
            row(
                "critic_difference",
                "  critic - rollouts",
                self.critic_difference,
                "nats",
                _noted(
                    spread_of(self.critic_difference_standard_error, self.elbo_critic, self.elbo),
                    "what the critic believes too much",
                ),
            ),
            row(
                "optimal_elbo",
                "largest ELBO (causal)" if self.information_gap is None else "largest ELBO on the history",
                self.optimal_elbo,
                "nats",
                "what control can reach",
            ),
            row("log_evidence", "log evidence log p(O)", self.log_evidence, "nats", "what luck could reach"),
            row(
                "dynamics_gap",
                "dynamics gap",
                self.dynamics_gap,
                "nats",
                "log p(O) - largest ELBO" + ("" if self.information_gap is None else ", the state seen"),
            ),
            row("information_gap", "information gap", self.information_gap, "nats", "largest ELBO, seen - hidden"),
            row("policy_gap", "policy gap", self.policy_gap, "nats", "largest ELBO - ELBO of the guide"),
            row("family_gap", "  of the family", self.family_gap, "nats", self.reasons.get("family", "")),
            row("training_gap", "  of training", self.training_gap, "nats", "best of the family - ELBO of the guide"),
        )
        rewards = (
            row(
                "sac_objective",
                "SAC objective",
                self.sac_objective,
                "reward",
                spread_of(self.sac_standard_error, self.sac_objective),
            ),
            row("scaled_elbo", "  = α · ELBO", alpha * self.elbo, "reward", f"α = {alpha:.6g}"),
            row("prior_term", "  + action-prior term", self.prior_term, "reward", "-α E Σ γ^t log p(a|s)"),
            row("sac_exact", "SAC objective, exact", self.sac_exact, "reward"),
            row("prior_term_exact", "  + action-prior term, exact", self.prior_term_exact, "reward"),
            row(
                "expected_return",
                "expected return",
                self.expected_return,
                "reward",
                _noted(earned, f"γ = {self.discount:.6g}"),
            ),
            row("expected_return_exact", "expected return, exact", self.expected_return_exact, "reward"),
        )
        cost, cost_exact = self.action_cost, self.action_cost_exact
        spread = spread_of(self.entropy_standard_error, self.entropy)
        entropy_note = _noted(spread, _bits(self.entropy), "-E Σ γ^t log π(a|s)")
        spread = spread_of(self.action_cost_standard_error, cost, self.entropy)
        cost_note = _noted(spread, _bits(cost), "(return - α ELBO)/α")
        information = (
            row("entropy", "policy entropy", self.entropy, "nats", entropy_note),
            row("entropy_exact", "policy entropy, exact", self.entropy_exact, "nats", _bits(self.entropy_exact)),
            row("action_cost", "action cost KL(π || p)", cost, "nats", cost_note),
            row("action_cost_exact", "action cost, exact", cost_exact, "nats", _bits(cost_exact)),
        )
        return tuple(
            tuple(each for each in rows if each.value is not None) for rows in (evidence, rewards, information)
        )

    def notes(self) -> tuple[str, ...]:
        """Returns what is said beneath the table, a sentence each: identities, and why there are no exact rows."""
        found = [str(identity) for identity in self.broken]
        if self.identities and not found:
            found = [f"{len(self.identities)} identities among these rows hold"]
        if self.optimal_elbo is not None:
            found += [title + self.reasons[about] for about, title in _TITLES.items() if about in self.reasons]
        return tuple(found)

    def __repr__(self) -> str:
        spread = plus_minus(self.elbo_standard_error, self.elbo, draws=self.num_trajectories)
        elbo = f"{number(self.elbo)} {spread}".rstrip()
        known = (("largest", self.optimal_elbo), ("log p(O)", self.log_evidence))
        ceilings = "".join(f", {name} {number(value)}" for name, value in known if value is not None)
        return f"<Comparison {self.problem}: ELBO {elbo}{ceilings} nats; table() shows the rest>"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Returns the comparison as a table for people to read, with any broken identity beneath it."""
        shown: list[tuple[str, str, str, str] | None] = []
        for rows in self.blocks():
            shown += [None] if shown else []
            shown += [(row.label, number(row.value), row.unit, row.note) for row in rows]
        title = f"{self.problem}: ELBO and SAC objective, {self.num_trajectories:,} rollouts"
        text = render(title, ("quantity", "value", "unit", ""), shown, right=(1,))
        text += "".join(f"{note}\n" for note in self.notes())
        if not self.rules:
            return text
        rules = [
            (rule.name, number(rule.elbo), number(rule.expected_return), number(rule.believed_return))
            for rule in self.rules
        ]
        return text + render(RULES_TITLE, RULES_HEADER, rules, right=(1, 2, 3))


Comparison.units = units_of((*Comparison.__dataclass_fields__, *ActionRule.__dataclass_fields__))


def _noted(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _bits(nats: float | None) -> str:
    return "" if nats is None else f"{nats / math.log(2):.4g} bits"


def number(value: float | None) -> str:
    """Returns a number for people; nothing for None."""
    if value is None:
        return ""
    if math.isinf(value):
        return f"{value:.2f}"
    if abs(value) < 1e-9:  # what rounding leaves of a zero
        return "0.0000"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.2e}"
