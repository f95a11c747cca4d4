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
    """Returns a line for each configuration through its values to its mean; None where one option differs, or none."""
    from plotly import graph_objects

    found = sweep.summary.dropna(subset="mean")
    if len(sweep.plan.axes) < 2 or len(found) < 2:
        return None
    dimensions = []
    for name in sweep.plan.axes:
        column = found[name]
        if column.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all():
            dimensions.append(_numbers(name, column))
        else:
            words = list(dict.fromkeys(written(value) for value in column))
            places = [words.index(written(value)) for value in column]
            dimensions.append({"label": name, "values": places, "tickvals": list(range(len(words))), "ticktext": words})
    means = found["mean"].tolist()
    dimensions.append({"label": f"{sweep.metric.name} ({sweep.metric.unit})", "values": means})
    lines = {"color": means, "colorscale": "Cividis", "showscale": True, "colorbar": {"thickness": 12}}
    figure = graph_objects.Figure(graph_objects.Parcoords(dimensions=dimensions, line=lines))
    figure.update_layout(template="simple_white", height=400, margin={"l": 70, "r": 30, "t": 60, "b": 30}, font=_FONT)
    return _json(figure)


def _numbers(name: str, column: pandas.Series[Any]) -> dict[str, Any]:
    """Returns an axis of numbers; of such as differ by orders of magnitude, of their logarithms."""
    values = [float(value) for value in column]
    if min(values) > 0 and max(values) / min(values) >= 20:
        ticks = sorted(set(values)) if len(set(values)) <= 8 else np.geomspace(min(values), max(values), 6).tolist()
        logs = {"values": np.log10(values).tolist(), "tickvals": np.log10(ticks).tolist()}
        return {"label": name, **logs, "ticktext": [f"{tick:.3g}" for tick in ticks]}
    ticks = sorted(set(values))
    return {"label": name, "values": values, **({"tickvals": ticks} if len(ticks) <= 8 else {})}


def _runs_of(sweep: Sweep, row: Any) -> pandas.DataFrame:
    """Returns the finished runs of a configuration."""
    found = sweep.runs[sweep.runs["status"] == "finished"]
    for name in sweep.plan.axes:
        found = found[found[name] == row[name]]
    return found


def _name(sweep: Sweep, row: Any, between: str = ", ") -> str:
    """Returns a configuration in words, as Plotly takes them: its signs of mark-up are none."""
    told = [
        f"{name} {row[name]:.4g}" if isinstance(row[name], float) else f"{name} {written(row[name])}"
        for name in sweep.plan.axes
    ]
    plain = [words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for words in told]
    return between.join(plain) or "as it is"


def _over_steps(sweep: Sweep) -> str:
    return "evaluation return (reward)" if sweep.plan.command == "train" else "ELBO in training (nats)"


def _json(figure: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(figure.to_json())
    return found
