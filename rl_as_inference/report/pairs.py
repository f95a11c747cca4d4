"""Two comparisons side by side, with what lies between them."""

import math
from dataclasses import dataclass

from rl_as_inference.compare import Comparison
from rl_as_inference.compare.comparison_table import ComparisonRow, number
from rl_as_inference.estimate import plus_minus

__all__ = ["PairedRow", "paired_blocks", "paired_notes"]


@dataclass(frozen=True)
class PairedRow:
    """One row of two comparisons.

    Attributes:
        field, label, unit: as in :class:`rl_as_inference.compare.comparison_table.ComparisonRow`.
        values: of the first and the second, with ± where there is an error; empty where a run has none.
        difference: the second less the first, with ± where both have errors, which are taken for independent.
    """

    field: str
    label: str
    unit: str
    values: tuple[str, str]
    difference: str


def paired_blocks(first: Comparison, second: Comparison) -> tuple[tuple[PairedRow, ...], ...]:
    """Returns the rows of two comparisons in the order of :meth:`Comparison.blocks`, those that either has."""
    blocks = []
    errors, draws = (_errors(first), _errors(second)), min(first.num_trajectories, second.num_trajectories)
    for ours, theirs in zip(first.blocks(), second.blocks(), strict=True):
        found = {row.field: row for row in ours}, {row.field: row for row in theirs}
        # In the order of the one, with what the other alone has where it stands there.
        fields = list(found[0])
        for before, field in zip([None, *found[1]], found[1], strict=False):
            if field not in found[0]:
                fields.insert(0 if before is None else fields.index(before) + 1, field)
        blocks.append(tuple(_paired(field, found, errors, draws) for field in fields))
    return tuple(blocks)


def paired_notes(first: Comparison, second: Comparison) -> tuple[str, ...]:
    """Returns what must be said of two comparisons beside each other, before what each says of itself."""
    notes = []
    if first.problem != second.problem:
        notes.append(f"Two problems, {first.problem} and {second.problem}: their differences say little.")
    if first.temperature != second.temperature:
        notes.append(
            f"The temperatures differ, α = {first.temperature:.6g} and {second.temperature:.6g}: nats are rewards over "
            f"α, and so those of the one are not those of the other; compare reward units."
        )
    if first.discount != second.discount:
        notes.append(f"The discounts differ, γ = {first.discount:.6g} and {second.discount:.6g}.")
    return tuple(notes)


def _errors(comparison: Comparison) -> dict[str, float]:
    """Returns the standard errors of those fields that have one."""
    tail = "_standard_error"
    found = {name.removesuffix(tail): error for name, error in vars(comparison).items() if name.endswith(tail)}
    named = found | {"sac_objective": found["sac"], "scaled_elbo": comparison.temperature * found["elbo"]}
    return {field: error for field, error in named.items() if error is not None and math.isfinite(error)}


def _paired(
    field: str, found: tuple[dict[str, ComparisonRow], ...], errors: tuple[dict[str, float], ...], draws: int
) -> PairedRow:
    rows = [each.get(field) for each in found]
    there = next(row for row in rows if row is not None)
    values = [None if row is None else row.value for row in rows]
    own = [each.get(field) for each in errors]
    shown = [
        "" if value is None else f"{number(value)} {plus_minus(error, value, draws=draws)}".rstrip()
        for value, error in zip(values, own, strict=True)
    ]
    difference = ""
    if values[0] is not None and values[1] is not None and math.isfinite(values[0] - values[1]):
        between = values[1] - values[0]
        difference = ("+" if between > 0 and abs(between) >= 1e-9 else "") + number(between)
        if own[0] is not None and own[1] is not None:
            difference = f"{difference} {plus_minus(math.hypot(own[0], own[1]), *values, draws=draws)}".rstrip()
    return PairedRow(field, there.label, there.unit, (shown[0], shown[1]), difference)
