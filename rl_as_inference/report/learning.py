"""Learning curves of a run: what it wrote while it learned, as lines with bands."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rl_as_inference.agents import MPO
from rl_as_inference.agents.curves import CurveRow, read_curve
from rl_as_inference.agents.evaluation import mean_interval
from rl_as_inference.report.rounding import plain, rounded
from rl_as_inference.runs import Run

__all__ = ["Curve", "curves_of"]

_MOST_POINTS = 120


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of learning.

    Attributes:
        name: of the quantity.
        unit: its unit.
        over: what the steps are.
        steps: at which it was measured.
        middle: its value there; None where there was none.
        low, high: the band around it; empty if there is none.
        band: what the band is, in a few words.
        seeds: each seed's own values, where there are several.
        ceiling: a value that none can be above, with its name; None if there is no such.
    """

    name: str
    unit: str
    over: str
    steps: Sequence[float]
    middle: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    band: str = ""
    seeds: Sequence[Sequence[float | None]] = ()
    ceiling: tuple[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)


def curves_of(run: Run) -> tuple[Curve, ...]:
    """Returns the curves of a run: of ``compare`` and ``fit`` the ELBO, of ``train`` return, α and entropy.

    Empty where the run kept none.

    Raises:
        ValueError: if what it kept is damaged.
    """
    if run.agent is not None:
        curve = read_curve(run.folder / "curve.csv", run.agent.num_steps)
        return _of_learner(curve, "η" if isinstance(run.agent, MPO) else "α") if curve else ()
    path = run.folder / "history.json"
    if not path.exists():
        return ()
    run.record.check_file(run.folder, path.name)
    try:
        elbo = np.asarray(json.loads(path.read_text(encoding="utf-8")), dtype=float)
        if elbo.ndim != 1:
            raise ValueError(f"it holds an array of shape {elbo.shape}")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"RUN: {str(path)!r} is damaged ({error}); run it again with --overwrite") from error
    best = None if run.comparison is None else run.comparison.optimal_elbo
    return (_of_guide(elbo, best),) if elbo.size else ()


def _of_guide(elbo: np.ndarray[Any, Any], best: float | None) -> Curve:
    """Returns the ELBO before each step: means of some steps together, between the least and the largest of them."""
    width = -(-len(elbo) // _MOST_POINTS)
    parts = [elbo[start : start + width] for start in range(0, len(elbo), width)]
    steps = [start + (len(part) - 1) / 2 for start, part in zip(range(0, len(elbo), width), parts, strict=True)]

    def of(each: Any) -> list[Any]:
        return plain(rounded(np.array([each(part) for part in parts]), 6))

    band: dict[str, Any] = {}
    if width > 1:
        band = {"low": of(np.min), "high": of(np.max), "band": f"least to largest of {width} steps"}
    ceiling = None if best is None or not np.isfinite(best) else ("largest ELBO", round(best, 6))
    return Curve("ELBO", "nats", "gradient steps", steps, of(np.mean), **band, ceiling=ceiling)


def _of_learner(rows: Sequence[CurveRow], temperature: str) -> tuple[Curve, ...]:
    """Returns return, temperature and entropy at each evaluation."""
    steps = sorted({row.step for row in rows})
    seeds = sorted({row.seed for row in rows})
    at = {(row.step, row.seed): row for row in rows}
    several = len(seeds) > 1

    def table(name: str) -> np.ndarray[Any, Any]:
        return np.array([[getattr(at.get((step, seed)), name, np.nan) for step in steps] for seed in seeds], float)

    def curve(name: str, unit: str, values: np.ndarray[Any, Any], band: dict[str, Any]) -> Curve:
        own = [plain(rounded(each, 6)) for each in values] if several else ()
        over = "environment steps" + (" of each seed" if several else "")
        return Curve(name, unit, over, steps, plain(rounded(values.mean(0), 6)), seeds=own, **band)

    returns = table("mean_return")
    if several:
        pairs = [mean_interval(torch.from_numpy(column[:, None])) for column in returns.T]
        low, high = ([np.nan if pair is None else pair[side] for pair in pairs] for side in (0, 1))
        told = f"95 %, bootstrap over {len(seeds)} seeds"
    else:
        low, high, told = table("least_return")[0], table("largest_return")[0], "least to largest episode"
    band = {"low": plain(rounded(np.asarray(low), 6)), "high": plain(rounded(np.asarray(high), 6)), "band": told}
    learned = (("temperature", f"temperature {temperature}", "reward units per nat"), ("entropy", "entropy", "nats"))
    found = [curve("evaluation return", "reward units", returns, band)]
    for field, name, unit in learned:
        values = table(field)
        if np.isfinite(values).any():
            spread = {}
            if several:
                low, high = plain(rounded(values.min(0), 6)), plain(rounded(values.max(0), 6))
                spread = {"low": low, "high": high, "band": "least to largest seed"}
            found.append(curve(name, unit, values, spread))
    return tuple(found)
