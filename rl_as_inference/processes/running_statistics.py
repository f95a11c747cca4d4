"""Running means and variances that wrappers hold (``NormalizeObservation``): found, read, and put elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.utils import RunningMeanStd

__all__ = ["RunningStatistics"]

Array = np.ndarray[Any, Any]

_FIELDS = ("mean", "var", "count")
_BATCH = "batch"
"""In a name, what a vector environment's own wrapper holds for all its environments together."""


@runtime_checkable
class _Freezes(Protocol):
    update_running_mean: bool


class _Frozen(RunningMeanStd):
    """Statistics that stay as they are, whatever they are shown; a wrapper that knows no freezing has them too."""

    def update(self, x: Any) -> None:
        """Does nothing."""

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: Any) -> None:
        """Does nothing."""


class _Holder:
    """A layer of an environment that holds running statistics: any with a ``RunningMeanStd`` among its attributes.

    Attributes:
        where: the environment's index in the batch, or ``"batch"``.
        kind: the layer's class, with ``#2`` for the second of that class from within.
    """

    def __init__(self, layer: Any, where: str, kind: str) -> None:
        self._layer, self.where, self.kind = layer, where, kind
        self._attributes = [name for name, value in vars(layer).items() if isinstance(value, RunningMeanStd)]

    def statistics(self) -> dict[str, Array]:
        """Returns copies of mean, variance and count by name."""
        return {
            f"{self.where}/{self.kind}.{name}.{field}": np.array(getattr(vars(self._layer)[name], field))
            for name in self._attributes
            for field in _FIELDS
        }

    def memory(self) -> dict[str, Array]:
        """Returns the statistics and the layer's other numbers (``NormalizeReward``'s running return)."""
        others = {
            f"{self.where}/{self.kind}.{name}": np.array(value)
            for name, value in vars(self._layer).items()
            if isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind in "fiu"
        }
        return self.statistics() | others

    def names(self, where: str | None = None) -> list[str]:
        """Returns the names of its statistics, here or elsewhere, without the field."""
        return [f"{self.where if where is None else where}/{self.kind}.{name}" for name in self._attributes]

    def put(self, values: Mapping[str, Array], where: str | None = None, *, frozen: bool = False) -> None:
        """Takes the statistics of the layer of the same kind at ``where``, and stops updating them if asked.

        Raises:
            ValueError: if they have another shape.
        """
        for attribute, name in zip(self._attributes, self.names(where), strict=True):
            mean, var, count = (np.array(values[f"{name}.{field}"]) for field in _FIELDS)
            held = vars(self._layer)[attribute]
            if mean.shape != np.shape(held.mean) or var.shape != np.shape(held.var):
                raise ValueError(
                    f"statistics: {name} is of shape {mean.shape}, and {self.kind} here holds {np.shape(held.mean)}; "
                    f"they are of another environment"
                )
            if frozen:  # an object of its own: the one held may be shared with environments that go on learning
                held = _Frozen(shape=mean.shape, dtype=mean.dtype)  # type: ignore[no-untyped-call]
                setattr(self._layer, attribute, held)
            held.mean, held.var, held.count = mean, var, float(count)
        if frozen and isinstance(self._layer, _Freezes):
            self._layer.update_running_mean = False

    def remember(self, memory: Mapping[str, Array]) -> None:
        """Goes back to what :meth:`memory` returned of this layer or of one like it."""
        self.put(memory)
        for name, value in vars(self._layer).items():
            if isinstance(value, float | np.ndarray):
                found = memory.get(f"{self.where}/{self.kind}.{name}")
                if found is not None:
                    setattr(self._layer, name, float(found) if isinstance(value, float) else np.array(found))


