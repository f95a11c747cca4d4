"""The HTML report: a comparison, and the trajectories of prior, guide and posterior to step through."""

from rl_as_inference.report.page import is_report, render_report
from rl_as_inference.report.sources import Source, draw_sources

__all__ = ["Source", "draw_sources", "is_report", "render_report"]
