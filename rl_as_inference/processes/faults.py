"""What is wrong with what an environment gave, in words."""

from __future__ import annotations

from math import isfinite
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rl_as_inference.state_layout import LaidOut, PartError, StateLayout, is_image

__all__ = ["FIVE", "FLAGS", "NUMBERS", "Checks", "NonFiniteError", "StepError", "wrong_reward"]

Array = np.ndarray[Any, Any]

_MEND = "mend the environment's observation_space"

FIVE = "is not (observation, reward, terminated, truncated, info), the five that step() must return"

NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64})
"""Types of a reward that need no second look."""

FLAGS = frozenset({bool, np.bool_})
"""Types of ``terminated`` and ``truncated``."""


class StepError(ValueError):
    """An environment gave what its spaces, or Gymnasium's rules, do not allow.

    Attributes:
        environment: its name.
        step: environment steps taken until then, this one included.
        env_index: which of the batch; None if it is of the whole batch.
        field: ``"observation"``, ``"reward"``, ``"terminated"``, ``"truncated"`` or ``"step"``.
        value: what it gave.
    """

    def __init__(
        self, message: str, *, environment: str, step: int, env_index: int | None, field: str, value: Any
    ) -> None:
        super().__init__(message)
        self.environment, self.step, self.env_index = environment, step, env_index
        self.field, self.value = field, value

    def __reduce__(self) -> Any:
        return _made_again, (type(self), str(self), dict(self.__dict__))


def _made_again(kind: type[StepError], message: str, told: dict[str, Any]) -> StepError:
    """Returns an error that was sent from another process."""
    wanted = ("environment", "step", "env_index", "field", "value")
    error = kind(message, **{name: told[name] for name in wanted})
    error.__dict__.update(told)  # notes too
    return error


class NonFiniteError(StepError):
    """An environment gave NaN or an infinity, or a number that is one in float32."""


def wrong_reward(value: Any) -> str | None:
    """Returns what is wrong with a reward's type, or None; whether it is finite is another question.

    Anything that is one number passes. An array of one number does not, of which Gymnasium's own checker only warns:
    in a batch it makes a column of shape (N, 1), which broadcasts against (N,) without a word.
    """
    try:
        if np.shape(value) == () and not isinstance(value, str | bytes):
            float(value)
            return None
        what = f"an array of shape {np.shape(value)}" if isinstance(value, np.ndarray) else type(value).__name__
    except (TypeError, ValueError):
        what = type(value).__name__
    return f"is {what}, and must be one number; return float(reward)"


def _wrong_observation(observation: Any, space: gymnasium.Space[Any]) -> str | None:
    """Returns what is wrong with an observation's shape, type or range, or None.

    Numbers pass that lose nothing but digits: float64 in a float32 space, integers in a space of floats. Bounds of a
    Box are not looked at, since many environments leave theirs by a rounding.
    """
    given, shape, mend = np.asarray(observation), tuple(space.shape or ()), _MEND
    if given.shape != shape:
        return f"has shape {given.shape}, and its observation_space has {shape}; {mend}"
    if isinstance(space, Box):
        if given.dtype.kind not in ("biuf" if np.issubdtype(space.dtype, np.floating) else "biu"):
            return f"has dtype {given.dtype}, and its observation_space has {space.dtype}; {mend}"
        if is_image(space) and given.dtype != np.uint8 and ((given < 0) | (given > 255)).any():
            return f"has pixels from {given.min()} to {given.max()}, and bytes are from 0 to 255; {mend}"
        return None
    low = int(space.start)  # type: ignore[attr-defined]
    high = low + int(space.n) - 1  # type: ignore[attr-defined]
    if given.dtype.kind not in "iu":
        return f"has dtype {given.dtype}, and its observation_space is {space}, of integers; {mend}"
    if not low <= given.item() <= high:
        return f"is {given}, and its observation_space is {space}, of integers from {low} to {high}; {mend}"
    return None


def _overflows(value: Any) -> bool:
    """Returns whether a value is finite as the environment gave it, and so became infinite in float32."""
    return bool(np.isfinite(np.asarray(value, np.float64)).all())


