"""Replay: transitions as rows of one tensor on the learner's device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_as_inference.agents.episodes import Episode, Origin, chained, written_to_minari
from rl_as_inference.agents.priorities import Priorities
from rl_as_inference.checkpoints import copy_rows, outline
from rl_as_inference.memory import check_fits
from rl_as_inference.state_layout import is_image, layout_of

if TYPE_CHECKING:
    from minari import MinariDataset

__all__ = ["Batch", "Replay"]


class Batch(NamedTuple):
    """Transitions drawn from replay, of ``n`` successive steps each.

    With ``n = 1`` these are plain transitions with a leading dimension of one on what is per step.
    """

    state: Tensor
    """``(B, *state)``."""
    action: Tensor
    """``(B, *action)``, in the agent's units."""
    rewards: Tensor
    """``(n, B)`` in reward units."""
    next_states: Tensor
    """``(n, B, *state)``."""
    alive: Tensor
    """``(n, B)``: 1 while the segment goes on, 0 behind the end of its episode or of the buffer."""
    terminated: Tensor
    """``(n, B)``: 1 where the step ended in a terminal state or at the model's horizon (not where it was cut off)."""
    time: Tensor | int = 0
    """``(B,)``: of ``state``; 0 where time is not looked at."""
    next_times: Tensor | int = 0
    """``(n, B)``: of ``next_states``; 0 where time is not looked at."""
    weight: Tensor | None = None
    """``(B,)``: what each counts in the critics' loss, where replay is prioritised; None where all count alike."""


