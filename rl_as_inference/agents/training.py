"""A long run of a learner: evaluations, a learning curve, checkpoints, TensorBoard, and going on after a stop."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_as_inference.agents.curves import CurveRow, curve_frame
from rl_as_inference.agents.evaluation import Evaluation, mean_interval
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.logbook import BEST, Logbook
from rl_as_inference.agents.shared_learning import signal_to_stop
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.data_frames import Frame
from rl_as_inference.host import levels_to_the_user
from rl_as_inference.progress import progress_bar
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.sharing import failing_together
from rl_as_inference.stops import asked_to_stop, stop_of, stoppable

__all__ = ["Training", "train"]


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

    def to_frame(self) -> Frame:
        """Returns the curve as a frame, a row an evaluation of a seed (see :mod:`rl_as_inference.data_frames`)."""
        return curve_frame(self.curve)


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
    on_report: Callable[[dict[str, float]], None] | None = None,
    problem: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Training:
    """Lets ``agent`` learn until it has taken ``num_steps`` in all, and writes down how that went.

    The folder is what ``rlai train`` writes: ``checkpoint.safetensors``, ``curve.csv`` (a :class:`CurveRow` a line),
    ``learning_curve.png``, ``model_card.md``, ``tensorboard/`` and ``run.json``. ``rlai evaluate``, ``rlai inspect``
    and :func:`rl_as_inference.load_run` work on it where the environment has a name.

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
        on_report: called with each new row of the agent's ``history``, plain numbers by name, as soon as it is there:
            ``step``, and what the progress bar shows and more (docs/learners.md#watching-a-run). Of several ranks rank
            0 alone calls both. What they raise ends the run, as any error does.
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
        ranks = agent.arena.ranks
        first = ranks.is_first
        path = folder.path if isinstance(folder, RunFolder) else None if folder is None else Path(folder)
        if not first:
            folder = None
        with failing_together(ranks):
            if first and path is not None and not isinstance(folder, RunFolder):
                folder = stack.enter_context(RunFolder(path, "folder"))
        assert folder is None or isinstance(folder, RunFolder)
        run = Logbook(agent, folder, path, resume, evaluate_episodes, on_row, on_report, keep_best, checkpoint_minutes)
        lengths: dict[str, Any] = {
            "num_steps": num_steps,
            "evaluate_every": evaluate_every,
            "evaluate_episodes": evaluate_episodes,
            "checkpoint_every": checkpoint_every,
            "checkpoint_minutes": checkpoint_minutes,
            "keep_best": keep_best,
        }
        with failing_together(ranks):
            run.begin(problem, options, **lengths)
        learned = run.clock

        def next_multiple(every: int) -> int:
            return (agent.num_steps // every + 1) * every

        asked: list[int] = stack.enter_context(asked_to_stop()) if ranks.size > 1 else []
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
                    # Of several ranks one that stopped meanwhile would end the others, which wait for it, in an error.
                    if ranks.size > 1 and (stop := signal_to_stop(ranks, asked, 0)):
                        raise stop_of(stop)
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
                run.finish(title, evaluation)
        except BaseException as stop:
            run.rescue(stop)
            raise
        finally:
            run.close()
        return Training(run.curve, evaluation, run.seconds, learned.steps_per_second)


def _passed(every: int, last: int, now: int, ended: bool) -> bool:
    """Whether a multiple of ``every`` lies in ``(last, now]``, or the run has ended since."""
    return now // every > last // every or (ended and now > last)
