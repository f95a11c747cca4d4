"""The page itself: one HTML file that needs nothing else."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from rl_as_inference.compare import Comparison
from rl_as_inference.compare.comparison_table import RULES_HEADER, RULES_TITLE, number
from rl_as_inference.nouns import Problem
from rl_as_inference.processes.programs import as_process
from rl_as_inference.report.figures import gaps_figure
from rl_as_inference.report.sources import Source
from rl_as_inference.report.templating import page_environment, trusted_parts
from rl_as_inference.report.trajectories import embed

__all__ = ["is_report", "render_report"]

_MARK = '<meta name="generator" content="rl-as-inference report">'


def render_report(
    process: Problem,
    sources: Sequence[Source],
    *,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
    foresight: str | None = None,
) -> str:
    """Returns a report as one HTML document, with its scripts and styles inside; it asks no network for anything.

    Args:
        process: what the trajectories are of.
        sources: from :func:`draw_sources`, at least one.
        comparison: for the table and the gaps; None leaves them out.
        facts: names and values to head the page with.
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
    if not sources:
        raise ValueError("sources is empty; draw some with draw_sources(process, policy)")
    process = as_process(process)
    embedded = embed(process, sources)
    gaps = None if comparison is None else gaps_figure(comparison)
    environment = page_environment()
    return environment.get_template("report.html").render(
        mark=Markup(_MARK),
        problem=process.name,
        facts=facts,
        comparison=comparison,
        blocks=() if comparison is None else comparison.blocks(),
        notes=() if comparison is None else comparison.notes(),
        rules_title=RULES_TITLE,
        rules_header=RULES_HEADER,
        rules=() if comparison is None else comparison.rules,
        number=number,
        gaps=gaps is not None,
        view=embedded["view"],
        foresight=foresight,
        latents=list(embedded["sources"][0]["draws"]["latents"]),
        # A program's draws have tossed its coins, and no longer tell its discount.
        survival=float(sources[0].data.constant_data["discount"]) if comparison is None else comparison.discount,
        sources=sources,
        embedded={source["key"]: len(source["draws"]["return"]) for source in embedded["sources"]},
        data={**embedded, "gaps": gaps},
        library_version=version("rl-as-inference"),
        **trusted_parts(environment, style="report.css", script="report.js"),
    )


def is_report(path: str | Path) -> bool:
    """Returns whether the file at ``path`` is a report that :func:`render_report` made."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return _MARK in file.read(1000)
    except OSError:
        return False
