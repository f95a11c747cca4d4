"""Training a policy on the trajectory ELBO."""

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference import exact
from rl_as_inference.arguments import checked_but
from rl_as_inference.checks import check_at_least, check_positive, check_share
from rl_as_inference.critics import QEnsemble
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.distributed import Ranks, joined
from rl_as_inference.fit_by_messages import ProjectionByMessages
from rl_as_inference.fit_checkpoint import FitCheckpoint
from rl_as_inference.fit_critics import new_critic, spread_of_returns
from rl_as_inference.fit_reports import FitReports
from rl_as_inference.host import in_turn, levels_to_the_user
from rl_as_inference.nouns import Policy, Problem, Process, answers_row_by_row
from rl_as_inference.objectives.luck import luck_of_process, luck_of_program
from rl_as_inference.objectives.pooled_loss import PooledLoss, take_first
from rl_as_inference.objectives.trajectory_elbo import Estimator, TrajectoryELBO
from rl_as_inference.objectives.weighted_regression import Projection
from rl_as_inference.processes import (
    LinearGaussianMDP,
    MarkovDecisionProcess,
    PartiallyObservedMDP,
    TabularMDP,
)
from rl_as_inference.processes.point_masses import check_density
from rl_as_inference.processes.policy_tables import is_asked_at_once
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.program.readings import follow
from rl_as_inference.progress import progress_bar
from rl_as_inference.randomness import seeded
from rl_as_inference.sharing import agree_on
from rl_as_inference.threads import one_thread_if_small

__all__ = ["FitEstimator", "FitResult", "fit"]

FitEstimator = Estimator | Literal["exact"]

