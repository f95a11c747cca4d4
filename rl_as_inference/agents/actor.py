"""An actor: a learner that does not learn, in a process of its own, and sends what it lives through."""

from __future__ import annotations

import copy
import os
import pickle
import queue
import random
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import cloudpickle
import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvCreator, EnvSpec, load_env_creator

from rl_as_inference.agents.actor_options import USUAL
from rl_as_inference.batch_norm import Told
from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.nursery import PATIENCE, waited_for

__all__ = ["Actor", "ActorTraceback", "Block", "Failure", "Made", "Making", "Turn", "making_of", "serve"]

Array = np.ndarray[Any, Any]


class Making(NamedTuple):
    """What an actor is made of."""

    learner: bytes
    """Pickled: the learner's class, what it was given to learn in, and its options."""
    paths: tuple[str, ...]
    """Where modules are looked for beside."""
    seed: int = 0


class Made(NamedTuple):
    """Where an actor is."""

    host: str
    pid: int


class Turn(NamedTuple):
    """What an actor is told to do next."""

    step: int
    """Of the learner, when it will take the first of these transitions."""
    stride: int
    """Steps of the learner for one of this actor."""
    num_steps: int
    version: int
    """Updates that the parameters have seen by which to act."""
    parameters: Mapping[str, Array] | None
    """These, where the actor has not got them yet."""


class Block(NamedTuple):
    """Successive transitions of an actor."""

    rows: Array
    """As replay holds them, ``(num_steps, width)``."""
    rewards: Array
    """``(num_steps,)`` float64, reward units."""
    version: int
    """Updates that the parameters had seen which acted."""


class Failure(NamedTuple):
    """An exception that was raised in an actor."""

    error: Exception
    text: str
    """Its traceback there."""
    files: tuple[str, ...]
    """Those of its frames."""

    def told(self, where: str) -> Exception:
        """Returns the exception, to be raised here, with where it arose."""
        self.error.__cause__ = ActorTraceback(self.text, self.files)
        self.error.add_note(f"in {where}")
        return self.error


class ActorTraceback(Exception):
    """The cause of an exception that was raised in an actor: its traceback there.

    Attributes:
        files: of its frames.
    """

    def __init__(self, text: str, files: tuple[str, ...]) -> None:
        super().__init__(f"\n{text}")
        self.files = files


