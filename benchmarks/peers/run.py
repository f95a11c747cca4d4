"""This project's soft actor-critic and CrossQ against Stable-Baselines3's and SBX's, in one run on one machine.

``make bench-peers`` installs each peer in an environment of its own under ``.peers/`` and runs
``python -m benchmarks.peers.run``. Every contestant is a process with its own interpreter. All of them
compile and warm up first, unmeasured; then they play the same number of steps in turn, round after round,
one at a time. What is timed is the whole loop: environment, replay and one update a step, without logs
or evaluation, on the CPU. A case "from a cold start" times all of it, from the start of a fresh process with empty
caches on: imports, compiling, and the steps.

Each contestant plays once for each number of threads (one, two, and all cores), this project also with matrix products
in bfloat16 where the processor has them (the peers have no such option), and is judged by its fastest. Speeds are
medians over rounds; a ratio is the median of the ratios within a round. Only ratios are required: they are of one
machine and one hour. A case's table is printed, and its result written in place of the last, as soon as it ends. The
run ends in PASS, or in FAIL with what does not hold; half an hour on two cores.
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Claim, Timings
from benchmarks.peers.turns import Task
from benchmarks.run import _cpu as cpu
from rl_as_inference.progress import progress_bar
from rl_as_inference.threads import multiplies_in_bfloat16

__all__ = ["Case", "Contestant", "Entry", "Result", "enter", "main", "match", "table", "write"]

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_OURS, _SB3, _SBX = "rlai", "stable_baselines3", "sbx"
_IN_BFLOAT16, _PACKAGE = "rlai_bfloat16", "rl-as-inference"


@dataclass(frozen=True)
class Case:
    """A task and what is required of this project in it."""

    environment: str
    hidden_sizes: tuple[int, ...]
    batch_size: int
    required_ratios: dict[str, float] = field(default_factory=dict)
    """How many times as fast as a peer this project must be; these peers play."""
    algorithm: str = "sac"
    critic_hidden_sizes: tuple[int, ...] | None = None
    cold_steps: int | None = None
    """Steps from a cold start, in place of turns."""
    turn: float = 1.0
    """How long a turn is, of others' steps; shorter where a step takes long."""

    @property
    def title(self) -> str:
        widths = "×".join(map(str, self.hidden_sizes))
        if self.critic_hidden_sizes is not None:
            widths += f" and critics of {'×'.join(map(str, self.critic_hidden_sizes))}"
        name = {"sac": "", "crossq": "CrossQ, "}[self.algorithm]
        cold = "" if self.cold_steps is None else f", {self.cold_steps:,} steps from a cold start"
        return f"{name}{self.environment}, {widths}, batch {self.batch_size}{cold}"

    def task(self, threads: int) -> Task:
        return Task(
            self.environment,
            self.hidden_sizes,
            self.batch_size,
            threads,
            algorithm=self.algorithm,
            critic_hidden_sizes=self.critic_hidden_sizes,
            cold=self.cold_steps is not None,
        )


_CHEETAH = ("HalfCheetah-v5", (256, 256), 256)
CASES = {
    "cheetah": Case(*_CHEETAH, required_ratios={_SB3: 2.5, _SBX: 1.6}),
    "pendulum": Case("Pendulum-v1", (64, 64), 100, required_ratios={_SB3: 2.5, _SBX: 1.6}),
    # SBX's own widths, which are half of the paper's
    "crossq": Case(
        *_CHEETAH, required_ratios={_SBX: 1.5}, algorithm="crossq", critic_hidden_sizes=(1024, 1024), turn=0.2
    ),
    "cold": Case(*_CHEETAH, required_ratios={_SBX: 1.0}, cold_steps=3000),
}
_COLD_ROUNDS = 3
"""At most, of a case from a cold start, each of which takes a minute."""


