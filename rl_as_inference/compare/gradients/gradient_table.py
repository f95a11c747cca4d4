"""What :func:`rl_as_inference.compare_gradients` returns, and its table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from rl_as_inference.data_frames import Frame, frame, units_of
from rl_as_inference.tables import Table

__all__ = ["GradientComparison", "GradientRow"]


@dataclass(frozen=True)
class GradientRow:
    """One estimator or loss against the exact gradient; numbers are None where ``reason`` says why.

    Attributes:
        name: of the row.
        unbiased: whether its expectation is the exact gradient of the ELBO, by theory for the estimators, by its
            exact expectation for the losses.
        cause: of its bias; empty where it has none.
        z_along: bias along the exact gradient, in standard errors.
        z_global: bias in any direction, as a normal deviate (see :func:`compare_gradients`).
        relative_bias: ``‖E ĝ - g*‖/‖g*‖`` as estimated from the trajectories.
        relative_bias_exact: the same without noise, where the expectation is known exactly.
        variance: total over all parameters, of one trajectory's gradient, nats².
        variance_standard_error: of the variance, as of normal block means, nats².
        cosine: between the mean estimate and the exact gradient.
        seconds: for one trajectory, its draw included.
        variance_seconds: variance × seconds, nats² s: what a given accuracy costs.
        sampled_share: for n-step returns with analytic entropies, the share of the sampled ones that is let in
            because their noise cancels other noise (docs/elbo-and-sac.md).
        reason: why the row is empty.
    """

    name: str
    unbiased: bool | None = None
    cause: str = ""
    z_along: float | None = None
    z_global: float | None = None
    relative_bias: float | None = None
    relative_bias_exact: float | None = None
    variance: float | None = None
    cosine: float | None = None
    seconds: float | None = None
    variance_seconds: float | None = None
    sampled_share: float | None = None
    reason: str = ""
    variance_standard_error: float | None = None


@dataclass(frozen=True)
class GradientComparison:
    """Every estimator of the ELBO's gradient, and every actor's loss, against the exact gradient.

    Attributes:
        problem: the process's name.
        num_trajectories: for each row.
        num_blocks: independent blocks whose means give the standard errors.
        num_parameters: of the policy.
        elbo: of the policy, exact, nats.
        gradient_norm: ``‖g*‖``, nats for each unit of a parameter.
        rows: the rows, in order.
        sections: where the table draws its lines: indices into ``rows``.
        seconds: that all of it took.
        units: of every number here and in the rows, by name.
    """

    units: ClassVar[Mapping[str, str]]

    problem: str
    num_trajectories: int
    num_blocks: int
    num_parameters: int
    elbo: float
    gradient_norm: float
    rows: tuple[GradientRow, ...]
    sections: tuple[int, ...] = ()
    seconds: float = 0.0

    def __getitem__(self, name: str) -> GradientRow:
        """Returns the row of that name.

        Raises:
            KeyError: if there is none; the names are listed.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(repr(row.name) for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain numbers, strings and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Returns the comparison that :meth:`to_dict` gave, or ``gradients.json`` holds: that with ``units``.

        Raises:
            ValueError: if the dictionary is not one of a comparison of gradients.
        """
        try:
            rows = tuple(GradientRow(**row) for row in found["rows"])
            own = {name: value for name, value in found.items() if name != "units"}
            return cls(**{**own, "rows": rows, "sections": tuple(found.get("sections", ()))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a comparison of gradients: {type(error).__name__}: {error}") from error

    def to_frame(self) -> Frame:
        """Returns a row for each estimator, a column for each field of :class:`GradientRow` (see
        :mod:`rl_as_inference.data_frames`)."""
        rows = [asdict(row) for row in self.rows]
        return frame({name: [row[name] for row in rows] for name in GradientRow.__dataclass_fields__})

    def table(self) -> str:
        """Returns the comparison as a table for people to read."""
        return str(self.as_table())

    def as_table(self) -> Table:
        """Returns the same table, for a page to show."""
        shown: list[tuple[str, ...] | None] = []
        for index, row in enumerate(self.rows):
            if index in self.sections:
                shown.append(None)
            shown.append(_cells(row))
        title = (
            f"{self.problem}: gradients of the ELBO, {self.num_trajectories:,} trajectories a row, "
            f"{self.num_parameters:,} parameters, ‖g*‖ = {self.gradient_norm:.3g}"
        )
        header: tuple[str, ...] = (
            "gradient of one trajectory",
            "unbiased",
            "z along",
            "z global",
            "bias/‖g*‖",
            "cosine",
        )
        header += ("variance", "var × µs", "cause of the bias, or why the row is empty")
        return Table(title, header, tuple(shown), right=(2, 3, 4, 5, 6, 7))


GradientComparison.units = units_of((*GradientComparison.__dataclass_fields__, *GradientRow.__dataclass_fields__))


def _cells(row: GradientRow) -> tuple[str, ...]:
    if row.reason:
        return (row.name, "", "", "", "", "", "", "", f"— {row.reason}")
    bias = row.relative_bias if row.relative_bias_exact is None else row.relative_bias_exact
    shown = "" if bias is None else ("0" if row.unbiased else f"{bias:.1%}")
    cost = None if row.variance_seconds is None else 1e6 * row.variance_seconds
    return (
        row.name,
        "yes" if row.unbiased else "no",
        _z(row.z_along),
        _z(row.z_global),
        shown,
        "" if row.cosine is None else f"{row.cosine:.4f}",
        _number(row.variance),
        _number(cost),
        f"({row.sampled_share:.0%} sampled)" if not row.cause and (row.sampled_share or 0) >= 0.005 else row.cause,
    )


def _z(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}" if abs(value) < 1000 else f"{value:+.0e}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
