"""Action masks: which actions an environment allows, put beside what it observes, and held to allow something."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rl_as_inference.factored import JOINT_ACTIONS, FactoredCategorical, Factors, JointCategorical
from rl_as_inference.processes.faults import Checks, StepError
from rl_as_inference.processes.running_statistics import RunningStatistics
from rl_as_inference.processes.to_gymnasium import ProcessVectorEnv
from rl_as_inference.processes.units import name_of
from rl_as_inference.spaces import factor_sizes
from rl_as_inference.state_layout import MASK, LaidOut

__all__ = [
    "MASK",
    "ActionMasks",
    "Looked",
    "MaskBeside",
    "flat_mask",
    "masks_in",
    "put_beside",
    "with_masks",
]

Array = np.ndarray[Any, Any]
Made: TypeAlias = "list[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]"

OBSERVATION = "observation"
"""The key of what was observed beside the mask, where that was no ``Dict``."""


@dataclass(frozen=True)
class ActionMasks:
    """Where in a state is said which actions are allowed, and of what.

    Attributes:
        columns: of the state, or of its last observation.
        sizes: of what is allowed or not, one number for each factor of an action; of joint actions their number alone.
        is_joint: whether it is of joint actions, in the order of ``itertools.product``, and not factor by factor.
    """

    columns: slice
    sizes: tuple[int, ...]
    is_joint: bool = False

    def prior(self, state: Tensor, factors: Factors | None, dtype: torch.dtype) -> Any:
        """Returns the distribution that is uniform over what is allowed in states ``(*batch, size)``.

        Args:
            state: rows with the mask in them.
            factors: of actions that are several at once.
            dtype: of its probabilities.
        """
        logits = torch.where(state[..., self.columns] > 0.5, 0.0, -torch.inf).to(dtype)
        if factors is None:
            return dist.Categorical(logits=logits)
        return (JointCategorical if self.is_joint else FactoredCategorical)(logits, factors)

    def fault(self, mask: Array) -> str | None:
        """Returns what is wrong with a mask ``(sum(sizes),)``, to be said after "a mask that"; or None."""
        if not ((mask == 0) | (mask == 1)).all():
            return (
                f"has the values {sorted(set(mask.tolist()))}, and must have 1 for what is allowed and 0 for the rest"
            )
        empty = [not part.any() for part in np.split(mask, np.cumsum(self.sizes)[:-1])]
        if not any(empty):
            return None
        which = "" if len(self.sizes) == 1 else f" of factor {empty.index(True)}"
        return f"forbids every action{which}, {mask.astype(int).tolist()}; allow one, or end the episode there"

    def check(
        self,
        states: Array,
        terminated: Array,
        checks: Checks,
        step: int,
        *,
        at_reset: bool = False,
        only: int | None = None,
    ) -> None:
        """Raises StepError for a mask that allows nothing, but in terminal states: these then allow everything.

        Args:
            states: ``(num_envs, *state)``, written into where they are terminal.
            terminated: which are, ``(num_envs,)`` bool.
            checks: what raises.
            step: taken so far.
            at_reset: whether they begin episodes.
            only: look at one of them.
        """
        for index in range(len(states)) if only is None else (only,):
            mask = states[index][self.columns]
            if fault := self.fault(mask):
                if not terminated[index]:
                    checks.blame(MASK, index, mask, step, fault, at_reset=at_reset)
                mask[:] = 1

    def check_given(self, states: Array) -> None:
        """Raises ValueError for a mask that allows nothing in states ``(*batch, *state)``."""
        for state in states.reshape(-1, states.shape[-1]):
            if fault := self.fault(state[self.columns]):
                raise ValueError(f"action_mask {fault}")


def masks_in(state_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], name: str) -> ActionMasks | None:
    """Returns the masks that states hold; None of states without.

    Args:
        state_space: the agent's.
        action_space: the agent's, of integers from 0.
        name: of the environment, for messages.

    Raises:
        ValueError: if a mask has another length than the actions, or these are continuous.
    """
    part = state_space.layout.mask if isinstance(state_space, LaidOut) else None
    if part is None:
        return None
    if isinstance(action_space, Box):
        raise ValueError(f"observation_space of {name} has {MASK!r}, and its actions are continuous; leave it out")
    sizes = factor_sizes(action_space) or (int(action_space.n),)  # type: ignore[attr-defined]
    if part.size == sum(sizes):
        return ActionMasks(part.columns, sizes)
    if part.size == math.prod(sizes) <= JOINT_ACTIONS:
        return ActionMasks(part.columns, (part.size,), is_joint=True)
    raise ValueError(f"action_mask of {name} has length {part.size}, and {_lengths(action_space, sizes)}")


def _lengths(space: gymnasium.Space[Any], sizes: tuple[int, ...]) -> str:
    """Returns how long masks of an action space are, in words."""
    if len(sizes) == 1:
        return f"{space} has {sizes[0]} actions; give one number for each"
    joint = f", or one for each of {math.prod(sizes)} joint actions" if math.prod(sizes) <= JOINT_ACTIONS else ""
    return f"{space} has factors of {sizes} values; give {sum(sizes)} numbers, factor after factor{joint}"


def flat_mask(mask: Any, space: gymnasium.Space[Any]) -> Array:
    """Returns a mask, or a batch, as rows ``(*batch, length)`` of 0 and 1.

    Args:
        mask: an array of one number for each action; of several actions at once factor after factor, as a tuple of
            arrays (as ``space.sample(mask)`` takes it), or in the shape of ``nvec`` for joint actions. Of MultiBinary
            also one of ``n`` numbers, as its ``sample`` takes it: 0 and 1 for what a switch must be, 2 for either.
        space: of actions, the environment's own.

    Raises:
        ValueError: if it has another length, or another type.

    Example:
        >>> space = MultiDiscrete([3, 2])
        >>> flat_mask((np.array([1, 0, 1]), np.array([0, 1])), space)
        array([1., 0., 1., 0., 1.], dtype=float32)
    """
    sizes = factor_sizes(space)
    if isinstance(mask, tuple | list) and any(np.ndim(part) for part in mask):
        array = np.concatenate([flat_parts(part) for part in mask], -1)
    else:
        array = np.asarray(mask)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"action_mask must be an array of 0 and 1, or of bool, got {mask!r}")
    if sizes is None:
        lengths = {int(space.n)}  # type: ignore[attr-defined]
    else:
        if len(sizes) > 1 and array.shape[-len(sizes) :] == sizes:
            if sum(sizes) == math.prod(sizes):
                raise ValueError(
                    f"action_mask is of the joint actions of {space}, of which there are as many as its factors have "
                    f"values together, and could be taken for theirs; make the action space Discrete({sum(sizes)})"
                )
            array = array.reshape(*array.shape[: -len(sizes)], -1)
        if isinstance(space, MultiBinary) and array.shape[-1:] == (len(sizes),):
            array = np.stack([array != 1, array != 0], -1).reshape(*array.shape[:-1], -1)
        lengths = {sum(sizes), math.prod(sizes)}
    if array.shape[-1:] not in {(length,) for length in lengths}:
        told = _lengths(space, sizes or (int(space.n),))  # type: ignore[attr-defined]
        raise ValueError(f"action_mask has shape {array.shape}, and {told}")
    return array.astype(np.float32)


def flat_parts(part: Any) -> Array:
    """Returns a mask of one factor; of several, nested as ``nvec`` is, one behind the other."""
    if isinstance(part, tuple | list) and any(np.ndim(inner) for inner in part):
        return np.concatenate([flat_parts(inner) for inner in part], -1)
    return np.asarray(part)


def _beside(space: gymnasium.Space[Any], size: int) -> Dict:
    """Returns the space of observations with a mask beside them."""
    spaces = dict(space.spaces) if isinstance(space, Dict) else {OBSERVATION: space}
    return Dict({**spaces, MASK: MultiBinary(size)})


def put_beside(observation: Any, mask: Any) -> dict[str, Any]:
    """Returns an observation, or a batch, with a mask beside it."""
    return {**(observation if isinstance(observation, dict) else {OBSERVATION: observation}), MASK: mask}


class _Puts:
    """What the wrappers have in common: a mask of ``info`` as a part of the observation."""

    def __init__(self, name: str, action_space: gymnasium.Space[Any], size: int) -> None:
        self._name, self._actions, self.size = name, action_space, size
        self._step = 0

    def mask(self, info: Any, where: str, *, ended: bool = False) -> Array:
        """Returns the mask that ``info`` gives; where an episode ended it need give none, and all is allowed."""
        given = info.get(MASK)
        if given is None and ended:
            return np.ones(self.size, np.float32)
        if given is None:
            self._blame(f"gave no info[{MASK!r}] {where}, and did before; give it at reset() and in every step", given)
        try:
            mask = flat_mask(given, self._actions)
        except ValueError as error:
            self._blame(f"gave a wrong info[{MASK!r}] {where}: {error}", given)
        if mask.shape[-1] != self.size:
            self._blame(f"gave info[{MASK!r}] of length {mask.shape[-1]} {where}, and {self.size} before", given)
        return mask

    def _blame(self, what: str, value: Any) -> None:
        raise StepError(
            f"{self._name} {what}", environment=self._name, step=self._step, env_index=None, field=MASK, value=value
        )


class MaskBeside(gymnasium.Wrapper[Any, Any, Any, Any], _Puts):
    """An environment whose ``info["action_mask"]`` is a part of what it observes.

    Args:
        env: the environment.
        size: how long its masks are, flat.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int) -> None:
        gymnasium.Wrapper.__init__(self, env)
        _Puts.__init__(self, name_of(env), env.action_space, size)
        self.observation_space = _beside(env.observation_space, size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns what the environment does, with the mask."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.first(observation, info), info

    def first(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        """Returns an observation with the mask, of an episode that begins."""
        self._step = 0
        return put_beside(observation, self.mask(info, "at a reset"))

    def step(self, action: Any) -> Any:
        """Returns what the environment does, with the mask; anything else than five is left to who checks it."""
        answer = self.env.step(action)
        self._step += 1
        if not isinstance(answer, tuple) or len(answer) != 5:
            return answer
        observation, reward, terminated, truncated, info = answer
        mask = self.mask(info, f"in step {self._step} of an episode", ended=bool(terminated))
        return put_beside(observation, mask), reward, terminated, truncated, info


class MasksBeside(VectorWrapper, _Puts):
    """A vector environment whose ``info["action_mask"]`` is a part of what it observes.

    Args:
        env: the environments.
        size: how long their masks are, flat.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], size: int) -> None:
        VectorWrapper.__init__(self, env)
        _Puts.__init__(self, name_of(env), env.single_action_space, size)
        self.single_observation_space = _beside(env.single_observation_space, size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns what the environments do, with the masks."""
        which = (options or {}).get("reset_mask")  # which SyncVectorEnv takes out of the options
        observations, info = self.env.reset(seed=seed, options=options)
        return self.first(observations, info, None if which is None else ~which), info

    def first(self, observations: Any, info: dict[str, Any], going_on: Any = None) -> dict[str, Any]:
        """Returns observations with the masks, of episodes that begin, but for those that go on."""
        return put_beside(observations, self.masks(info, "at a reset", going_on))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Returns what the environments do, with the masks, also of final observations."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._step += 1
        where = f"in step {self._step}"
        final = next((name for name in ("final_obs", "final_observation") if name in info), None)
        ended = np.asarray(terminated) if final is None else np.zeros(self.num_envs, bool)
        masks = self.masks(info, where, ended)
        if final is not None:
            last = np.full(self.num_envs, None, object)
            told = info.get("final_info", {})
            for index in np.flatnonzero(np.asarray(terminated) | np.asarray(truncated)).tolist():
                own = _one_of(told, index)
                last[index] = put_beside(info[final][index], self.mask(own, where, ended=bool(terminated[index])))
            info = {**info, final: last}
        return put_beside(observations, masks), rewards, terminated, truncated, info

    def masks(self, info: dict[str, Any], where: str, ended: Any = None) -> Array:
        """Returns the masks of all, ``(num_envs, size)``."""
        ends = np.zeros(self.num_envs, bool) if ended is None else ended
        return np.stack([self.mask(_one_of(info, i), where, ended=bool(ends[i])) for i in range(self.num_envs)])


def _one_of(info: Any, index: int) -> dict[str, Any]:
    """Returns the mask in the information of one environment of a batch, if there is one."""
    given = info.get(MASK) if isinstance(info, dict) else None
    if given is None or not np.asarray(info.get(f"_{MASK}", True)).reshape(-1)[index if f"_{MASK}" in info else 0]:
        return {}
    if isinstance(given, tuple):
        return {MASK: tuple(part[index] for part in given)}
    return {MASK: given[index]}


@dataclass(frozen=True)
class Looked:
    """Environments that were looked at for masks.

    Attributes:
        environments: with masks beside their observations, if they give any.
        size: how long these are; None if they give none.
        first: what the first of them observed at the reset that it took, or all of them; None if it took none, or it
            must be reset again.
    """

    environments: Made
    size: int | None = None
    first: Any = None


def with_masks(environments: Made, masks: Literal["look"] | int | None, seed: int, *, again: bool = False) -> Looked:
    """Returns environments with the masks of their ``info`` put beside what they observe, if they give any.

    Whether they do shows at a reset. It is the one that begins the first episode, which nobody need repeat, unless
    wrappers count what they see: then their counts are put back.

    Args:
        environments: all of them.
        masks: ``"look"``; or how long the masks are, where that is known; None looks at none.
        seed: of the first episode.
        again: the environment is to be reset again in any case.
    """
    if isinstance(masks, int):
        return Looked(_around(environments, masks), masks)
    vector = isinstance(environments, VectorEnv)
    env: Any = environments if isinstance(environments, VectorEnv) else environments[0]
    actions = env.single_action_space if vector else env.action_space
    seen = env.single_observation_space if vector else env.observation_space
    may = isinstance(actions, Discrete | MultiDiscrete | MultiBinary) and not isinstance(env, ProcessVectorEnv)
    if masks is None or not may or (isinstance(seen, Dict) and MASK in seen.spaces):
        return Looked(environments)
    counts = RunningStatistics(environments)
    before = counts.statistics()
    answer = env.reset(seed=seed)
    if before:
        counts.put(before, frozen=False, sources=None)
    if not isinstance(answer, tuple) or len(answer) != 2:  # which is for others to tell
        return Looked(environments)
    observation, info = answer
    first = None if before or again else observation
    given = (_one_of(info, 0) if vector else info) if isinstance(info, dict) else {}
    if given.get(MASK) is None:
        return Looked(environments, None, first)
    try:
        size = flat_mask(given[MASK], actions).shape[-1]
    except ValueError as error:
        raise ValueError(f"info[{MASK!r}] of {name_of(env)} at a reset: {error}") from error
    around = _around(environments, size)
    if first is not None:
        outer: Any = around if isinstance(around, VectorEnv) else around[0]
        first = outer.first(observation, info)
    return Looked(around, size, first)


def _around(environments: Made, size: int) -> Made:
    if isinstance(environments, VectorEnv):
        return MasksBeside(environments, size)
    return [MaskBeside(env, size) for env in environments]
