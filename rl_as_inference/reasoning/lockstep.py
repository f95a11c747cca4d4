"""Several sequential programs run in turn, so that what they ask for can be computed for all of them at once."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from rl_as_inference.randomness import RandomStream

__all__ = ["lockstep"]

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def lockstep(
    programs: Sequence[Callable[[Callable[[Question], Answer]], Result]],
    answer: Callable[[list[Question]], Sequence[Answer]],
    seeds: Sequence[int],
) -> list[Result]:
    """Returns the results of programs that ask questions on their way, the questions of all answered together.

    Each program is called with a function ``ask``. When all that have not ended wait for an answer, the caller's
    thread computes theirs. The programs are written as if they ran alone: each has a thread, but one thread runs at a
    time, in a fixed order, so that what is global (Pyro's handlers, switches of PyTorch) need not be guarded, provided
    that a program leaves it at each question as it found it. It is the caller's turn meanwhile
    (:class:`rl_as_inference.turns.Turn`), for which no program may ask. PyTorch's random numbers come to each program
    from a stream of its own, so that they depend on its seed alone, and not on how many questions the others ask.

    Args:
        programs: callables of ``ask(question) -> answer``.
        answer: gives the answers to the questions of those that have not ended, in the programs' order.
        seeds: of the programs' random numbers, one each. The caller's own stream is left as it was by the programs.

    Raises:
        BaseException: what the first program, or ``answer``, or an interruption raised. No thread outlives the call:
            where the others wait they are ended, by an exception that is no :class:`Exception`.

    Example:
        >>> def walk(steps):
        ...     return lambda ask: [ask(step) for step in range(steps)]
        >>> lockstep([walk(1), walk(3)], lambda numbers: [(number, len(numbers)) for number in numbers], [0, 1])
        [[(0, 2)], [(0, 2), (1, 1), (2, 1)]]
    """
    runs: list[_Coroutine[Any, Any, Any]] = [
        _Coroutine(program, seed) for program, seed in zip(programs, seeds, strict=True)
    ]
    try:
        live = runs
        while True:
            for run in live:
                run.go_on()
            live = [run for run in live if not run.ended]
            if not live:
                return [run.result for run in runs]
            for run, reply in zip(live, answer([run.question for run in live]), strict=True):
                run.reply = reply
    finally:
        for run in runs:
            run.end()


class _Ended(BaseException):
    """Ends a program that waits for an answer which will not come; not an Exception, which it might catch."""


class _Coroutine(Generic[Question, Answer, Result]):
    """One program and its thread, which runs while the caller waits and waits while the caller runs."""

    question: Question
    reply: Answer
    result: Result

    def __init__(self, program: Callable[[Callable[[Question], Answer]], Result], seed: int) -> None:
        self.ended = False
        self._program = program
        self._random = RandomStream(seed)
        self._failure: BaseException | None = None
        self._ending = False
        # Both are held by nobody; each side releases the other's and acquires its own.
        self._its_turn, self._callers_turn = threading.Semaphore(0), threading.Semaphore(0)
        # A daemon, so that a second interruption while it is being ended cannot keep the interpreter from closing.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self) -> None:
        """Lets the program run until it asks, or has ended; raises what it raised."""
        with self._random:
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._its_turn.release()
            self._callers_turn.acquire()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Ends the program where it waits, or where it next asks if the caller was interrupted while it ran."""
        if self._thread.ident is not None and not self.ended:
            self._ending = True
            self._its_turn.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self.result = self._program(self._ask)
        except _Ended:
            pass
        except BaseException as failure:  # raised where the caller is
            self._failure = failure
        self.ended = True
        self._callers_turn.release()

    def _ask(self, question: Question) -> Answer:
        if not self._ending:
            self.question = question
            self._callers_turn.release()
            self._its_turn.acquire()
        if self._ending:
            raise _Ended
        return self.reply
