"""What an agent has seen and done so far: the state of a policy where the true one is hidden."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Histories", "History", "history", "kept_history", "note_action", "note_observation"]


class History:
    """What was observed and done so far, ``h_t = (y_0, a_0, …, y_t)``, of a batch of trajectories.

    It is what :func:`history` returns, and what a policy is asked with where the state is hidden. Histories do not
    change: :meth:`then` returns a longer one, which knows the one that it came from. So a policy with a memory keeps
    what it made of each (:meth:`recall`), and one more step costs one more step.

    Args:
        observations: ``(n, *batch, *observation)``, or a sequence of such rows: one more than actions, or as many
            where nothing is seen before the first action.
        actions: ``(t, *batch, *action)``, likewise.
        batch_shape: of the trajectories; needed only where nothing has been seen or done.

    Raises:
        ValueError: if there are more observations than that, or fewer.

    Example:
        >>> seen = History(torch.tensor([[0, 1]])).then(torch.tensor([1, 1]), torch.tensor([1, 0]))
        >>> seen.observations.tolist(), seen.actions.tolist(), len(seen)
        ([[0, 1], [1, 0]], [[1, 1]], 1)
    """

    def __init__(
        self,
        observations: Tensor | Sequence[Tensor] = (),
        actions: Tensor | Sequence[Tensor] = (),
        batch_shape: Sequence[int] = (),
    ) -> None:
        for name, value in (("observations", observations), ("actions", actions), ("batch_shape", batch_shape)):
            if not isinstance(value, Tensor | Sequence) or isinstance(value, str):
                raise ValueError(f"History: {name} must be a sequence, got {value!r:.80}")
        if not all(isinstance(size, int) for size in batch_shape):
            raise ValueError(f"History: batch_shape must be integers, got {batch_shape!r:.80}")
        seen, done = tuple(observations), tuple(actions)
        if not 0 <= len(seen) - len(done) <= 1:
            raise ValueError(
                f"observations must be as many as actions or one more, got {len(seen)} and {len(done)}; "
                f"History(...).then(action, None) is of a step that nothing was seen after"
            )
        self.action: Tensor | None = None
        """The latest action, ``(*batch, *action)``; None before the first."""
        self.observation: Tensor | None = None
        """What was seen after it, ``(*batch, *observation)``; None for nothing."""
        self.batch_shape = torch.Size(batch_shape)
        """As it was given, of a batch of which nothing is known yet; else ``()``."""
        self._previous: History | None = None
        self._length = 0
        self._memories: dict[Any, Any] = {}
        if done or seen:
            last: History = History(batch_shape=batch_shape)
            if len(seen) > len(done):
                last, seen = last.then(None, seen[0]), seen[1:]
            for action, after in zip(done, seen, strict=True):
                last = last.then(action, after)
            vars(self).update(vars(last))

    def __len__(self) -> int:
        """Returns the number of actions taken, ``t``."""
        return self._length

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"History({len(self._rows('observation'))} observations, {len(self)} actions)"

    def then(self, action: Tensor | None, observation: Tensor | None) -> History:
        """Returns the history after an action and what was seen after it.

        Args:
            action: ``(*batch, *action)``; None for what is seen before the first one.
            observation: ``(*batch, *observation)``; None for nothing.
        """
        longer = History()
        longer.action, longer.observation, longer._previous = action, observation, self
        longer._length = self._length + (action is not None)
        return longer

    @property
    def observations(self) -> Tensor:
        """All observations, ``(n, *batch, *observation)``; ``(0,)`` while there are none."""
        return _stacked(self._rows("observation"))

    @property
    def actions(self) -> Tensor:
        """All actions, ``(t, *batch, *action)``; ``(0,)`` while there are none."""
        return _stacked(self._rows("action"))

    @property
    def latest(self) -> Tensor | None:
        """What was seen last, whenever that was, ``(*batch, *observation)``; None if nothing was."""
        return next((one.observation for one in self._line() if one.observation is not None), None)

    @property
    def observed_first(self) -> bool:
        """Whether something was seen before the first action."""
        return self.prefixes()[0].observation is not None

    def _line(self) -> Iterator[History]:
        here: History | None = self
        while here is not None:
            yield here
            here = here._previous

    def _rows(self, name: str) -> list[Tensor]:
        return [value for one in self._line() if (value := getattr(one, name)) is not None][::-1]

    def prefixes(self) -> list[History]:
        """Returns the histories before each action, and this one: ``h_0 … h_t``."""
        before: dict[int, History] = {}
        for one in self._line():
            before.setdefault(len(one), one)
        return [before[t] for t in range(len(self) + 1)]

    def recall(
        self,
        key: Any,
        start: Callable[[Tensor | None], Any],
        move: Callable[[Any, Tensor, Tensor | None], Any],
    ) -> Any:
        """Returns a memory of this history, made from that of the one before, and kept with it.

        Args:
            key: whose memory it is, with all that it depends on besides.
            start: from what was seen before the first action (None for nothing) to a memory.
            move: from a memory, an action and what was seen after it (None for nothing) to the next.
        """
        line: list[History] = []
        for one in self._line():
            if key in one._memories:
                break
            line.append(one)
        for one in reversed(line):
            before = one._previous
            if before is None:  # before anything was seen
                continue
            if one.action is None:
                one._memories[key] = start(one.observation)
            else:
                memory = before._memories[key] if key in before._memories else start(None)
                one._memories[key] = move(memory, one.action, one.observation)
        return self._memories[key] if key in self._memories else start(None)

    def select(self, index: Any) -> History:
        """Returns the histories at ``index`` of the batch's first dimension, with what is remembered of them."""
        chosen = History(batch_shape=torch.empty(self.batch_shape)[index].shape if self.batch_shape else ())
        for one in reversed(list(self._line())[:-1]):
            chosen = chosen.then(*(None if x is None else x[index] for x in (one.action, one.observation)))
            chosen._memories = {key: _map(memory, lambda x: x[index]) for key, memory in one._memories.items()}
        return chosen


