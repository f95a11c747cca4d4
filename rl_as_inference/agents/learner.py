"""What every learner on environments shares: the loop, the compiled update, replay, checkpoints."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from rl_as_inference.agents.checkpoint import Snapshot, load_snapshot, save_snapshot
from rl_as_inference.agents.entropy import check_target_entropy
from rl_as_inference.agents.evaluation import Evaluation, mode_of, play
from rl_as_inference.agents.functional import Networks, log_probabilities
from rl_as_inference.agents.replay import Batch, Replay
from rl_as_inference.agents.reports import Reporter, interrupts, progress_text
from rl_as_inference.agents.return_constraint import ReturnConstraint, check_target_return
from rl_as_inference.agents.settings import (
    ActionPrior,
    check_settings,
    choose_device,
    skips_steps,
)
from rl_as_inference.agents.update import Update
from rl_as_inference.checks import check_count, check_discount, check_temperature
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.environments import Environments, NonFiniteError
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.randomness import RandomStream, drawn_from_logits
from rl_as_inference.spaces import is_unit_box, uniform_log_density

__all__ = ["Learner"]

_COMPILE_FROM = 10_000
"""``compile="auto"`` compiles once this many updates have been asked for: what repays the compiler's time."""
_THREADED_FROM = 4_000_000
"""Parameters times batch from which a second thread gains more than its barriers cost."""


