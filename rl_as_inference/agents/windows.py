"""Windows: the last few observations, and the actions between them, as one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from rl_as_inference.agents.frames import FrameStack
from rl_as_inference.factored import Factors
from rl_as_inference.processes.environments import Environments, Step
from rl_as_inference.spaces import factor_sizes
from rl_as_inference.state_layout import LaidOut, Part, StateLayout

__all__ = ["EpisodeWindow", "Window", "WindowedEnvironments"]

Array = np.ndarray[Any, Any]
Kind = TypeVar("Kind", bound="Tensor | Array")


class Window:
    """How the last ``k`` observations of an episode, and the ``k - 1`` actions between them, are one state.

    A state is a vector of ``k`` observations, oldest first, then the actions, oldest first, then for each observation
    but the last whether the episode had begun by then, 1 or 0. Observations and actions from before the beginning are
    zeros. Boxes are flattened, integers one-hot. A window of past observations in place of the hidden state: Lin &
    Mitchell 1992, CMU-CS-92-138; of images, Mnih et al. 2015, Nature 518.

    Args:
        observation_space: what the environment gives, in the agent's units: ``Box``, or ``Discrete`` from 0.
        action_space: in the agent's units, likewise.
        length: ``k`` ≥ 2.

    Attributes:
        space: of the states, ``Box`` of shape ``(k · o + (k - 1) · (a + 1),)``, float32, where an observation is ``o``
            numbers and an action ``a``.
        observation_size: ``o``.
        action_size: ``a``.

    Where observations have parts, so do states: each part once for every observation, ``"where[-1]"`` for the last but
    one.

    Example:
        >>> window = Window(Box(-1, 1, (1,)), Discrete(2), 3)
        >>> first = window.first(np.array([[0.5]]))
        >>> second = window.then(first, np.array([1]), np.array([[0.75]]))
        >>> second.tolist()  # 3 observations, 2 actions of 2 numbers, 2 marks
        [[0.0, 0.5, 0.75, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]]
    """

    option = "history"

    def __init__(
        self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], length: int
    ) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self._observations, self._actions = _Code(observation_space), _Code(action_space)
        seen, done, marks = self._observations.size, self._actions.size, length - 1
        low = [np.minimum(self._observations.low, 0)] * length + [self._actions.low] * marks
        high = [np.maximum(self._observations.high, 0)] * length + [self._actions.high] * marks
        least, most = np.concatenate([*low, np.zeros(marks)]), np.concatenate([*high, np.ones(marks)])
        self.space: Box = Box(least.astype(np.float32), most.astype(np.float32), dtype=np.float32)
        if isinstance(observation_space, LaidOut):
            self.space = LaidOut(StateLayout.made_of(_parts(observation_space.layout, self.space, length)))
        self.observation_size, self.action_size = seen, done
        self.latest_columns = slice((length - 1) * seen, length * seen)
        # A step is one gather, of the window with what is new put behind it.
        edges = np.cumsum([0, length * seen, marks * done, marks, seen, done, 1])
        windows, actions, flags, new_seen, new_done, new_flag, end = edges.tolist()
        self._shift = np.array(
            [
                *range(windows + seen, actions),
                *range(new_seen, new_done),
                *range(actions + done, flags),
                *range(new_done, new_flag),
                *range(flags + 1, new_seen),
                *range(new_flag, end),
            ]
        )

    def first(self, observation: Array) -> Array:
        """Returns the states ``(*batch, width)`` that episodes begin in, of their first observations."""
        rows = self._observations.rows(observation)
        states = np.zeros((*rows.shape[:-1], *self.space.shape), np.float32)
        states[..., self.latest_columns] = rows
        return states

    def then(self, state: Array, action: Array, observation: Array) -> Array:
        """Returns the states ``(*batch, width)`` after actions ``(*batch, *action)`` and what was seen after them."""
        seen, done = self._observations.rows(observation), self._actions.rows(action)
        return np.concatenate([state, seen, done, np.ones_like(seen[..., :1])], -1).take(self._shift, -1)

    def latest(self, state: Kind) -> Kind:
        """Returns the last observation of states ``(*batch, width)``, as the environment gives it."""
        rows: Any = state[..., self.latest_columns]
        is_integer, shape = isinstance(self.observation_space, Discrete), self.observation_space.shape or ()
        latest: Kind = rows.argmax(-1) if is_integer else rows.reshape(*rows.shape[:-1], *shape)
        return latest

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the parts of states ``(*batch, width)``, oldest first: observations, actions and marks.

        Their shapes are ``(k, *batch, o)``, ``(k - 1, *batch, a)`` and ``(k - 1, *batch, 1)``.
        """
        between, batch = self.length - 1, state.shape[:-1]
        sizes = [self.length * self.observation_size, between * self.action_size, between]
        parts = zip(state.split(sizes, -1), (self.length, between, between), strict=True)
        seen, done, marks = (part.reshape(*batch, count, -1).movedim(-2, 0) for part, count in parts)
        return seen, done, marks

    def observation_rows(self, observation: Tensor) -> Tensor:
        """Returns observations ``(*batch, *observation)`` as they are in states, ``(*batch, o)``."""
        return self._observations.tensor_rows(observation)

    def action_rows(self, action: Tensor) -> Tensor:
        """Returns actions ``(*batch, *action)`` as they are in states, ``(*batch, a)``."""
        return self._actions.tensor_rows(action)