@dataclass(frozen=True)
class Contestant:
    """A library, the interpreter it is installed for, its script, and the precision of its matrix products."""

    name: str
    title: str
    package: str
    precision: str = "float32"

    @property
    def is_ours(self) -> bool:
        return self.package == _PACKAGE

    @property
    def interpreter(self) -> Path:
        return Path(sys.executable) if self.is_ours else _ROOT / ".peers" / self.name / "bin" / "python"

    @property
    def command(self) -> list[str]:
        return [str(self.interpreter), "-m", f"benchmarks.peers.contestant_{_OURS if self.is_ours else self.name}"]


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(_OURS, "this project", _PACKAGE),
        Contestant(_IN_BFLOAT16, "this project, bfloat16", _PACKAGE, "bfloat16"),
        Contestant(_SB3, "Stable-Baselines3", "stable-baselines3"),
        Contestant(_SBX, "SBX", "sbx-rl"),
    )
}


class Entry:
    """A running contestant with one number of threads.

    Its methods raise a RuntimeError if the contestant has ended, with the last lines of what it wrote.
    """

    def __init__(self, contestant: Contestant, threads: int, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.contestant, self.threads = contestant, threads
        self._process, self._errors = process, errors

    @property
    def key(self) -> tuple[str, int]:
        return self.contestant.name, self.threads

    def warm_up(self) -> dict[str, Any]:
        """Waits until the contestant is warm; returns what it says of itself."""
        return self._answer()

    def play(self, steps: int) -> float:
        """Returns the seconds in which the contestant played."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the answer that does not come will show
            self._process.stdin.write(f"go {steps}\n")
            self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(
                f"{self.contestant.title} ended with status {self._process.returncode}:\n{self._errors.read()[-2000:]}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def enter(contestant: Contestant, task: Task) -> Iterator[Entry]:
    """Yields a contestant that has started; its input ends with the context, and so does it."""
    task = dataclasses.replace(task, precision=contestant.precision)
    # A folder of its own, because MuJoCo writes its log where it runs.
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/errors", "w+", errors="replace") as errors:
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        if task.cold:
            environment["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # SBX keeps nothing that it compiled
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        command = [*contestant.command, task.encode()]
        try:
            process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)
        except OSError as error:
            raise RuntimeError(f"{contestant.title} does not start ({error}); `make bench-peers` installs it") from None
        try:
            yield Entry(contestant, task.threads, process, errors)
        finally:
            process.communicate()


@dataclass(frozen=True)
class Result:
    """A case's timings by contestant and threads, what the contestants said of themselves, and the claims."""

    case: Case
    steps: int
    timings: Timings
    about: dict[tuple[str, int], dict[str, Any]]
    judged: bool

    def speeds(self, key: tuple[str, int]) -> list[float]:
        """Returns steps per second, by round."""
        return [self.steps / seconds[key] for seconds in self.timings.rounds]

    def median(self, key: tuple[str, int]) -> float:
        return self.steps / self.timings.seconds(key)

    def best(self, package: str) -> tuple[str, int] | None:
        """Returns a library's fastest entry; None if it did not play."""
        entries = (key for key in self.about if CONTESTANTS[key[0]].package == package)
        return max(entries, key=self.median, default=None)

    def ratio(self, key: tuple[str, int]) -> float | None:
        """Returns how many times as fast this project's best entry is; None if it did not play."""
        ours = self.best(_PACKAGE)
        return None if ours is None else self.timings.ratio(key, to=ours)

    def claims(self) -> dict[tuple[str, int], Claim]:
        """Returns the requirements, by the entry in whose row they stand."""
        ours = self.best(_PACKAGE)
        if ours is None:
            return {}
        required = {"at_most": False, "judged": self.judged}
        answer = {}
        for name, limit in self.case.required_ratios.items():
            if (peer := self.best(CONTESTANTS[name].package)) is not None:
                text = f"{self.case.title}: {CONTESTANTS[ours[0]].title} times as fast as {CONTESTANTS[name].title}"
                answer[peer] = Claim(text, self.timings.ratio(peer, to=ours), limit, **required)
        return answer


def match(
    case: Case,
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    *,
    steps: int,
    rounds: int,
    judged: bool = True,
    advance: Callable[[str], None] = lambda text: None,
) -> Result:
    """Returns the result of one case; ``advance`` is told of every warm-up and every round.

    Raises:
        RuntimeError: a contestant failed, or not all play the same version of the environment.
    """
    contestants = [each for each in contestants if each.is_ours or each.name in case.required_ratios]
    steps = max(1, round(steps * case.turn))
    if case.cold_steps is not None:
        return _cold_match(case, contestants, threads, rounds=rounds, judged=judged, advance=advance)
    with ExitStack() as stack:
        entries, about = [], {}
        for count in threads:
            for contestant in contestants:
                entry = stack.enter_context(enter(contestant, case.task(count)))
                about[entry.key] = entry.warm_up()
                entries.append(entry)
                advance(f"{case.environment}: {contestant.title} is warm")
        _check_environments([said["versions"] for said in about.values()])
        times = []
        for _ in range(rounds):
            times.append({entry.key: entry.play(steps) for entry in entries})
            advance(f"{case.environment}: {len(times)} of {rounds} rounds")
    return Result(case, steps, Timings(times), about, judged)


def _cold_match(
    case: Case,
    contestants: Sequence[Contestant],
    threads: Sequence[int],
    *,
    rounds: int,
    judged: bool,
    advance: Callable[[str], None],
) -> Result:
    """Returns the result of a case in which each turn is a process of its own, whose whole life is timed."""
    assert case.cold_steps is not None
    steps = case.cold_steps if judged else 200
    times: list[dict[Any, float]] = []
    about: dict[tuple[str, int], dict[str, Any]] = {}
    for _ in range(min(rounds, _COLD_ROUNDS)):
        times.append({})
        for count in threads:
            for contestant in contestants:
                start = time.perf_counter()
                with enter(contestant, case.task(count)) as entry:
                    about[entry.key] = entry.warm_up()
                    entry.play(steps)
                    times[-1][entry.key] = time.perf_counter() - start
                advance(f"{case.environment}: {contestant.title} from a cold start")
    _check_environments([said["versions"] for said in about.values()])
    return Result(case, steps, Timings(times), about, judged)


def main(arguments: list[str] | None = None) -> int:
    """Runs the match from the command line; returns 1 if a requirement does not hold, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.run", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    default = [name for name in CONTESTANTS if name != _IN_BFLOAT16 or multiplies_in_bfloat16()]
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=default, help="default: %(default)s")
    parser.add_argument("--threads", nargs="+", type=int, default=_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1500, help="of a turn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of 200 steps, not judged")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    steps, rounds = (200, 2) if options.quick else (options.steps, options.rounds)
    contestants = [CONTESTANTS[name] for name in options.contestants]
    console = Console(width=None if Console().is_terminal else 140)
    path = options.out / ("peers-quick.json" if options.quick else "peers.json")
    total = 0
    for case in (CASES[name] for name in options.cases):
        playing = len(options.threads) * sum(c.is_ours or c.name in case.required_ratios for c in contestants)
        total += playing + rounds if case.cold_steps is None else playing * min(rounds, _COLD_ROUNDS)
    claims: list[Claim] = []
    try:
        with progress_bar("peers", total) as bar:
            play = partial(match, steps=steps, rounds=rounds, judged=not options.quick, advance=bar.advance)
            for name in options.cases:
                load = round(os.getloadavg()[0], 2)
                machine = {"load_before": load, "cpu": cpu(), "cores": _cores(), "gflops": _gflops()}
                result = play(CASES[name], contestants, options.threads)
                console.print(table(result, machine))
                write(name, result, machine, path)
                claims += [claim for claim in result.claims().values() if claim.judged]
    except RuntimeError as error:
        console.print(str(error), style="bold red", markup=False, highlight=False)
        return 2
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    failed = [claim for claim in claims if not claim.holds]
    for claim in failed:
        console.print(str(claim), style="bold red", markup=False, highlight=False, soft_wrap=True)
    if claims:
        console.print(f"{'FAIL' if failed else 'PASS'}: {len(claims) - len(failed)} of {len(claims)} ratios hold")
    return int(bool(failed))


def table(result: Result, machine: dict[str, Any]) -> Table:
    """Returns the table of a case; a contestant's slower entries are dim."""
    caption = (
        f"median of {len(result.timings.rounds)} rounds; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['gflops']:.0f} GFLOP/s in fp32 matrix products; load before the match {machine['load_before']}"
    )
    answer = Table(title=f"{result.case.title}, whole loop, one update a step", caption=caption)
    answer.add_column("contestant")
    for header in ("threads", "steps/s", "lowest - highest", "this project is", "required"):
        answer.add_column(header, justify="right")
    answer.add_column("verdict")
    claims = result.claims()
    for key in sorted(result.about, key=lambda key: list(CONTESTANTS).index(key[0])):
        name, threads = key
        contestant, speeds, ratio = CONTESTANTS[name], result.speeds(key), result.ratio(key)
        answer.add_row(
            f"{contestant.title} {result.about[key]['versions'][contestant.package]}",
            str(threads),
            f"{result.median(key):,.0f}",
            f"{min(speeds):,.0f} - {max(speeds):,.0f}",
            "" if ratio is None or key == result.best(_PACKAGE) else f"{ratio:.2f} ×",
            *_verdict(claims.get(key)),
            style=None if key == result.best(contestant.package) else "dim",
        )
    return answer


def write(name: str, result: Result, machine: dict[str, Any], path: Path) -> None:
    """Writes a case's result as JSON in place of its last; the file is written whole or not at all."""
    cases = json.loads(path.read_text()) if path.exists() else {}
    cases = {key: case for key, case in cases.items() if key in CASES}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    cases[name] = {"date": now, **machine, **_data(result)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    draft.replace(path)


def _data(result: Result) -> dict[str, Any]:
    entries = [
        {
            "contestant": key[0],
            "threads": key[1],
            "best": key == result.best(CONTESTANTS[key[0]].package),
            "steps_per_second": result.median(key),
            "steps_per_second_by_round": result.speeds(key),
            "this_project_times_as_fast": result.ratio(key),
            **about,
        }
        for key, about in result.about.items()
    ]
    claims = [
        {**dataclasses.asdict(claim), "holds": claim.holds if claim.judged else None}
        for claim in result.claims().values()
    ]
    return {**dataclasses.asdict(result.case), "steps": result.steps, "entries": entries, "claims": claims}


def _verdict(claim: Claim | None) -> tuple[str, str]:
    if claim is None:
        return "", ""
    required = f"≥ {claim.limit:,g} ×"
    if not claim.judged:
        return required, "too short"
    return required, "[green]PASS[/green]" if claim.holds else "[bold red]FAIL[/bold red]"


def _check_environments(versions: list[dict[str, str]]) -> None:
    for name in ("gymnasium", "mujoco"):
        if len(found := sorted({version[name] for version in versions})) > 1:
            raise RuntimeError(
                f"The contestants have different versions of {name}: {', '.join(found)}; "
                "pin the same one in constraints.txt and in benchmarks/peers/requirements-*.txt"
            )


def _gflops() -> float:
    """Returns the fastest of many fp32 matrix products, in 1e9 operations a second."""
    size, seconds = 1024, []
    matrix = torch.randn(size, size)
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return round(2 * size**3 / min(seconds) / 1e9, 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> list[int]:
    """Returns the numbers of threads to try: one, two, and the libraries' default, which is all cores."""
    return sorted({count for count in (1, 2, _cores()) if count <= _cores()})


if __name__ == "__main__":
    raise SystemExit(main())
