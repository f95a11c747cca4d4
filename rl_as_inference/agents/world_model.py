"""A model of the world that is learned while acting: fits, imagined transitions, plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl_as_inference.agents.model_planning import MemberPlanner, PlanningPolicy
from rl_as_inference.agents.options import ModelBasedOptions, Planner
from rl_as_inference.agents.replay import Replay
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.checkpoints import under
from rl_as_inference.learned import LearnedDynamics, Transitions
from rl_as_inference.nouns import Policy
from rl_as_inference.planning import MPPIPlanner
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["WorldModel"]

_KEPT = 4
"""Fits whose imagined transitions are kept."""
_VALUE_DRAWS = 4
"""Draws of the policy that a soft value at the end of a plan is made of."""


class WorldModel:
    """Learned dynamics of every seed, what was imagined in them, and planners there: a companion of the update.

    Args:
        task: the problem.
        options: of a model-based agent.
        planner: what acts.
        modules: of each seed: its policy, critics and temperature.
        num_envs: environments of each seed.

    Attributes:
        dynamics: of each seed.
        replay: what was imagined, with a share of what was lived.
        log_likelihood: of held-out transitions at the last fit, nats, mean of the seeds; None before that.
    """

    def __init__(
        self,
        task: Task,
        options: ModelBasedOptions,
        planner: Planner,
        modules: list[dict[str, nn.Module]],
        num_envs: int,
    ) -> None:
        self.task, self.options, self.planner, self.modules, self.num_envs = task, options, planner, modules, num_envs
        self.dynamics = [
            LearnedDynamics(
                task.state_space,
                task.action_space,
                ensemble=options["ensemble"],
                hidden_sizes=options["model_hidden_sizes"],
                reward=options["reward_function"],
                horizon=task.horizon,
                discount=task.discount,
                dtype=task.dtype,
                device=task.device,
            )
            for _ in modules
        ]
        number, lived = options["imagined_transitions"], options["real_share"]
        self._walks = max(1, number // options["imagined_steps"])
        imagined = self._walks * options["imagined_steps"]
        self._real = round(imagined * lived / (1 - lived)) if lived < 1 else imagined
        self._imagines = lived < 1
        self.replay = Replay(
            task.state_space,
            task.action_space,
            capacity=_KEPT * (self._real + (imagined if self._imagines else 0)),
            num_learners=len(modules),
            horizon=task.horizon,
            device=task.device,
            dtype=task.dtype,
        )
        self.log_likelihood: float | None = None
        self._fitted_at: int | None = None
        self.policies = [[self.planning(seed, explores=True) for _ in range(num_envs)] for seed in range(len(modules))]
        self.others = [self.planning(seed, explores=False) for seed in range(len(modules))]

    def planning(self, seed: int, *, explores: bool) -> PlanningPolicy | None:
        """Returns a policy that plans in a seed's dynamics, with a last plan of its own; None where no plan acts.

        Args:
            seed: whose.
            explores: whether it acts in the loop, where it may hope; what is evaluated does not.
        """
        options, dynamics = self.options, self.dynamics[seed]
        if self.planner == "policy":
            return None
        guide: dict[str, Any] = {}
        if options["guided"]:
            guide = {"critic": _Ahead(self, seed), "proposal": self.modules[seed]["policy"]}
        if self.planner == "smc":
            planner: Any = MemberPlanner(
                dynamics, look_ahead=options["look_ahead"], num_particles=options["num_samples"], **guide
            )
        else:
            planner = MPPIPlanner(
                dynamics,
                look_ahead=options["look_ahead"],
                num_samples=options["num_samples"],
                iterations=options["plan_iterations"],
                num_futures=1 if explores and options["optimistic"] else options["ensemble"],
                **guide,
            )
        return PlanningPolicy(planner)

    def policy(self, seed: int) -> Policy:
        """Returns what acts outside of the loop: a plan, once there is a model to plan in, or the policy."""
        self._set_temperature(seed)
        found = self.others[seed]
        return self.modules[seed]["policy"] if found is None or not self.dynamics[seed].num_transitions else found

    # What the loop asks.

    def learn(self, replay: Replay, num_steps: int) -> None:
        if self._fitted_at is not None and num_steps < self._fitted_at + self.options["model_every"]:
            return
        options, found = self.options, []
        for seed, dynamics in enumerate(self.dynamics):
            fit = dynamics.fit(
                _lived(replay, seed), options["model_updates"], learning_rate=options["model_learning_rate"]
            )
            found.append(fit.held_out_log_likelihood)
        self.log_likelihood, self._fitted_at = sum(found) / len(found), num_steps
        with torch.no_grad(), unvalidated():
            rows = torch.stack([self._imagined(seed, replay) for seed in range(len(self.dynamics))])
        self.replay.add_rows(rows.cpu().numpy() if rows.device.type == "cpu" else rows)

    def actions(self, state: Tensor, lengths: np.ndarray[Any, Any]) -> Tensor | None:
        if self.planner == "policy":
            return None
        times = lengths.reshape(len(self.modules), self.num_envs)
        rows = []
        for seed, policies in enumerate(self.policies):
            self._set_temperature(seed)
            for env, policy in enumerate(policies):
                assert policy is not None
                rows.append(policy(state[seed, env][None], int(times[seed, env])).sample()[0])
        return torch.stack(rows).view(len(self.modules), self.num_envs, *self.task.action_shape)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"imagined.{name}": value for name, value in self.replay.state_dict().items()}
        plans: dict[str, int] = {}
        for seed, dynamics in enumerate(self.dynamics):
            tensors |= {f"{seed}.{name}": value for name, value in dynamics.state_dict().items()}
            for env, policy in enumerate(self.policies[seed]):
                if policy is not None and isinstance(policy.planner, MPPIPlanner) and policy.planner._last is not None:
                    plans[f"plan.{seed}.{env}"], tensors[f"plan.{seed}.{env}"] = policy.planner._last
        return tensors, {"fitted_at": self._fitted_at, "log_likelihood": self.log_likelihood, "plans": plans}

    def check(self, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        self.replay.check_rows(under(tensors, "imagined."))
        for seed, dynamics in enumerate(self.dynamics):
            starts, is_fitted = tensors.get(f"{seed}.starts"), progress["fitted_at"] is not None
            wrong = starts is not None and (starts.dim() != 2 or starts.shape[1] != dynamics.size)
            if (starts is None) == is_fitted or wrong:
                raise ValueError(f"companion.{seed}.starts are not those of fitted dynamics")

    def restore(self, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        self.replay.load_state_dict(under(tensors, "imagined."))
        self._fitted_at, self.log_likelihood = progress["fitted_at"], progress["log_likelihood"]
        for seed, dynamics in enumerate(self.dynamics):
            dynamics.load_state_dict(under(tensors, f"{seed}."))
            for env, policy in enumerate(self.policies[seed]):
                name = f"plan.{seed}.{env}"
                if policy is not None and isinstance(policy.planner, MPPIPlanner):
                    last = tensors[name].to(self.task.device) if name in tensors else None
                    policy.planner._last = None if last is None else (progress["plans"][name], last)

    def _set_temperature(self, seed: int) -> None:
        """Gives dynamics and planners the temperature that there is by now."""
        temperature = float(self.modules[seed]["temperature"]().detach())
        policies = [*self.policies[seed], self.others[seed]]
        for process in (self.dynamics[seed], *(each.planner.process for each in policies if each is not None)):
            process.temperature = temperature

    def _imagined(self, seed: int, replay: Replay) -> Tensor:
        """Returns rows of walks in a seed's dynamics by its policy, and of what was lived, ``(count, width)``.

        Walks begin where the agent has been, as those of MBPO (Janner et al. 2019, arXiv:1906.08253, algorithm 2); one
        that ends begins anew elsewhere.
        """
        rows, task, dynamics = replay.storage[seed, : len(replay)], self.task, self.dynamics[seed]
        found = [rows[torch.randint(len(rows), (self._real,), device=rows.device)]] if self._real else []
        policy = self.modules[seed]["policy"]
        state, time = self._begun(rows, replay)
        state = dynamics.lifted(state)
        for _ in range(self.options["imagined_steps"] if self._imagines else 0):
            seen = dynamics.as_seen(state)
            chosen = policy(seen, task.times(time))
            action = chosen.sample()
            step = dynamics.advance(state, action, 0)
            after = step.next_state
            ended = dynamics.has_ended(after)
            ended = torch.zeros(len(after), dtype=torch.bool, device=after.device) if ended is None else ended
            if task.horizon is not None:
                ended = ended | (time + 1 >= task.horizon)
            columns = [seen, action, step.reward, dynamics.as_seen(after), ended, torch.zeros_like(ended)]
            columns += [] if task.horizon is None else [time]
            count = len(seen)
            found.append(torch.cat([column.to(rows.dtype).reshape(count, -1) for column in columns], 1))
            fresh, at = self._begun(rows, replay)
            again = torch.cat([fresh, after[:, -1:]], 1)
            state, time = torch.where(ended[:, None], again, after), torch.where(ended, at, time + 1)
        return torch.cat(found)

    def _begun(self, rows: Tensor, replay: Replay) -> tuple[Tensor, Tensor]:
        """Returns states that were acted in, drawn, and their times."""
        drawn = rows[torch.randint(len(rows), (self._walks,), device=rows.device)]
        state = drawn[:, replay.columns["state"]]
        if self.task.horizon is None:
            return state, torch.zeros(len(state), dtype=torch.int64, device=state.device)
        return state, drawn[:, replay.columns["time"]][:, 0].long()


class _Ahead:
    """The soft value that a plan ends in: of the policy and critics that there are when it is asked."""

    def __init__(self, model: WorldModel, seed: int) -> None:
        self.model, self.seed = model, seed

    def __call__(self, state: Tensor, t: Any) -> Tensor:
        modules: Mapping[str, nn.Module] = self.model.modules[self.seed]
        temperature = self.model.dynamics[self.seed].temperature
        value = SoftValue(
            self.model.task,
            modules["critics"],
            modules["policy"],
            temperature=float(temperature),
            num_draws=_VALUE_DRAWS,
        )
        return value(state, t)


def _lived(replay: Replay, seed: int) -> Transitions:
    """Returns a seed's transitions; the end of a horizon is of the time, and no state is terminal for it."""
    terminated = replay.terminated
    if replay.horizon is not None:
        terminated = terminated & (replay.time + 1 < replay.horizon)
    columns = (replay.state, replay.action, replay.reward, replay.next_state, terminated)
    return Transitions(*(column[seed] if replay.num_learners > 1 else column for column in columns))