def _parts(layout: StateLayout, space: Box, length: int) -> list[Part]:
    """Returns the parts of states whose observations have parts; ``space`` has all their bounds."""
    parts = [
        replace(part, name=part.name if age == 0 else f"{part.name}[-{age}]")
        for age in reversed(range(length))
        for part in layout.parts
    ]
    between = slice(length * layout.size, None)
    rest = Box(space.low[between], space.high[between])
    return [*parts, Part("actions", "box", tuple(rest.shape), slice(0), rest)]


class _Code:
    """Elements of a space as rows of numbers."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._dims = len(space.shape or ())
        self._one_hot: Array | None = None
        self._factors: Factors | None = None
        if (sizes := factor_sizes(space)) is not None:
            self._factors = Factors(sizes)
            self.size = sum(sizes)
            self.low, self.high = np.zeros(self.size), np.ones(self.size)
            return
        if isinstance(space, Discrete):
            self.size = int(space.n)
            self._one_hot = np.eye(self.size, dtype=np.float32)
            self.low, self.high = np.zeros(self.size), np.ones(self.size)
            return
        assert isinstance(space, Box)
        self.low, self.high = space.low.reshape(-1), space.high.reshape(-1)
        self.size = len(self.low)

    def rows(self, elements: Array) -> Array:
        """Returns ``(*batch, size)`` float32."""
        if self._one_hot is not None:
            return self._one_hot[elements]
        if self._factors is not None:
            coded: Array = self._factors.one_hot(torch.from_numpy(elements), torch.float32).numpy()
            return coded
        rows = elements.reshape(*elements.shape[: elements.ndim - self._dims], self.size)
        return rows.astype(np.float32, copy=False)

    def tensor_rows(self, elements: Tensor) -> Tensor:
        """Returns ``(*batch, size)``; of integers in torch's default precision."""
        if self._factors is not None:
            return self._factors.to(elements.device).one_hot(elements, torch.get_default_dtype())
        if self._one_hot is None:
            return elements.reshape(*elements.shape[: elements.dim() - self._dims], self.size)
        return (elements[..., None] == torch.arange(self.size, device=elements.device)).to(torch.get_default_dtype())


