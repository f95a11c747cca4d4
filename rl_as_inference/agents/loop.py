"""The loop of a learner: environments step, replay fills, updates follow; and all of it can be saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rl_as_inference.agents.acting import prior_actions
from rl_as_inference.agents.actor import Making
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.device_walk import DeviceWalk, walks_on_device
from rl_as_inference.agents.gathering import Gathering
from rl_as_inference.agents.held_noise import HeldNoise
from rl_as_inference.agents.ledger import Ledger
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.options_together import check_together
from rl_as_inference.agents.replay import Replay
from rl_as_inference.agents.return_constraint import constraint_of
from rl_as_inference.agents.return_scale import ReturnScale
from rl_as_inference.agents.shared_update import SharedUpdate
from rl_as_inference.agents.snapshots_alike import Snapshot
from rl_as_inference.agents.update import Update
from rl_as_inference.batch_norm import RewardScale, Told
from rl_as_inference.checkpoints import under
from rl_as_inference.host import levels_to_the_user
from rl_as_inference.processes.environments import NonFiniteError, Step
from rl_as_inference.randomness import RandomStream
from rl_as_inference.tables import counted

__all__ = ["Loop"]


class Loop:
    """Environments, replay and the update of an algorithm, one step at a time.

    All learned numbers lie in one vector per seed, and an update is one pure function of it, a batch and random
    numbers, traced once; with several seeds it is batched over them.

    Args:
        arena: the environments, and the task that they are.
        algorithm: what learns.
        options: with their defaults.
        making: what its actors are made of; None where it acts itself.

    Attributes:
        modules: of each seed, by name; their parameters are views of the update's vector.
        ledger: what was done so far.
        constraint: what tunes α to a return, or None.
        scale: what divides rewards, or None.
        held: for how long the noise of draws is held, or None.
        companion: what the algorithm has beside its update, or None.
        random: everything random but the environments.
        actors: who acts in its place, or None.
        stores_latest: whether replay holds the last observation of each state in its place.
        is_whole: false after an interruption inside a step, of which nothing can be kept.
    """

    def __init__(
        self, arena: Arena, algorithm: Algorithm, options: LearnerOptions, making: Making | None = None
    ) -> None:
        self.arena, self.algorithm, self.options = arena, algorithm, options
        self._extra: dict[str, Any] = {**options}  # with those of one algorithm alone
        self.task, self.envs = arena.task, arena.envs
        task = self.task
        self.num_seeds, self.num_envs = options["seeds"] or 1, arena.num_envs
        self.num_acting = self.num_envs if making is None else 1  # an actor has one environment, and this here is alike
        self.random = RandomStream(options["seed"], task.device)
        self.constraint = constraint_of(arena, options, self.num_seeds)
        self.held = self._held_noise()
        with self.random:
            self.modules = [self._made_modules() for _ in range(self.num_seeds)]
        if arena.ranks.rank:
            self.draw_apart()
        with self.random, torch.no_grad():
            first = self.envs.reset()
        self._scales = [
            [layer for module in modules.values() for layer in module.modules() if isinstance(layer, RewardScale)]
            for modules in self.modules
        ]
        self.scale = self._return_scale()
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
        if (exponent := options["priority_exponent"]) > 0:
            self.replay.prioritise(exponent, options["importance_exponent"], options["importance_annealing"])
        batch = (self.num_seeds, self.num_acting)
        self.observation = torch.zeros(*batch, *task.state_shape, dtype=task.state_dtype, device=task.device)
        self.time = torch.zeros(batch, dtype=torch.int64, device=task.device)
        self.action = torch.zeros(*batch, *task.action_shape, dtype=self.replay.action_dtype, device=task.device)
        with self.random:
            self.companion = algorithm.companion(self.modules, self.num_envs)
        check_together(options, plans=self.companion is not None, holds_return=self.constraint is not None)
        learned_from = self.replay if self.companion is None else self.companion.replay
        if task.masks is not None:
            learned_from.show(self._stored(first[:: self.num_acting]))
        together: dict[str, Any] = {} if arena.ranks.size == 1 else {"ranks": arena.ranks}
        self.update: Update = (SharedUpdate if together else Update)(
            self.modules,
            algorithm,
            learned_from,
            self.observation,
            self.time,
            self.action,
            batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            adam_beta=options["adam_beta"],
            target_average=options["target_average"],
            **together,
        )
        self.ledger = Ledger(self.num_seeds, self.num_envs)
        self.actors = None if making is None else Gathering(making, arena, options, self.replay)
        self.walk: DeviceWalk | None = None
        if arena.process is not None and self.companion is None and walks_on_device(arena, options):
            with self.random, torch.no_grad():
                self.walk = DeviceWalk(arena.process, self.replay, self.observation, self.time, self.action)
        else:
            self._observe(first)
        self.is_whole = True
        self._lived = self.num_envs  # steps at a time
        self._said: list[str] = []  # of actors that died
        self._debt = 0.0
        self._action_is_fresh = False

    def step(self) -> None:
        """Takes one step of every environment, and the updates that are due for it."""
        if self.walk is not None:
            self._walk(self.walk)
        else:
            try:
                if self.actors is None:
                    self.move()
                else:
                    self._gather(self.actors)
            except NonFiniteError:  # of a walk it is known that no action was at fault
                self.check_parameters()
                raise
        self._learn(self._lived)
        while self._said:  # when all is whole, should a warning be an error
            warnings.warn(self._said.pop(), stacklevel=levels_to_the_user())

    def draw_apart(self, steps: int = 0) -> None:
        """Begins a stream of random numbers that is this rank's own, from so many steps on."""
        seed = self.arena.ranks.seed(self.options["seed"] + steps)
        self.random.states = RandomStream(seed, self.task.device).states

    def catch_up(self) -> None:
        """Tells the ledger what ended in the steps that were taken on the device."""
        if self.walk is not None:
            self.walk.report(self.ledger)

    def _walk(self, walk: DeviceWalk) -> None:
        """Takes one step of every environment on the device."""
        ledger = self.ledger
        if ledger.num_steps < self.options["learning_starts"]:
            self.action.copy_(prior_actions(self.task, self.observation))
        elif not self._action_is_fresh:
            self.update.act()
        self.is_whole = False
        ledger.num_steps += self.num_envs
        walk.step(ledger.num_steps)
        self._action_is_fresh = False
        if walk.is_full:
            self.catch_up()

    def _gather(self, actors: Gathering) -> None:
        """Takes in one step of every actor's environment."""
        ledger, acts = self.ledger, self.ledger.num_steps >= self.options["learning_starts"]
        gathered = actors.take(ledger.num_steps, self.update, ledger.num_updates, acts=acts)
        self.is_whole = False
        lost, self._said = actors.lost()
        self._forget_episodes(lost)
        step = actors.write(gathered)
        self._lived = len(gathered.rows)
        ledger.add(step, self._lived)
        self._hold_return(step)
        self._keep_scale(step)

    def move(self) -> Step:
        """Takes one step of every environment, and returns it."""
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
        self._keep_scale(step)
        self._renew_noise()
        self._action_is_fresh = False
        return step

    def start_actors(self, say: Callable[[str], None]) -> None:
        """Begins the actors, where there are to be any."""
        if self.actors is not None and not self.actors.pool.is_running:
            say(f"beginning {counted(self.num_envs, 'actors')}")
            self.actors.pool.start()

    def stop_actors(self) -> None:
        """Ends the actors, if there are any."""
        if self.actors is not None:
            self.actors.pool.stop()

    def lags(self) -> dict[str, float]:
        """Returns by how many updates the policies that acted were behind since the last time, where actors acted."""
        return {} if self.actors is None else self.actors.lags()

    def check_parameters(self) -> None:
        """Raises ValueError if learning has diverged; an environment that gives NaN was then given NaN."""
        if not bool(self.update.tensors["parameters"].isfinite().all()):
            raise ValueError(
                f"learning diverged by step {self.ledger.num_steps}: parameters are no longer finite; lower "
                f"learning_rate, or scale the rewards"
            )

    def _learn(self, num_steps: int) -> None:
        """Takes the updates that are due for so many steps."""
        ledger = self.ledger
        if ledger.num_steps >= self.options["learning_starts"]:
            if self.companion is not None:
                self.companion.learn(self.replay, ledger.num_steps)
            self._debt += self.options["updates_per_step"] * num_steps
            while self._debt >= 1:
                self._debt -= 1
                self._begin_anew_if_due()
                self.update.step(ledger.num_updates)
                ledger.num_updates += 1
                self._action_is_fresh = True
        self.is_whole = True

    def _begin_anew_if_due(self) -> None:
        """Makes all that is learned anew after every so many updates; before the next, so that no run ends with it."""
        every, done = self.options["reset_every"], self.ledger.num_updates
        if every is None or done == 0 or done % every:
            return
        made = [self._made_modules() for _ in range(self.num_seeds)]
        for new, old in zip(made, self.modules, strict=True):
            for name, module in old.items():
                for layer, told in zip(new[name].modules(), module.modules(), strict=True):
                    if isinstance(layer, Told) and isinstance(told, Told):  # what was told is so still
                        layer.value.copy_(told.value)
        self.update.begin_anew(made)

    def _made_modules(self) -> dict[str, nn.Module]:
        modules = self.algorithm.make_modules(anew=self.num_seeds > 1)
        if self.held is not None:
            modules["noise"] = Told(torch.zeros(self.num_acting, *self.task.action_shape))
        return {name: module.to(self.task.device, self.task.dtype) for name, module in modules.items()}

    def _stored(self, state: Any) -> Any:
        """Returns what replay holds of states."""
        window = self.task.window
        return state if window is None or not self.stores_latest else window.latest(state)

    def _hold_return(self, step: Step) -> None:
        """Moves α by the episodes that ended, where a return is held."""
        if self.constraint is None:
            return
        moved = self.constraint.observe(
            step.earned,
            ended=step.terminated | step.truncated,
            valid=step.valid,
            acts=self.ledger.num_steps >= self.options["learning_starts"],
            num_updates=self.ledger.num_updates,
        )
        for seed, log_temperature in moved.items():
            self.modules[seed]["temperature"].get_parameter("log_temperature").fill_(log_temperature)

    def _keep_scale(self, step: Step) -> None:
        """Tells the networks what divides rewards, where something does."""
        if self.scale is None:
            return
        values = self.scale.observe(step.reward, ended=step.terminated | step.truncated, valid=step.valid)
        for layers, value in zip(self._scales, values.tolist(), strict=True):
            for layer in layers:
                layer.value.fill_(value)

    def _renew_noise(self) -> None:
        """Draws the noise of the next actions anew, where it has been held for long enough."""
        if self.held is None or not bool((anew := self.held.passed()).any()):
            return
        for modules, own in zip(self.modules, anew.view(self.num_seeds, self.num_acting), strict=True):
            value = modules["noise"]()
            renewed = own.to(value.device).view(-1, *[1] * (value.dim() - 1))
            value.copy_(torch.where(renewed, torch.randn_like(value), value))

    def _held_noise(self) -> HeldNoise | None:
        most = int(self._extra.get("noise_repeats", 1))
        if most == 1 or not isinstance(self.task.action_space, gymnasium.spaces.Box):
            return None
        return HeldNoise(most, num=self.num_seeds * self.num_acting)

    def _return_scale(self) -> ReturnScale | None:
        if not self._scales[0] or not self._extra["reward_scaling"]:
            return None
        bound, discount = float(self._extra["value_bound"]), self.task.discount
        return ReturnScale(bound, discount=discount, num_seeds=self.num_seeds, num_envs=self.num_envs)

    def _observe(self, state: Any) -> None:
        """Puts the states to act from, and their times, where the compiled functions read them."""
        self.observation.copy_(torch.from_numpy(state).view(self.observation.shape))
        if self.task.horizon is not None:
            self.time.copy_(torch.from_numpy(self.ledger.lengths).view(self.time.shape))

    def _host(self, action: Tensor) -> Any:
        """Returns actions ``(num_seeds, num_envs, ...)`` as an array for the environments."""
        array = action.numpy() if action.device.type == "cpu" else action.cpu().numpy()
        return array.reshape(self.envs.num_envs, *self.task.action_shape)

    def _check_policy(self, first: Any) -> None:
        """Has the algorithm ask the policy for the states that two episodes begin in."""
        states = torch.as_tensor(first[:2], device=self.task.device).to(self.task.state_dtype)
        states = states if len(states) == 2 else torch.cat([states, states])
        times = self.task.times(torch.zeros(2, dtype=torch.int64, device=self.task.device))
        with self.random.unmoved():
            self.algorithm.check(self.modules[0], states, times, several=self.num_seeds > 1)

    def snapshot(self, *, replay: bool = True) -> Snapshot:
        """Returns everything that steps go on from; without replay, as if nothing had been stored."""
        self.catch_up()
        return self.state(replay=replay)

    def state(self, *, replay: bool = True) -> Snapshot:
        """Returns a snapshot of what is known on the host by now."""
        envs = self.envs.snapshot() if self.actors is None else {"json": self.actors.snapshot(), "arrays": {}}
        tensors = dict(self.update.tensors)
        stored = self.replay.state_dict()
        if not replay:
            stored = {name: t[:, :0] if t.dim() > 1 else torch.zeros_like(t) for name, t in stored.items()}
        tensors |= {f"replay.{name}": tensor for name, tensor in stored.items()}
        tensors |= {f"env.{name}": torch.as_tensor(array) for name, array in envs["arrays"].items()}
        tensors |= {f"random.{index}": state for index, state in enumerate(self.random.states)}
        tensors["action"] = self.action
        if self.walk is not None:
            tensors |= {f"walk.{name}": tensor for name, tensor in self.walk.tensors.items()}
        progress = {
            **self.ledger.state_dict(),
            "debt": self._debt,
            "action_is_fresh": self._action_is_fresh,
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "held": None if self.held is None else self.held.state_dict(),
            "scale": None if self.scale is None else self.scale.state_dict(),
            "envs": envs["json"],
        }
        if self.companion is not None:
            learned, progress["companion"] = self.companion.snapshot()
            tensors |= {f"companion.{name}": tensor for name, tensor in learned.items()}
        return Snapshot(tensors, progress)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from there: exactly, or with new episodes where the environments cannot repeat themselves.

        Args:
            snapshot: that has all that one of this loop has, in the same shapes.

        Raises:
            ValueError: if replay's rows do not fit, or the environments cannot play their episodes again; all is then
                as it was.
        """
        tensors, progress = snapshot
        own, rows = under(tensors, "companion."), under(tensors, "replay.")
        self.replay.check_rows(rows)
        if self.companion is not None:
            self.companion.check(own, progress["companion"])
        # What may fail comes first.
        exact = self.walk is not None or self._restore_envs(snapshot)
        self.replay.load_state_dict(rows)
        with torch.no_grad():
            for name, tensor in self.update.tensors.items():
                tensor.copy_(tensors[name])
            self.action.copy_(tensors["action"])
        # Of a GPU's generator too, if it was saved and there is one.
        self.random.states = [tensors.get(f"random.{i}", state) for i, state in enumerate(self.random.states)]
        self.ledger.load_state_dict(progress)
        self._debt, self._action_is_fresh = progress["debt"], exact and progress["action_is_fresh"]
        for name, part in (("constraint", self.constraint), ("held", self.held), ("scale", self.scale)):
            if part is not None:
                part.load_state_dict(progress[name])
        if self.companion is not None:
            self.companion.restore(own, progress["companion"])
        self.is_whole = True
        if self.walk is not None:
            with self.random, torch.no_grad():
                self.walk.load({name: tensors[f"walk.{name}"] for name in self.walk.tensors})
            return
        if not exact:
            self._forget_episodes()
            if self.actors is not None:  # what follows the last rows in replay does not follow them
                latest = range(
                    int(self.replay.position) - min(self.num_envs, len(self.replay)), int(self.replay.position)
                )
                self.replay.cut([row % self.replay.capacity for row in latest])
        self._observe(self.envs.reset() if self.envs.state is None else self.envs.state)

    def _restore_envs(self, snapshot: Snapshot) -> bool:
        """Brings the environments there, or leaves them as they were; returns whether that is exact."""
        if self.actors is not None:
            self.actors.restore(snapshot.progress["envs"])
            return False
        arrays = {name: tensor.numpy() for name, tensor in under(snapshot.tensors, "env.").items()}
        before = self.envs.snapshot()
        try:
            return self.envs.restore({"json": snapshot.progress["envs"], "arrays": arrays})
        except Exception as error:  # of an environment that is given what it never was
            if not self.envs.restore(before):
                self._forget_episodes()
            raise ValueError(f"the running episodes cannot be played again: {error}") from error

    def _forget_episodes(self, which: Any = slice(None)) -> None:
        """Forgets the running episodes, or which of them, in whose place new ones have begun."""
        self.ledger.restart(which)
        if self.scale is not None:
            self.scale.restart(which)
        if self.constraint is not None:
            self.constraint.restart(acts=self.ledger.num_steps >= self.options["learning_starts"], which=which)
