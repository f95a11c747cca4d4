"""The page itself: one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rl_as_inference.compare import Comparison
from rl_as_inference.compare.comparison_table import RULES_HEADER, RULES_TITLE, number
from rl_as_inference.nouns import Problem
from rl_as_inference.processes.programs import as_process
from rl_as_inference.report.figures import gaps_of
from rl_as_inference.report.learning import Curve
from rl_as_inference.report.pairs import paired_blocks, paired_notes
from rl_as_inference.report.returns import returns_table
from rl_as_inference.report.sources import Source
from rl_as_inference.report.templating import page_environment, trusted_parts
from rl_as_inference.report.trajectories import embed
from rl_as_inference.tables import Table

__all__ = ["ShownRun", "is_report", "render_page", "render_report"]

_MARK = '<meta name="generator" content="rl-as-inference report">'
_SCRIPTS = ("drawing", "panels", "figures", "report")


@dataclass(frozen=True)
class ShownRun:
    """What a page shows of one run; all but the first two may be left out.

    Attributes:
        process: what the trajectories are of.
        sources: from :func:`draw_sources`, at least one.
        name: that the run goes by where there are two.
        comparison: for the table and the gaps.
        facts: names and values to head the page with.
        curves: of its learning, :func:`rl_as_inference.report.learning.curves_of`.
        values: soft values and policies, :func:`value_maps`.
        training: what a run of ``train`` came to, as the terminal printed it.
        gradients: the table of ``compare --gradients``.
        foresight: a picture of what a model-based agent believed, as a ``data:`` address.
    """

    process: Problem
    sources: Sequence[Source]
    name: str = ""
    comparison: Comparison | None = None
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    values: dict[str, Any] | None = None
    training: Table | None = None
    gradients: Table | None = None
    foresight: str | None = None


def render_report(
    process: Problem,
    sources: Sequence[Source],
    *,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
    values: dict[str, Any] | None = None,
    foresight: str | None = None,
) -> str:
    """Returns a report as one HTML document, with its scripts and styles inside; it asks no network for anything.

    Args:
        process: what the trajectories are of.
        sources: from :func:`draw_sources`, at least one.
        comparison: for the table and the gaps; None leaves them out.
        facts: names and values to head the page with.
        values: from :func:`value_maps`; None leaves them out.
        foresight: a picture of what a model-based agent believed, as a ``data:`` address; None leaves it out.

    Raises:
        ValueError: if there are no sources.

    Example:
        >>> from rl_as_inference.models import gridworld
        >>> from rl_as_inference.report import draw_sources
        >>> grid = gridworld()
        >>> page = render_report(grid, draw_sources(grid, None, num_draws=5))
        >>> page.startswith("<!doctype html>")
        True
    """
    run = ShownRun(process, sources, comparison=comparison, facts=facts, values=values, foresight=foresight)
    return render_page([run])


def render_page(runs: Sequence[ShownRun]) -> str:
    """Returns the page of one run, or of two side by side, as :func:`render_report` does.

    Raises:
        ValueError: if there is no run, there are more than two, or one has no sources.
    """
    if not 1 <= len(runs) <= 2:
        raise ValueError(f"runs must be one or two, got {len(runs)}")
    if not all(run.sources for run in runs):
        raise ValueError("sources is empty; draw some with draw_sources(process, policy)")
    shown = [_shown(run, letter, 1 / len(runs)) for run, letter in zip(runs, "AB", strict=False)]
    toggles: dict[str, Source] = {}
    for source in (source for run in runs for source in run.sources):
        toggles.setdefault(source.key, source)
    comparisons = [run.comparison for run in runs]
    first, second = comparisons[0], comparisons[-1]
    pair = (
        ((), ())
        if len(runs) == 1 or first is None or second is None
        else (paired_blocks(first, second), paired_notes(first, second))
    )
    # Of two runs the controls are those of the one that has more to choose from.
    series = [run["view"] for run in shown if run["view"]["kind"] == "series"]
    environment = page_environment()
    parts = trusted_parts(environment, style="report.css", **{name: f"{name}.js" for name in _SCRIPTS})
    script = Markup("\n").join(parts.pop(name) for name in _SCRIPTS)
    return environment.get_template("report.html").render(
        mark=Markup(_MARK),
        runs=shown,
        kinds={run["view"]["kind"] for run in shown},
        axes=max((view["names"] for view in series), key=len, default=[]),
        action_axes=max((view["action_names"] for view in series), key=len, default=[]),
        copies=max((run["view"]["copies"] for run in shown if run["soft"]), key=len, default=[]),
        horizon=max(run["view"]["horizon"] for run in shown),
        pair_blocks=pair[0],
        pair_notes=pair[1],
        rules_title=RULES_TITLE,
        rules_header=RULES_HEADER,
        number=number,
        toggles=toggles,
        latents=list(dict.fromkeys(name for run in shown for name in run["latents"])),
        returns=returns_table([(run["title"], source) for run in shown for source in run["sources"]], len(runs) > 1),
        data={"runs": [run["data"] for run in shown]},
        library_version=version("rl-as-inference"),
        script=script,
        allowed=" ".join(map(_hash, (parts["plotly"], script))),
        **parts,
    )


def _shown(run: ShownRun, letter: str, share: float) -> dict[str, Any]:
    """Returns what the template shows of a run."""
    process, comparison = as_process(run.process), run.comparison
    embedded = embed(process, run.sources, share)
    return {
        "letter": letter,
        "name": run.name,
        "title": f"{letter}: {run.name}" if run.name else letter,
        "problem": process.name,
        "facts": run.facts,
        "sources": run.sources,
        "comparison": comparison,
        "view": embedded["view"],
        "soft": run.values,  # in a template, .values is a dictionary's own
        "curves": run.curves,
        "training": run.training,
        "gradients": run.gradients,
        "foresight": run.foresight,
        "latents": list(embedded["sources"][0]["draws"]["latents"]),
        "counts": {source["key"]: len(source["draws"]["return"]) for source in embedded["sources"]},
        "gaps": comparison is not None and gaps_of(comparison) is not None,
        # A program's draws have tossed its coins, and no longer tell its discount.
        "survival": float(run.sources[0].data.constant_data["discount"]) if comparison is None else comparison.discount,
        "data": {
            **embedded,
            "name": run.name,
            "problem": process.name,
            "gaps": None if comparison is None else gaps_of(comparison),
            "values": run.values,
            "curves": [curve.to_dict() for curve in run.curves],
        },
    }


def _hash(script: str) -> str:
    """Returns what a content security policy knows a script by: no other script, and no handler in markup, runs."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def is_report(path: str | Path) -> bool:
    """Returns whether the file at ``path`` is a report that :func:`render_report` made."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return _MARK in file.read(1000)
    except OSError:
        return False
