"""The HTML report: a comparison, and the trajectories of prior, guide and posterior to step through."""

from rl_as_inference.report.page import ShownRun, is_report, render_page, render_report
from rl_as_inference.report.sources import Source, draw_sources
from rl_as_inference.report.values import value_maps

__all__ = ["ShownRun", "Source", "draw_sources", "is_report", "render_page", "render_report", "value_maps"]
