"""``learn_offline``: the loop over a replay that stands still."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from rl_as_inference.agents.acting import checked_states, choose
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import chosen_device
from rl_as_inference.agents.evaluation import Evaluation, play
from rl_as_inference.agents.options import MPOOptions
from rl_as_inference.agents.reading_options import filled
from rl_as_inference.agents.replay import Replay
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.update import Update
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_discount, check_positive, check_share, check_temperature
from rl_as_inference.data_frames import Frame, history_frame
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import EnvironmentLike, Policy
from rl_as_inference.offline.algorithms import (
    AdvantageWeightedRegression,
    BehaviourCloning,
    DataOptions,
    ImplicitQ,
    OfflineImprovement,
)
from rl_as_inference.offline.datasets import OfflineData, read_dataset
from rl_as_inference.offline.estimates import ReturnEstimate, critic_estimate, exact_estimate, importance_estimate
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.environments import Environments
from rl_as_inference.processes.units import as_states
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.randomness import RandomStream
from rl_as_inference.state_time_network import check_hidden_sizes
from rl_as_inference.threads import one_thread_if_small

__all__ = ["Method", "OfflineResult", "learn_offline"]

Method = Literal["iql", "awr", "mpo", "bc"]

_COMPILE_FROM = 10_000
"""``compile="auto"`` compiles from so many updates on, which repay the compiler's time."""
_SEGMENT = 16
"""Steps of a λ-return before it bootstraps."""
_DIVERGENCE: dict[Method, float] = {"iql": 1.0, "awr": 2.0, "mpo": 0.5, "bc": 1.0}
_CLIP: dict[Method, float] = {"iql": 100.0, "awr": 20.0, "mpo": math.inf, "bc": math.inf}


@dataclass(frozen=True)
class OfflineResult:
    """What was learned from data.

    Attributes:
        policy: a guide ``(state, t) -> Distribution`` on normalised actions.
        critic: the return of ``policy`` (of ``"awr"``: of who acted in the data), ``(state, t) -> V`` in reward units;
            None of ``"bc"``. Its ``objective`` is ``"return"``: it counts no entropy.
        history: one row for every report: updates, losses, η, and ``return``, the mean undiscounted return of an
            evaluation, where there is an environment.
        method: how it was learned.
        estimate: of the policy's discounted return, exact in a process that has exact answers, else from the data;
            None where nothing can be said.
        data_returns: undiscounted returns of the episodes that were learned from, ``(num_episodes,)`` in reward units.
        evaluation: whole episodes with the learned policy; None without an environment.
        task: the problem as the policy knows it.
        data: what was learned from, in the agent's units.
    """

    policy: Policy
    critic: SoftValue | None
    history: list[dict[str, float]] = field(repr=False)
    method: Method
    estimate: ReturnEstimate | None
    data_returns: Tensor = field(repr=False)
    evaluation: Evaluation | None = field(repr=False)
    task: Task = field(repr=False)
    data: OfflineData = field(repr=False)

    def to_frame(self) -> Frame:
        """Returns the history as a frame, a row a report (see :mod:`rl_as_inference.data_frames`)."""
        return history_frame(self.history)

    def act(self, observation: Any, deterministic: bool = True, t: Any = 0) -> Any:
        """Returns an action for the environment, in its own units; for a batch of observations, a batch.

        Args:
            observation: as the environment gives it, or a batch of such.
            deterministic: the policy's mode instead of a draw.
            t: how many steps the episode has taken: looked at where the model has a horizon.

        Raises:
            ValueError: if the observation has another shape, or is not finite, or the time is past the horizon.
        """
        state = checked_states(
            as_states(np.asarray(observation), self.task.state_space, self.data.state_start), self.task.state_space
        )
        return self.data.to_environment(choose(self.task, self.policy, state, t, deterministic=deterministic))