class Checks:
    """What every step of a batch of environments is held to.

    Args:
        name: the environment's, for messages.
        num_envs: the size of the batch.
        space: of one observation, as the environment has it.
        layout: of rows, where observations have parts.
    """

    def __init__(
        self, name: str, num_envs: int, space: gymnasium.Space[Any], layout: StateLayout | None = None
    ) -> None:
        self._name, self._num_envs, self._space, self._layout = name, num_envs, space, layout
        self._has_rows = layout is not None and isinstance(space, LaidOut)  # from a wrapper that has laid them out

    def observation(self, value: Any, index: int, step: int, *, at_reset: bool = False) -> Array:
        """Returns an observation as an array, or a row, if its shape, type and range are those of its space."""
        if self._layout is not None and not self._has_rows:
            return self._row(value, (), index, step, at_reset=at_reset)
        if fault := _wrong_observation(value, self._space):
            self.blame("observation", index, value, step, fault, at_reset=at_reset)
        return np.asarray(value)

    def observations(self, values: Any, step: int, *, at_reset: bool = False) -> Array:
        """Returns a batch of them as an array, or rows."""
        if self._layout is not None and not self._has_rows:
            return self._row(values, (self._num_envs,), None, step, at_reset=at_reset)
        given, shape = np.asarray(values), (self._num_envs, *(self._space.shape or ()))
        if given.shape != shape:
            fault = f"has shape {given.shape}, and its spaces say {shape}; mend the environment's observation_space"
            self.blame("observation", None, values, step, fault, at_reset=at_reset)
        for index in range(self._num_envs if shape == (self._num_envs,) else 1):  # of a Box the type is all
            self.observation(given[index], index, step, at_reset=at_reset)
        return given

    def _row(self, value: Any, batch: tuple[int, ...], index: int | None, step: int, *, at_reset: bool) -> Array:
        assert self._layout is not None
        try:
            row = self._layout.flatten(value)
        except PartError as error:
            self.blame("observation", index, value, step, f"{error.fault}; {_MEND}", at_reset=at_reset)
        if row.shape[:-1] != batch:
            part, shape = self._layout.parts[0], (*row.shape[:-1], *self._layout.parts[0].shape)
            fault = f"has part {part.name!r} of shape {shape}, and its space says {(*batch, *part.shape)}; {_MEND}"
            self.blame("observation", index, value, step, fault, at_reset=at_reset)
        return row

    def rewards(self, values: Any, step: int) -> Array:
        """Returns a batch of rewards, ``(num_envs,)`` float64."""
        given = np.asarray(values)
        if given.shape != (self._num_envs,):
            self.blame("reward", None, values, step, f"has shape {given.shape}, and must have ({self._num_envs},)")
        if given.dtype.kind not in "biuf":
            for index, value in enumerate(given):
                if fault := wrong_reward(value):
                    self.blame("reward", index, value, step, fault)
        rewards = np.array(given, np.float64)
        if not isfinite(rewards.sum()) and not np.isfinite(rewards).all():
            index = int(np.flatnonzero(~np.isfinite(rewards))[0])
            self.not_finite("reward", index, rewards[index], step)
        return rewards

    def flags(self, field: str, values: Any, step: int) -> Array:
        """Returns a batch of ``terminated`` or ``truncated``, ``(num_envs,)`` bool."""
        given = np.asarray(values)
        if given.shape != (self._num_envs,) or given.dtype != bool:
            fault = f"is of shape {given.shape} and dtype {given.dtype}, and must be ({self._num_envs},) of bool"
            self.blame(field, None, values, step, fault)
        return np.array(given)

    def flag_pair(self, terminated: Any, truncated: Any, index: int, step: int) -> None:
        """Raises StepError unless both are bools: ``None`` would go on without a word, and a list would end."""
        for field, value in (("terminated", terminated), ("truncated", truncated)):
            if type(value) not in FLAGS:
                fault = f"is {type(value).__name__}, and must be a bool; return bool({field})"
                self.blame(field, index, value, step, fault)

    def blame(
        self, field: str, index: int | None, value: Any, step: int, fault: str, *, at_reset: bool = False
    ) -> NoReturn:
        """Raises StepError: ``fault`` says what is wrong with a field, and the mend."""
        which = "what" if field == "step" else f"an {field}" if field[0] in "ao" else f"a {field}"
        message = f"{self._name} gave {which} {self._where(index, step, at_reset)} that {fault}"
        raise StepError(message, environment=self._name, step=step, env_index=index, field=field, value=value)

    def not_finite(self, field: str, index: int, value: Any, step: int, *, at_reset: bool = False) -> NoReturn:
        """Raises NonFiniteError."""
        where = self._where(index, step, at_reset)
        if field == "observation" and self._layout is not None:
            part = self._layout.part_at(int(np.flatnonzero(~np.isfinite(value))[0]))
            where, value = f"{where} in part {part.name!r}", np.asarray(value)[part.columns]
        message = f"{self._name} gave a non-finite {field} {where}: {value}; check the environment"
        if _overflows(value):
            message = f"{self._name} gave an {field} {where} that overflows float32: {value}; scale it down"
        raise NonFiniteError(message, environment=self._name, step=step, env_index=index, field=field, value=value)

    def _where(self, index: int | None, step: int, at_reset: bool) -> str:
        where = f"at a reset after {step} steps" if at_reset else f"at step {step}"
        which = f" in environment {index} of {self._num_envs}" if self._num_envs > 1 and index is not None else ""
        return where + which
