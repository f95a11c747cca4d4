"""A sweep as one HTML page that needs nothing else."""

from __future__ import annotations

from importlib.metadata import version

from rl_as_inference.report.templating import page_environment, trusted_parts
from rl_as_inference.sweeps.figures import MOST_PANELS, curves_figure, intervals_figure, parallel_figure
from rl_as_inference.sweeps.results import Sweep
from rl_as_inference.sweeps.space import written

__all__ = ["render_sweep"]


def render_sweep(sweep: Sweep) -> str:
    """Returns the page: intervals, table, small multiples of learning curves, and parallel coordinates."""
    plan = sweep.plan
    failed = sweep.runs[sweep.runs["status"] != "finished"]
    facts = [("made by", f"rlai sweep, of rlai {plan.command}"), ("search", plan.search)]
    facts += [("configurations", f"{len(sweep.summary):,}"), ("seeds", str(plan.seeds))]
    facts += [(name, written(value)) for name, value in plan.options.items()]
    environment = page_environment()
    return environment.get_template("sweep.html").render(
        title=sweep.title,
        facts=facts,
        metric=sweep.metric,
        keys=list(plan.axes),
        rows=sweep.rows(),
        failures=list(zip(failed["run"], failed["reason"], strict=True)),
        most_panels=MOST_PANELS,
        data={
            "intervals": intervals_figure(sweep),
            "curves": curves_figure(sweep),
            "parallel": parallel_figure(sweep),
        },
        library_version=version("rl-as-inference"),
        **trusted_parts(environment, style="report.css"),
    )