class WindowedEnvironments:
    """Environments whose states are windows: what a learner steps, in place of the :class:`Environments` inside.

    Its members are those of :class:`Environments`, and mean the same.

    Args:
        envs: whose observations are put together.
        window: how.
    """

    def __init__(self, envs: Environments, window: Window | FrameStack) -> None:
        self._envs, self.window = envs, window
        self.name, self.num_envs, self.seed = envs.name, envs.num_envs, envs.seed
        self.state_space, self.action_space = window.space, envs.action_space
        self.max_episode_steps = envs.max_episode_steps
        self.masks, self.mask_size = envs.masks, envs.mask_size
        self.state: Array | None = None

    @property
    def num_steps(self) -> int:
        """How many transitions the environments have made, all of them together."""
        return self._envs.num_steps

    @property
    def skips_steps(self) -> bool:
        """As of :class:`Environments`."""
        return self._envs.skips_steps

    def reset(self) -> Array:
        """Returns the first states of new episodes, ``(num_envs, width)``."""
        self.state = self.window.first(self._envs.reset())
        return self.state

    def step(self, actions: Array) -> Step:
        """Returns what the actions led to, in windows; see :meth:`Environments.step`."""
        assert self.state is not None, "reset() first"
        step = self._envs.step(actions)
        state = next_state = self.window.then(self.state, actions, step.next_state)
        # A row that only starts an episode is no step; and in the step after an end nobody looks at what was before.
        begins = step.terminated | step.truncated | ~step.valid
        if begins.any():
            state = next_state.copy()
            state[begins] = self.window.first(step.state[begins])
        self.state = state
        return step._replace(next_state=next_state, state=state)

    def agent_state(self, observation: Any, action_mask: Any = None) -> Array:
        """Returns an observation of the environment's, or a batch, in the agent's units; it is no window yet."""
        return self._envs.agent_state(observation, action_mask)

    @property
    def outermost(self) -> Any:
        """As of :class:`Environments`."""
        return self._envs.outermost

    @property
    def own_action_space(self) -> gymnasium.Space[Any]:
        """The environment's own."""
        return self._envs.own_action_space

    def environment_action(self, action: Any) -> Any:
        """Returns an action, or a batch of them, in the environment's own units, dtype and shape."""
        return self._envs.environment_action(action)

    def statistics(self) -> dict[str, Array]:
        """As of :class:`Environments`."""
        return self._envs.statistics()

    def load_statistics(
        self, statistics: Mapping[str, Array], frozen: bool, sources: Sequence[int] | None = None
    ) -> None:
        """As of :class:`Environments`."""
        self._envs.load_statistics(statistics, frozen, sources)

    def snapshot(self) -> dict[str, Any]:
        """Returns what :meth:`restore` needs, the windows of the running episodes with it."""
        snapshot = self._envs.snapshot()
        if self.state is not None:
            snapshot["arrays"]["window"] = self.state.copy()
        return snapshot

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Brings environments and windows back to where :meth:`snapshot` was taken; returns whether that is exact.

        Where a new episode began, so does a window.

        Raises:
            ValueError: if the snapshot is of another environment or batch.
        """
        exact, now = self._envs.restore(snapshot), self._envs.state
        if now is None:
            self.state = None
            return exact
        self.state = np.array(snapshot["arrays"]["window"], self.window.space.dtype)
        if not exact:
            there, here = snapshot["json"]["episodes"], self._envs.snapshot()["json"]["episodes"]
            begins = np.not_equal(here, there)
            self.state[begins] = self.window.first(now[begins])
        return exact

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()


class EpisodeWindow:
    """The windows of running episodes of one's own, from one :meth:`Learner.act` to the next.

    Args:
        window: how observations are put together.
    """

    def __init__(self, window: Window | FrameStack) -> None:
        self._window, self._dims = window, len(window.space.shape or ())
        self._state: Array | None = None
        self._action: Array = np.empty(0)
        self._begins: Any = False

    def begin(self, which: Any = None) -> None:
        """Has the next observation begin an episode, of all, or of a batch of those that ``which`` (bool) says.

        Raises:
            ValueError: if ``which`` is not one flag for each running episode.
        """
        if which is None:
            self._state, self._begins = None, False
            return
        flags = np.asarray(which)
        batch = self._batch(self._state)
        if flags.dtype != bool or (self._state is not None and flags.shape != batch):
            raise ValueError(f"which must be bool of shape {batch}, one for each running episode, got {which!r}")
        self._begins = self._begins | flags

    def seen(self, observation: Array) -> Array:
        """Returns the states after what was seen, ``(*batch, width)``, as arrays in the agent's units.

        Raises:
            ValueError: if these are not as many episodes as before.
        """
        first = self._window.first(observation)
        if self._state is None:
            return first
        if first.shape != self._state.shape:
            raise ValueError(
                f"observation is of a batch of shape {self._batch(first)}, and the running episodes are of "
                f"{self._batch(self._state)}; say begin_episode() where other episodes begin"
            )
        then = self._window.then(self._state, self._action, observation)
        begins = np.asarray(self._begins)
        return np.where(begins.reshape(*begins.shape, *(1 for _ in range(self._dims))), first, then)

    def _batch(self, state: Array | None) -> tuple[int, ...]:
        return () if state is None else state.shape[: state.ndim - self._dims]

    def done(self, state: Array, action: Array) -> None:
        """Takes in the actions done in states."""
        self._state, self._action, self._begins = state, np.array(action), False
