"""Training a policy on the trajectory ELBO."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference import exact
from rl_as_inference.checks import check_at_least, check_positive
from rl_as_inference.critics import SoftQ, SoftV
from rl_as_inference.guides import BeliefPolicy, RecurrentPolicy
from rl_as_inference.guides.belief import belief_space
from rl_as_inference.nouns import Problem, Process
from rl_as_inference.objectives.trajectory_elbo import Estimator, TrajectoryELBO
from rl_as_inference.processes import MarkovDecisionProcess, PartiallyObservedMDP, TabularMDP, TabularPOMDP
from rl_as_inference.processes.point_masses import check_density
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.program.readings import follow
from rl_as_inference.progress import progress_bar
from rl_as_inference.randomness import seeded
from rl_as_inference.threads import one_thread_if_small

__all__ = ["FitEstimator", "FitResult", "fit"]

FitEstimator = Estimator | Literal["exact"]

_EXACT_LIMIT = 4_000_000
"""``estimator="auto"`` takes the exact gradient of finite processes up to ``T·S·A·K`` of this size."""

_MEMORY = 32
"""Numbers that a critic of histories remembers."""


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
    elbo: Tensor
    temperature: Tensor
    estimator: str
    critic: Any
    seconds: float


def fit(
    process: Problem,
    policy: nn.Module,
    *,
    steps: int,
    estimator: FitEstimator = "auto",
    critic: Callable[[Any, Any], Tensor] | None = None,
    lambda_: float = 1.0,
    num_trajectories: int = 256,
    learning_rate: float = 2e-2,
    anneal: bool = True,
    tempering: float | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Trains ``policy`` in place on the trajectory ELBO, and returns it with its history.

    Adam on minus the ELBO. A finite process takes the gradient of its exact ELBO by default, as
    there is nothing to estimate; every other process and program takes :class:`TrajectoryELBO`'s
    unbiased estimator over ``num_trajectories`` rollouts. Where the state is hidden and actions are discrete it has a
    baseline, on the belief of a :class:`rl_as_inference.TabularPOMDP` and on the history elsewhere.

    Args:
        process: a process, or a Pyro program without arguments.
        policy: a module ``(state, t) -> Distribution``.
        steps: how many gradient steps.
        estimator: ``"exact"``, or one of :class:`TrajectoryELBO`'s; ``"auto"`` chooses.
        critic: soft values in reward units, for the estimators that use one; a module is trained
            alongside. Where an estimator needs one and none is given, a network is made and trained.
        lambda_: λ of ``"advantage"``.
        num_trajectories: rollouts a gradient.
        learning_rate: Adam's, at the start.
        anneal: let the learning rate fall to a twentieth along a cosine, so that the end settles.
        tempering: begin at this many times the process's temperature, and cool to it over the first half of the
            steps; 1 for none. At a low temperature a policy may learn to dread what only pays once something else is
            known, before it knows it. None is 1 where the state is seen, and where it is hidden what makes the returns
            of the action prior differ by about one nat. For processes in parts.
        seed: seeds PyTorch's generators.
        progress: show a progress bar; None shows it on a terminal.
        callback: called as ``callback(step, elbo)`` after every step.

    Raises:
        ValueError: for arguments out of range, a policy without parameters, an exact gradient asked
            of a process that has none, or an ELBO that is not finite (the step is named).
    """
    check_at_least("steps", steps)
    check_positive("learning_rate", learning_rate)
    check_at_least("num_trajectories", num_trajectories)
    if estimator not in (*get_args(Estimator), "exact"):
        raise ValueError(f"estimator must be exact or one of {', '.join(get_args(Estimator))}; got {estimator!r}")
    parameters = list(policy.parameters()) if isinstance(policy, nn.Module) else []
    if not parameters:
        raise ValueError(
            "policy has no parameters to train; pass a module such as those of rl_as_inference.guides (a policy that "
            "uses pyro.param trains with Pyro's SVI and TrajectoryELBO)"
        )
    process = as_process(process)
    if estimator == "auto" and critic is None and _has_cheap_exact_gradient(process):
        estimator = "exact"
    if estimator == "auto" and critic is None and isinstance(process, PartiallyObservedMDP):
        # What is hidden makes single returns far noisier than what the agent can know of them.
        estimator = "baseline" if isinstance(process.action_space, gymnasium.spaces.Discrete) else "auto"
    if estimator == "exact" and not exact.is_available(process):
        raise ValueError(f"estimator='exact' needs a TabularMDP or a LinearGaussianMDP, got {type(process).__name__}")
    in_parts = isinstance(process, MarkovDecisionProcess)
    if isinstance(process, ProgramProcess) or (in_parts and isinstance(process.action_space, gymnasium.spaces.Box)):
        with torch.no_grad(), seeded(0):
            check_density(policy, process.rollout(policy, 2))
    if seed is not None:
        torch.manual_seed(seed)
    if critic is None and estimator in ("baseline", "advantage", "exact_sum", "n_step"):
        critic = _new_critic(process, estimator).to(parameters[0])
    if isinstance(critic, nn.Module):
        parameters += list(critic.parameters())

    factor = _tempering(process, tempering)
    own = float(torch.as_tensor(process.temperature).detach())
    temperatures = own * factor ** (1 - 2 * torch.arange(steps, dtype=torch.float64) / steps).clamp(min=0)
    loss = _loss(process, policy, estimator, critic, lambda_, num_trajectories)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=learning_rate / 20)
    history = torch.empty(steps, dtype=torch.float64)
    size = sys.maxsize
    if estimator == "exact":  # messages are long chains of small operations, however many numbers they are
        size = 0
    elif isinstance(process, PartiallyObservedMDP):  # as are memories, moved on step by step
        size = num_trajectories * sum(parameter.numel() for parameter in parameters)
    started = time.perf_counter()
    with progress_bar("fit", steps, show=progress) as bar, one_thread_if_small(size):
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            if factor != 1:
                tempered = process if temperatures[step] == own else _at(process, float(temperatures[step]))
                loss = _loss(tempered, policy, estimator, critic, lambda_, num_trajectories)
            value = loss()
            if value.requires_grad:
                value.backward()
            elbo = -float(value.detach())
            if not torch.isfinite(value.detach()):
                raise ValueError(
                    f"the ELBO is {elbo} at step {step}; check rewards and action prior, or lower learning_rate"
                )
            optimizer.step()
            if anneal:
                schedule.step()
            history[step] = elbo
            bar.advance(f"ELBO {elbo:.3f} nats")
            if callback is not None:
                callback(step, elbo)
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
    with torch.no_grad(), seeded(0):
        spread = float(process.rollout(None, 1000).returns(discounted=True).std())
    return max(1.0, spread / float(process.temperature))


