"""A long run of a learner: evaluations, a learning curve, checkpoints, TensorBoard, and going on after a stop."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl_as_inference.agents.checkpoint import load_saved, named_environment
from rl_as_inference.agents.clock import Clock
from rl_as_inference.agents.curves import CurveRow, plot_learning_curve, read_curve, write_curve
from rl_as_inference.agents.evaluation import Evaluation, mean_interval
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.made_again import settings_of
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.distributed import RankError
from rl_as_inference.host import levels_to_the_user
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.records import OF_RANKS, RunRecord, files_of, has_begun
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.stops import stoppable

__all__ = ["BEST", "CHECKPOINT", "RUN_FILES", "VIDEOS", "VIDEO_FILES", "Training", "evaluation_seed", "train"]

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
_DIVERGED, _CURVE = "diverged.safetensors", "curve.csv"
_PICTURE, _TENSORBOARD, VIDEOS = "learning_curve.png", "tensorboard", "videos"
RUN_FILES = {
    CHECKPOINT: "the agent as it ended: rlai evaluate, --resume",
    BEST: "the agent of the best evaluation, without replay: rlai evaluate --best",
    _DIVERGED: "the agent when it was no longer finite",
    _CURVE: "every evaluation",
    _PICTURE: "the same as a picture",
    _TENSORBOARD: "for tensorboard --logdir",
    VIDEOS: "episodes of the policy",
}
"""What may be in the folder of a run, beside its record."""
VIDEO_FILES = f"{VIDEOS}/episode-*.mp4"
_OWN = (CHECKPOINT, OF_RANKS, BEST, _DIVERGED, _CURVE, _PICTURE, f"{_TENSORBOARD}/events.out.tfevents.*")
"""What training itself may write."""
_TOGETHER = 64
"""Steps between those at which ranks ask rank 0 whether a checkpoint is due by the clock."""


@dataclass(frozen=True)
class Training:
    """What :func:`train` returns."""

    curve: list[CurveRow]
    """Every evaluation, also those before a stop that the run went on from."""
    evaluation: Evaluation
    """The last evaluation: every episode's return and length, ``(num_seeds, num_episodes)``."""
    seconds: float
    """Wall time of learning in all: compiling counts, evaluations do not."""
    steps_per_second: float
    """Environment steps of each seed for a second of learning, in this call; NaN if it took none."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the mean return; None for a single number.

        Over the seeds' means if there are several seeds, else over the episodes; percentiles of 9,999
        resamples.
        """
        return mean_interval(self.evaluation.returns)


