"""The loop of a learner: environments step, replay fills, updates follow; and all of it can be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.agents.acting import prior_actions
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.checkpoint import Snapshot
from rl_as_inference.agents.ledger import Ledger
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.replay import Replay
from rl_as_inference.agents.return_constraint import ReturnConstraint
from rl_as_inference.agents.update import Update
from rl_as_inference.processes.environments import Step
from rl_as_inference.randomness import RandomStream

__all__ = ["Loop"]


class Loop:
    """Environments, replay and the update of an algorithm, one step at a time.

    All learned numbers lie in one vector per seed, and an update is one pure function of it, a batch and random
    numbers, traced once; with several seeds it is batched over them.

    Args:
        arena: the environments, and the task that they are.
        algorithm: what learns.
        options: with their defaults.

    Attributes:
        modules: of each seed, by name; their parameters are views of the update's vector.
        ledger: what was done so far.
        constraint: what tunes α to a return, or None.
        companion: what the algorithm has beside its update, or None.
        random: everything random but the environments.
        stores_latest: whether replay holds the last observation of each state in its place.
        is_whole: false after an interruption inside a step, of which nothing can be kept.
    """

    def __init__(self, arena: Arena, algorithm: Algorithm, options: LearnerOptions) -> None:
        self.arena, self.algorithm, self.options = arena, algorithm, options
        self.task, self.envs = arena.task, arena.envs
        task = self.task
        self.num_seeds, self.num_envs = options["seeds"] or 1, arena.num_envs
        self.random = RandomStream(options["seed"], task.device)
        self.constraint = self._constraint()
        with self.random:
            self.modules = [
                {
                    name: module.to(task.device, task.dtype)
                    for name, module in algorithm.make_modules(anew=self.num_seeds > 1).items()
                }
                for _ in range(self.num_seeds)
            ]
            with torch.no_grad():
                first = self.envs.reset()
        self._check_policy(first)
        # With a memory windows are for acting alone: replay holds their last observations, of which sequences are made.
        self.stores_latest = options["memory"] is not None
        self.replay = Replay(
            arena.observation_space if self.stores_latest else task.state_space,
            task.action_space,
            capacity=options["buffer_size"],
            num_learners=self.num_seeds,
            num_envs=self.num_envs,
            horizon=task.horizon,
            device=task.device,
            dtype=task.dtype,
        )
        self.replay.origin = arena.origin()
        batch = (self.num_seeds, self.num_envs)
        self.observation = torch.zeros(*batch, *task.state_shape, dtype=task.state_dtype, device=task.device)
        self.time = torch.zeros(batch, dtype=torch.int64, device=task.device)
        self.action = torch.zeros(*batch, *task.action_shape, dtype=self.replay.action_dtype, device=task.device)
        with self.random:
            self.companion = algorithm.companion(self.modules, self.num_envs)
        self.update = Update(
            self.modules,
            algorithm,
            self.replay if self.companion is None else self.companion.replay,
            self.observation,
            self.time,
            self.action,
            batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            target_average=options["target_average"],
        )
        self.ledger = Ledger(self.num_seeds, self.num_envs)
        self._observe(first)
        self.is_whole = True
        self._debt = 0.0
        self._action_is_fresh = False

    def step(self) -> None:
        """Takes one step of every environment, and the updates that are due for it."""
        ledger, timed = self.ledger, self.task.horizon is not None
        if ledger.num_steps < self.options["learning_starts"]:
            action = self._host(prior_actions(self.task, self.observation))
        else:
            if not self._action_is_fresh:
                self.update.act()
            planned = None if self.companion is None else self.companion.actions(self.observation, ledger.lengths)
            if planned is not None:
                self.action.copy_(planned)
            action = self._host(self.action)
        state, time = self.envs.state, ledger.lengths.copy() if timed else None
        step = self.envs.step(action)
        if timed:  # the model's own horizon, which is an ending
            step = step._replace(terminated=step.terminated | step.truncated, truncated=np.zeros_like(step.truncated))
        self.is_whole = False
        state, after = self._stored(state), self._stored(step.next_state)
        self.replay.add(state, action, step.reward, after, step.terminated, step.truncated, step.valid, time)
        ledger.add(step)
        self._observe(step.state)
        self._hold_return(step)
        self._action_is_fresh = False
        if ledger.num_steps >= self.options["learning_starts"]:
            if self.companion is not None:
                self.companion.learn(self.replay, ledger.num_steps)
            self._debt += self.options["updates_per_step"] * self.num_envs
            while self._debt >= 1:
                self._debt -= 1
                self.update.step()
                ledger.num_updates += 1
                self._action_is_fresh = True
        self.is_whole = True

    def _stored(self, state: Any) -> Any:
        """Returns what replay holds of states."""
        window = self.task.window
        return state if window is None or not self.stores_latest else window.latest(state)

    def _hold_return(self, step: Step) -> None:
        """Moves α by the episodes that ended, where a return is held."""
        if self.constraint is None:
            return
        moved = self.constraint.observe(
            step.reward,
            ended=step.terminated | step.truncated,
            valid=step.valid,
            acts=self.ledger.num_steps >= self.options["learning_starts"],
            num_updates=self.ledger.num_updates,
        )
        for seed, log_temperature in moved.items():
            self.modules[seed]["temperature"].get_parameter("log_temperature").fill_(log_temperature)

    def _observe(self, state: Any) -> None:
        """Puts the states to act from, and their times, where the compiled functions read them."""
        self.observation.copy_(torch.from_numpy(state).view(self.observation.shape))
        if self.task.horizon is not None:
            self.time.copy_(torch.from_numpy(self.ledger.lengths).view(self.time.shape))

    def _host(self, action: Tensor) -> Any:
        """Returns actions ``(num_seeds, num_envs, ...)`` as an array for the environments."""
        array = action.numpy() if action.device.type == "cpu" else action.cpu().numpy()
        return array.reshape(self.envs.num_envs, *self.task.action_shape)

    def _constraint(self) -> ReturnConstraint | None:
        target = self.options["target_return"]
        if target is None:
            return None
        self.arena.check_ends("target_return is held by whole episodes")
        return ReturnConstraint(
            float(target),
            discount=1.0 if self.arena.process is None else float(self.arena.process.discount),
            num_seeds=self.num_seeds,
            num_envs=self.num_envs,
            learning_rate=self.options["learning_rate"],
            initial_temperature=self.task.temperature,
        )

    def _check_policy(self, first: Any) -> None:
        """Has the algorithm ask the policy for the states that two episodes begin in."""
        states = torch.as_tensor(first[:2], device=self.task.device).to(self.task.state_dtype)
        states = states if len(states) == 2 else torch.cat([states, states])
        times = self.task.times(torch.zeros(2, dtype=torch.int64, device=self.task.device))
        with self.random.unmoved():
            self.algorithm.check(self.modules[0], states, times, several=self.num_seeds > 1)

    def snapshot(self, *, replay: bool = True) -> Snapshot:
        """Returns everything that steps go on from; without replay, as if nothing had been stored."""
        envs = self.envs.snapshot()
        tensors = dict(self.update.tensors)
        stored = self.replay.state_dict()
        if not replay:
            stored = {name: t[:, :0] if t.dim() > 1 else torch.zeros_like(t) for name, t in stored.items()}
        tensors |= {f"replay.{name}": tensor for name, tensor in stored.items()}
        tensors |= {f"env.{name}": torch.as_tensor(array) for name, array in envs["arrays"].items()}
        tensors |= {f"random.{index}": state for index, state in enumerate(self.random.states)}
        tensors["action"] = self.action
        progress = {
            **self.ledger.state_dict(),
            "debt": self._debt,
            "action_is_fresh": self._action_is_fresh,
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "envs": envs["json"],
        }
        if self.companion is not None:
            learned, progress["companion"] = self.companion.snapshot()
            tensors |= {f"companion.{name}": tensor for name, tensor in learned.items()}
        return Snapshot(tensors, progress)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from there: exactly, or with new episodes where the environments cannot repeat themselves.

        Raises:
            ValueError: if replay's rows do not fit; nothing has then changed.
        """
        tensors, progress = snapshot
        self.replay.load_state_dict({n: tensors[f"replay.{n}"] for n in ("rows", "position")})
        with torch.no_grad():
            for name, tensor in self.update.tensors.items():
                tensor.copy_(tensors[name])
            self.action.copy_(tensors["action"])
        # Of a GPU's generator too, if it was saved and there is one.
        self.random.states = [tensors.get(f"random.{i}", state) for i, state in enumerate(self.random.states)]
        self.ledger.load_state_dict(progress)
        self._debt = progress["debt"]
        if self.constraint is not None:
            self.constraint.load_state_dict(progress["constraint"])
        if self.companion is not None:
            own = {n.removeprefix("companion."): t for n, t in tensors.items() if n.startswith("companion.")}
            self.companion.restore(own, progress["companion"])
        self.is_whole = True
        arrays = {n.removeprefix("env."): t.numpy() for n, t in tensors.items() if n.startswith("env.")}
        exact = self.envs.restore({"json": progress["envs"], "arrays": arrays})
        self._action_is_fresh = exact and progress["action_is_fresh"]
        if not exact:
            self.ledger.restart()
            if self.constraint is not None:
                self.constraint.restart(acts=self.ledger.num_steps >= self.options["learning_starts"])
        self._observe(self.envs.reset() if self.envs.state is None else self.envs.state)
