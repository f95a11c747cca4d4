"""A run told to people: a card in the format of the Hugging Face Hub, as Markdown beside what was trained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rl_as_inference.estimate import plus_minus
from rl_as_inference.records import RunRecord, path_of

__all__ = ["CARD", "Measure", "model_card"]

CARD = "model_card.md"
"""The card's name in a run's folder. On the Hub it is ``README.md``, which in a folder may be the user's own."""

_WHERE = ("device", "ray", "ranks")
"""Settings that say where a run ran, and nothing of what it is."""


class Measure(NamedTuple):
    """What a run came to, and how sure that is."""

    kind: str
    """The Hub's name of the metric: ``"mean_reward"``, or one of ours, such as ``"elbo"``."""
    label: str
    value: float
    unit: str
    """``"reward"`` or ``"nats"``."""
    error: Mapping[str, float | str] = {}
    """By name, in the same unit: ``standard_error``, or the ends ``low`` and ``high`` of an interval of ``level``; and
    ``over`` what."""


def model_card(record: RunRecord, *, trained: str, problem: str, measures: Sequence[Measure]) -> str:
    """Returns the card of a run as text.

    Args:
        record: of the run.
        trained: what was trained: a learner's class, or ``"guide"``.
        problem: what it is called where the record has no name.
        measures: what the run came to; those that are no finite numbers are in the table alone.
    """
    problem = _without_folders(problem if record.problem is None else record.problem)
    name = f"{trained} on {problem}"
    tags = ["reinforcement-learning", "maximum-entropy", "rl-as-inference", trained, problem]
    lines = [
        "---",
        "library_name: rl-as-inference",
        "pipeline_tag: reinforcement-learning",
        "tags:",
        *(f"- {_scalar(tag)}" for tag in tags),
        "model-index:",
        f"- name: {_scalar(name)}",
        "  results:",
        "  - task:",
        "      type: reinforcement-learning",
        "      name: reinforcement learning",
        "    dataset:",
        f"      type: {_scalar(problem)}",
        f"      name: {_scalar(problem)}",
        "    metrics:" + ("" if any(math.isfinite(each.value) for each in measures) else " []"),
    ]
    for each in measures:
        if not math.isfinite(each.value):
            continue
        lines += [
            f"    - type: {_scalar(each.kind)}",
            f"      name: {_scalar(f'{each.label} ({each.unit})')}",
            f"      value: {_scalar(each.value)}",
            "      args:",
            f"        unit: {_scalar(each.unit)}",
            *(f"        {key}: {_scalar(value)}" for key, value in each.error.items()),
        ]
    agent = record.command == "train"
    use = "run.agent.act(observation, deterministic=True)" if agent else "run.policy(state, t)"
    comment = "an action for the environment" if agent else "a distribution over actions"
    lines += [
        "---",
        "",
        f"# {_text(name)}",
        "",
        f"A policy by `rlai {record.command}`. Returns are in the problem's reward units.",
        "",
        "| quantity | value | unit | how sure |",
        "|---|---:|---|---|",
        *(f"| {_text(each.label)} | {each.value:.6g} | {each.unit} | {_sureness(each)} |" for each in measures),
        "",
        "## Loading it",
        "",
        "```python",
        "import rl_as_inference as rlai",
        "",
        'run = rlai.load_run("FOLDER")  # the folder that this file came in',
        f"{use}  # {comment}",
        "```",
        "",
        "## How it was made",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {_text(key)} | {_code(value)} |" for key, value in _options(record).items()),
        "",
        "| package | version |",
        "|---|---|",
        *(f"| {_text(key)} | {_text(value)} |" for key, value in record.versions.items()),
    ]
    return "\n".join(lines) + "\n"


def _options(record: RunRecord) -> dict[str, Any]:
    """Returns everything that made the run what it is; the problem's own options as they are given to it."""
    problem = None if record.problem is None else _without_folders(record.problem)
    own = {f"--{name.replace('_', '-')}": value for name, value in record.options.items()}
    settings = {name: value for name, value in record.settings.items() if name not in _WHERE}
    return {"problem": problem, **own, "seed": record.seed, **settings}


def _without_folders(problem: str) -> str:
    """Returns a problem's name without where its file lies, which is nobody's business."""
    path = path_of(problem)
    return problem if path is None else path.name + problem[len(problem.partition(":")[0]) :]


def _sureness(measure: Measure) -> str:
    error = measure.error
    over = f", {error['over']}" if "over" in error else ""
    if "low" in error and "high" in error:
        return f"{error['low']:.6g} … {error['high']:.6g} ({100 * float(error['level']):.0f} %{over})"
    if spread := plus_minus(float(error.get("standard_error", math.nan)), measure.value):
        return f"{spread} (standard error{over})"
    return _text(str(error.get("over", "")))


def _scalar(value: str | float) -> str:
    """Returns a scalar as YAML of any version reads it."""
    if isinstance(value, str):
        # What is not plain is escaped, so that nothing is taken for YAML's own, which has no pairs of surrogates.
        return '"' + re.sub(r'[^ -~]|["\\]', lambda each: f"\\U{ord(each[0]):08x}", value) + '"'
    text = f"{value:.6g}"
    return text if "e" not in text or "." in text else text.replace("e", ".0e")  # 1e-05 is a word in YAML 1.1


def _text(value: str) -> str:
    """Returns words as Markdown shows them, in a line and in a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(value.split()))


def _code(value: Any) -> str:
    text = " ".join(json.dumps(value, ensure_ascii=False).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"
