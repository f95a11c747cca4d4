"""What the benchmarks share: paired timings, rows of the table, and the claims they are held to."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Advance", "Claim", "Row", "Section", "Timings", "paired"]

Advance = Callable[[str], None]
"""Told the name of each stage that is done."""


@dataclass(frozen=True)
class Row:
    """A line of the table; what does not apply is None."""

    what: str
    reading: str = ""
    milliseconds: float | None = None
    ratio: float | None = None
    """Time relative to the section's reference."""
    largest_z: float | None = None
    """Largest bias of a coordinate of the gradient, in standard errors."""
    mean_square_z: float | None = None
    """Mean over coordinates of the squared bias in standard errors; 1 for an unbiased estimator."""
    variance: float | None = None
    """Total variance of the gradient, per trajectory, in nats²."""
    work: float | None = None
    """Variance times seconds per gradient."""
    gain: float | None = None
    """How many times less work than the section's worst case."""
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A requirement and what was measured; ``judged`` is false where a short run cannot tell."""

    text: str
    value: float
    limit: float
    at_most: bool = True
    judged: bool = True

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        verdict = ("PASS" if self.holds else "FAIL") if self.judged else "----"
        sign = "≤" if self.at_most else "≥"
        return f"{verdict}  {self.text}: {self.value:,.3g} ({sign} {self.limit:,g})"


@dataclass(frozen=True)
class Section:
    """One benchmark's part of the table."""

    title: str
    reference: str
    """What ``ratio`` is relative to."""
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


class Timings:
    """Seconds by contestant and round."""

    def __init__(self, rounds: list[dict[Any, float]]) -> None:
        self.rounds = rounds

    @property
    def names(self) -> list[Any]:
        return list(dict.fromkeys(name for times in self.rounds for name in times))

    def seconds(self, name: Any) -> float:
        """Returns the median over rounds."""
        return statistics.median(times[name] for times in self.rounds if name in times)

    def ratio(self, name: Any, to: Any) -> float:
        """Returns the median over rounds of two contestants' ratio within a round.

        Whatever else the machine does slows both of a pair, so ratios are steadier than times.
        """
        return statistics.median(times[name] / times[to] for times in self.rounds if name in times and to in times)


def paired(
    contestants: Mapping[Any, Callable[[], Any]], rounds: int, *, every: Mapping[Any, int] | None = None
) -> Timings:
    """Times every contestant once a round, in turn, after one round that is not counted.

    Args:
        contestants: functions without arguments.
        rounds: how many rounds.
        every: contestants that are too slow for every round, with their period.
    """
    periods = every or {}
    results = []
    for count in range(-1, rounds):
        times = {}
        for name, run in contestants.items():
            if count % periods.get(name, 1) == 0 or count < 0:
                start = time.perf_counter()
                run()
                times[name] = time.perf_counter() - start
        if count >= 0:
            results.append(times)
    return Timings(results)