class Learner(ABC):
    """An off-policy learner of a soft critic and a policy from replay.

    A subclass makes the modules and says what their loss is; everything else is here. All learned
    numbers lie in one vector per seed, and an update is one pure function of it, a batch and random
    numbers, traced once; with several seeds it is batched over them.

    Attributes:
        envs: the environments, ``num_seeds · num_envs`` of them.
        num_steps: environment steps taken so far, by each seed.
        num_updates: gradient steps taken so far, by each seed.
        compile_seconds: what tracing and compiling the update took.
        is_whole: false after an interruption inside a step (by a second Ctrl-C), which cannot be saved.
        recent: of each seed, the means of the reported numbers in the last row of ``history``.
        replay: the transitions.
        history: one row for every report: steps, returns, losses, temperature, entropy.
        episodes: ``(step, seed index, return, length)`` of every finished episode.
    """

    targeted: tuple[str, ...] = ("critics",)
    """The modules that have target averages."""

    def __new__(cls, *args: Any, **options: Any) -> Any:  # until options are one mapping
        made = super().__new__(cls)
        made.options = options
        return made

    def __init__(
        self,
        env: Any,
        *,
        seed: int,
        seeds: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype,
        num_envs: int,
        learning_starts: int,
        batch_size: int,
        buffer_size: int,
        learning_rate: float,
        discount: float | None,
        temperature: float | str | None,
        initial_temperature: float,
        target_entropy: float | None,
        target_return: float | None,
        target_average: float,
        updates_per_step: float,
        n_step: int,
        action_prior: ActionPrior,
        compile: bool | str,
        env_kwargs: Mapping[str, Any] | None,
    ) -> None:
        check_settings(
            num_envs=num_envs,
            learning_starts=learning_starts,
            batch_size=batch_size,
            buffer_size=buffer_size,
            n_step=n_step,
            seeds=seeds,
            learning_rate=learning_rate,
            updates_per_step=updates_per_step,
            target_average=target_average,
            action_prior=action_prior,
            compile=compile,
            dtype=dtype,
            env_kwargs=env_kwargs,
        )
        self.device = choose_device(device)
        process = env if isinstance(env, MarkovDecisionProcess) else None
        if discount is None:
            discount = 0.99 if process is None else float(process.discount)
        check_discount(discount)
        if target_return is not None:
            target_return = check_target_return(target_return)
            if target_entropy is not None:
                raise ValueError("target_return and target_entropy both tune the temperature; give one of them")
            if temperature not in (None, "auto"):
                raise ValueError(
                    f"target_return tunes the temperature, and temperature={temperature!r} fixes it; leave one out "
                    f"(initial_temperature is where a tuned one starts)"
                )
            temperature = "auto"
        if temperature is None:
            temperature = "auto" if process is None else float(process.temperature)
        self.learns_temperature = temperature == "auto"
        if not self.learns_temperature:
            if isinstance(temperature, str):
                raise ValueError(f"temperature must be 'auto' or a number > 0, got {temperature!r}")
            check_temperature(temperature)
        check_temperature(initial_temperature, "initial_temperature")

        self.seed, self.num_seeds = seed, 1 if seeds is None else seeds
        self._several = seeds is not None
        self.dtype = dtype
        self._source, self._env_kwargs = env, dict(env_kwargs or {})
        given = isinstance(env, VectorEnv) and num_envs == 1  # a vector has its own number
        count = 1 if given else self.num_seeds * num_envs
        self.envs = Environments.make(env, num_envs=count, seed=seed, **self._env_kwargs)
        if self.envs.num_envs % self.num_seeds:
            raise ValueError(f"env has {self.envs.num_envs} environments, which do not share out to {seeds} seeds")
        self.num_envs = self.envs.num_envs // self.num_seeds
        if self.envs.num_envs > 1 and (n_step > 1 or self.num_seeds > 1) and skips_steps(env):
            raise ValueError(
                "env is a vector environment that resets in a step of its own, which leaves rows out of replay, and "
                "n_step > 1 or seeds > 1 needs a row of every environment at every step; pass the environment's id, or "
                "make the vector with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.state_space, self.action_space = self.envs.state_space, self.envs.action_space
        self.is_discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        self.state_dtype = torch.int64 if isinstance(self.state_space, gymnasium.spaces.Discrete) else dtype
        self.process, self._own_prior = process, process is not None and not process.has_uniform_prior
        if process is not None and self._own_prior and not self.is_discrete and not is_unit_box(process.action_space):
            raise ValueError(
                f"action_space of {self.envs.name} is {process.action_space}, and a process with an action prior of "
                f"its own must have Box(-1, 1, (d,)); rescale inside transition()"
            )
        self.learning_starts, self.batch_size, self.n_step = learning_starts, batch_size, n_step
        self.learning_rate, self.discount = learning_rate, float(discount)
        self.target_average, self.updates_per_step = target_average, updates_per_step
        self.action_prior, self.compile = action_prior, compile
        target_entropy = check_target_entropy(target_entropy, self.action_space)
        self.target_entropy = target_entropy if self.learns_temperature and target_return is None else None
        self._initial_temperature = initial_temperature if self.learns_temperature else float(temperature)

        self._random = RandomStream(seed, self.device)
        self.constraint: ReturnConstraint | None = None
        if target_return is not None:
            self._check_ends("target_return is held by whole episodes")
            self.constraint = ReturnConstraint(
                target_return,
                discount=1.0 if process is None else float(process.discount),
                num_seeds=self.num_seeds,
                num_envs=self.num_envs,
                learning_rate=learning_rate,
                initial_temperature=initial_temperature,
            )
        with self._random:
            self.modules = [
                {name: module.to(self.device, dtype) for name, module in self._make_modules().items()}
                for _ in range(self.num_seeds)
            ]
        self._check_policy()
        self.replay = Replay(
            self.state_space,
            self.action_space,
            capacity=buffer_size,
            num_learners=self.num_seeds,
            num_envs=self.num_envs,
            device=self.device,
            dtype=dtype,
        )
        observations = (self.num_seeds, self.num_envs, *(self.state_space.shape or ()))
        actions = (self.num_seeds, self.num_envs, *(self.action_space.shape or ()))
        self._observation = torch.zeros(observations, dtype=self.state_dtype, device=self.device)
        self._action = torch.zeros(actions, dtype=self.replay.action_dtype, device=self.device)
        self._update = Update(
            self.modules,
            self.targeted,
            self.metrics,
            self._loss,
            self._draw,
            self.replay,
            self._observation,
            self._action,
            batch_size=batch_size,
            n_step=n_step,
            learning_rate=learning_rate,
            target_average=target_average,
        )
        self._returns = np.zeros(self.envs.num_envs)
        self._lengths = np.zeros(self.envs.num_envs, int)
        self.num_steps = self.num_updates = 0
        self.compile_seconds = 0.0
        self.is_whole = True
        self.recent: list[dict[str, float]] = [{} for _ in range(self.num_seeds)]
        self.history: list[dict[str, float]] = []
        self.episodes: list[tuple[int, int, float, int]] = []
        self._debt = 0.0
        self._action_is_fresh = False
        self._compiles = compile is True
        self._steps_asked = 0

    # ---- what a subclass says -------------------------------------------------------------------

    @abstractmethod
    def _make_modules(self) -> dict[str, nn.Module]:
        """Returns freshly initialised modules, ``"temperature"`` among them."""

    @abstractmethod
    def _loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of all losses, each of which trains modules of its own, and numbers to report."""

    @abstractmethod
    def _draw(self, networks: Networks, state: Tensor) -> Tensor:
        """Returns exploring actions for a batch of states."""

    @abstractmethod
    def _policy_of(self, modules: dict[str, nn.Module]) -> Any:
        """Returns the policy that these modules are."""

    @abstractmethod
    def _critic_of(self, modules: dict[str, nn.Module]) -> Any:
        """Returns the soft value that these modules are."""

    metrics: tuple[str, ...] = ()
    """The names of the numbers that :meth:`_loss` reports."""

    # ---- what users see -------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The policy, ``(state, t) -> Distribution``, on normalised actions: a guide. The first seed's, of several."""
        return self.policies[0]

    @property
    def policies(self) -> list[Any]:
        """The policy of every seed."""
        return [self._policy_of(modules) for modules in self.modules]

    @property
    def critic(self) -> Any:
        """The soft state value ``(state, t)``, in reward units. The first seed's, of several."""
        return self.critics[0]

    @property
    def critics(self) -> list[Any]:
        """The critic of every seed."""
        return [self._critic_of(modules) for modules in self.modules]

    @property
    def temperature(self) -> float:
        """α, in reward units per nat. The mean, of several seeds."""
        return sum(self.temperatures) / self.num_seeds

    @property
    def temperatures(self) -> list[float]:
        """α of every seed."""
        return [float(modules["temperature"]().detach()) for modules in self.modules]

    def learn(
        self,
        num_steps: int,
        *,
        progress: bool | ProgressBar | None = None,
        report_every: int = 1000,
        on_report: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """Takes ``num_steps`` further environment steps (each seed does), learning on the way.

        With several environments a step of them all counts ``num_envs``, so the last one may go past
        the number. Ctrl-C ends it after the running step, with everything consistent, by raising
        KeyboardInterrupt.

        Args:
            num_steps: ≥ 1.
            progress: show a progress bar; None shows it on a terminal. Or a running bar to move on.
            report_every: steps between rows of ``history``.
            on_report: called with each new row; losses in it are means since the last row, ``return`` is
                the mean undiscounted return of the episodes that ended since then (NaN if none did).

        Raises:
            NonFiniteError: if the environment gives NaN or an infinity (before it enters replay).
            ValueError: if a parameter stops being finite, or ``num_steps`` is out of range.
        """
        check_count("num_steps", num_steps)
        check_count("report_every", report_every)
        self._check_whole()
        self._steps_asked += num_steps
        if self.compile == "auto":
            self._compiles = self._compiles or self._steps_asked * self.updates_per_step >= _COMPILE_FROM
        first, end = self.num_steps, self.num_steps + num_steps
        title = f"{type(self).__name__} on {self.envs.name}"
        with (
            self._random,
            self._threads(),
            torch.no_grad(),
            interrupts() as interrupted,
            progress_bar(title, num_steps, show=progress) as bar,
        ):
            if self.envs.state is None:
                self._observe(self.envs.reset())
            self._prepare(bar.say)
            self._update.tensors["sums"].zero_()  # what an interruption left belongs to no row
            reporter = Reporter(self, report_every)
            while self.num_steps < end:
                if interrupted:
                    raise KeyboardInterrupt
                try:
                    self._step()
                except NonFiniteError:
                    self._check_parameters()
                    raise
                if self.num_steps >= reporter.due or self.num_steps >= end:
                    row = reporter.row()
                    self.history.append(row)
                    bar.advance(progress_text(row, self.episodes), by=min(self.num_steps, end) - first)
                    first = self.num_steps
                    if on_report is not None:
                        on_report(row)
            if interrupted:
                raise KeyboardInterrupt

    def settle_compile(self, num_steps: int) -> bool:
        """Settles ``compile="auto"`` for a run of ``num_steps`` that :meth:`learn` is asked for in parts.

        Returns whether the update is compiled; from then on that changes no more.
        """
        if self.compile == "auto":
            self._compiles = self._compiles or num_steps * self.updates_per_step >= _COMPILE_FROM
            self.compile = self._compiles
        return self._compiles

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        """Returns an action for the environment, in its own units; for a batch of observations, a batch.

        Args:
            observation: as the environment gives it, or a batch of such.
            deterministic: the policy's mode instead of a draw.

        Raises:
            ValueError: if the observation has another shape, or is not finite.
        """
        state = self.envs.agent_state(observation)
        with self._random:
            return self.envs.environment_action(self._choose(self.policy, state, deterministic))

    def evaluate(
        self, num_episodes: int = 10, *, seed: int = 10_000, deterministic: bool = True, **make_kwargs: Any
    ) -> Evaluation:
        """Returns undiscounted returns of whole episodes in environments of their own.

        It changes nothing in the learner; the same seed gives the same episodes.

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
        if isinstance(self._source, gymnasium.Env | gymnasium.vector.VectorEnv):
            raise ValueError(
                "evaluate needs an environment of its own, and env is one that is being learned in; make the agent "
                "with the environment's id or a factory, lambda: make_my_environment()"
            )
        self._check_ends("evaluate plays whole episodes")
        parts = []
        for policy in self.policies:
            envs = Environments.make(
                self._source, num_envs=min(num_episodes, 10), seed=seed, **{**self._env_kwargs, **make_kwargs}
            )
            try:
                with RandomStream(seed, self.device):
                    choose = partial(self._choose, policy, deterministic=deterministic)
                    parts.append(play(envs, choose, num_episodes))
            finally:
                envs.close()
        if not self._several:
            return parts[0]
        return Evaluation(torch.stack([part.returns for part in parts]), torch.stack([part.lengths for part in parts]))

    def save(self, path: str | Path, **notes: Any) -> None:
        """Writes everything that :meth:`learn` goes on from to ``path``, whole or not at all.

        Parameters, optimiser, targets, replay, random numbers and the running episodes; with notes
        that JSON can hold. One safetensors file: loading it never runs code.

        Raises:
            ValueError: if the file cannot be written, or a second Ctrl-C cut a step off.
        """
        self._check_whole()
        save_snapshot(path, self._snapshot(notes), self._identity())

    def load(self, path: str | Path) -> dict[str, Any]:
        """Brings the agent to where :meth:`save` wrote ``path``, and returns the notes saved with it.

        Learning then goes on exactly as it would have there, if the environment is deterministic
        given its seed and actions; where it is not, new episodes begin.

        Raises:
            ValueError: if there is no such file, it is damaged or not an agent's, or was written by an
                agent made otherwise; the agent is then as it was.
        """
        needed = {*self._update.tensors, "action", "random.0", "replay.rows", "replay.position"}
        snapshot = load_snapshot(path, self._identity(), needed)
        self._restore(snapshot)
        return snapshot.notes

    def close(self) -> None:
        """Closes the environments."""
        self.envs.close()

    # ---- the loop -------------------------------------------------------------------------------

    def _step(self) -> None:
        """Takes one step of every environment, and the updates that are due for it."""
        if self.num_steps < self.learning_starts:
            action = self._prior_action()
        else:
            if not self._action_is_fresh:
                self._update.act()
            action = self._host_action()
        state = self.envs.state
        step = self.envs.step(action)
        self.is_whole = False
        self.replay.add(state, action, step.reward, step.next_state, step.terminated, step.truncated, step.valid)
        self._observe(step.state)
        self.num_steps += self.num_envs
        self._track(step)
        self._action_is_fresh = False
        if self.num_steps >= self.learning_starts:
            self._debt += self.updates_per_step * self.num_envs
            while self._debt >= 1:
                self._debt -= 1
                self._update.step()
                self.num_updates += 1
                self._action_is_fresh = True
        self.is_whole = True

    def _track(self, step: Any) -> None:
        self._returns += step.reward * step.valid
        self._lengths += step.valid
        ended = step.terminated | step.truncated
        if ended.any():
            for index in np.flatnonzero(ended):
                self.episodes.append(
                    (
                        self.num_steps,
                        int(index) // self.num_envs,
                        float(self._returns[index]),
                        int(self._lengths[index]),
                    )
                )
            self._returns[ended], self._lengths[ended] = 0.0, 0
        if self.constraint is not None:
            moved = self.constraint.observe(
                step.reward,
                ended=ended,
                valid=step.valid,
                acts=self.num_steps >= self.learning_starts,
                num_updates=self.num_updates,
            )
            for seed, log_temperature in moved.items():
                self.modules[seed]["temperature"].get_parameter("log_temperature").fill_(log_temperature)

    def _observe(self, state: Any) -> None:
        """Puts the states to act from where the compiled functions read them."""
        self._observation.copy_(torch.from_numpy(state).view(self._observation.shape))

    def _host_action(self) -> Any:
        action = self._action.numpy() if self.device.type == "cpu" else self._action.cpu().numpy()
        return action.reshape(self.num_seeds * self.num_envs, *(self.action_space.shape or ()))

    def _prior_action(self) -> Any:
        shape = (self.num_seeds * self.num_envs, *(self.action_space.shape or ()))
        if self.process is not None and self._own_prior:
            with unvalidated():
                action = self.process.prior(self._observation).sample()
            return (action if self.is_discrete else action.clamp(-1, 1)).reshape(shape).cpu().numpy()
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return torch.randint(int(self.action_space.n), shape).numpy()
        return (2 * torch.rand(shape) - 1).numpy()

    def _prepare(self, say: Callable[[str], None]) -> None:
        """Traces the update, or compiles it, if that is not yet done."""
        if self._update.ready and self._update.compiled >= self._compiles:
            return
        started = time.perf_counter()
        if self._compiles:
            say("compiling the update (once; kept for later runs)")
        with self._random.unmoved():
            self._update.prepare(compile=self._compiles)
        self.compile_seconds = time.perf_counter() - started

    # ---- smaller things -------------------------------------------------------------------------

    def mean_metrics(self, num_updates: int) -> dict[str, float]:
        """Returns the means of the reported numbers over the last updates and all seeds, and forgets them."""
        sums = self._update.tensors["sums"]
        means = sums / num_updates
        sums.zero_()
        self.recent = [dict(zip(self.metrics, row, strict=True)) for row in means.tolist()]
        return dict(zip(self.metrics, means.mean(0).tolist(), strict=True))

    def _log_prior(self, state: Tensor, action: Tensor | None) -> Tensor:
        """Returns ``log p(a|s)`` in nats, of all discrete actions or of one continuous one."""
        if self.process is not None and self._own_prior and self.action_prior == "uniform":
            prior = self.process.prior(state)
            value = prior.logits.log_softmax(-1) if action is None else prior.log_prob(action)
            return value.to(self.dtype)
        constant = uniform_log_density(self.action_space) if self.action_prior == "uniform" else 0.0
        return torch.full((), constant, dtype=self.dtype, device=self.device)

    def _beside(self, state: Tensor, count: int) -> Tensor:
        """Returns each state ``count`` times, ``(*batch, count, *state)``."""
        event = tuple(self.state_space.shape or ())
        batch = state.shape[: state.dim() - len(event)]
        return state.reshape(*batch, 1, *event).expand(*batch, count, *event)

    @abstractmethod
    def _check_policy(self) -> None:
        """Asks the policy once, so that one that does not fit fails here and not inside a traced graph."""

    def _choose(self, policy: Any, state: Any, deterministic: bool) -> Any:
        """Returns actions in the agent's units for states, one or a batch."""
        array, shape = np.asarray(state), tuple(self.state_space.shape or ())
        if array.shape[array.ndim - len(shape) :] != shape:
            raise ValueError(f"observation must have shape {shape}, or be a batch of such, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("observation has NaN or infinite entries; act on finite ones")
        if isinstance(self.state_space, gymnasium.spaces.Discrete) and not (
            np.issubdtype(array.dtype, np.integer) and (array >= 0).all() and (array < self.state_space.n).all()
        ):
            raise ValueError(f"observation must be in {self.state_space}, or a batch of such, got {state}")
        states = torch.as_tensor(array, device=self.device).to(self.state_dtype)
        with torch.no_grad(), unvalidated():
            chosen = policy(states, 0)
            if not isinstance(self.action_space, gymnasium.spaces.Discrete):
                action = mode_of(chosen) if deterministic else chosen.sample()
            else:
                log_policy = log_probabilities(chosen, int(self.action_space.n), self.device)
                action = log_policy.argmax(-1) if deterministic else drawn_from_logits(log_policy)
        return action.cpu().numpy()

    def _check_ends(self, what: str) -> None:
        """Raises ValueError if the episodes never end."""
        if self.process is None or self.process.horizon is not None:
            return
        with self._random.unmoved():
            endless = self.process.terminated(self.process.initial().sample()) is None
        if endless:
            raise ValueError(
                f"{what}, and those of {self.envs.name} never end: it has neither a horizon nor terminal states; give "
                f"it a horizon"
            )

    def _check_whole(self) -> None:
        if not self.is_whole:
            raise ValueError(
                "the agent was interrupted inside a step (a second Ctrl-C does that), so that what it holds is of no "
                "step at all; load its last checkpoint"
            )

    def _check_parameters(self) -> None:
        """Raises ValueError if learning has diverged; an environment that gives NaN was then given NaN."""
        if not bool(self._update.tensors["parameters"].isfinite().all()):
            raise ValueError(
                f"learning diverged by step {self.num_steps}: parameters are no longer finite; lower learning_rate, or "
                f"scale the rewards"
            )

    # ---- what a checkpoint holds ----------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """Returns what makes the learned numbers mean what they do, for a checkpoint to be held to."""
        return {
            "agent": type(self).__name__,
            "environment": self.envs.name,
            "network layout": [[module, name, list(shape)] for module, name, _, shape in self._update.layout.places],
            "discount": self.discount,
            "temperature": "auto" if self.learns_temperature else self._initial_temperature,
            "target_return": None if self.constraint is None else self.constraint.target,
            "action_prior": self.action_prior,
            "n_step": self.n_step,
            "dtype": str(self.dtype),
            "number of seeds": self.num_seeds,
            "number of environments": self.envs.num_envs,
        }

    def _snapshot(self, notes: dict[str, Any]) -> Snapshot:
        envs = self.envs.snapshot()
        tensors = dict(self._update.tensors)
        tensors |= {f"replay.{name}": tensor for name, tensor in self.replay.state_dict().items()}
        tensors |= {f"env.{name}": torch.as_tensor(array) for name, array in envs["arrays"].items()}
        tensors |= {f"random.{index}": state for index, state in enumerate(self._random.states)}
        tensors["action"] = self._action
        progress = {
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            "debt": self._debt,
            "compiles": self._compiles,
            "action_is_fresh": self._action_is_fresh,
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "history": self.history,
            "episodes": self.episodes,
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "envs": envs["json"],
        }
        return Snapshot(tensors, progress, notes)

    def _restore(self, snapshot: Snapshot) -> None:
        tensors, progress, _ = snapshot
        self.replay.load_state_dict({n: tensors[f"replay.{n}"] for n in ("rows", "position")})
        with torch.no_grad():
            for name, tensor in self._update.tensors.items():
                tensor.copy_(tensors[name])
            self._action.copy_(tensors["action"])
        # Of a GPU's generator too, if it was saved and there is one.
        self._random.states = [tensors.get(f"random.{i}", state) for i, state in enumerate(self._random.states)]
        self.num_steps, self.num_updates = progress["num_steps"], progress["num_updates"]
        self._debt = progress["debt"]
        if self.compile == "auto":
            self._compiles = progress["compiles"]
        self.history, self.episodes = progress["history"], [tuple(row) for row in progress["episodes"]]
        self._returns, self._lengths = np.array(progress["returns"]), np.array(progress["lengths"])
        if self.constraint is not None:
            self.constraint.load_state_dict(progress["constraint"])
        self.is_whole = True
        arrays = {n.removeprefix("env."): t.numpy() for n, t in tensors.items() if n.startswith("env.")}
        exact = self.envs.restore({"json": progress["envs"], "arrays": arrays})
        self._action_is_fresh = exact and progress["action_is_fresh"]
        if not exact:
            self._returns[:], self._lengths[:] = 0, 0
            if self.constraint is not None:
                self.constraint.restart(acts=self.num_steps >= self.learning_starts)
        if self.envs.state is not None:
            self._observe(self.envs.state)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Uses one thread for small networks, where a second one's barriers cost more than it gains."""
        before = torch.get_num_threads()
        if self._update.layout.size * self.batch_size * self.num_seeds < _THREADED_FROM:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