@checked
def train(
    agent: Learner,
    num_steps: int,
    folder: str | Path | RunFolder | None = None,
    *,
    evaluate_every: int | None = None,
    evaluate_episodes: int = 10,
    checkpoint_every: int = 10_000,
    checkpoint_minutes: float | None = 5.0,
    keep_best: bool = False,
    report_every: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_row: Callable[[CurveRow], None] | None = None,
    problem: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Training:
    """Lets ``agent`` learn until it has taken ``num_steps`` in all, and writes down how that went.

    The folder is what ``rlai train`` writes: ``checkpoint.safetensors``, ``curve.csv`` (a :class:`CurveRow` a line),
    ``learning_curve.png``, ``tensorboard/`` and ``run.json``. ``rlai evaluate``, ``rlai inspect`` and
    :func:`rl_as_inference.load_run` work on it where the environment has a name.

    A run that was stopped, even killed, goes on from its last checkpoint with ``resume=True`` and an agent made in the
    same way; what it then learns is bit for bit what it would have learned. With more steps than the run had, it goes
    on past its end. Whatever stops it here, Ctrl-C, SIGTERM or an error, leaves a checkpoint of that step first; where
    parameters are no longer finite it is named ``diverged.safetensors`` and the last good one stays. What is killed
    loses at most ``checkpoint_minutes``, an evaluation, and the time to write one checkpoint.

    One process at a time writes to a folder; ``run.lock`` there says which. Of several ranks (``distributed=True``)
    rank 0 does, and evaluates; the others call this too, and save what they go on from, replay above all, in files of
    their own (``checkpoint.rank1.safetensors``). Another number of ranks may go on: what is learned is rank 0's, and a
    rank without a file of its own begins with the replay of another and new episodes.

    ``keep_best=True`` also keeps ``best.safetensors``: the agent of the evaluation with the largest mean return, over
    all episodes of all seeds, the first of several alike. It is a file as :meth:`Learner.save` writes it without
    replay, so that it is small: to evaluate, export and look at, rather than to learn on from. Its mean is of the
    episodes that chose it, and so promises a little too much; ``rlai evaluate RUN --best --seed N`` plays others.

    Args:
        agent: the learner; ``compile="auto"`` is settled by ``num_steps``.
        num_steps: ≥ 1, with those that the agent has taken already; there must be more, but with ``resume``.
        folder: where to write; None writes nothing. It is made if need be. Or a run's folder that this process has
            taken.
        evaluate_every: steps between evaluations; a twentieth of the run by default. The first is
            before the first step, the last after the last.
        evaluate_episodes: episodes of each, for each seed; the same ones every time.
        checkpoint_every: steps between checkpoints; the last is after the last step.
        checkpoint_minutes: and the longest time between them, of the clock; None for no limit. What is learned does
            not depend on it.
        keep_best: keep the agent of the best evaluation too; it needs a folder.
        report_every: steps between rows of the agent's ``history`` (and TensorBoard's ``learning/``).
        resume: go on from what an earlier call left in ``folder``; if that had no checkpoint yet, begin.
        progress: show a progress bar; None shows it on a terminal.
        on_row: called with each new row of the curve.
        problem: how the command line finds the environment again: a Gymnasium id, a model's name, or a Python file
            (``"mine.py:name"``); by default the id with which the agent was made, if it was.
        options: of the problem.

    Warns:
        UserWarning: if all the steps are taken before learning starts.

    Raises:
        NonFiniteError: if the environment gives NaN or an infinity.
        ValueError: if an argument is out of range, the folder has a checkpoint and ``resume`` is not
            said, another process writes to it, the checkpoint there does not fit, or learning diverges.

    Example:
        >>> from rl_as_inference.agents import SoftActorCritic
        >>> agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> training = train(agent, 60, evaluate_every=30, evaluate_episodes=2)
        >>> [row.step for row in training.curve], training.evaluation.returns.shape
        ([0, 30, 60], torch.Size([1, 2]))
    """
    check_count("num_steps", num_steps)
    if folder == "":
        raise ValueError("folder must name a folder, got ''; '.' is the one that the program runs in")
    if agent.num_steps >= num_steps and not resume:
        raise ValueError(
            f"num_steps counts all steps of the agent, which has taken {agent.num_steps} already, and is {num_steps}; "
            f"say {agent.num_steps + num_steps} for {num_steps} more"
        )
    evaluate_every = max(num_steps // 20, 1) if evaluate_every is None else evaluate_every
    report_every = max(min(num_steps // 100, 1000), 1) if report_every is None else report_every
    for name, value in {
        "evaluate_every": evaluate_every,
        "evaluate_episodes": evaluate_episodes,
        "checkpoint_every": checkpoint_every,
        "report_every": report_every,
    }.items():
        check_count(name, value)
    if checkpoint_minutes is not None:
        check_positive("checkpoint_minutes", checkpoint_minutes)
    if keep_best and folder is None:
        raise ValueError(f"keep_best=True writes {BEST} into a folder; name it")
    if num_steps <= agent.learning_starts:
        warnings.warn(
            f"num_steps is {num_steps:,}, and learning begins after learning_starts={agent.learning_starts:,} steps of "
            f"random actions: nothing will be learned; lower learning_starts, or take more steps",
            stacklevel=levels_to_the_user(),
        )
    agent.connect_actors()
    agent.settle_compile(num_steps)
    if folder is None and resume:
        raise ValueError("resume=True goes on in a folder; name it")
    with contextlib.ExitStack() as stack:
        stack.enter_context(stoppable())
        first = agent.arena.ranks.is_first
        path = folder.path if isinstance(folder, RunFolder) else None if folder is None else Path(folder)
        if not first:
            folder = None
        elif path is not None and not isinstance(folder, RunFolder):
            folder = stack.enter_context(RunFolder(path, "folder"))
        assert folder is None or isinstance(folder, RunFolder)
        run = _Logbook(agent, folder, path, resume, evaluate_episodes, on_row, keep_best, checkpoint_minutes)
        lengths: dict[str, Any] = {
            "num_steps": num_steps,
            "evaluate_every": evaluate_every,
            "evaluate_episodes": evaluate_episodes,
            "checkpoint_every": checkpoint_every,
            "checkpoint_minutes": checkpoint_minutes,
            "keep_best": keep_best,
        }
        run.begin(problem, options, **lengths)
        learned = run.clock

        def next_multiple(every: int) -> int:
            return (agent.num_steps // every + 1) * every

        try:
            title = f"{type(agent).__name__} on {agent.envs.name}"
            with progress_bar(
                title, num_steps, show=progress if first else False, done=min(agent.num_steps, num_steps)
            ) as bar:
                while True:
                    ended = agent.num_steps >= num_steps
                    if run.evaluated is None or _passed(evaluate_every, run.evaluated, agent.num_steps, ended):
                        run.evaluate(bar)
                    if _passed(checkpoint_every, run.saved, agent.num_steps, ended):
                        run.checkpoint()
                    if ended:
                        break
                    end = min(num_steps, next_multiple(evaluate_every), next_multiple(checkpoint_every))
                    with learned:
                        agent.learn(
                            end - agent.num_steps,
                            progress=bar,
                            report_every=report_every,
                            on_report=run.report,
                            on_step=run.tick,
                        )
                evaluation = run.last or run.play()
                run.finish(title)
        except BaseException as stop:
            run.rescue(stop)
            raise
        finally:
            run.close()
        return Training(run.curve, evaluation, run.seconds, learned.steps_per_second)


def _passed(every: int, last: int, now: int, ended: bool) -> bool:
    """Whether a multiple of ``every`` lies in ``(last, now]``, or the run has ended since."""
    return now // every > last // every or (ended and now > last)


class _Logbook:
    """What a run has written so far; without a folder, what it would have."""

    def __init__(
        self,
        agent: Learner,
        folder: RunFolder | None,
        path: Path | None,
        resume: bool,
        num_episodes: int,
        on_row: Callable[[CurveRow], None] | None,
        keep_best: bool,
        minutes: float | None,
    ) -> None:
        self.ranks, self.path = agent.arena.ranks, path  # a path too for ranks that do not write the folder's own files
        self.agent, self.folder, self.num_episodes = agent, folder, num_episodes
        self.on_row = on_row if self.ranks.is_first else None
        self.resume, self.keep_best, self.best = resume, keep_best, -math.inf
        self.most = math.inf if minutes is None or path is None else 60 * minutes
        self.curve: list[CurveRow] = []
        self.last: Evaluation | None = None
        self.seconds_before = 0.0
        self.clock = Clock(agent)
        self.writer: Any = None
        self._ticks = 0
        if path is not None:
            self._open(path, resume)
        self.saved, self.saved_at = agent.num_steps, time.monotonic()
        self.evaluated = max((row.step for row in self.curve), default=None)

    @property
    def seconds(self) -> float:
        """Of learning in all, with what came before a stop."""
        return self.seconds_before + self.clock.seconds

    def _open(self, folder: Path, resume: bool) -> None:
        checkpoint, first = folder / CHECKPOINT, self.ranks.is_first
        if first and not resume and (checkpoint.exists() or files_of(folder)):
            what = "a checkpoint" if checkpoint.exists() else "files"
            raise ValueError(
                f"folder: {str(folder)!r} has {what} of an earlier run; go on with resume=True, or choose another"
            )
        if not self.ranks.broadcast(resume and checkpoint.exists()):
            return
        notes = self.agent.restore(checkpoint)
        self.seconds_before = _number({"seconds": 0.0, **notes}, "seconds", checkpoint)
        if first:
            if has_begun(folder):
                RunRecord.read(folder, "folder").check_file(folder, _CURVE, "folder")
            self.curve = read_curve(folder / _CURVE, self.agent.num_steps)
            if self.keep_best and (folder / BEST).exists():
                self.best = _number(load_saved(folder / BEST).notes, "mean_return", folder / BEST)
        self.curve = self.ranks.broadcast(self.curve)

    def begin(self, problem: str | None, options: Mapping[str, Any] | None, **settings: Any) -> None:
        """Writes what is run; a run that goes on keeps what it was, with the settings of now."""
        if self.folder is None:
            return
        path = self.folder.path
        if self.resume and has_begun(path):
            record = RunRecord.read(path, "folder", ("train",))
        else:
            named, own = named_environment(self.agent.arena.source, self.agent.arena.env_kwargs)
            problem, options = (named, own or {}) if problem is None else (problem, options or {})
            record = RunRecord.of("train", problem, path, options=options, seed=self.agent.seed)
        # First of all, so that a run that is killed from now on can be gone on with. Compiling is settled by now, by
        # all the steps: whoever learns a part of the run could not tell.
        self.folder.begin(record.changed(**settings_of(self.agent), **settings), *_OWN)
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run logged beyond its checkpoint is no longer shown.
        purge = self.agent.num_steps + bool(self.curve) if self.resume else None
        self.writer = SummaryWriter(str(path / _TENSORBOARD), purge_step=purge)

    def finish(self, title: str) -> None:
        """Draws the curve, and writes that the run came to its end."""
        self.ranks.sum(torch.zeros(()))  # all have saved what they end with
        if self.folder is None:
            return
        ax: Any = plot_learning_curve(self.curve, title=title)
        with self.folder.writing(_PICTURE) as path:
            ax.figure.savefig(path, dpi=130)
        self.writer.close()
        self.folder.settle(finished=True, seconds=round(self.seconds, 2))

    def tick(self) -> None:
        """Makes a checkpoint where the last is long ago; between two steps."""
        due = time.monotonic() - self.saved_at >= self.most
        if self.ranks.size > 1 and self.most < math.inf:  # by rank 0's clock
            self._ticks += 1
            due = self._ticks % _TOGETHER == 0 and bool(self.ranks.sum(torch.tensor(due and self.ranks.is_first).int()))
        if due:
            self.checkpoint()

    def report(self, row: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in row.items():
                if name != "step" and not math.isnan(value):
                    self.writer.add_scalar(f"learning/{name}", value, int(row["step"]))

    def play(self) -> Evaluation:
        """Returns the evaluation's episodes, which are the same at every step."""
        agent = self.agent
        try:
            played = agent.evaluate(self.num_episodes, seed=evaluation_seed(agent.seed))
        except ValueError as error:
            error.add_note(f"in the evaluation at step {agent.num_steps}")
            raise
        shape = agent.num_seeds, self.num_episodes
        return Evaluation(played.returns.reshape(shape), played.lengths.reshape(shape))

    def evaluate(self, bar: ProgressBar) -> None:
        bar.say("evaluating")
        agent, step = self.agent, self.agent.num_steps
        self.last = self.ranks.broadcast(self.play() if self.ranks.is_first else None)
        assert self.last is not None
        rows = [
            CurveRow(
                step,
                seed,
                float(returns.mean()),
                float(returns.min()),
                float(returns.max()),
                temperature,
                # An agent that was loaded has the mean over its seeds only.
                recent.get("entropy", agent.history[-1].get("entropy", math.nan) if agent.history else math.nan),
                self.seconds,
            )
            for seed, (returns, temperature, recent) in enumerate(
                zip(self.last.returns, agent.temperatures, agent.recent, strict=True)
            )
        ]
        self.curve += rows
        self.evaluated = step
        if self.folder is not None:
            write_curve(self.folder.path / _CURVE, self.curve)
            self._log(rows)
            if self.keep_best and self.last.mean > self.best and _is_finite(agent):
                self.best = self.last.mean
                agent.save(self.folder.path / BEST, replay=False, mean_return=self.best)
        for row in rows if self.on_row is not None else ():
            self.on_row(row)  # type: ignore[misc]

    def _log(self, rows: Sequence[CurveRow]) -> None:
        step = rows[0].step
        self.writer.add_scalar("evaluation/return", sum(row.mean_return for row in rows) / len(rows), step)
        if len(rows) > 1:
            for row in rows:
                self.writer.add_scalar(f"evaluation/return_seed_{row.seed}", row.mean_return, step)
        self.writer.flush()

    def checkpoint(self) -> None:
        self.agent._loop.check_parameters()
        self._save(CHECKPOINT)

    def _save(self, name: str) -> None:
        if self.path is not None:
            self.agent.save(self.path / name, seconds=self.seconds)
        if self.writer is not None:
            self.writer.flush()
        self.saved, self.saved_at = self.agent.num_steps, time.monotonic()

    def rescue(self, stop: BaseException) -> None:
        """Saves the step at which the run is stopped, and says so in a note to ``stop``."""
        step = self.agent.num_steps
        if self.path is None:
            stop.add_note(f"at step {step}, and nothing is kept: the run has no folder")
        elif isinstance(stop, RankError):  # those that are left may be at different steps
            stop.add_note(
                f"go on from {self.path / CHECKPOINT}, of step {self.saved}, with any number of ranks"
                if (self.path / CHECKPOINT).exists()
                else "there is no checkpoint yet"
            )
        elif not self.agent.is_whole:
            stop.add_note(f"inside a step; the last checkpoint is of step {self.saved}")
        elif step == self.saved:
            stop.add_note(f"at step {step}, of which there is a checkpoint" if step else "before the first step")
        else:
            before = f"; {CHECKPOINT} is of step {self.saved}" if self.saved else ""
            name, beside = (CHECKPOINT, "") if _is_finite(self.agent) else (_DIVERGED, before)
            try:
                self._save(name)
            except (ValueError, OSError) as error:  # what stops the run is told first
                stop.add_note(f"at step {step}, which cannot be saved ({error}){before}")
            else:
                stop.add_note(f"at step {step}, saved in {self.path / name}{beside}")

    def close(self) -> None:
        if self.writer is not None:
            with contextlib.suppress(OSError):  # of a full disk, which has been told by now
                self.writer.close()


def evaluation_seed(seed: int) -> int:
    """Returns the seed of the evaluations of a run with ``seed``, whose own episodes have others."""
    return 10_000 + seed


def _number(notes: Mapping[str, Any], name: str, path: Path) -> float:
    """Returns a number that a run notes in its files."""
    value = notes.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"folder: {str(path)!r} was not saved by a run: its notes have {name} {value!r}")
    return float(value)


def _is_finite(agent: Learner) -> bool:
    parameters = (p for modules in agent.modules for module in modules.values() for p in module.parameters())
    return all(bool(parameter.isfinite().all()) for parameter in parameters)