class RunningStatistics:
    """What the wrappers of a batch hold: now, and when each running episode began."""

    def __init__(self, environments: Sequence[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]) -> None:
        self._holders = _find_holders(environments)
        self._starts: dict[int, dict[str, Array]] = {}

    def statistics(self) -> dict[str, Array]:
        """Returns copies of every mean, variance and count by name."""
        return {name: value for holder in self._holders for name, value in holder.statistics().items()}

    def put(self, statistics: Mapping[str, Array], *, frozen: bool, sources: Sequence[int] | None) -> None:
        """Takes statistics from elsewhere; see :meth:`Environments.load_statistics`."""
        _put(self._holders, statistics, frozen=frozen, sources=sources)

    def begin(self, index: int) -> None:
        """Notes what environment ``index`` starts an episode with."""
        if self._holders:
            own = [holder for holder in self._holders if holder.where == str(index)]
            self._starts[index] = {name: value for holder in own for name, value in holder.memory().items()}

    def snapshot(self) -> dict[str, Array]:
        """Returns what :meth:`remember` needs."""
        now = {f"now.{name}": value for holder in self._holders for name, value in holder.memory().items()}
        return now | {f"start.{name}": value for start in self._starts.values() for name, value in start.items()}

    def remember(self, when: str, arrays: Mapping[str, Array], index: int | None = None) -> None:
        """Goes back to a snapshot's ``"now"`` or ``"start"``, in one environment or everywhere."""
        memory = {name[len(when) + 1 :]: value for name, value in arrays.items() if name.startswith(f"{when}.")}
        for holder in self._holders:
            if (index is None or holder.where == str(index)) and holder.memory().keys() <= memory.keys():
                holder.remember(memory)


def _find_holders(environments: Sequence[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]) -> list[_Holder]:
    """Returns the layers of environments that hold running statistics, innermost first; none if there are none.

    Environments in other processes (``AsyncVectorEnv``) cannot be looked into.
    """
    if not isinstance(environments, VectorEnv):
        return [holder for index, env in enumerate(environments) for holder in _of_stack(env, str(index))]
    inner = environments.unwrapped
    singles = _find_holders(inner.envs) if isinstance(inner, SyncVectorEnv) else []
    return [*singles, *_of_stack(environments, _BATCH)]


def _put(
    holders: Sequence[_Holder], statistics: Mapping[str, Array], *, frozen: bool, sources: Sequence[int] | None
) -> None:
    """Puts statistics into the layers that hold such; see :meth:`RunningStatistics.put`.

    Raises:
        ValueError: if a layer's are lacking, or there are some that no layer holds.
    """
    for name in statistics:
        if not name.rpartition(".")[0]:
            raise ValueError(f"statistics must be what Environments.statistics() returned, got the name {name!r}")
    given = {name.rpartition(".")[0] for name in statistics}
    indices = {int(where) for name in given if (where := name.partition("/")[0]) != _BATCH}
    order = sorted(indices) if sources is None else list(sources)
    wanted: list[str] = []
    for holder in holders:
        wheres = [_BATCH]
        if holder.where != _BATCH and order:
            wheres.insert(0, str(order[int(holder.where) % len(order)]))
        found = next((where for where in wheres if given >= set(holder.names(where))), None)
        if found is None:
            raise ValueError(
                f"statistics lack those of {holder.kind}, which these environments hold and would start afresh; give "
                f"what Environments.statistics() returned where the policy learned"
            )
        wanted.append(found)
    here = {name.partition("/")[2] for holder in holders for name in holder.names()}
    if lost := sorted({name.partition("/")[2] for name in given} - here):
        raise ValueError(
            f"statistics are of {', '.join(lost)}, and these environments hold no such: a policy that learned under "
            f"them would see other numbers here; wrap the environments as they were"
        )
    for holder, source in zip(holders, wanted, strict=True):
        holder.put(statistics, source, frozen=frozen)


def _of_stack(env: Any, where: str) -> list[_Holder]:
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper | VectorWrapper):
        layers.append(layers[-1].env)
    seen: Counter[str] = Counter()
    holders = []
    for layer in reversed(layers):
        if any(isinstance(value, RunningMeanStd) for value in vars(layer).values()):
            kind = type(layer).__name__
            seen[kind] += 1
            holders.append(_Holder(layer, where, kind if seen[kind] == 1 else f"{kind}#{seen[kind]}"))
    return holders
