"""Episodes of a process as tensors on the learner's device: steps, replay rows and returns never leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.compilation import accelerate
from rl_as_inference.agents.ledger import Ledger
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.replay import Replay
from rl_as_inference.checks import deferred
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.environments import Environments, NonFiniteError
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.randomness import seeded
from rl_as_inference.spaces import is_unit_box

__all__ = ["DeviceWalk", "walks_on_device"]

_FROM = 256
"""Environments in all from which a process walks here; fewer keep the draws of :func:`to_gymnasium_vector`."""
_KEPT = 64
"""Steps between readings of what ended, and of whether all was finite."""


def walks_on_device(arena: Arena, options: LearnerOptions) -> bool:
    """Returns whether a learner's environments are a process that can walk on its device.

    That is 256 environments or more, of a process in parts whose state is seen, whose spaces are Box or Discrete and
    whose tensors are on the learner's device, with nothing that looks at every step: no window of observations,
    memory, return to hold, reward scale to keep, noise to hold, or normalised observations and rewards.
    """
    process, envs = arena.process, arena.envs
    if process is None or isinstance(process, PartiallyObservedMDP) or envs.num_envs < _FROM:
        return False
    plain = isinstance(envs, Environments) and options["memory"] is None and options["target_return"] is None
    kinds = gymnasium.spaces.Box | gymnasium.spaces.Discrete
    if not plain or not all(isinstance(space, kinds) for space in (process.state_space, process.action_space)):
        return False
    if any(options.get(name) for name in ("normalize_observations", "normalize_rewards")):
        return False
    if options.get("architecture") == "residual" or options.get("noise_repeats", 1) != 1:  # of soft actor-critic
        return False
    with seeded(0), torch.no_grad():
        return process.begin(1).device == arena.task.device


class DeviceWalk:
    """The running episodes of a learner on a process, which end and begin anew by themselves.

    A step is a function of tensors: the process's own :meth:`MarkovDecisionProcess.advance`, what has ended, new
    episodes in the place of those, and the rows for replay. It is traced once, and on a GPU captured as one graph,
    where the process never asks for values in Python; one that does is called as it is. Random numbers are the
    learner's.

    Args:
        process: in parts.
        replay: where rows go.
        observation, time, action: what acting reads and writes, ``(num_seeds, num_envs, ...)``.

    Attributes:
        tensors: what it goes on from: states, steps of the running episodes, and their returns so far.
        is_traced: whether a step is traced; None before the first.
    """

    def __init__(
        self, process: MarkovDecisionProcess, replay: Replay, observation: Tensor, time: Tensor, action: Tensor
    ) -> None:
        self.process, self.replay = process, replay
        self.observation, self.time, self.action = observation, time, action
        self.count = observation.shape[0] * observation.shape[1]
        device = replay.storage.device
        # A point mass gives one number in the place of many.
        state = process.begin(self.count).clone(memory_format=torch.contiguous_format)
        zeros = torch.zeros(self.count, dtype=torch.float64, device=device)
        self.tensors = {"state": state, "length": torch.zeros_like(zeros, dtype=torch.int64), "return": zeros}
        self.is_traced: bool | None = None
        self._rows = torch.zeros(self.count, replay.storage.shape[2], dtype=replay.storage.dtype, device=device)
        self._ended_return = zeros.new_zeros(_KEPT, self.count)
        self._ended_length = torch.zeros_like(self._ended_return, dtype=torch.int64)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._steps: list[int] = []
        self._low, self._high = _bounds(process, state)
        self._step: Callable[..., Any] | None = None
        self._show()

    def begin(self) -> None:
        """Starts new episodes everywhere."""
        self.tensors["state"].copy_(self.process.begin(self.count))
        self.tensors["length"].zero_()
        self.tensors["return"].zero_()
        self._show()

    def step(self, num_steps: int) -> None:
        """Takes one step of every environment by the actions that stand there, and writes it into replay.

        Args:
            num_steps: of each seed, with this one.
        """
        written, read = self._arguments()
        if self._step is None:
            self._step = self._prepared(written, read)
        self._step(*written, *read)
        replay = self.replay
        replay.add_rows(self._rows.view(replay.num_learners, replay.num_envs, -1))
        self._steps.append(num_steps)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for what ends in another step."""
        return len(self._steps) == _KEPT

    def report(self, ledger: Ledger) -> None:
        """Tells the ledger what ended since the last time, and forgets it.

        Raises:
            NonFiniteError: if a state or a reward since then was NaN or infinite, and no action was.
        """
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        self._slot.zero_()
        if not bool(self._sound):
            raise NonFiniteError(
                f"{self.process.name} gave a state or a reward that is NaN or infinite in the steps after "
                f"{steps[0] - ledger.num_envs}; check its transition and its reward",
                environment=self.process.name,
                step=steps[-1],
                env_index=None,
                field="observation",
                value=None,
            )
        lengths = self._ended_length[: len(steps)].cpu().numpy()
        returns = self._ended_return[: len(steps)].cpu().numpy()
        for row, index in zip(*lengths.nonzero(), strict=True):
            seed, earned = int(index) // ledger.num_envs, float(returns[row, index])
            ledger.episodes.append((steps[row], seed, earned, int(lengths[row, index])))
        ledger.returns[:] = self.tensors["return"].cpu().numpy()
        ledger.lengths[:] = self.tensors["length"].cpu().numpy()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from the tensors of another."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self._steps = []
        self._slot.zero_()
        self._sound.fill_(True)
        self._show()

    def _show(self) -> None:
        """Puts states and times where acting reads them."""
        self.observation.copy_(self.process.as_seen(self.tensors["state"]).view(self.observation.shape))
        self.time.copy_(self.tensors["length"].view(self.time.shape))

    def _arguments(self) -> tuple[list[Tensor], list[Tensor]]:
        ended = [self._ended_return, self._ended_length, self._slot, self._sound]
        return [*self.tensors.values(), self.observation, self.time, self._rows, *ended], [self.action]

    def _prepared(self, written: list[Tensor], read: list[Tensor]) -> Callable[..., Any]:
        """Returns the step, traced if that gives the same."""
        device = read[0].device
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            self._write(*(tensor.clone() for tensor in written), *read)  # what is asked once for all is by now
            with _Asked() as asked:
                self._write(*(tensor.clone() for tensor in written), *read)
            self.is_traced = not asked.of_values
            if not self.is_traced:
                return self._write
            traced = accelerate(self._write, written, read, compile=False, may_round=False)
            if device.type == "cpu":  # what looked at values past PyTorch gives itself away in other states
                self.is_traced = self._agree(traced, written, read)
            return traced if self.is_traced else self._write

    def _agree(self, traced: Callable[..., Any], written: list[Tensor], read: list[Tensor]) -> bool:
        others = [tensor.clone() for tensor in written]
        for _ in range(2):
            self._write(*others, *read)
        results = []
        for function in (traced, self._write):
            torch.manual_seed(0)
            results.append([tensor.clone() for tensor in others])
            function(*results[-1], *read)
        return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(*results, strict=True))

    def _write(self, *tensors: Tensor) -> None:
        """Takes a step and writes everything that comes of it; a function of tensors alone."""
        state, length, earned, observation, time, rows, ended_return, ended_length, slot, sound, action = tensors
        process, replay = self.process, self.replay
        flat = action.reshape(self.count, *replay.action_shape)
        with unvalidated(), deferred() as conditions:
            step = process.advance(state, self._own(flat), 0)
            done = process.has_ended(step.next_state)
            fresh = process.begin(self.count)
        ended = torch.zeros_like(length, dtype=torch.bool)
        if step.alive is not None:  # an episode may begin in a terminal state
            ended = ended | ~step.alive
        if done is not None:
            ended = ended | done
        steps = length + 1
        if process.horizon is not None:  # the model's own, which is an ending
            ended = ended | (steps >= process.horizon)
        reward = step.reward.double()
        finite = torch.stack([each.all() for each in (*conditions, reward.isfinite(), step.next_state.isfinite())])
        parts = {
            "state": process.as_seen(state),
            "action": flat,
            "reward": reward,
            "next_state": process.as_seen(step.next_state),
            "terminated": ended,
            "truncated": torch.zeros_like(ended),
            "time": length,
        }
        row = torch.cat([parts[name].reshape(self.count, -1).to(rows.dtype) for name in replay.columns], 1)
        total = earned + reward
        after = torch.where(ended.view(-1, *(1,) * (state.dim() - 1)), fresh, step.next_state)
        going = torch.where(ended, 0, steps)
        sound.logical_and_(finite.all() | ~action.isfinite().all())  # which is the learner's own fault
        ended_return.index_copy_(0, slot, total[None])
        ended_length.index_copy_(0, slot, torch.where(ended, steps, 0)[None])
        slot.add_(1)
        rows.copy_(row)
        state.copy_(after)
        length.copy_(going)
        earned.copy_(torch.where(ended, 0.0, total))
        observation.copy_(process.as_seen(after).view(observation.shape))
        time.copy_(going.view(time.shape))

    def _own(self, action: Tensor) -> Tensor:
        """Returns actions in the process's own units and precision."""
        if self._low is None or self._high is None:
            return action
        shape = (self.count, *(self.process.action_space.shape or ()))
        action = action.to(self._low.dtype).reshape(shape)
        unit = is_unit_box(self.process.action_space)
        return action if unit else self._low * (0.5 - 0.5 * action) + self._high * (0.5 + 0.5 * action)


class _Asked(TorchDispatchMode):
    """Notes whether a function asks for values, on which its Python may then depend."""

    of_values = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in rl_as_inference.tracing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if func is torch.ops.aten.index.Tensor:  # of numbers, or of flags, whose count is asked for
            asks = any(leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if leaf is not None)
        else:
            asks = bool(tags & set(func.tags)) or any(
                not isinstance(leaf, Tensor | None) for leaf in tree_leaves(result)
            )
        self.of_values = self.of_values or asks
        return result


def _bounds(process: MarkovDecisionProcess, state: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the bounds of continuous actions, in the process's own precision."""
    space = process.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        return None, None
    dtype = state.dtype if state.is_floating_point() else torch.get_default_dtype()
    low, high = (torch.as_tensor(bound, dtype=dtype, device=state.device) for bound in (space.low, space.high))
    return low, high
