"""Where a sweep's runs come from: a list, or Optuna, which wants to know what came of the earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rl_as_inference.sweeps.plan import Plan, Task
from rl_as_inference.sweeps.space import Axis, Range, Value

__all__ = ["STUDY", "Listed", "Source", "Studied", "source_of"]

STUDY = "study.db"
"""Optuna's file in a sweep's folder."""


class Source(Protocol):
    """Gives the runs of a sweep one after the other."""

    @property
    def total(self) -> int:
        """How many runs there will be."""

    def next(self) -> Task | None:
        """Returns the next run; None when there is none, or none before others have ended."""

    def ended(self, task: Task, value: float | None) -> None:
        """Hears what a run reached; None if it failed."""

    def configurations(self) -> list[dict[str, Value]]:
        """Returns those whose runs were given."""


class Listed:
    """Runs that are known from the start: all configurations with the first seed, then with the second, and so on."""

    def __init__(self, plan: Plan) -> None:
        self._configurations = plan.configurations()
        by_seed = zip(*(plan.tasks(values) for values in self._configurations), strict=True)
        self._tasks = [task for tasks in by_seed for task in tasks]
        self.total = len(self._tasks)

    def next(self) -> Task | None:
        return self._tasks.pop(0) if self._tasks else None

    def ended(self, task: Task, value: float | None) -> None:
        pass

    def configurations(self) -> list[dict[str, Value]]:
        return self._configurations


class Studied:
    """Configurations that Optuna chooses by what the earlier ones reached, the mean over their seeds.

    The study is a file in the sweep's folder. A trial that was going on when a sweep was killed goes on: its values are
    in the file, and its runs in their folders. The sampler (TPE) begins each trial from the trial's number, so that it
    chooses the same after a stop.

    Raises:
        ValueError: if Optuna is not installed, or the file cannot be read or is of other values.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, optuna = plan, _imported()
        self._optuna = optuna
        self._distributions = {name: _distribution(optuna, axis) for name, axis in plan.axes.items()}
        try:
            self._study = optuna.create_study(
                study_name="sweep",
                storage=f"sqlite:///{(out / STUDY).resolve()}",
                direction="maximize",
                load_if_exists=True,
            )
            trials = self._study.get_trials(deepcopy=False)
        except Exception as error:  # of SQLAlchemy's many classes
            raise ValueError(f"--out: {str(out / STUDY)!r} cannot be read ({' '.join(str(error).split())})") from error
        self._given: dict[int, dict[str, Value]] = {}
        self._reached: dict[int, dict[int, float | None]] = {}
        self._waiting: list[Task] = []
        self._of: dict[str, list[int]] = {}
        self._results: dict[str, float | None] = {}
        self._num_asked = 0
        state = optuna.trial.TrialState
        for trial in trials:
            if self._num_asked >= (plan.trials or 1):
                break
            if trial.params.keys() == plan.axes.keys():
                self._give(trial.number, trial.params)
            elif trial.state == state.RUNNING:  # the sweep was killed while it made it
                self._study.tell(trial.number, state=state.FAIL)

    @property
    def total(self) -> int:
        """How many runs there will be, as far as that is known."""
        return len(self._of) + self.plan.seeds * ((self.plan.trials or 1) - self._num_asked)

    def next(self) -> Task | None:
        while not self._waiting and self._num_asked < (self.plan.trials or 1):
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._optuna.samplers.TPESampler(seed=number, constant_liar=True)
            trial = self._study.ask(fixed_distributions=self._distributions)
            self._give(trial.number, trial.params)
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, task: Task, value: float | None) -> None:
        self._results[task.name] = value
        for number in self._of.get(task.name, []):
            self._hear(number, task.seed, value)

    def configurations(self) -> list[dict[str, Value]]:
        return list({str(values): values for values in self._given.values()}.values())

    def _give(self, number: int, params: Mapping[str, Any]) -> None:
        self._num_asked += 1
        values = {name: _plain(value, self.plan.axes[name]) for name, value in params.items()}
        values = {name: values[name] for name in self.plan.axes}
        self._given[number], self._reached[number] = values, {}
        for task in self.plan.tasks(values):
            known = task.name in self._of  # two trials of the same values have the same runs
            self._of.setdefault(task.name, []).append(number)
            if task.name in self._results:
                self._hear(number, task.seed, self._results[task.name])
            elif not known:
                self._waiting.append(task)

    def _hear(self, number: int, seed: int, value: float | None) -> None:
        """Tells the study of a trial whose runs have all ended."""
        state = self._optuna.trial.TrialState
        reached = self._reached[number]
        reached[seed] = value
        if len(reached) < self.plan.seeds or self._study.get_trials(deepcopy=False)[number].state != state.RUNNING:
            return
        values = [each for each in reached.values() if each is not None and math.isfinite(each)]
        if len(values) < len(reached):
            self._study.tell(number, state=state.FAIL)
        else:
            self._study.tell(number, sum(values) / len(values))


def source_of(plan: Plan, out: Path) -> Source:
    """Returns where the runs of a plan come from."""
    return Studied(plan, out) if plan.search == "optuna" else Listed(plan)


def _plain(value: Any, axis: Axis) -> Value:
    """Returns a value as folders are named by it: six digits are enough of a number that chance chose."""
    return float(f"{value:.6g}") if isinstance(axis, Range) and not axis.is_whole else value


def _distribution(optuna: Any, axis: Axis) -> Any:
    kinds = optuna.distributions
    if not isinstance(axis, Range):
        return kinds.CategoricalDistribution(axis)
    if axis.is_whole:
        return kinds.IntDistribution(axis.low, axis.high, log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)


def _imported() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError("--search optuna needs Optuna; pip install 'rl-as-inference[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