@checked
@in_turn
def learn_offline(
    dataset: Any,
    policy: nn.Module | None = None,
    *,
    method: Method = "iql",
    env: EnvironmentLike | None = None,
    observation_space: gymnasium.Space[Any] | None = None,
    action_space: gymnasium.Space[Any] | None = None,
    horizon: int | None = None,
    num_updates: int = 20_000,
    discount: float | None = None,
    temperature: float | Literal["auto"] = "auto",
    kl_improvement: float | None = None,
    largest_weight: float | None = None,
    expectile: float = 0.7,
    lambda_: float = 0.95,
    num_critics: int = 2,
    hidden_sizes: Sequence[int] = (256, 256),
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    target_average: float = 0.005,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    compile: bool | Literal["auto"] = "auto",
    report_every: int = 1000,
    evaluate_every: int | None = None,
    evaluate_episodes: int = 10,
    progress: bool | ProgressBar | None = None,
) -> OfflineResult:
    """Returns a policy learned from data alone, discrete or continuous, and what it is worth.

    Each method regresses the policy on what the data did, weighted by ``exp(A(s, a)/η)``: the E-step of a program whose
    action prior is the behaviour in the data.

    - ``"iql"``: implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169). ``V`` is an expectile of ``Q`` over the
      actions of the data, ``Q`` learns ``r + γ V(s')``, ``A = Q - V``.
    - ``"awr"``: advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177). ``A`` is what an episode earned (a
      λ-return of 16 steps) beyond the value of who acted.
    - ``"mpo"``: the losses of :class:`~rl_as_inference.MPO`, improving on a clone of who acted (Siegel et al. 2020,
      arXiv:2002.08396), so that it does not leave what the data know.
    - ``"bc"``: behaviour cloning, weights of 1, to see what the others add.

    Args:
        dataset: ``Trajectories``, a list of episodes (mappings with ``observations (T+1, …)``, ``actions (T, …)``,
            ``rewards``, ``terminations``, ``truncations``, all ``(T,)``, and ``log_policy`` where it is known), a
            replay such as ``agent.replay``, a Minari dataset or the id of one on this machine. A truncation is no
            ending: what follows it is bootstrapped. ``Trajectories`` that stop before their last step ended there.
        policy: a guide of your own on normalised actions, of which a copy is trained; else one is made.
        method: see above.
        env: where to play the policy, or a finite process, whose answer is exact. By default the environment that a
            replay or a Minari dataset names.
        observation_space, action_space: the environment's, where the data do not say. A box of actions is
            rescaled to ``[-1, 1]^d``, in which the policy lives.
        horizon: of the model; reaching it is an ending, and policy and critic see the time. By default that of a replay
            or of ``env``, a process.
        num_updates: gradient steps.
        discount: γ; by default that of ``env``, a process, and elsewhere 0.99.
        temperature: η in reward units per nat, or ``"auto"``: by the dual of ``kl_improvement``.
        kl_improvement: nats: how far the weights may be from the data (of ``"mpo"``, from the clone); by default 1 of
            ``"iql"``, 2 of ``"awr"``, 0.5 of ``"mpo"``.
        largest_weight: the most that one action counts, in means; by default 100 of ``"iql"``, 20 of ``"awr"``.
        expectile: of ``"iql"``.
        lambda_: of ``"awr"``.
        num_critics: critics, the least of which counts.
        hidden_sizes, batch_size, learning_rate, target_average, seed, device, dtype, compile: as of learners.
        report_every: updates between rows of ``history``.
        evaluate_every: updates between evaluations; by default there is one at the end alone.
        evaluate_episodes: episodes of an evaluation, with the policy's mode.
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        TypeError: for data of another kind.
        ValueError: for data that are empty, lack a field, are not finite or leave their spaces, for a policy that does
            not fit the actions, and for an argument out of range.
        ImportError: for a Minari dataset without Minari.

    Example:
        >>> walk = {
        ...     "observations": [0, 1, 2, 2], "actions": [1, 1, 0], "rewards": [0.0, 0.0, 1.0],
        ...     "terminations": [False, False, True],
        ... }
        >>> result = learn_offline([walk] * 4, num_updates=50, hidden_sizes=(8,), batch_size=4)
        >>> result.policy(torch.tensor(0), 0).probs.shape, result.estimate.method
        (torch.Size([2]), 'fitted_q')
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    for name, count in (
        ("num_updates", num_updates),
        ("batch_size", batch_size),
        ("num_critics", num_critics),
        ("report_every", report_every),
        ("evaluate_episodes", evaluate_episodes),
    ):
        check_count(name, count)
    if evaluate_every is not None:
        check_count("evaluate_every", evaluate_every)
    check_positive("learning_rate", learning_rate)
    check_hidden_sizes(hidden_sizes)
    kl_improvement = _DIVERGENCE[method] if kl_improvement is None else kl_improvement
    largest_weight = _CLIP[method] if largest_weight is None else largest_weight
    check_positive("kl_improvement", kl_improvement)
    if not largest_weight >= 1:
        raise ValueError(f"largest_weight is in means of all weights, and must be >= 1; got {largest_weight}")
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must be between 0 and 1 (0.5 is the mean), got {expectile}")
    check_share("lambda_", lambda_)
    check_share("target_average", target_average)
    if temperature != "auto":
        check_temperature(temperature)
    if discount is not None:
        check_discount(discount)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
    process = env if isinstance(env, MarkovDecisionProcess) else None
    if process is not None:
        horizon = process.horizon if horizon is None else horizon
        observation_space = process.state_space if observation_space is None else observation_space
        action_space = process.action_space if action_space is None else action_space
    data = read_dataset(dataset, observation_space=observation_space, action_space=action_space, horizon=horizon)
    if discount is None:
        discount = 0.99 if process is None else float(process.discount)
    task = Task(
        name=data.name,
        state_space=data.state_space,
        action_space=data.action_space,
        horizon=data.horizon,
        discount=float(discount),
        prior_of=None,
        action_prior="uniform",
        temperature=1.0 if temperature == "auto" else float(temperature),
        learns_temperature=temperature == "auto",
        target_entropy=None,
        n_step=_SEGMENT if method == "awr" else 1,
        device=chosen_device(device),
        dtype=dtype,
    )
    options = DataOptions(
        policy=policy,
        hidden_sizes=tuple(hidden_sizes),
        kl_improvement=float(kl_improvement),
        largest_weight=float(largest_weight),
        expectile=float(expectile),
        lambda_=float(lambda_),
        num_critics=num_critics,
        learning_rate=float(learning_rate),
    )
    algorithm = _algorithm(method, task, options)
    place = env if env is not None else data.env_spec
    if process is not None and process.horizon is None and process.has_exact_answers:
        place = None  # a policy may never end there, and the exact return says more
    runs = _Run(
        algorithm,
        data,
        place,
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        target_average=target_average,
    )
    compiles = compile is True or (compile == "auto" and num_updates >= _COMPILE_FROM)
    runs.learn(num_updates, report_every, evaluate_every, evaluate_episodes, compile=compiles, progress=progress)
    learned, critic = algorithm.policy_of(runs.modules), None if method == "bc" else algorithm.critic_of(runs.modules)
    estimate = exact_estimate(env, learned) or importance_estimate(task, learned, data)
    if estimate is None and runs.evaluation is None:
        estimate = critic_estimate(task, critic, data)
    returns = torch.as_tensor(data.returns())
    return OfflineResult(learned, critic, runs.history, method, estimate, returns, runs.evaluation, task, data)


def _algorithm(method: Method, task: Task, options: DataOptions) -> Algorithm:
    kinds = {"iql": ImplicitQ, "awr": AdvantageWeightedRegression, "bc": BehaviourCloning}
    if method != "mpo":
        return kinds[method](task, options)
    given = {
        "hidden_sizes": options.hidden_sizes,
        "num_critics": options.num_critics,
        "kl_improvement": options.kl_improvement,
        "learning_rate": options.learning_rate,
    }
    return OfflineImprovement(task, filled(MPOOptions, given, by="learn_offline"), options)


class _Run:
    """Data, what learns from them, and where it is tried."""

    def __init__(
        self,
        algorithm: Algorithm,
        data: OfflineData,
        place: EnvironmentLike | None,
        *,
        seed: int,
        batch_size: int,
        learning_rate: float,
        target_average: float,
    ) -> None:
        self.algorithm, self.task, self.data, self.place = algorithm, algorithm.task, data, place
        self.random, self.seed = RandomStream(seed, self.task.device), seed
        task = self.task
        with self.random:
            self.modules = {
                name: module.to(task.device, task.dtype) for name, module in algorithm.make_modules(anew=True).items()
            }
            first = torch.as_tensor(data.episodes[0].states[:1], device=task.device).to(task.state_dtype)
            times = task.times(torch.zeros(2, dtype=torch.int64, device=task.device))
            algorithm.check(self.modules, torch.cat([first, first]), times, several=False)
        self.replay: Replay = data.replay(device=task.device, dtype=task.dtype)
        state = first[None]
        time = torch.zeros(1, 1, dtype=torch.int64, device=task.device)
        action = torch.zeros(1, 1, *task.action_shape, dtype=self.replay.action_dtype, device=task.device)
        self.update = Update(
            [self.modules],
            algorithm,
            self.replay,
            state,
            time,
            action,
            batch_size=batch_size,
            learning_rate=learning_rate,
            target_average=target_average,
        )
        self.batch_size = batch_size
        self.history: list[dict[str, float]] = []
        self.evaluation: Evaluation | None = None
        if place is not None:
            self.evaluated(1, check=True)

    def learn(
        self,
        num_updates: int,
        report_every: int,
        evaluate_every: int | None,
        evaluate_episodes: int,
        *,
        compile: bool,
        progress: bool | ProgressBar | None,
    ) -> None:
        """Takes the updates, and makes rows of the history."""
        title, sums = f"{type(self.algorithm).__name__} on {self.data.name}", self.update.tensors["sums"]
        with (
            self.random,
            one_thread_if_small(self.update.layout.size * self.batch_size),
            torch.no_grad(),
            progress_bar(title, num_updates, show=progress) as bar,
        ):
            if compile:
                bar.say("compiling the update (once; kept for later runs)")
            with self.random.unmoved():
                self.update.prepare(compile=compile)
            since = 0
            for done in range(1, num_updates + 1):
                self.update.step()
                evaluates = self.place is not None and (
                    done == num_updates or (evaluate_every and done % evaluate_every == 0)
                )
                if done % report_every and done < num_updates and not evaluates:
                    continue
                means = (sums[0] / (done - since)).tolist()
                row = {"update": float(done), **dict(zip(self.algorithm.metrics, means, strict=True))}
                if bad := [name for name, value in row.items() if not math.isfinite(value)]:
                    raise ValueError(
                        f"learning diverged by update {done}: {', '.join(bad)} is no longer finite; lower "
                        f"learning_rate, or scale the rewards"
                    )
                sums.zero_()
                if evaluates:
                    self.evaluation = self.evaluated(evaluate_episodes)
                    row["return"] = self.evaluation.mean
                self.history.append(row)
                bar.advance(
                    ", ".join(f"{name} {row[name]:.3g}" for name in ("actor_loss", "return") if name in row),
                    by=done - since,
                )
                since = done

    def evaluated(self, num_episodes: int, *, check: bool = False) -> Evaluation:
        """Returns whole episodes with the policy's mode, always the same ones.

        Raises:
            ValueError: if the environment has other spaces than the data.
        """
        assert self.place is not None
        given = isinstance(self.place, gymnasium.Env | VectorEnv)  # of which there is but one
        envs = Environments.make(self.place, num_envs=1 if given else min(num_episodes, 10), seed=10_000 + self.seed)
        try:
            task, policy = self.task, self.algorithm.policy_of(self.modules)
            for name, there, here in (
                ("observation_space", envs.state_space, task.state_space),
                ("action_space", envs.action_space, task.action_space),
            ):
                alike = there.shape == here.shape and type(there) is type(here)
                if isinstance(there, gymnasium.spaces.Discrete) and isinstance(here, gymnasium.spaces.Discrete):
                    alike = here.n <= there.n
                if not alike:
                    raise ValueError(
                        f"env has the {name} {there}, and the data are of {here}; name the env that they are of"
                    )
            if check:
                return Evaluation(torch.zeros(0), torch.zeros(0))
            with RandomStream(self.seed, task.device):
                return play(
                    envs, lambda state, time: choose(task, policy, state, time, deterministic=True), num_episodes
                )
        finally:
            if not given:
                envs.close()