def making_of(kind: type, source: EnvironmentLike, options: Mapping[str, Any]) -> Making | None:
    """Returns what actors of a learner are made of, but for their seeds; None where there are to be none.

    Args:
        kind: the learner's class.
        source: what it was given to learn in.
        options: its options, with their defaults.

    Raises:
        ValueError: if these cannot be sent to another process.
    """
    if options["num_actors"] is None:
        return None
    steps = options["actor_steps"]
    least = options["burn_in"] + options["sequence_length"] if options["memory"] is not None else 1
    own = {
        **options,
        **USUAL,
        "num_actors": None,
        "device": "cpu",
        "compile": False,
        "buffer_size": -(-least // steps) * steps,  # the latest transitions, in a row
        "priority_exponent": 0.0,
        "precision": "float32",
        "distributed": False,
        "reset_every": None,
    }
    modules = [module for name, module in sys.modules.items() if name != "__main__" and _is_nowhere(module)]
    try:
        with _by_value(modules):
            blob = cloudpickle.dumps((kind, _registered(source, modules), own))
    except Exception as error:  # whatever the user's objects raise
        raise ValueError(
            f"num_actors makes the environment again in other processes, and env cannot be sent there "
            f"({type(error).__name__}: {error}); pass its id, or a factory that opens what it needs by itself"
        ) from error
    folders = {str(Path(module.__file__ or "").resolve().parent) for module in modules}
    return Making(blob, (*sorted(folders), *(path for path in sys.path if path)))


def _registered(source: EnvironmentLike, modules: list[ModuleType]) -> EnvironmentLike:
    """Returns what an id stands for here, as another process need not have it in its registry."""
    if not isinstance(source, str | EnvSpec):
        return source
    spec = copy.deepcopy(gymnasium.spec(source) if isinstance(source, str) else source)
    if isinstance(spec.entry_point, str):
        module = spec.entry_point.partition(":")[0]
        if module in ("__main__", *(each.__name__ for each in modules)):
            spec.entry_point = cast("EnvCreator", load_env_creator(spec.entry_point))
    return spec


def _is_nowhere(module: Any) -> bool:
    """Whether another process cannot import a module, as one that is made of a problem's file."""
    return getattr(module, "__spec__", "") is None and isinstance(getattr(module, "__file__", None), str)


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


class Actor:
    """What runs in an actor's process, whatever brings it commands there."""

    def answer(self, command: str, argument: Any) -> Any:
        """Returns what a command, :meth:`make` or :meth:`act`, returns, or the failure that it ended in."""
        try:
            return getattr(self, command)(argument)
        except Exception as error:  # of the user's environment, which raises anything
            return _failure(error)

    def make(self, making: Making) -> Made:
        """Returns where this is, after making environment and policy."""
        torch.set_num_threads(1)
        sys.path += [path for path in making.paths if path not in sys.path]
        random.seed(making.seed)
        np.random.seed(making.seed)  # noqa: NPY002  (of users' environments, which may draw from it)
        torch.manual_seed(making.seed)
        kind, source, options = cloudpickle.loads(making.learner)
        self._learner = kind(source, **{**options, "seed": making.seed})
        self._loop = self._learner._loop
        # α, and the scale of rewards, are as the learner sends them; what an actor lives through tunes neither.
        self._loop.constraint = self._loop.scale = None
        self._loop.update.prepare_acting()
        self._version = 0
        return Made(socket.gethostname(), os.getpid())

    def act(self, turn: Turn) -> Block:
        """Returns the next transitions, of the policy told of last."""
        learner, loop = self._learner, self._loop
        rewards = np.empty(turn.num_steps)
        with learner._random, learner.threads(), torch.no_grad():
            if turn.parameters is not None:
                self._load(turn.parameters)
                self._version = turn.version
            for index in range(turn.num_steps):
                loop.ledger.num_steps = turn.step + index * turn.stride  # whether learning has started by then
                rewards[index] = loop.move().reward[0]
        loop.ledger.episodes.clear()
        end = int(loop.replay.position) or loop.replay.capacity
        rows = loop.replay.storage[0, end - turn.num_steps : end].numpy().copy()
        return Block(rows, rewards, self._version)

    def _load(self, parameters: Mapping[str, Array]) -> None:
        """Takes over what was learned; noise that is held is this actor's own."""
        own = [module for modules in self._learner.modules for module in [modules.get("noise")] if module is not None]
        noise = [module.value.clone() for module in own if isinstance(module, Told)]
        for name, values in parameters.items():
            self._loop.update.tensors[name][0].copy_(torch.from_numpy(values))
        for module, value in zip(own, noise, strict=True):
            assert isinstance(module, Told)
            module.value.copy_(value)

    def close(self) -> None:
        """Closes the environment."""
        if hasattr(self, "_learner"):
            self._learner.close()


def _failure(error: Exception) -> Failure:
    text = "".join(traceback.format_exception(error))
    files = tuple(frame.filename for frame in traceback.extract_tb(error.__traceback__))
    try:
        error = pickle.loads(pickle.dumps(error))  # some can be sent, and not be made again
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(error, text, files)


def serve(connection: Connection) -> None:
    """Runs an actor that is told what to do over a connection, until that is closed.

    Commands are read as they come, so that who sends them never waits for an environment's step.
    """
    commands: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
    parent, ended = os.getppid(), threading.Event()

    def read() -> None:
        try:
            while waited_for(connection, parent):
                commands.put(connection.recv())
        except (EOFError, OSError):
            pass
        commands.put(None)
        if not ended.wait(PATIENCE):  # inside a step, or closing
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    actor = Actor()
    try:
        while (command := commands.get()) is not None:
            connection.send(actor.answer(*command))
    except OSError:  # nobody listens any more
        pass
    actor.close()
    ended.set()