class Histories:
    """The histories before each of ``T`` actions, as a policy is asked for all steps at once.

    Such a policy answers with one distribution of batch shape ``(T, N)``; see :class:`rl_as_inference.nouns.Policy`.

    Args:
        history: of all the steps.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def __len__(self) -> int:
        return len(self.history)

    def __iter__(self) -> Iterator[History]:
        return iter(self.history.prefixes()[: len(self)])


def _map(memory: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if not isinstance(memory, tuple):
        return change(memory)
    changed = [change(x) for x in memory]
    return tuple(changed) if type(memory) is tuple else type(memory)(*changed)  # of a NamedTuple, one again


def _stacked(rows: list[Tensor]) -> Tensor:
    if not rows:
        return torch.empty(0)
    # Enumerated sites stand to the left, with dimensions of their own.
    most = max(row.dim() for row in rows)
    return torch.stack(torch.broadcast_tensors(*(row.reshape((1,) * (most - row.dim()) + row.shape) for row in rows)))


class _Loop:
    """The history of one run of :func:`rl_as_inference.steps`."""

    def __init__(self) -> None:
        self.so_far = History()
        self.action: Tensor | None = None  # that nothing was seen after, as yet

    def history(self) -> History:
        return self.so_far if self.action is None else self.so_far.then(self.action, None)


class _Loops(threading.local):
    def __init__(self) -> None:
        self.running: list[_Loop] = []


_LOOPS = _Loops()


@contextlib.contextmanager
def kept_history() -> Iterator[None]:
    """Keeps the history of a loop that runs inside."""
    loop = _Loop()
    _LOOPS.running.append(loop)
    try:
        yield
    finally:  # of a loop left by an exception, not before its frame is gone, and others may have come since
        _LOOPS.running = [one for one in _LOOPS.running if one is not loop]


def history() -> History:
    """Returns what was observed and done so far in the running :func:`rl_as_inference.steps`.

    To be given to :func:`rl_as_inference.act` as its state, where the agent does not see the true one.

    Raises:
        ValueError: outside of ``steps``.

    Example:
        >>> import pyro.distributions as dist
        >>> from rl_as_inference.program import act, observe, steps
        >>> for t in steps(2):
        ...     _ = observe(f"observation_{t}", dist.Bernoulli(0.5))
        ...     print(history())
        ...     _ = act(f"action_{t}", history(), dist.Bernoulli(0.5))
        History(1 observations, 0 actions)
        History(2 observations, 1 actions)
    """
    return _running("history()").history()


def note_observation(name: str, value: Tensor) -> None:
    """Adds what was observed to the running loop's history.

    Raises:
        ValueError: outside of ``steps``, or for a second observation without an action in between.
    """
    loop = _running(f"observe({name!r})")
    if loop.action is None and (len(loop.so_far) or loop.so_far.observation is not None):
        raise ValueError(
            f"observe({name!r}) is a second observation before the next action; make both one site with .to_event(1)"
        )
    loop.so_far, loop.action = loop.so_far.then(loop.action, value), None


def note_action(value: Tensor) -> None:
    """Adds an action to the running loop's history, if a loop runs."""
    if _LOOPS.running:
        loop = _LOOPS.running[-1]
        loop.so_far, loop.action = loop.history(), value


def _running(what: str) -> _Loop:
    if not _LOOPS.running:
        raise ValueError(
            f"{what} outside of steps(): what an agent has seen is kept by the loop; call it inside "
            f"`for t in rlai.steps(horizon):`"
        )
    return _LOOPS.running[-1]
