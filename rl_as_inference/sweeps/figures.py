"""The pictures of a sweep, as Plotly figures in JSON's terms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl_as_inference.agents.evaluation import mean_interval
from rl_as_inference.style import BLUE, GREY
from rl_as_inference.sweeps.results import Sweep
from rl_as_inference.sweeps.space import written

if TYPE_CHECKING:
    import pandas

__all__ = ["MOST_PANELS", "curves_figure", "intervals_figure", "parallel_figure"]

MOST_PANELS, _MOST_ROWS = 24, 60
"""Configurations that have curves of their own, and that have a row among the intervals."""
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"}
_BAND = "rgba(0,114,178,0.2)"


def intervals_figure(sweep: Sweep) -> dict[str, Any] | None:
    """Returns the mean of each configuration with its interval and its seeds, best first; None if nothing finished."""
    from plotly import graph_objects  # imported when first needed: it is slow

    found = sweep.summary.dropna(subset="mean").head(_MOST_ROWS)
    if found.empty:
        return None
    names = [_name(sweep, row) for _, row in found.iterrows()]
    seeds_x, seeds_y = [], []
    for name, (_, row) in zip(names, found.iterrows(), strict=True):
        reached = _runs_of(sweep, row)[sweep.metric.name].dropna()
        seeds_x += [float(value) for value in reached]
        seeds_y += [name] * len(reached)
    up, down = found["high"] - found["mean"], found["mean"] - found["low"]
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=seeds_x, y=seeds_y, mode="markers", marker={"color": GREY, "size": 6, "opacity": 0.7}, name="a seed"
    )
    figure.add_scatter(
        x=found["mean"].tolist(),
        y=names,
        mode="markers",
        marker={"color": BLUE, "size": 10},
        error_x={"array": up.fillna(0).tolist(), "arrayminus": down.fillna(0).tolist(), "color": BLUE, "thickness": 2},
        name="mean, 95 % interval",
    )
    figure.update_layout(
        template="simple_white",
        height=110 + 30 * len(names),
        margin={"l": 8, "r": 16, "t": 36, "b": 44},
        font=_FONT,
        dragmode=False,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": f"{sweep.metric.title} ({sweep.metric.unit})"}, "fixedrange": True, "showgrid": True},
        yaxis={"autorange": "reversed", "automargin": True, "ticks": "", "fixedrange": True, "type": "category"},
    )
    return _json(figure)


def curves_figure(sweep: Sweep) -> dict[str, Any] | None:
    """Returns curves, a panel for each of the best configurations: seeds thin, and their mean thick."""
    from plotly.subplots import make_subplots

    found = sweep.summary.dropna(subset="mean").head(MOST_PANELS)
    if found.empty or sweep.curves.empty:
        return None
    across = min(4, max(1, int(np.ceil(np.sqrt(len(found))))))
    down = -(-len(found) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=[_name(sweep, row, "<br>") for _, row in found.iterrows()],
        horizontal_spacing=0.03,
        vertical_spacing=min(0.14, 0.5 / down),
        x_title=sweep.metric.steps,
        y_title=_over_steps(sweep),
    )
    for index, (_, row) in enumerate(found.iterrows()):
        place = {"row": index // across + 1, "col": index % across + 1}
        names = [run.removeprefix("runs/") for run in _runs_of(sweep, row)["run"]]
        own = sweep.curves[sweep.curves["run"].isin(names)]
        for _, curve in own.groupby("run", sort=False):
            figure.add_scatter(
                x=curve["step"].tolist(),
                y=curve["value"].tolist(),
                mode="lines",
                line={"color": GREY, "width": 1},
                hoverinfo="skip",
                showlegend=False,
                **place,
            )
        table = own.pivot_table(index="step", columns="run", values="value").dropna()
        steps, means = table.index.tolist(), table.mean(axis=1).tolist()
        bands = [mean_interval(torch.tensor(values).reshape(-1, 1)) for values in table.to_numpy()]
        if bands and all(band is not None for band in bands):
            low, high = zip(*bands, strict=True)
            figure.add_scatter(
                x=[*steps, *steps[::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                fillcolor=_BAND,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                **place,
            )
        figure.add_scatter(
            x=steps, y=means, mode="lines", line={"color": BLUE, "width": 2.5}, name="mean", showlegend=False, **place
        )
    figure.update_layout(
        template="simple_white",
        height=90 + 210 * down,
        margin={"l": 76, "r": 16, "t": 30 + 16 * len(sweep.plan.axes), "b": 60},
        font=_FONT,
        dragmode=False,
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True)
    return _json(figure)


def parallel_figure(sweep: Sweep) -> dict[str, Any] | None:
    """Returns a line for each configuration through its values to its mean; None where one option differs, or none.

    Of plain lines: Plotly's own parallel coordinates need WebGL, which not every browser has.
    """
    from plotly import graph_objects
    from plotly.colors import sample_colorscale

    found = sweep.summary.dropna(subset="mean")
    if len(sweep.plan.axes) < 2 or len(found) < 2:
        return None
    names = [*sweep.plan.axes, f"{sweep.metric.name} ({sweep.metric.unit})"]
    scales = [_scale(found[name]) for name in (*sweep.plan.axes, "mean")]
    figure = graph_objects.Figure()
    for index in reversed(range(len(found))):  # the best on top
        row = found.iloc[index]
        told = _name(sweep, row, "<br>") + f"<br><b>{row['mean']:.4g} {sweep.metric.unit}</b>"
        figure.add_scatter(
            x=list(range(len(names))),
            y=[places[index] for places, _ in scales],
            mode="lines+markers",
            line={"color": sample_colorscale("Cividis", [scales[-1][0][index]])[0], "width": 3 if index == 0 else 1.5},
            marker={"size": 6},
            hovertemplate=f"{told}<extra></extra>",
            showlegend=False,
        )
    for across, (_, ticks) in enumerate(scales):
        figure.add_vline(x=across, line={"color": "#1a1a1a", "width": 1}, layer="below")
        for place, words in ticks:
            figure.add_annotation(
                x=across,
                y=place,
                text=_escaped(words),
                showarrow=False,
                xanchor="right",
                xshift=-8,
                font={"size": 12},
                bgcolor="rgba(255,255,255,0.7)",
            )
    places = {"tickvals": list(range(len(names))), "ticktext": [_escaped(name) for name in names], "side": "top"}
    figure.update_layout(
        template="simple_white",
        height=400,
        margin={"l": 16, "r": 40, "t": 40, "b": 16},
        font=_FONT,
        dragmode=False,
        xaxis={**places, "range": [-0.25, len(names) - 0.9], "fixedrange": True, "showline": False, "ticks": ""},
        yaxis={"visible": False, "range": [-0.05, 1.05], "fixedrange": True},
    )
    return _json(figure)


def _scale(column: pandas.Series[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Returns where values stand on an axis from 0 to 1, and its ticks: words at equal distances, numbers by size."""
    values = column.tolist()
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        words = list(dict.fromkeys(written(value) for value in values))
        at = {word: index / max(len(words) - 1, 1) for index, word in enumerate(words)}
        return [at[written(value)] for value in values], [(place, word) for word, place in at.items()]
    least, most = min(values), max(values)
    in_logs = least > 0 and most / least >= 20
    low, high = (np.log([least, most]) if in_logs else np.array([least, most])).tolist()

    def place(value: float) -> float:
        return 0.5 if low == high else float(((np.log(value) if in_logs else value) - low) / (high - low))

    ticks = sorted(set(values))
    if len(ticks) > 8 or column.name == "mean":
        ticks = (np.geomspace if in_logs else np.linspace)(least, most, 5).tolist() if low != high else ticks[:1]
    return [place(value) for value in values], [(place(tick), f"{tick:.3g}") for tick in ticks]


def _runs_of(sweep: Sweep, row: Any) -> pandas.DataFrame:
    """Returns the finished runs of a configuration."""
    found = sweep.runs[sweep.runs["status"] == "finished"]
    for name in sweep.plan.axes:
        found = found[found[name] == row[name]]
    return found


def _name(sweep: Sweep, row: Any, between: str = ", ") -> str:
    """Returns a configuration in words, as Plotly takes them: its signs of mark-up are none."""
    told = [
        f"{name} {row[name]:.6g}" if isinstance(row[name], float) else f"{name} {written(row[name])}"
        for name in sweep.plan.axes
    ]
    return between.join(map(_escaped, told)) or "as it is"


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _over_steps(sweep: Sweep) -> str:
    return "evaluation return (reward)" if sweep.plan.command == "train" else "ELBO in training (nats)"


def _json(figure: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(figure.to_json())
    return found
