"""What every learner on environments offers: learn, act, evaluate, save, load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import torch

from rl_as_inference.agents.acting import checked_states, choose
from rl_as_inference.agents.actor import making_of
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.checkpoint import Saved, check_whole, how_made, save_snapshot
from rl_as_inference.agents.compilation import CompileCost
from rl_as_inference.agents.entropy import TemperatureWatch
from rl_as_inference.agents.evaluation import Evaluation, play
from rl_as_inference.agents.export import Exported, Format, export_policy
from rl_as_inference.agents.identity import identity_of
from rl_as_inference.agents.loading import Load
from rl_as_inference.agents.loop import Loop
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.reports import Counts, Reporter, progress_text
from rl_as_inference.agents.shared_learning import file_of_rank, of_this_rank, signal_to_stop
from rl_as_inference.agents.shared_update import SharedUpdate
from rl_as_inference.agents.snapshots_alike import Snapshot
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.agents.windows import EpisodeWindow
from rl_as_inference.arguments import checked, checked_but
from rl_as_inference.checks import check_count
from rl_as_inference.data_frames import Frame, history_frame
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.randomness import RandomStream
from rl_as_inference.stops import asked_to_stop, stop_of
from rl_as_inference.threads import check_precision, one_thread_if_small, products_in
from rl_as_inference.turns import turn

__all__ = ["Learner"]

_LATEST = 1000
"""Transitions whose states are looked at for what a mask allows there."""


class Learner:
    """A loop that holds an off-policy algorithm: everything but its modules, its loss and its draw.

    Args:
        arena: the environments, and the task that they are.
        algorithm: what learns.
        options: with their defaults.

    Attributes:
        algorithm: what learns.
        envs: the environments, ``num_seeds · num_envs`` of them.
        compile_seconds: what tracing and compiling the update took.
        recent: of each seed, the means of the reported numbers as ``history`` had them last.
        replay: the transitions; with a memory, of single observations.
    """

    def __init__(self, arena: Arena, algorithm: Algorithm, options: LearnerOptions) -> None:
        self.arena, self.algorithm, self.options, self.task = arena, algorithm, options, arena.task
        task, seeds = arena.task, options["seeds"]
        self.envs, self.num_envs, self.process = arena.envs, arena.num_envs, arena.process
        self.seed, self.num_seeds = options["seed"], 1 if seeds is None else seeds
        self.device, self.dtype, self.state_dtype = task.device, task.dtype, task.state_dtype
        self.state_space, self.action_space, self.is_discrete = task.state_space, task.action_space, task.is_discrete
        self.discount, self.n_step, self.action_prior = task.discount, task.n_step, task.action_prior
        self.learns_temperature = task.learns_temperature
        self.target_entropy = None if task.target_entropy is None else task.target_entropy.nats
        self.metrics, self.targeted = algorithm.metrics, algorithm.targeted
        self.learning_starts, self.batch_size = options["learning_starts"], options["batch_size"]
        self.learning_rate, self.target_average = options["learning_rate"], options["target_average"]
        self.hidden_sizes = tuple(options["hidden_sizes"])
        self.updates_per_step, self.compile = options["updates_per_step"], options["compile"]
        check_precision(options["precision"], task.device, task.dtype)
        self._loop = Loop(arena, algorithm, options, making_of(type(self), arena.source, options))
        self.modules, self.replay, self.constraint = self._loop.modules, self._loop.replay, self._loop.constraint
        self._random, self._update = self._loop.random, self._loop.update
        self._observation, self._action = self._loop.observation, self._loop.action
        is_box = isinstance(task.action_space, gymnasium.spaces.Box)
        masks = task.has_prior and not is_box and not isinstance(task.prior_of, PartiallyObservedMDP)  # of no state
        self._watch = (
            None
            if task.target_entropy is None
            else TemperatureWatch(task.target_entropy, task.temperature, task.log_counts if masks else None)
        )
        self._episode = None if arena.window is None else EpisodeWindow(arena.window)
        self.compile_seconds, self._steps_asked = 0.0, 0
        self.recent: list[dict[str, float]] = [{} for _ in range(self.num_seeds)]
        self._compiles = self.compile is True
        self._compile_cost: CompileCost | None = None
        self._reported = Counts()

    @property
    def num_steps(self) -> int:
        """Environment steps taken so far, by each seed."""
        return self._loop.ledger.num_steps

    @property
    def num_updates(self) -> int:
        """Gradient steps taken so far, by each seed."""
        return self._loop.ledger.num_updates

    @property
    def history(self) -> list[dict[str, float]]:
        """One row for every report: steps, returns, losses, temperature, entropy."""
        return self._loop.ledger.history

    def to_frame(self) -> Frame:
        """Returns the history as a frame, a row a report (see :mod:`rl_as_inference.data_frames`)."""
        return history_frame(self.history)

    @property
    def episodes(self) -> list[tuple[int, int, float, int]]:
        """``(step, seed index, return, length)`` of every finished episode."""
        return self._loop.ledger.episodes

    @property
    def is_whole(self) -> bool:
        """False after an interruption inside a step (by a second Ctrl-C), which cannot be saved."""
        return self._loop.is_whole

    @property
    def policy(self) -> Policy:
        """The policy, ``(state, t) -> Distribution``, on normalised actions: a guide. The first seed's, of several."""
        return self.policies[0]

    @property
    def policies(self) -> list[Policy]:
        """The policy of every seed."""
        return [self.algorithm.policy_of(modules) for modules in self.modules]

    @property
    def critic(self) -> SoftValue:
        """The soft state value ``(state, t)``, in reward units. The first seed's, of several."""
        return self.critics[0]

    @property
    def critics(self) -> list[SoftValue]:
        """The critic of every seed."""
        return [self.algorithm.critic_of(modules) for modules in self.modules]

    @property
    def temperature(self) -> float:
        """α, in reward units per nat. The mean, of several seeds."""
        return sum(self.temperatures) / self.num_seeds

    @property
    def temperatures(self) -> list[float]:
        """α of every seed."""
        return [float(modules["temperature"]().detach()) for modules in self.modules]

    @checked_but("num_steps", "report_every")
    def learn(
        self,
        num_steps: int,
        *,
        progress: bool | ProgressBar | None = None,
        report_every: int = 1000,
        on_report: Callable[[dict[str, float]], None] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        """Takes ``num_steps`` further environment steps (each seed does), learning on the way.

        With several environments a step of them all counts ``num_envs``, so the last one may go past
        the number. Ctrl-C, or SIGTERM where nobody else handles it, ends it after the running step, with everything
        consistent, by raising KeyboardInterrupt. Between steps it gives way to other threads.

        Args:
            num_steps: ≥ 1.
            progress: show a progress bar; None shows it on a terminal. Or a running bar to move on.
            report_every: steps between rows of ``history``.
            on_report: called with each new row, on rank 0; losses in it are means since the last row, ``return`` is
                the mean undiscounted return of the episodes that ended since then (NaN if none did).
            on_step: called after every step, when the agent can be saved; on every rank.

        Raises:
            NonFiniteError: if the environment gives NaN or an infinity (before it enters replay).
            ValueError: if a parameter stops being finite, or ``num_steps`` is out of range.
        """
        check_count("num_steps", num_steps)
        check_count("report_every", report_every)
        check_whole(self.is_whole)
        self._steps_asked += num_steps
        ranks, begun = self.arena.ranks, self.num_steps
        first, end = begun, begun + num_steps
        title = f"{type(self).__name__} on {self.envs.name}"
        shown = progress if ranks.is_first else False
        with asked_to_stop() as asked, progress_bar(title, num_steps, show=shown) as bar:
            ranks.agree("learn", {"num_steps": num_steps, "what was learned": begun})
            with self._random, self.threads(), torch.no_grad():
                self._prepare(bar.say, self._steps_asked)
                self._loop.start_actors(bar.say)
                reporter = Reporter(self, report_every, self._reported)
            while self.num_steps < end:
                turn.give_way()
                with self._random, self.threads(), torch.no_grad():
                    while self.num_steps < end:
                        if stop := signal_to_stop(ranks, asked, (self.num_steps - begun) // self.num_envs):
                            raise stop_of(stop)
                        self._loop.step()
                        if self.num_steps >= reporter.due or self.num_steps >= end:
                            self._loop.catch_up()
                            row = reporter.row() | self._loop.lags()
                            self._reported = reporter.since
                            self.history.append(row)
                            self._look_at_temperatures()
                            bar.advance(progress_text(row, self.episodes), by=min(self.num_steps, end) - first)
                            first = self.num_steps
                            if on_report is not None and ranks.is_first:
                                with self._random.unmoved():  # who acts or compares there draws
                                    on_report(row)
                        if on_step is not None:
                            on_step()
                        if turn.is_wanted:  # by another thread: what is global is put back first
                            break
            if stop := signal_to_stop(ranks, asked, 0):
                raise stop_of(stop)

    def connect_actors(self) -> None:
        """Makes ready what actors begin in, if there are to be any: a cluster that does not answer is told here."""
        if (actors := self._loop.actors) is not None:
            actors.pool.connect()

    def settle_compile(self, num_steps: int) -> bool:
        """Settles ``compile="auto"`` for a run of ``num_steps`` that :meth:`learn` is asked for in parts.

        Returns whether the update is compiled; from then on that changes no more.
        """
        if self.compile == "auto":
            with self._random, self.threads(), torch.no_grad():
                self._settle(num_steps)
            self.compile = self._compiles
        return self._compiles

    def _settle(self, num_steps: int) -> None:
        """Decides for ``compile="auto"`` whether compiling repays itself in so many steps, by a measurement."""
        num_updates = max(num_steps - self.learning_starts, 0) * self.updates_per_step
        if not self._compiles:
            with self._random.unmoved():
                self._compiles, self._compile_cost = self._update.repays_compiling(num_updates)

    def act(self, observation: Any, deterministic: bool = False, t: Any = 0, action_mask: Any = None) -> Any:
        """Returns an action for the environment, in its own units; for a batch of observations, a batch.

        With ``history=k`` above 1 it remembers what it was given and has answered, of one running episode or of a
        batch of them; :meth:`begin_episode` says where another begins. The first call begins one.

        Args:
            observation: as the environment gives it, or a batch of such.
            deterministic: the policy's mode instead of a draw.
            t: how many steps the episode has taken, or one such number for each observation: looked at where the
                process that was learned has a horizon.
            action_mask: which actions are allowed, as ``info["action_mask"]`` gives it; needed where the environment
                gives it there, and not where it is a part of the observation.

        Raises:
            ValueError: if the observation or the mask has another shape, or is not finite, nothing is allowed, or the
                time is past the horizon; or if these are not as many observations as the episodes that run.
        """
        state = self.envs.agent_state(observation, action_mask)
        if self._episode is not None:
            state = self._episode.seen(checked_states(state, self.arena.observation_space))
        with self._random, self.threads():
            action = self.chooser(self.policy, deterministic=deterministic)(state, t)
        if self._episode is not None:
            self._episode.done(state, action)
        return self.envs.environment_action(action)

    def begin_episode(self, which: Any = None) -> None:
        """Has the next observation that :meth:`act` is given begin an episode; that matters with ``history`` above 1.

        Args:
            which: of a batch of running episodes, those that begin anew, ``(batch,)`` bool; all by default.

        Raises:
            ValueError: if ``which`` is not one flag for each running episode.
        """
        if self._episode is not None:
            self._episode.begin(which)

    def chooser(self, policy: Policy, *, deterministic: bool) -> Callable[[Any, Any], Any]:
        """Returns ``(states, times) -> actions`` of a policy, in the agent's units, for :func:`play`."""
        return lambda states, times: choose(self.task, policy, states, times, deterministic=deterministic)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Uses as many threads as repay themselves in networks of this size, and the precision asked for."""
        small = one_thread_if_small(self._update.layout.size * self.batch_size * self.num_seeds)
        with small, products_in(self.options["precision"]):
            yield

    @checked
    def evaluate(
        self, num_episodes: int = 10, *, seed: int = 10_000, deterministic: bool = True, **make_kwargs: Any
    ) -> Evaluation:
        """Returns undiscounted returns of whole episodes in environments of their own.

        It changes nothing in the learner; the same seed gives the same episodes. Running statistics (of
        ``NormalizeObservation``, say) are those learned under, frozen.

        Args:
            num_episodes: ≥ 1, for each seed of the learner.
            seed: of the environments and of the policy's draws.
            deterministic: the policy's mode, the usual way to compare; else draws.
            **make_kwargs: further options for :func:`gymnasium.make` (``render_mode``).

        Raises:
            ValueError: if the learner was given an environment instead of its id or a factory, or a
                process whose episodes never end.
        """
        check_count("num_episodes", num_episodes)
        self.arena.check_ends("evaluate plays whole episodes")
        parts = []
        for index, policy in enumerate(self.policies):
            envs = self.arena.another(min(num_episodes, 10), seed=seed, **make_kwargs)
            self.arena.carry_statistics(envs, index)
            try:
                with RandomStream(seed, self.device), self.threads():
                    parts.append(play(envs, self.chooser(policy, deterministic=deterministic), num_episodes))
            finally:
                envs.close()
        if self.options["seeds"] is None:
            return parts[0]
        return Evaluation(torch.stack([part.returns for part in parts]), torch.stack([part.lengths for part in parts]))

    @in_turn
    def export(
        self, path: str | Path, *, format: Format | None = None, seed_index: int = 0, normalization: bool = True
    ) -> Exported:
        """Returns how a file agrees with the policy, after writing it: a program that acts without this package.

        It takes the environment's observations, ``(batch, *observation)`` in float32 (integers in int64), and the times
        ``(batch,)`` in int64 where the process has a horizon, and gives the policy's mode, ``(batch, *action)`` in the
        environment's units. What ``NormalizeObservation`` learned is part of it. The file's actions are held to the
        agent's before it takes its name.

        Args:
            path: where to; its ending says the format, ``.pt2`` or ``.onnx``.
            format: ``"torch"``, for ``torch.export.load``, or ``"onnx"``, for ONNX Runtime and others.
            seed_index: whose policy, of several seeds.
            normalization: whether running statistics of observations go into the program.

        Raises:
            ImportError: for ONNX without its packages, which ``pip install 'rl-as-inference[onnx]'`` brings.
            ValueError: if the policy is none that a file can hold (of windows, of random draws, a plan), the file
                cannot be written, or it acts otherwise than the agent.
        """
        return export_policy(self, path, format=format, seed_index=seed_index, normalization=normalization)

    @in_turn
    def save(self, path: str | Path, *, replay: bool = True, **notes: Any) -> None:
        """Writes everything that :meth:`learn` goes on from to ``path``, whole or not at all.

        Parameters, optimiser, targets, replay, random numbers and the running episodes; with notes
        that JSON can hold. One safetensors file: loading it never runs code. Without replay it is small, and learning
        that goes on from it has no transitions but those that follow. Of several ranks each writes its own, beside
        rank 0's (``agent.rank1.safetensors``), and each restores its own; other numbers of ranks may go on from them.

        Raises:
            ValueError: if the file cannot be written, or a second Ctrl-C cut a step off.
        """
        check_whole(self.is_whole)
        save_snapshot(
            file_of_rank(path, self.arena.ranks.rank),
            self._with_counts(self._loop.snapshot(replay=replay)),
            identity_of(self),
            {**how_made(self.arena.source, self.options), "ranks": self.arena.ranks.size},
            notes,
        )

    load = Load()

    def restore(self, path: str | Path) -> dict[str, Any]:
        """Brings the agent to where :meth:`save` wrote ``path``, and returns the notes saved with it.

        Learning then goes on exactly as it would have there, if the environment is deterministic
        given its seed and actions; where it is not, new episodes begin.

        Raises:
            ValueError: if there is no such file, it is damaged or not an agent's, or was written by an
                agent made otherwise; the agent is then as it was. Of several ranks each raises it.
        """
        return self.go_on_from(path)

    @in_turn
    def go_on_from(self, saved: Saved | str | Path) -> dict[str, Any]:
        """Brings the agent to where a file was written, and returns the notes in it; if it raises, nothing changed."""
        ranks, present = self.arena.ranks, self._with_counts(self._loop.state())
        saved, exact = of_this_rank(saved, ranks, identity_of(self), present)
        try:
            self._loop.restore(saved.snapshot)
            if not exact:
                self._loop.draw_apart(self.num_steps)
            if isinstance(self._update, SharedUpdate):
                self._update.take_first()
        except ValueError as error:
            raise ValueError(f"path: {saved.path!r} does not fit: {error}") from error
        self._reported = Counts(*(progress := saved.snapshot.progress).get("reported", Counts.of(self)))
        if "reported" not in progress:  # what was summed since the last row belongs to none, then
            self._update.tensors["sums"].zero_()
        if self.compile == "auto":
            self._compiles = progress["compiles"]
        return saved.notes

    def _with_counts(self, snapshot: Snapshot) -> Snapshot:
        """Returns a snapshot of the loop, as one of the learner."""
        snapshot.progress.update(compiles=self._compiles, reported=list(self._reported))
        return snapshot

    def close(self) -> None:
        """Closes the environments, and ends the actors."""
        self._loop.stop_actors()
        self.envs.close()

    def _prepare(self, say: Callable[[str], None], num_steps: int) -> None:
        """Traces the update, or compiles it, if that is not yet done."""
        started = time.perf_counter()
        if self.compile == "auto":
            self._settle(num_steps)
        if self._update.ready and self._update.compiled >= self._compiles:
            return
        if self._compiles:
            say("compiling the update (once; kept for later runs)")
        with self._random.unmoved():
            began = time.perf_counter()
            self._update.prepare(compile=self._compiles)
        if self._compiles and self._compile_cost is not None:
            self._compile_cost.note(time.perf_counter() - began)
        self.compile_seconds = time.perf_counter() - started

    def mean_metrics(self, num_updates: int) -> dict[str, float]:
        """Returns the means of the reported numbers over the last updates and all seeds, and forgets them."""
        found = self._update.means(num_updates)
        self.recent = [{**before, **means} for before, means in zip(self.recent, found, strict=True)]
        return {name: sum(row[name] for row in found) / self.num_seeds for name in found[0]}

    def _look_at_temperatures(self) -> None:
        """Says so where α runs away."""
        if self._watch is not None:
            states = self.replay.latest_states(_LATEST)
            self._watch.look(self.temperatures, states if self._loop.stores_latest else self.task.latest(states))
