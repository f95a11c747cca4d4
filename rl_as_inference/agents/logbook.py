"""What a run of a learner writes down: its record, curve, checkpoints, TensorBoard and card."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl_as_inference.agents.checkpoint import load_saved, named_environment
from rl_as_inference.agents.clock import Clock
from rl_as_inference.agents.curves import CurveRow, plot_learning_curve, read_curve, write_curve
from rl_as_inference.agents.evaluation import Evaluation, mean_interval
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.made_again import settings_of
from rl_as_inference.distributed import RankError
from rl_as_inference.model_card import CARD, Measure, model_card
from rl_as_inference.progress import ProgressBar
from rl_as_inference.records import OF_RANKS, RunRecord, files_of, has_begun
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.sharing import failing_together
from rl_as_inference.tables import counted

__all__ = ["BEST", "CHECKPOINT", "RUN_FILES", "VIDEOS", "VIDEO_FILES", "Logbook", "evaluation_seed"]

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
_DIVERGED, _CURVE = "diverged.safetensors", "curve.csv"
_PICTURE, _TENSORBOARD, VIDEOS = "learning_curve.png", "tensorboard", "videos"
RUN_FILES = {
    CHECKPOINT: "the agent as it ended: rlai evaluate, --resume",
    BEST: "the agent of the best evaluation, without replay: rlai evaluate --best",
    _DIVERGED: "the agent when it was no longer finite",
    _CURVE: "every evaluation",
    _PICTURE: "the same as a picture",
    CARD: "the run for people, in the format of the Hugging Face Hub",
    _TENSORBOARD: "for tensorboard --logdir",
    VIDEOS: "episodes of the policy",
}
"""What may be in the folder of a run, beside its record."""
VIDEO_FILES = f"{VIDEOS}/episode-*.mp4"
_OWN = (CHECKPOINT, OF_RANKS, BEST, _DIVERGED, _CURVE, _PICTURE, CARD, f"{_TENSORBOARD}/events.out.tfevents.*")
"""What training itself may write."""
_TOGETHER = 64
"""Steps between those at which ranks ask rank 0 whether a checkpoint is due by the clock."""


class Logbook:
    """What a run has written so far; without a folder, what it would have."""

    def __init__(
        self,
        agent: Learner,
        folder: RunFolder | None,
        path: Path | None,
        resume: bool,
        num_episodes: int,
        on_row: Callable[[CurveRow], None] | None,
        on_report: Callable[[dict[str, float]], None] | None,
        keep_best: bool,
        minutes: float | None,
    ) -> None:
        self.ranks, self.path = agent.arena.ranks, path  # a path too for ranks that do not write the folder's own files
        self.agent, self.folder, self.num_episodes = agent, folder, num_episodes
        self.on_row, self.on_report = (on_row, on_report) if self.ranks.is_first else (None, None)
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
        with failing_together(self.ranks):
            if first and not resume and (checkpoint.exists() or files_of(folder)):
                what = "a checkpoint" if checkpoint.exists() else "files"
                raise ValueError(
                    f"folder: {str(folder)!r} has {what} of an earlier run; go on with resume=True, or choose another"
                )
        if not self.ranks.broadcast(resume and checkpoint.exists()):
            return
        notes = self.agent.restore(checkpoint)
        with failing_together(self.ranks):
            self.seconds_before = _number({"seconds": 0.0, **notes}, "seconds", checkpoint)
            if first:
                if has_begun(folder):
                    RunRecord.read(folder, "folder").check_file(folder, _CURVE, "folder")
                self.curve = read_curve(folder / _CURVE, self.agent.num_steps)
                if self.keep_best and (folder / BEST).exists():
                    self.best = _number(load_saved(folder / BEST).notes, "mean_return", folder / BEST)
        self.curve = self.ranks.broadcast(self.curve)

    def begin(self, problem: str | None, options: Mapping[str, Any] | None, **settings: Any) -> None:
        """Writes what is run; a run that goes on keeps what it was, with the settings of now, but for its pages."""
        if self.folder is None:
            return
        path = self.folder.path
        if self.resume and has_begun(path):
            record = RunRecord.read(path, "folder", ("train",))
            for page in (each for each in files_of(path) if each.suffix == ".html"):
                page.unlink()  # it tells of a run that was shorter
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

    def finish(self, title: str, evaluation: Evaluation) -> None:
        """Draws the curve, writes the card, and that the run came to its end."""
        self.ranks.sum(torch.zeros(()))  # all have saved what they end with
        if self.folder is None:
            return
        ax: Any = plot_learning_curve(self.curve, title=title)
        with self.folder.writing(_PICTURE) as path:
            ax.figure.savefig(path, dpi=130)
        with self.folder.writing(CARD) as path:
            path.write_text(self._card(evaluation), encoding="utf-8")
        self.writer.close()
        self.folder.settle(finished=True, seconds=round(self.seconds, 2))

    def _card(self, last: Evaluation) -> str:
        assert self.folder is not None
        assert self.folder.record is not None
        agent = self.agent
        seeds, episodes = agent.num_seeds, self.num_episodes
        played = counted(episodes, "episodes")
        over = f"{seeds} seeds, {played} each" if seeds > 1 else played
        sure: dict[str, float | str] = {"over": f"{over}, deterministic policy"}
        if (interval := mean_interval(last.returns)) is not None:
            sure = {"low": interval[0], "high": interval[1], "level": 0.95, "over": f"bootstrap over {sure['over']}"}
        entropy = statistics.fmean(row.entropy for row in self.curve[-seeds:])
        measures = [
            Measure("mean_reward", "mean return, undiscounted", last.mean, "reward", sure),
            Measure("entropy", "policy entropy", entropy, "nats", {"over": "mean over the latest batches"}),
            Measure("temperature", "temperature", agent.temperature, "reward/nat"),
        ]
        return model_card(self.folder.record, trained=type(agent).__name__, problem=agent.envs.name, measures=measures)

    def tick(self) -> None:
        """Makes a checkpoint where the last is long ago; between two steps."""
        due = time.monotonic() - self.saved_at >= self.most
        if self.ranks.size > 1 and self.most < math.inf:  # by rank 0's clock
            self._ticks += 1
            due = self._ticks % _TOGETHER == 0 and bool(self.ranks.sum(torch.tensor(due and self.ranks.is_first).int()))
        if due:
            self.checkpoint()

    def report(self, row: dict[str, float]) -> None:
        """Tells of a row of the history."""
        if self.writer is not None:
            for name, value in row.items():
                if name != "step" and not math.isnan(value):
                    self.writer.add_scalar(f"learning/{name}", value, int(row["step"]))
        if self.on_report is not None:
            self.on_report(dict(row))

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
                float(returns.std() / len(returns) ** 0.5) if len(returns) > 1 else math.nan,
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