_EXACT_LIMIT = 4_000_000
"""``estimator="auto"`` takes the exact gradient of finite processes up to ``T·S·A·K`` of this size."""


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    Attributes:
        policy: the trained policy (the one passed in, trained in place).
        elbo: the ELBO of the policy before each step, ``(steps,)`` in nats: exact for
            ``estimator="exact"``, else an estimate from that step's trajectories.
        temperature: at which each was taken, ``(steps,)``, in reward units per nat: the process's own, but for the
            steps of a tempered start.
        estimator: the gradient estimator that was used.
        critic: the critic, trained alongside if it is a module.
        seconds: wall time.
    """

    policy: nn.Module
    elbo: Tensor = field(repr=False)  # a number a step would hide the rest
    temperature: Tensor = field(repr=False)
    estimator: str
    critic: Any
    seconds: float

    def to_frame(self) -> Frame:
        """Returns the history: ``step``, ``elbo`` and ``temperature``, as ``data_frames`` says."""
        return frame({"step": range(len(self.elbo)), "elbo": self.elbo, "temperature": self.temperature})


@checked_but("policy", "estimator", "teacher")
@in_turn
def fit(
    process: Problem,
    policy: nn.Module,
    *,
    steps: int,
    estimator: FitEstimator = "auto",
    critic: Callable[[Any, Any], Tensor] | QEnsemble | None = None,
    lambda_: float = 1.0,
    n: int | None = None,
    eta: float | None = None,
    epsilon: float | None = None,
    teacher: Policy | None = None,
    behavior: Policy | None = None,
    num_trajectories: int = 256,
    learning_rate: float = 2e-2,
    anneal: bool = True,
    tempering: float | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    callback: Callable[[int, float], None] | None = None,
    on_report: Callable[[dict[str, float]], None] | None = None,
    report_every: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    distributed: bool = False,
) -> FitResult:
    """Trains ``policy`` in place on the trajectory ELBO, and returns it with its history.

    Adam on minus the ELBO. A finite process takes the gradient of its exact ELBO by default, as
    there is nothing to estimate; every other process and program takes :class:`TrajectoryELBO`'s
    unbiased estimator over ``num_trajectories`` rollouts. Where the state is hidden and actions are discrete it has a
    baseline, on the belief of a :class:`rl_as_inference.TabularPOMDP` and on the history elsewhere.

    Two estimators climb no ELBO, and reach its optimum by regression (docs/projection.md). ``"em"``: a finite or
    linear-Gaussian process without a critic has its E-step by exact messages of the present policy, every fourth step,
    with states weighted by where that policy goes; others, whose state must be seen, learn a soft Q.
    ``"path_consistency"``: over whole trajectories where dynamics are deterministic, and else step by step with a soft
    V that is learned.

    Args:
        process: a process, or a Pyro program without arguments.
        policy: a module ``(state, t) -> Distribution``.
        steps: how many gradient steps.
        estimator: ``"exact"``, or one of :class:`TrajectoryELBO`'s; ``"auto"`` chooses.
        critic: soft values in reward units, for the estimators that use one; a module is trained
            alongside. Where an estimator needs one and none is given, a network is made and trained.
        lambda_: λ of ``"advantage"``, and of ``"em"`` with a soft V.
        n: how many steps, of ``"n_step"`` (1 by default) and of ``"path_consistency"``: 1 for single steps, the horizon
            or more for whole trajectories. None takes these where the dynamics are deterministic.
        eta: η of ``"em"``, in reward units per nat: how far from the present policy the E-step goes. None is the
            process's α, soft policy iteration.
        epsilon: instead of η, the trust region of ``"em"``: ``KL(q* || π) ≤ ε`` in nats, averaged over states.
        teacher: a policy that the guide is regressed on, in place of the E-step's answer, at the states that the guide
            visits: a planner to be distilled, say. Its estimator is ``"em"``. It is asked at every step, once for every
            state that is not real-valued, else for each trajectory; ``num_trajectories`` says how often.
        behavior: who draws the trajectories of ``"path_consistency"``, which is right off-policy; None for the policy.
        num_trajectories: rollouts a gradient.
        learning_rate: Adam's, at the start.
        anneal: let the learning rate fall to a twentieth along a cosine, so that the end settles.
        tempering: begin at this many times the process's temperature, and cool to it over the first half of the
            steps; 1 for none. At a low temperature a policy may learn to dread what only pays once something else is
            known, before it knows it. None is 1 where the state is seen, and where it is hidden what makes the returns
            of the action prior differ by about one nat. For processes in parts.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
        progress: show a progress bar; None shows it on a terminal.
        callback: called as ``callback(step, elbo)`` after every step, on every rank.
        on_report: called every ``report_every`` steps (None: a hundredth of them) and after the last, on rank 0, with
            ``step``, ``elbo`` (nats), ``temperature`` (reward/nat) and ``learning_rate``. What it raises ends the fit.
        checkpoint: a file in which the fit is kept as it goes on. If there is one, the fit goes on from it.
        checkpoint_seconds: the longest time between two of them.
        distributed: the trajectories of each gradient are shared out among the ranks of a ``torchrun`` job, which draw
            other random numbers; their gradients are summed in one vector, so that the policy is bit for bit the same
            on all. It starts as rank 0's. An exact gradient has nothing to share out: each rank takes all of it.

    Raises:
        RankError: if another rank has ended.
        ValueError: for arguments out of range, or of another estimator; a policy without parameters; an exact gradient
            asked of a process that has none; a checkpoint of another fit; whole trajectories asked of path consistency
            where dynamics are stochastic; or an ELBO that is not finite (the step is named).
    """
    check_at_least("steps", steps)
    check_positive("learning_rate", learning_rate)
    check_positive("checkpoint_seconds", checkpoint_seconds)
    check_at_least("num_trajectories", num_trajectories)
    check_share("lambda_", lambda_)
    if n is not None:
        check_at_least("n", n)
    reports = FitReports(on_report, report_every, steps)
    if estimator not in (*get_args(Estimator), "exact"):
        raise ValueError(f"estimator must be exact or one of {', '.join(get_args(Estimator))}; got {estimator!r}")
    process = as_process(process)
    parameters = list(policy.parameters()) if isinstance(policy, nn.Module) else []
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "policy has no parameters that learn: none requires a gradient; policy.requires_grad_() is the mend"
        )
    if not parameters:
        raise ValueError(
            "policy has no parameters to train; pass a module such as those of rl_as_inference.guides (a policy that "
            "uses pyro.param trains with Pyro's SVI and TrajectoryELBO)"
        )
    with joined(distributed) as ranks:
        given = {
            "steps": steps,
            "estimator": estimator,
            "lambda_": lambda_,
            "n": n,
            "eta": eta,
            "epsilon": epsilon,
            "num_trajectories": num_trajectories,
            "learning_rate": learning_rate,
            "anneal": anneal,
            "tempering": tempering,
            "seed": seed,
        }
        agree_on(ranks, process=process, options=given)
        if teacher is not None and estimator == "auto":
            estimator = "em"
        _check_estimator_of(estimator, n=n, eta=eta, epsilon=epsilon, teacher=teacher, behavior=behavior)
        projection = Projection(eta, epsilon, teacher)
        if estimator == "auto" and critic is None and _has_cheap_exact_gradient(process):
            estimator = "exact"
        if estimator == "auto" and critic is None and isinstance(process, PartiallyObservedMDP):
            # What is hidden makes single returns far noisier than what the agent can know of them.
            estimator = "baseline" if isinstance(process.action_space, gymnasium.spaces.Discrete) else "auto"
        if estimator == "exact" and not exact.is_available(process):
            raise ValueError(
                f"estimator='exact' needs a TabularMDP or a LinearGaussianMDP, got {type(process).__name__}"
            )
        in_parts = isinstance(process, MarkovDecisionProcess)
        if isinstance(process, ProgramProcess) or (in_parts and isinstance(process.action_space, gymnasium.spaces.Box)):
            with torch.no_grad(), seeded(0):
                check_density(policy, process.rollout(policy, 2))
        if seed is not None:
            torch.manual_seed(seed)  # the numbers are those of the training alone, whatever was asked before
        wants_critic = estimator in ("baseline", "advantage", "exact_sum", "n_step")
        by_messages = False
        if estimator == "em" and teacher is None:
            by_messages = critic is None and isinstance(process, TabularMDP | LinearGaussianMDP)
            wants_critic = not by_messages
        elif estimator == "path_consistency":
            n = _path_length(process, n)
            wants_critic = n < (process.horizon or 0) or not _starts_alike(process, num_trajectories)
        if critic is None and wants_critic:
            critic = new_critic(process, estimator).to(parameters[0])
        if isinstance(critic, nn.Module):
            parameters += list(critic.parameters())

        factor = _tempering(process, tempering)
        own = float(torch.as_tensor(process.temperature).detach())
        temperatures = own * factor ** (1 - 2 * torch.arange(steps, dtype=torch.float64) / steps).clamp(min=0)
        options: dict[str, Any] = {"lambda_": lambda_, "n": n or 1} | (
            {"projection": projection} if estimator == "em" else {}
        )
        if behavior is not None:
            options["behavior"] = behavior

        alike = estimator == "exact" or by_messages
        pooled = PooledLoss(policy if _has_table_to_share(process, policy, num_trajectories // ranks.size) else None)

        def loss_of(process: Process) -> Callable[[], Tensor]:
            if by_messages:
                exactly: Callable[[], Tensor] = ProjectionByMessages(process, policy, projection)  # type: ignore[arg-type]
            elif estimator == "exact":
                exactly = partial(_minus_elbo, process, policy)
            if alike:  # on all ranks
                return lambda: pooled(ranks, lambda: exactly() / ranks.size)
            return _loss(process, policy, estimator, critic, num_trajectories, options, ranks, pooled)

        modules = {"policy": policy, **({"critic": critic} if isinstance(critic, nn.Module) else {})}
        if ranks.size > 1:
            for name, module in modules.items():
                shapes = {key: (tuple(each.shape), each.dtype) for key, each in module.state_dict().items()}
                ranks.agree(name, shapes)
            take_first(
                ranks, [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
            )
            if alike and ranks.is_first:
                warnings.warn(
                    f"distributed: the gradient of estimator={estimator!r} is exact here, with no trajectories to "
                    f"share out, so that every rank does the same work; name an estimator that samples",
                    UserWarning,
                    stacklevel=levels_to_the_user(),
                )
        loss = loss_of(process)
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=learning_rate / 20)
        history = torch.empty(steps, dtype=torch.float64)
        kept = None
        if checkpoint is not None:
            kept = FitCheckpoint(checkpoint, ranks, checkpoint_seconds, given, modules, optimizer, history)
        size = sys.maxsize
        if alike:  # messages are long chains of small operations, however many numbers they are
            size = 0
        elif isinstance(process, PartiallyObservedMDP):  # as are memories, moved on step by step
            size = ranks.share(num_trajectories) * sum(parameter.numel() for parameter in parameters)
        begin = kept.resume(schedule) if kept else 0  # before ranks part, so that they go on with other numbers
        started = time.perf_counter()
        shown = progress if ranks.is_first else False
        keeping = kept.noting() if kept else nullcontext()
        with progress_bar("fit", steps, show=shown) as bar, one_thread_if_small(size), ranks.own_stream(), keeping:
            for step in range(begin, steps):
                optimizer.zero_grad(set_to_none=True)
                if factor != 1:
                    loss = loss_of(process if temperatures[step] == own else _at(process, float(temperatures[step])))
                value = loss()
                if value.requires_grad:
                    value.backward()
                elbo = -float(value.detach())
                if not torch.isfinite(value.detach()):
                    raise ValueError(
                        f"the ELBO is {elbo} at step {step}; check rewards and action prior, or lower learning_rate"
                    )
                rate = float(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if anneal:
                    schedule.step()
                history[step] = elbo
                bar.advance(f"ELBO {elbo:.3f} nats")
                if callback is not None:
                    callback(step, elbo)
                if ranks.is_first:
                    reports.tell(step, elbo=elbo, temperature=float(temperatures[step]), learning_rate=rate)
                if kept is not None:
                    kept.keep(step + 1, schedule)
        return FitResult(policy, history, temperatures, estimator, critic, time.perf_counter() - started)


def _tempering(process: Process, asked: float | None) -> float:
    """Returns by what the temperature is multiplied at the start."""
    if asked is not None:
        check_positive("tempering", asked)
        if asked != 1 and not isinstance(process, MarkovDecisionProcess):
            raise ValueError(
                f"tempering needs a process in parts, whose temperature can be changed, got {type(process).__name__}; "
                f"leave it out"
            )
        return float(asked)
    if not isinstance(process, PartiallyObservedMDP) or process.horizon is None:
        return 1.0
    return max(1.0, spread_of_returns(process, 1000) / float(process.temperature))


def _at(process: Process, temperature: float) -> Process:
    assert isinstance(process, MarkovDecisionProcess)
    return process.at_temperature(temperature)


def _check_estimator_of(estimator: str, **given: Any) -> None:
    """Raises ValueError for what belongs to another estimator than the one that is asked for."""
    of = {"n": ("n_step", "path_consistency"), "behavior": ("path_consistency",)}
    for name, value in given.items():
        if value is not None and estimator not in (wanted := of.get(name, ("em",))):
            raise ValueError(
                f"{name} is for estimator={' or '.join(map(repr, wanted))}, got estimator={estimator!r}; leave it out"
            )


def _path_length(process: Process, n: int | None) -> int:
    """Returns how long the paths of path consistency are: all of the trajectory where dynamics are deterministic."""
    if n is not None:
        return n
    if isinstance(process, MarkovDecisionProcess):
        luck = luck_of_process(process)
    else:
        luck = luck_of_program(process.in_plate(1)) if isinstance(process, ProgramProcess) else "it is a simulator"
    return 1 if luck else process.horizon or 1


def _starts_alike(process: Process, num_trajectories: int) -> bool:
    """Returns whether many of the trajectories of a batch start in one state, so that log Z need not be learned."""
    if isinstance(process, ProgramProcess) and not process.is_vectorized():
        return False
    with torch.no_grad(), seeded(0):
        first = process.rollout(None, num_trajectories).states[0]
    return 4 * len(first.reshape(num_trajectories, -1).unique(dim=0)) <= num_trajectories


def _has_cheap_exact_gradient(process: Process) -> bool:
    if not isinstance(process, TabularMDP):
        return False
    size: int = process.kernel.probabilities.numel()
    return (process.horizon or 1) * size <= _EXACT_LIMIT


def _has_table_to_share(process: Process, policy: nn.Module, least: int) -> bool:
    """Returns whether every rank, of at least so many rollouts, would compute the same table of log probabilities."""
    return isinstance(process, TabularMDP) and answers_row_by_row(policy) and is_asked_at_once(process, policy, least)


def _minus_elbo(process: Process, policy: nn.Module) -> Tensor:
    return -exact.elbo(process, policy)


def _loss(
    process: Process,
    policy: nn.Module,
    estimator: Any,
    critic: Callable[[Any, Any], Tensor] | QEnsemble | None,
    num_trajectories: int,
    options: dict[str, Any],
    ranks: Ranks,
    pooled: PooledLoss,
) -> Callable[[], Tensor]:
    """Returns a function whose value is minus the ELBO and whose gradient is the estimator's."""
    options = {**options, "distributed": ranks.size > 1}
    objective = TrajectoryELBO(estimator, critic, **options)
    share = ranks.share(num_trajectories)
    objective.pooled = pooled  # of one fit, at whatever temperatures
    if isinstance(process, MarkovDecisionProcess):
        guide = follow(process, policy)
        return lambda: objective.differentiable_loss(process, guide, share) / num_trajectories
    if isinstance(process, ProgramProcess):
        if not process.is_vectorized():
            objective = TrajectoryELBO(estimator, critic, num_particles=num_trajectories, **options)
            guide = follow(process.program, policy)
            return lambda: objective.differentiable_loss(process.program, guide)
        batch = process.in_plate(share)
        guide = follow(batch, policy)
        return lambda: objective.differentiable_loss(batch, guide) / num_trajectories
    raise ValueError(f"fit cannot train on {type(process).__name__}: it has no program to differentiate")