class Replay:
    """A ring of transitions, packed so that a step writes one row and a batch is one gather.

    Pixels are bytes in it, as many to a column as a number has: 84 by 84 by 4 take 5.3 GiB for 100,000 transitions.

    Attributes:
        capacity: the number of rows, for each learner.
        storage: ``(num_learners, capacity, width)``; the columns are state, action, reward, next
            state, terminated and truncated, and the time of the state where the model has a horizon.
        size: rows in use, a tensor on the device.
        position: the row written next, a tensor on the device.
        origin: what the environment calls the actions, for those who read them elsewhere; None where that is not known.
        priorities: of the rows, where they are not all drawn alike; see :meth:`prioritise`.

    Example:
        >>> box = gymnasium.spaces.Box(-1, 1, (2,))
        >>> replay = Replay(box, gymnasium.spaces.Discrete(3), capacity=10)
        >>> ends, cut_off = np.array([True]), np.array([False])
        >>> replay.add(np.ones((1, 2)), np.array([2]), np.array([0.5]), np.zeros((1, 2)), ends, cut_off)
        >>> len(replay), replay.action, replay.terminated
        (1, tensor([2]), tensor([True]))
    """

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        capacity: int,
        num_learners: int = 1,
        num_envs: int = 1,
        horizon: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # Rows of one environment are num_envs apart, also where the ring closes.
        self.capacity = max(capacity // num_envs, 1) * num_envs
        self.num_learners, self.num_envs, self.horizon = num_learners, num_envs, horizon
        self.state_space, self.action_space = state_space, action_space
        self.origin: Origin | None = None
        self.priorities: Priorities | None = None
        self.state_shape = tuple(state_space.shape or ())
        self.action_shape = tuple(action_space.shape or ())
        self.state_dtype = torch.int64 if isinstance(state_space, gymnasium.spaces.Discrete) else dtype
        self.action_dtype = dtype if isinstance(action_space, gymnasium.spaces.Box) else torch.int64
        layout = layout_of(state_space)
        self._pixels = 0 if layout is None else layout.size - layout.num_numbers
        self._numbers = math.prod(self.state_shape) - self._pixels
        states, actions = self._numbers + -(-self._pixels // dtype.itemsize), math.prod(self.action_shape)
        widths = {"state": states, "action": actions, "reward": 1, "next_state": states, "terminated": 1}
        widths |= {"truncated": 1} if horizon is None else {"truncated": 1, "time": 1}
        edges = [0, *accumulate(widths.values())]
        self.columns = {name: slice(*ends) for name, ends in zip(widths, pairwise(edges), strict=True)}
        needed = num_learners * self.capacity * edges[-1] * dtype.itemsize
        # Pages are taken as they are written, so that what does not fit would be noticed hours later.
        check_fits("buffer_size", capacity, needed, device, "these images" if self._pixels else "these observations")
        try:
            self.storage = torch.empty(num_learners, self.capacity, edges[-1], dtype=dtype, device=device)
        except RuntimeError as error:
            raise ValueError(
                f"buffer_size {capacity} needs {needed / 2**30:.1f} GiB for these observations, more than there is on "
                f"{device}; lower buffer_size"
            ) from error
        self.storage[:, 0] = 0  # what tracing reads before the first step
        self.size = torch.zeros((), dtype=torch.int64, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self._size = self._position = 0
        on_host = self.storage.device.type == "cpu"
        self._rows = self.storage.numpy() if on_host else None
        self._row = np.empty((num_learners * num_envs, edges[-1]), np.dtype(str(dtype).removeprefix("torch.")))
        self._row_bytes = self._row.view(np.uint8)

    def prioritise(self, exponent: float, importance_exponent: float, importance_annealing: int | None) -> None:
        """Has rows drawn by their errors from now on: see :class:`~rl_as_inference.agents.priorities.Priorities`."""
        self.priorities = Priorities(
            self.capacity,
            self.num_learners,
            exponent=exponent,
            importance_exponent=importance_exponent,
            importance_annealing=importance_annealing,
            device=self.storage.device,
        )

    def show(self, states: Any) -> None:
        """Has the first row hold states ``(num_learners, *state)``, which tracing reads before any is written.

        Zeros are no state where a mask is a part of it: they forbid every action.
        """
        for name in ("state", "next_state"):
            self._write_states(name, states.reshape(self.num_learners, -1).repeat(self.num_envs, 0))
            rows = self._row[:: self.num_envs, self.columns[name]]
            self.storage[:, 0, self.columns[name]] = torch.as_tensor(rows).to(self.storage.device)

    def add(
        self,
        state: Any,
        action: Any,
        reward: Any,
        next_state: Any,
        terminated: Any,
        truncated: Any,
        valid: Any = None,
        time: Any = None,
    ) -> None:
        """Writes one row per environment; the arrays begin with (learner and environment), learner first.

        ``valid`` (bool, one per environment) leaves rows out; it needs one learner. ``time`` is needed where the
        model has a horizon.
        """
        row, columns, count = self._row, self.columns, len(self._row)
        self._write_states("state", state.reshape(count, -1))
        row[:, columns["action"]] = action.reshape(count, -1)
        row[:, columns["reward"]] = reward[:, None]
        self._write_states("next_state", next_state.reshape(count, -1))
        row[:, columns["terminated"]] = terminated[:, None]
        row[:, columns["truncated"]] = truncated[:, None]
        if self.horizon is not None:
            row[:, columns["time"]] = time[:, None]
        rows = row.reshape(self.num_learners, self.num_envs, -1)
        if valid is not None and not valid.all():
            rows = rows[:, valid]
        self.add_rows(rows)

    def _write_states(self, name: str, states: Any) -> None:
        columns, numbers = self.columns[name], self._numbers
        if not self._pixels:
            self._row[:, columns] = states
            return
        self._row[:, columns.start : columns.start + numbers] = states[:, :numbers]
        first = (columns.start + numbers) * self._row.itemsize
        self._row_bytes[:, first : first + self._pixels] = states[:, numbers:]

    def add_rows(self, rows: Any) -> None:
        """Writes rows ``(num_learners, count, width)`` where the ring stands."""
        count = rows.shape[1]
        start, end = self._position, self._position + count
        if end <= self.capacity:
            parts = [(slice(start, end), slice(0, count))]
        else:
            first = self.capacity - start
            parts = [
                (slice(start, self.capacity), slice(0, first)),
                (slice(0, end - self.capacity), slice(first, count)),
            ]
        for to, of in parts:
            if self._rows is not None and not isinstance(rows, Tensor):
                self._rows[:, to] = rows[:, of]
            else:
                self.storage[:, to] = torch.as_tensor(rows[:, of]).to(self.storage.device, non_blocking=True)
            if self.priorities is not None:
                self.priorities.begin(to.start, to.stop)
        self._position = end % self.capacity
        self._size = min(self._size + count, self.capacity)
        self.size.fill_(self._size)
        self.position.fill_(self._position)

    def cut(self, rows: Sequence[int]) -> None:
        """Has episodes end with these rows of the ring, by truncation, where they do not end there anyway."""
        if len(rows):
            index = torch.tensor(rows, device=self.storage.device)
            terminated, truncated = self.columns["terminated"].start, self.columns["truncated"].start
            self.storage[:, index, truncated] = (self.storage[:, index, terminated] == 0).to(self.storage.dtype)

    def batch(
        self,
        storage: Tensor,
        size: Tensor,
        position: Tensor,
        count: int,
        n_step: int = 1,
        first: Tensor | None = None,
    ) -> Batch:
        """Returns ``count`` segments drawn uniformly from one learner's rows ``(capacity, width)``.

        A pure function of its tensors (and of PyTorch's generator), so that it can be traced and
        batched over learners. Or the segments that begin with the rows ``first``, ``(count,)``.
        """
        if first is None:
            # Uniform numbers in float64, so that each of a million rows has the same chance.
            draws = torch.rand(count, dtype=torch.float64, device=storage.device)
            first = torch.minimum((draws * size).long(), size - 1).clamp(min=0)  # tracing comes before the first row
        picked: list[Tensor] = []
        alive: list[Tensor] = []
        going = torch.ones_like(first, dtype=torch.float64)
        for k in range(n_step):
            index = first
            if k:
                # The ring's oldest row stands at the position written next, once it is full.
                age = torch.where(size == self.capacity, (first - position) % self.capacity, first)
                there = age + k * self.num_envs < size
                # A row that was never written must not be read: it may hold anything.
                index = torch.where(there, (first + k * self.num_envs) % self.capacity, first)
                ended = picked[-1][:, self.columns["terminated"].start : self.columns["truncated"].stop].amax(-1)
                going = going * (1 - ended.double()) * there
            rows = storage.index_select(0, index)
            picked.append(rows)
            alive.append(going)
        rows = torch.stack(picked)
        return Batch(
            state=self._states(rows[0][:, self.columns["state"]]),
            action=rows[0][:, self.columns["action"]].reshape(count, *self.action_shape).to(self.action_dtype),
            rewards=rows[..., self.columns["reward"].start],
            next_states=self._states(rows[..., self.columns["next_state"]]),
            alive=torch.stack(alive).to(rows.dtype),
            terminated=rows[..., self.columns["terminated"].start],
            **self._times(rows),
        )

    def sequences(self, storage: Tensor, size: Tensor, position: Tensor, count: int, length: int) -> Batch:
        """Returns ``count`` sequences of ``length`` successive steps of an environment each, from one learner's rows.

        They go on across the ends of episodes. All fields of the batch begin with ``(length, count)``, and ``alive`` is
        0 where an episode ended with the step. A pure function, as :meth:`batch`; the rows in use must be as many as
        ``length`` steps of all environments.
        """
        starts = (size - (length - 1) * self.num_envs).clamp(min=1)
        draws = torch.rand(count, dtype=torch.float64, device=storage.device)
        age = torch.minimum((draws * starts).long(), starts - 1)
        age = age + self.num_envs * torch.arange(length, device=storage.device)[:, None]
        # The ring's oldest row stands at the position written next, once it is full.
        oldest = torch.where(size == self.capacity, position, torch.zeros_like(position))
        # While tracing there are no rows yet, and one that was never written must not be read.
        index = torch.where(age < size, (oldest + age) % self.capacity, 0)
        rows = storage.index_select(0, index.flatten()).unflatten(0, (length, count))
        action = rows[..., self.columns["action"]].reshape(length, count, *self.action_shape)
        ended = rows[..., self.columns["terminated"].start : self.columns["truncated"].stop].amax(-1)
        times = self._times(rows)
        if times:
            times["time"] = rows[..., self.columns["time"].start].long()
        return Batch(
            state=self._states(rows[..., self.columns["state"]]),
            action=action.to(self.action_dtype),
            rewards=rows[..., self.columns["reward"].start],
            next_states=self._states(rows[..., self.columns["next_state"]]),
            alive=1 - ended,
            terminated=rows[..., self.columns["terminated"].start],
            **times,
        )

    def _times(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns a batch's times, of rows ``(n, B, width)``; nothing where time is not looked at."""
        if self.horizon is None:
            return {}
        times = rows[..., self.columns["time"].start].long()
        # At the horizon there is nothing to ask for; the last step's answer is not used.
        return {"time": times[0], "next_times": (times + 1).clamp(max=self.horizon - 1)}

    def _states(self, columns: Tensor, *, as_bytes: bool = False) -> Tensor:
        """Returns states of their columns; images as bytes if asked for, which is how they are kept."""
        if self._pixels:
            packed = columns[..., self._numbers :].contiguous()
            pixels = _bytes_of(packed)[..., : self._pixels]
            if as_bytes and is_image(self.state_space):
                return pixels.reshape(*columns.shape[:-1], *self.state_shape)
            columns = torch.cat([columns[..., : self._numbers], pixels.to(columns.dtype)], -1)
        return columns.reshape(*columns.shape[:-1], *self.state_shape).to(self.state_dtype)

    def __len__(self) -> int:
        return self._size

    def _column(self, name: str) -> Tensor:
        """Returns a column's rows in use, without the dimension of learners if there is one learner."""
        columns = self.storage[:, : self._size, self.columns[name]]
        return columns[0] if self.num_learners == 1 else columns

    @property
    def state(self) -> Tensor:
        """``(len, *state)``, images as bytes; with several learners ``(num_learners, len, *state)``."""
        return self._states(self._column("state"), as_bytes=True)

    @property
    def action(self) -> Tensor:
        """``(len, *action)``, in the agent's units."""
        column = self._column("action")
        return column.reshape(*column.shape[:-1], *self.action_shape).to(self.action_dtype)

    @property
    def reward(self) -> Tensor:
        """``(len,)`` in reward units."""
        return self._column("reward")[..., 0]

    @property
    def next_state(self) -> Tensor:
        """``(len, *state)``, the true successors."""
        return self._states(self._column("next_state"), as_bytes=True)

    @property
    def terminated(self) -> Tensor:
        """``(len,)`` bool: the episode ended in a terminal state, or at the model's horizon."""
        return self._column("terminated")[..., 0] > 0

    @property
    def truncated(self) -> Tensor:
        """``(len,)`` bool: the episode was cut off by a time limit."""
        return self._column("truncated")[..., 0] > 0

    @property
    def time(self) -> Tensor:
        """``(len,)`` integers: the time of each state; only where the model has a horizon."""
        if self.horizon is None:
            raise ValueError("replay holds no times: the model has no horizon")
        return self._column("time")[..., 0].long()

    def latest_states(self, count: int) -> Tensor:
        """Returns the states of the latest transitions of all learners together, ``(at most count each, *state)``."""
        latest = (self._position - 1 - torch.arange(min(count, self._size))) % max(self._size, 1)
        rows = self.storage[:, latest.to(self.storage.device)]
        return self._states(rows[..., self.columns["state"]]).flatten(0, 1)

    def episodes(self) -> list[Episode]:
        """Returns the transitions as episodes in the agent's units, oldest first; of all learners, one after the other.

        What the ring has written over is missing from the oldest, and the youngest of each environment may still run.
        """
        found = []
        turn = self._position if self._size == self.capacity else 0
        rows = self.storage[:, : self._size].roll(-turn, 1)
        for learner in rows.cpu():
            state, after = (
                self._states(learner[:, self.columns[name]], as_bytes=True) for name in ("state", "next_state")
            )
            action = learner[:, self.columns["action"]].reshape(len(learner), *self.action_shape).to(self.action_dtype)
            time = None if self.horizon is None else learner[:, self.columns["time"].start].long().numpy()
            found += chained(
                state.numpy(),
                action.numpy(),
                learner[:, self.columns["reward"].start].numpy(),
                after.numpy(),
                learner[:, self.columns["terminated"].start].numpy() > 0,
                learner[:, self.columns["truncated"].start].numpy() > 0,
                time,
                num_envs=self.num_envs,
            )
        return found

    def to_minari(self, dataset_id: str, **about: Any) -> MinariDataset:
        """Returns a Minari dataset that the episodes were written to, below ``MINARI_DATASETS_PATH`` on this machine.

        Actions are in the environment's own units where these are known (in a learner's replay they are), and integers
        that are observed count from 0. An episode that was still running is neither terminated nor truncated there.
        ``learn_offline(dataset_id)`` reads it again, to the same transitions.

        Args:
            dataset_id: a name and a version, such as ``"pendulum/mixed-v0"``.
            **about: for :func:`minari.create_dataset_from_buffers`: ``algorithm_name``, ``author``, ``description``.

        Raises:
            ImportError: without Minari, which ``pip install 'rl-as-inference[offline]'`` brings.
            ValueError: for an id that is none or is taken, or an empty replay.
        """
        return written_to_minari(
            self.episodes(), dataset_id, self.state_space, self.action_space, origin=self.origin, **about
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the rows in use and the ring's position, for a checkpoint."""
        tensors = {"rows": self.storage[:, : self._size], "position": self.position}
        return tensors if self.priorities is None else tensors | self.priorities.state_dict(self._size)

    def check_rows(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError unless a checkpoint's rows fit in here."""
        shape = tuple(outline(tensors, "rows").shape)
        if len(shape) != 3 or shape[::2] != tuple(self.storage.shape[::2]) or shape[1] > self.capacity:
            raise ValueError(
                f"replay: the checkpoint has rows of shape {shape}, and this replay holds "
                f"{tuple(self.storage.shape)}; make the agent with the same env, buffer_size and seeds"
            )

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills the ring with a checkpoint's rows; those in a file are read into their place.

        Raises:
            ValueError: if they do not fit.
        """
        self.check_rows(tensors)
        self._size = outline(tensors, "rows").shape[1]
        self._position = int(tensors["position"]) % self.capacity
        used = self.storage[:, : self._size]
        copy_rows(tensors, "rows", list(used))
        turn = 0
        if self._size < self.capacity:  # the rows of a full smaller ring too, oldest first, so that none is in the way
            turn = -self._position % max(self._size, 1)
            if turn:
                used.copy_(used.roll(turn, 1))
            self._position = self._size
        self.size.fill_(self._size)
        self.position.fill_(self._position)
        if self.priorities is not None:
            self.priorities.load_state_dict(tensors, turn)


class _Bytes(torch.autograd.Function):
    """The bytes that numbers are made of, for :func:`torch.vmap`, which has no rule for that before PyTorch 2.12."""

    @staticmethod
    def forward(numbers: Tensor) -> Tensor:
        return numbers.view(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(_: Any, in_dims: tuple[int | None], numbers: Tensor) -> tuple[Tensor, int | None]:
        if in_dims[0] is None:
            return _bytes_of(numbers), None
        return _bytes_of(numbers.movedim(in_dims[0], 0).contiguous()), 0


def _bytes_of(numbers: Tensor) -> Tensor:
    """Returns ``(..., 4 n)`` bytes of ``(..., n)`` float32."""
    found: Tensor = _Bytes.apply(numbers)  # type: ignore[no-untyped-call]
    return found
