"""Carrying out a sweep: what has ended is left alone, what broke off goes on, and what dies is begun again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rl_as_inference.run_folders import RunFolder, has_leftovers, writer_of
from rl_as_inference.stops import asked_to_stop, stop_of
from rl_as_inference.sweeps.display import Display
from rl_as_inference.sweeps.looking import METRICS, Outcome, State, look, outcome_of
from rl_as_inference.sweeps.plan import Plan, Task
from rl_as_inference.sweeps.sources import Source
from rl_as_inference.sweeps.workers import Ended, Workers, last_words, starts_in
from rl_as_inference.tables import counted

__all__ = ["Report", "conduct"]

_DEATHS = 20
"""How often a process may die, without a checkpoint in between, before its run is given up: memory that is too small
kills it every time."""
_PATIENCE = 60.0
"""Seconds for which a run is waited for that another process writes: one of a sweep that was killed ends soon."""
_LOOK = 0.2


class Report(NamedTuple):
    """How a run of a sweep stands at its end."""

    outcome: Outcome | None
    """None if it has not finished."""
    reason: str
    """Why not."""


class _Conductor:
    def __init__(
        self,
        plan: Plan,
        out: Path,
        workers: Workers,
        source: Source,
        words_of: Callable[[Task, Path, State], Sequence[str]],
        display: Display,
        problem_sha256: str | None,
        check_problem: Callable[[], object],
    ) -> None:
        self.plan, self.out, self.workers, self.source, self.display = plan, out, workers, source, display
        self.words_of, self.problem_sha256, self.check_problem = words_of, problem_sha256, check_problem
        self.reports: dict[str, Report] = {}
        self.running: dict[str, Task] = {}
        self.held: list[tuple[Task, float]] = []
        """Runs that somebody else writes to, and since when they are waited for."""
        self.again: list[Task] = []
        """Runs whose process has died."""
        self.deaths: dict[str, tuple[float, int]] = {}
        """Of each of them: when its last checkpoint was made, and how often it has died since."""

    def go(self) -> None:
        with asked_to_stop() as asked:
            while not asked:
                self._fill()
                if not (self.running or self.held or self.again):
                    break
                if self.running:
                    for ended in self.workers.wait(_LOOK):
                        self._ended(ended, bool(asked))
                else:
                    time.sleep(_LOOK)
                self.display.look()
            if asked:
                if self.running:
                    self.display.say(f"stopping: checkpoints of {counted(len(self.running), 'runs')} are made")
                self.workers.stop()
                raise stop_of(asked[0])

    def _fill(self) -> None:
        """Begins as many runs as there is room for."""
        for task, since in list(self.held):
            if self.workers.room() <= 0:
                return
            if (writer := writer_of(task.folder(self.out))) is None:
                self.held.remove((task, since))
                self._begin(task)
            elif time.monotonic() - since > _PATIENCE:
                self.held.remove((task, since))
                folder = str(task.folder(self.out))
                self._fails(task, f"{folder!r} is being written to by {writer}; sweep again when that has ended")
        while self.workers.room() > 0:
            following = self.again.pop(0) if self.again else self.source.next()
            if following is None:
                return
            self._begin(following)

    def _begin(self, task: Task) -> None:
        folder = task.folder(self.out)
        if (writer := writer_of(folder)) is not None:
            if all(held.name != task.name for held, _ in self.held):
                self.display.say(f"  {task}: waits, as its folder is being written to by {writer}")
            self.held.append((task, time.monotonic()))
            return
        state = look(folder, self.problem_sha256)
        if state == "finished":
            self._finished(task, "has finished before")
            return
        self.check_problem()  # before each run: a file may change while a sweep goes on
        self.running[task.name] = task
        how = {"begun": "goes on from its checkpoint", "broken": "begins again"}.get(state, "")
        self.display.begin(task, how)
        self.workers.start(task, self.words_of(task, folder, state), task.log(self.out))

    def _ended(self, ended: Ended, stopping: bool) -> None:
        task, folder = ended.task, ended.task.folder(self.out)
        del self.running[task.name]
        if look(folder, self.problem_sha256) == "finished":  # whatever became of its process
            self._finished(task, "")
        elif ended.code is None and not stopping:
            self._died(task)
        elif writer_of(folder) is not None:  # they came first
            self.held.append((task, time.monotonic()))
            self.display.end(task, "", finished=False, counts=False)
        elif ended.code in (130, 143) and not stopping:  # somebody stopped it by itself
            self._died(task)
        else:
            self._fails(task, last_words(task.log(self.out)))

    def _died(self, task: Task) -> None:
        checkpoint = task.folder(self.out) / "checkpoint.safetensors"
        made = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        before, count = self.deaths.get(task.name, (made, 0))
        count = 1 if made > before else count + 1
        self.deaths[task.name] = made, count
        if count >= _DEATHS:
            self._fails(task, f"its process died {count} times without a step of progress; has it memory enough?")
            return
        self.display.end(task, "", finished=False, counts=False)
        self.display.say(f"  {task}: its process died, and it goes on")
        self.again.append(task)

    def _finished(self, task: Task, how: str) -> None:
        folder = task.folder(self.out)
        if has_leftovers(folder):  # its process was killed between its end and its folder's
            with contextlib.suppress(ValueError):  # somebody else writes there now, who will remove them
                RunFolder.of_run(folder).close()
        outcome = outcome_of(self.plan.command, folder)
        metric = METRICS[self.plan.command]
        value = outcome.numbers[metric.name]
        self.reports[task.name] = Report(outcome, "")
        told = f"{metric.title} {value:.6g} {metric.unit}"
        self.display.end(task, f"{told} ({how})" if how else told, finished=True)
        self.source.ended(task, value)

    def _fails(self, task: Task, reason: str) -> None:
        self.reports[task.name] = Report(None, reason)
        self.display.end(task, f"failed: {reason}", finished=False)
        self.source.ended(task, None)


def conduct(
    plan: Plan,
    out: Path,
    workers: Workers,
    source: Source,
    words_of: Callable[[Task, Path, State], Sequence[str]],
    display: Display,
    problem_sha256: str | None,
    check_problem: Callable[[], object],
) -> dict[str, Report]:
    """Returns how each run stands when all have ended, by their names.

    Args:
        plan: of the sweep.
        out: its folder, which this process alone writes to.
        workers: who carries runs out.
        source: which runs.
        words_of: returns the words of a run's command line: the run, its folder and how far that is.
        display: what says how far the sweep is.
        problem_sha256: of the file that the problem is in, if it is in one.
        check_problem: raises ValueError if that file is no longer what it was.

    Raises:
        KeyboardInterrupt: if a signal asked to stop; the runs have made their checkpoints by then.
        ValueError: if the problem's file has changed.
    """
    conductor = _Conductor(plan, out, workers, source, words_of, display, problem_sha256, check_problem)
    try:
        conductor.go()
    except ValueError:  # what still goes on is stopped in good order
        workers.stop()
        raise
    finally:
        display.close()
        workers.close()
    return conductor.reports


def starts_of(task: Task, out: Path) -> int:
    """Returns how often a run's process was begun, in this sweep and all before."""
    return starts_in(task.log(out))