def _at(process: Process, temperature: float) -> Process:
    assert isinstance(process, MarkovDecisionProcess)
    return process.at_temperature(temperature)


def _new_critic(process: Process, estimator: str) -> nn.Module:
    # A network's outputs are of order one, and so are soft values in nats where rewards matter little.
    scale = float(torch.as_tensor(process.temperature))
    if isinstance(process, PartiallyObservedMDP):
        return _critic_of_hidden(process, estimator, scale)
    if isinstance(process, ProgramProcess) and process.sees_history:
        head = _head(gymnasium.spaces.Box(-1.0, 1.0, (_MEMORY,)), process, estimator, scale)
        return RecurrentPolicy(process.observation_space, process.action_space, head=head, memory_size=_MEMORY)
    return _head(process.state_space, process, estimator, scale)


def _critic_of_hidden(process: PartiallyObservedMDP, estimator: str, scale: float) -> nn.Module:
    """Returns a critic on the belief where that is exact, else on the history."""
    exact_belief = isinstance(process, TabularPOMDP)
    space = belief_space(process) if exact_belief else gymnasium.spaces.Box(-1.0, 1.0, (_MEMORY,))
    head = _head(space, process, estimator, scale)
    return BeliefPolicy(process, head) if exact_belief else RecurrentPolicy.of(process, head=head, memory_size=_MEMORY)


def _head(space: gymnasium.Space[Any], process: Process, estimator: str, scale: float) -> nn.Module:
    if estimator not in ("exact_sum", "n_step"):
        return SoftV(space, horizon=process.horizon, scale=scale)
    if not isinstance(process.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"estimator={estimator!r} needs discrete actions, got {process.action_space}; use 'auto'")
    return SoftQ(space, int(process.action_space.n), horizon=process.horizon, scale=scale)


def _has_cheap_exact_gradient(process: Process) -> bool:
    if not isinstance(process, TabularMDP):
        return False
    size: int = process.kernel.probabilities.numel()
    return (process.horizon or 1) * size <= _EXACT_LIMIT


def _loss(
    process: Process,
    policy: nn.Module,
    estimator: FitEstimator,
    critic: Callable[[Any, Any], Tensor] | None,
    lambda_: float,
    num_trajectories: int,
) -> Callable[[], Tensor]:
    """Returns a function whose value is minus the ELBO and whose gradient is the estimator's."""
    if estimator == "exact":
        return lambda: -exact.elbo(process, policy)
    objective = TrajectoryELBO(estimator, critic, lambda_)
    if isinstance(process, MarkovDecisionProcess):
        guide = follow(process, policy)
        return lambda: objective.differentiable_loss(process, guide, num_trajectories) / num_trajectories
    if isinstance(process, ProgramProcess):
        if not process.is_vectorized():
            objective = TrajectoryELBO(estimator, critic, lambda_, num_particles=num_trajectories)
            guide = follow(process.program, policy)
            return lambda: objective.differentiable_loss(process.program, guide)
        batch = process.in_plate(num_trajectories)
        guide = follow(batch, policy)
        return lambda: objective.differentiable_loss(batch, guide) / num_trajectories
    raise ValueError(f"fit cannot train on {type(process).__name__}: it has no program to differentiate")
