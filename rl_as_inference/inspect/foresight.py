"""What a model-based agent believed and planned on its way, beside what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.agents import ModelBasedAgent
from rl_as_inference.agents.model_planning import PlanningPolicy
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.planning import MPPIPlanner
from rl_as_inference.planning.answers import squashed
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.randomness import RandomStream

__all__ = ["Foresight", "Outlook", "foresee"]


@dataclass(frozen=True)
class Outlook:
    """What was believed at one step of what would follow.

    Attributes:
        start: the step.
        actions: what was planned, ``(k, *action)``; what was then done, where the agent plans no sequence.
        planned: whether it is the former.
        draws: states that may follow, with luck, of every member as often, ``(E, M, k + 1, d)``.
        expected: what each member expects, without luck, ``(E, k + 1, d)``.
    """

    start: int
    actions: Tensor
    planned: bool
    draws: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Foresight:
    """One episode of a model-based agent.

    Attributes:
        states: what happened, ``(T + 1, d)``.
        actions: what was done, ``(T, *action)``.
        rewards: ``(T,)``, reward units.
        outlooks: what was believed on the way, one after the other.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    outlooks: list[Outlook]

    def to_frame(self) -> Frame:
        """Returns what :func:`rl_as_inference.inspect.plots.plot_foresight` draws of the state.

        A row for each dimension at each time of each outlook, which began at ``start``: ``low`` and ``high``, between
        which 90 % of all draws lie; ``least_expected`` and ``largest_expected`` of the members; and what ``happened``,
        NaN where the episode had ended. All in the state's own units.
        """
        happened = self.states.double().cpu().numpy()
        rows: dict[str, list[Any]] = {name: [] for name in ("start", "time", "dimension", "happened")}
        bands: dict[str, list[Any]] = {name: [] for name in ("low", "high", "least_expected", "largest_expected")}
        for look in self.outlooks:
            draws = look.draws.flatten(0, 1).double().cpu().numpy()
            expected = look.expected.double().cpu().numpy()
            low, high = np.nanquantile(draws, (0.05, 0.95), axis=0)
            for name, band in zip(bands, (low, high, expected.min(0), expected.max(0)), strict=True):
                bands[name].extend(band.ravel())
            for step, dimension in np.ndindex(low.shape):
                time = look.start + step
                known = happened[time, dimension] if time < len(happened) else None
                for name, value in zip(rows, (look.start, time, dimension, known), strict=True):
                    rows[name].append(value)
        return frame(rows | bands)


@checked
def foresee(
    agent: ModelBasedAgent, num_steps: int = 200, *, every: int | None = None, num_draws: int = 40, seed: int = 10_000
) -> Foresight:
    """Returns an episode that the agent acts in an environment of its own, and what it believed on the way.

    Args:
        agent: whose model has been fitted. Nothing in it changes.
        num_steps: at most.
        every: steps from one outlook to the next; by default as long as a plan is.
        num_draws: of each member, for each outlook.
        seed: of the environment and of the draws.

    Raises:
        ValueError: if the agent has no model, or it was never fitted, or numbers are out of range.
    """
    if not isinstance(agent, ModelBasedAgent):
        raise ValueError(f"agent has no model of the world: it is {type(agent).__name__}, not ModelBasedAgent")
    check_count("num_steps", num_steps)
    ahead = int(agent.options["look_ahead"])  # type: ignore[typeddict-item]
    every = ahead if every is None else every
    check_count("every", every)
    check_count("num_draws", num_draws)
    agent.dynamics.predict(*(torch.zeros(1, *shape) for shape in (agent.task.state_shape, agent.task.action_shape)))
    envs, policy = agent.arena.another(1, seed=seed), agent.policy
    agent.arena.carry_statistics(envs)
    states, actions, rewards, plans = [], [], [], {}
    with RandomStream(seed, agent.device), agent.threads(), torch.no_grad(), unvalidated():
        choose = agent.chooser(policy, deterministic=True)
        if isinstance(policy, PlanningPolicy):
            policy.forget()
        state = envs.reset()
        for t in range(num_steps):
            states.append(state[0])
            action = choose(state, np.array([t]))
            if t % every == 0:
                plans[t] = _plan(policy)
            step = envs.step(action)
            actions.append(action[0])
            rewards.append(step.reward[0])
            state = step.state
            if bool((step.terminated | step.truncated)[0]):
                break
        states.append(step.next_state[0])
        envs.close()
        lived = torch.as_tensor(np.array(states), dtype=agent.state_dtype, device=agent.device)
        done = torch.as_tensor(np.array(actions), device=agent.device)
        outlooks = []
        for start, plan in plans.items():
            follow = done[start : start + ahead] if plan is None else plan
            draws, expected = _imagined(agent, lived[start], follow, num_draws)
            outlooks.append(Outlook(start, follow, plan is not None, draws, expected))
        if isinstance(policy, PlanningPolicy):
            policy.forget()
    return Foresight(lived, done, torch.as_tensor(np.array(rewards)), outlooks)


def _plan(policy: Any) -> Tensor | None:
    """Returns the actions that were planned last, ``(k, d)``; None where there is no sequence."""
    planner = policy.planner if isinstance(policy, PlanningPolicy) else None
    if not isinstance(planner, MPPIPlanner) or planner._last is None:
        return None
    return squashed(planner._last[1][:, 0], planner.process.action_space)


def _imagined(agent: ModelBasedAgent, state: Tensor, actions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns walks of every member along actions, with luck and without: ``(E, M, k+1, d)`` and ``(E, k+1, d)``."""
    dynamics = agent.dynamics
    found = []
    for process, number in ((dynamics, count), (dynamics.certain(), 1)):
        member = torch.arange(dynamics.ensemble, device=state.device).repeat_interleave(number)
        walk = torch.cat([state.expand(len(member), -1), member.to(state)[:, None]], 1)
        path = [process.as_seen(walk)]
        for action in actions:
            walk = process.advance(walk, action.expand(len(walk), *action.shape), 0).next_state
            path.append(process.as_seen(walk))
        found.append(torch.stack(path, 1).unflatten(0, (dynamics.ensemble, number)))
    return found[0], found[1][:, 0]
