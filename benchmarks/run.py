"""Runs every benchmark, prints one table, and writes the numbers as data.

``python -m benchmarks.run`` takes a few minutes and wants a machine with nothing else to do; ``--quick``
takes seconds and judges bias alone, since times of so short a run say nothing.
"""

import argparse
import dataclasses
import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import gradients, learners, posteriors, rollout, sparse_backup
from benchmarks.measure import Row, Section
from rl_as_inference.progress import progress_bar

__all__ = ["main", "run"]

_BENCHMARKS = (gradients, sparse_backup, rollout, learners, posteriors)
_RESULTS = Path(__file__).parent / "results"


def run(quick: bool = False) -> dict[str, Any]:
    """Returns the results of every benchmark with where and when they were measured."""
    total = sum(benchmark.STAGES for benchmark in _BENCHMARKS)
    with progress_bar("benchmarks", total) as bar:
        sections = [benchmark.measure(quick, bar.advance) for benchmark in _BENCHMARKS]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl", "gymnasium")},
        },
        "sections": sections,
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks from the command line; returns 1 if a requirement does not hold, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form: bias is judged, times are not")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    results = run(options.quick)
    sections: list[Section] = results["sections"]
    console = Console(width=None if Console().is_terminal else 180)
    console.print(table(sections))
    claims = [claim for section in sections for claim in section.claims]
    for claim in claims:
        console.print(str(claim), style="bold red" if claim.judged and not claim.holds else None, highlight=False)
    path = options.out / ("quick.json" if options.quick else "full.json")
    write(results, path)
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    return int(any(claim.judged and not claim.holds for claim in claims))


def table(sections: list[Section]) -> Table:
    """Returns the table of all sections."""
    answer = Table(title="Benchmarks", caption="z: bias of a coordinate of the gradient in standard errors")
    for header in ("what", "reading"):
        answer.add_column(header)
    headers = ("ms", "× reference", "max |z|", "mean z²", "variance, nats²", "variance × s", "gain")
    for header in headers:
        answer.add_column(header, justify="right")
    answer.add_column("note")
    for section in sections:
        answer.add_section()
        answer.add_row(f"[bold]{section.title}[/bold]", f"[dim]× {section.reference}[/dim]")
        for row in section.rows:
            answer.add_row(row.what, row.reading, *_cells(row), row.note)
    return answer


def write(results: dict[str, Any], path: Path) -> None:
    """Writes results as JSON, whole or not at all."""
    sections = [
        {**dataclasses.asdict(section), "claims": [_claim(claim) for claim in section.claims]}
        for section in results["sections"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({**results, "sections": sections}, indent=1, ensure_ascii=False) + "\n")
    draft.replace(path)


def _claim(claim: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(claim), "holds": claim.holds if claim.judged else None}


def _cells(row: Row) -> list[str]:
    values = (
        (row.milliseconds, ",.2f"),
        (row.ratio, ".3g"),
        (row.largest_z, ".2f"),
        (row.mean_square_z, ".2f"),
        (row.variance, ",.4g"),
        (row.work, ".3g"),
        (row.gain, ",.3g"),
    )
    return ["" if value is None else format(value, spec) for value, spec in values]


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
