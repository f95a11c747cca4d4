"""Several processes that do one computation together: the ranks of a ``torchrun`` job.

Data parallelism by ``torch.distributed``: gloo between CPUs, NCCL between GPUs, one rank a GPU. Every rank runs the
program on its share of the draws; what belongs to all is summed.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.process_groups import JOB, add_up, exchanged, is_started_by_torchrun, words_to_type
from rl_as_inference.randomness import forked, seeded
from rl_as_inference.stops import asked_to_stop, stoppable
from rl_as_inference.whole_files import Owner

__all__ = ["ALONE", "RankError", "Ranks", "joined", "present", "stay_joined"]

T = TypeVar("T")

_TOLD_WITHIN = 10.0
"""Seconds in which ranks that others wait for say that they are there, or are taken for dead."""


class RankError(ConnectionError):
    """Another rank has ended, or let this one wait for ``RLAI_RANK_SECONDS``; ``ranks`` says which, if known."""

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class Ranks:
    """The ranks of a job, as one of them sees it; a process that stands alone is the only rank of one.

    Every method but ``share``, ``bounds`` and ``seed`` must be called by all ranks, in the same order.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        owners: their processes.
        draws_apart: whether :meth:`own_stream` is entered.
        alike: a policy that all ranks hold alike and ask together, :func:`rl_as_inference.sharing.held_alike`.

    Example:
        >>> alone = Ranks()
        >>> alone.size, alone.share(256), alone.sum(torch.tensor(2.0))
        (1, 256, tensor(2.))
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.owners: tuple[Owner, ...] = (Owner.here(),)
        self.draws_apart = False
        self.alike: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's own GPU where each rank of its machine has one, else the CPU."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if (
            torch.cuda.is_available()
            and int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) <= torch.cuda.device_count()
        ):
            return torch.device("cuda", local)
        return torch.device("cpu")

    # What needs no other rank.

    def share(self, number: int, name: str = "num_trajectories") -> int:
        """Returns this rank's part of ``number`` draws; the first ranks take what is left over.

        Raises:
            ValueError: on every rank, if there would be ranks without any.
        """
        if number < self.size:
            raise ValueError(
                f"{name} must be >= {self.size}, one for each rank, got {number}; ask for more, or start fewer ranks"
            )
        begin, end = self.bounds(number)
        return end - begin

    def bounds(self, number: int) -> tuple[int, int]:
        """Returns where this rank's part of ``number`` draws begins and ends among those of all."""
        each, more = divmod(number, self.size)
        begin = self.rank * each + min(self.rank, more)
        return begin, begin + each + (self.rank < more)

    def seed(self, seed: int) -> int:
        """Returns the seed of this rank's own stream: of rank 0 the seed itself.

        Example:
            >>> Ranks(0, 2).seed(7), Ranks(1, 2).seed(7) == 7
            (7, False)
        """
        if not self.rank:
            return seed
        return int.from_bytes(hashlib.sha256(f"rank {self.rank} of {seed}".encode()).digest()[:7], "little")

    # What all ranks do together.

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of all ranks' tensors of one shape, bit for bit the same on each; no gradient passes."""
        if self.size == 1:
            return tensor.detach()
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._together(lambda: add_up(total))
        return total

    def add_up(self, tensor: Tensor) -> None:
        """Sums all ranks' tensors of one shape in place."""
        if self.size > 1:
            self._together(lambda: add_up(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean of all ranks' tensors of one shape, bit for bit the same on each; no gradient passes."""
        return self.sum(tensor) / self.size

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Returns all ranks' tensors, in their order; they may differ in the size of the first dimension alone."""
        if self.size == 1:
            return [tensor.detach()]
        own = tensor.detach().contiguous()
        sizes = self.gather_objects(len(own))
        of_all = self.exchange(own.repeat(self.size, *[1] * (own.dim() - 1)), [len(own)] * self.size, sizes)
        return list(of_all.split(sizes))

    def exchange(
        self, rows: Tensor, sent: list[int], received: list[int], meanwhile: Callable[[], None] | None = None
    ) -> Tensor:
        """Returns the rows that all ranks have for this one, :func:`rl_as_inference.process_groups.exchanged`."""
        return self._together(lambda: exchanged(rows, sent, received, meanwhile))

    def whole(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Returns all ranks' parts of a batch along ``dim``; a gradient passes to this rank's own part alone.

        So of a function of the whole batch each rank has the gradient of what it drew, and their sum is the
        gradient.
        """
        if self.size == 1:
            return tensor
        parts = [part.movedim(0, dim) for part in self.gather(tensor.movedim(dim, 0))]
        parts[self.rank] = tensor
        return torch.cat(parts, dim)

    def own(self, whole: Tensor, like: Tensor, dim: int = 0) -> Tensor:
        """Returns this rank's part of what :meth:`whole` returned, of as many rows as ``like``."""
        if self.size == 1:
            return whole
        sizes = self.gather_objects(like.shape[dim])
        return whole.narrow(dim, sum(sizes[: self.rank]), sizes[self.rank])

    def gather_objects(self, value: T) -> list[T]:
        """Returns all ranks' values, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._together(lambda: dist.all_gather_object(values, value))
        return values

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        self._together(lambda: dist.broadcast_object_list(values))
        return values[0]

    def broadcast_into(self, *tensors: Tensor) -> None:
        """Fills tensors with rank 0's."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    held = tensor.detach().contiguous()
                    self._together(lambda held=held: dist.broadcast(held, 0))  # type: ignore[misc]
                    tensor.copy_(held)

    def agree(self, name: str, value: Mapping[str, Any] | Any) -> None:
        """Checks that all ranks have the same value; texts of it are compared, and hashes where they are long.

        Args:
            name: what it is, with which an error begins.
            value: whose ``repr`` says what it is; of a mapping each item is compared.

        Raises:
            ValueError: on every rank, with what differs, and on which rank.
        """
        if self.size == 1:
            return
        items = value if isinstance(value, Mapping) else {"": value}
        told = {str(key): _told(each) for key, each in items.items()}
        everyone = self.gather_objects(told)
        for rank, other in enumerate(everyone[1:], 1):
            for key in dict.fromkeys((*everyone[0], *other)):
                first, second = everyone[0].get(key, "missing"), other.get(key, "missing")
                if first != second:
                    raise ValueError(
                        f"{name}: ranks must agree, and {key or 'it'} is {first} on rank 0 and {second} on rank "
                        f"{rank}; give every rank the same"
                    )

    def check_devices(self, device: torch.device) -> None:
        """Raises ValueError, on every rank, if two ranks of a machine use one GPU: NCCL needs one for each."""
        if self.size == 1:
            return
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        places = self.gather_objects((self.owners[self.rank].host, str(device), device.type == "cuda"))
        seen: dict[tuple[str, str], int] = {}
        for rank, (host, place, is_gpu) in enumerate(places):
            if is_gpu and (host, place) in seen:
                raise ValueError(
                    f"device: rank {rank} and rank {seen[host, place]} both use {place} on {host}; start no more ranks "
                    f"than there are GPUs, and give each its own, torch.device('cuda', LOCAL_RANK)"
                )
            seen[host, place] = rank

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Within it each rank draws other random numbers, rank 0 those that it would draw alone.

        Afterwards PyTorch's generator on the host stands on every rank where rank 0's does.
        """
        if self.size == 1 or self.draws_apart:
            yield
            return
        seed = self.seed(self.broadcast(forked().initial_seed()))
        self.draws_apart = True
        try:
            with seeded(seed) if self.rank else contextlib.nullcontext():
                yield
        finally:
            self.draws_apart = False
        torch.set_rng_state(self.broadcast(torch.get_rng_state()))
        if torch.cuda.is_available():
            torch.rand(())  # draws on a GPU have not moved it, and the next time is to be another

    @contextmanager
    def next_of_own_stream(self) -> Iterator[None]:
        """Within it each rank draws other random numbers, as in :meth:`own_stream` but without a word to the others.

        So PyTorch's generators of the ranks part, unless they already have.
        """
        if not self.rank or self.draws_apart:
            yield
            return
        with seeded(self.seed(forked().initial_seed())):
            yield
        torch.rand(())  # so that the next time is another

    # Endings.

    def _together(self, operation: Callable[[], T]) -> T:
        try:
            # A handler of the caller's, who may want to end a step first, stays.
            with stoppable() if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else contextlib.nullcontext():
                return operation()
        except RuntimeError as error:  # what gloo and NCCL say names an address at most
            raise self._ended() from error
        except KeyboardInterrupt as stop:  # of torchrun, perhaps, which has seen it too
            if dead := self.dead():
                raise self.error_of(dead) from stop
            raise

    def tell(self, error: BaseException) -> None:
        """Tells the other ranks why this one ends, which they find out from their next operation."""
        if self.size > 1 and not isinstance(error, RankError):
            with contextlib.suppress(Exception):
                JOB.keys().set(f"error/{self.rank}", f"{type(error).__name__}: {error}".rstrip(": ")[:500])

    def speaks_of(self, error: BaseException) -> bool:
        """Returns whether this rank is to say what ends the job: of those that end alike the first."""
        if self.size == 1:
            return True
        lost = isinstance(error, RankError) or (isinstance(error, KeyboardInterrupt) and bool(self.dead()))
        try:
            return int(JOB.keys().add(f"said/{'lost' if lost else 'failed'}", 1)) == 1
        except RuntimeError:  # the store has gone with rank 0
            return True

    def dead(self) -> tuple[int, ...]:
        """Returns the ranks on this machine whose process is no more."""
        return tuple(rank for rank, owner in enumerate(self.owners) if not owner.is_alive)

    def _ended(self) -> RankError:
        """Returns which rank has ended, as its own last words, its process, its silence, or another rank tell."""
        with asked_to_stop(afresh=True):  # torchrun, which saw it too, ends the others by SIGTERM
            silent: list[int] = []
            try:
                store = JOB.keys()
                store.set(f"here/{self.rank}", "")
                end = time.monotonic() + _TOLD_WITHIN
                while time.monotonic() < end:
                    for rank in range(self.size):
                        if rank != self.rank and store.check([f"error/{rank}"]):
                            return RankError(
                                self._said(rank, f"failed: {store.get(f'error/{rank}').decode()}"), (rank,)
                            )
                    if dead := self.dead():
                        return self.error_of(dead)
                    silent = [rank for rank in range(self.size) if not store.check([f"here/{rank}"])]
                    if not silent or store.check(["silent"]):
                        break
                    time.sleep(0.05)
                if silent:  # which the others hear of before the store goes, perhaps with this process
                    silent = [int(store.compare_set("silent", "", str(silent[0])))]
                    time.sleep(0.5)
            except RuntimeError:  # the store is of rank 0's process, where no torchrun keeps it
                if dead := self.dead():
                    return self.error_of(dead)
                return RankError(self._said(0, "is not to be reached"), (0,))
        if silent:
            return RankError(self._said(silent[0], "gives no sign: it hangs, or is not to be reached"), tuple(silent))
        return RankError("the connection between the ranks was lost")

    def error_of(self, dead: tuple[int, ...]) -> RankError:
        """Returns the error that ranks ended without a word."""
        return RankError(self._said(dead[0], "ended without a word (it was killed, or out of memory)"), dead)

    def _said(self, rank: int, what: str) -> str:
        owner = self.owners[rank]
        return f"rank {rank} of {self.size} (process {owner.pid} on {owner.host}) {what}"


ALONE = Ranks()
"""The ranks of a process that shares its work with no other."""


class _Met:
    now = ALONE
    """The ranks that are joined."""


@checked
@contextmanager
def joined(distributed: bool = True) -> Iterator[Ranks]:
    """Yields the ranks of the ``torchrun`` job that this process is of; not ``distributed``, itself alone.

    The process group is formed by whoever enters first and ended when that is left; one that the program made itself
    (``torch.distributed.init_process_group``) is used, and left as it is. Forming one takes hundredths of a second.

    A program may do so around all that its ranks do, to form the group once and to share what it draws itself:

    .. code-block:: python

        with rlai.joined() as ranks:
            policy = guides.amortized_policy(process)
            svi = SVI(program, follow(program, policy), optim, loss=TrajectoryELBO(distributed=True))
            for _ in range(1000):
                svi.step(ranks.share(4096))
            if ranks.is_first:
                save_policy(policy, "policy.safetensors")

    Args:
        distributed: whether to.

    Raises:
        ValueError: if this process is of no job; it says what to type.
        RankError: on leaving, in place of a signal to stop, if that came because another rank had died.

    Example:
        >>> with joined(False) as ranks:
        ...     ranks.rank, ranks.size
        (0, 1)
    """
    if not distributed:
        yield ALONE
        return
    opened = _join()
    ranks = _Met.now
    try:
        with stoppable():
            yield ranks
    except KeyboardInterrupt as stop:
        if dead := ranks.dead():
            raise ranks.error_of(dead) from stop
        if opened:
            ranks.tell(stop)
        raise
    except BaseException as error:
        if opened:  # a program whose own the group is may go on
            ranks.tell(error)
        raise
    finally:
        if opened:
            _leave()


def present() -> Ranks:
    """Returns the ranks that are joined now: this process alone, where none are."""
    return _Met.now


def stay_joined() -> Ranks:
    """Returns the ranks of the job, with a process group that stays until the program ends, or as the program made it.

    Raises:
        ValueError: as :func:`joined`.
    """
    if _join():
        atexit.register(_leave)
    return _Met.now


def _join() -> bool:
    """Returns whether a process group was formed for this."""
    opened = False
    if not dist.is_initialized():
        if not is_started_by_torchrun():
            raise ValueError(
                f"distributed: this process is no rank of a job, as torchrun starts them; type: {words_to_type()}"
            )
        if int(os.environ["WORLD_SIZE"]) == 1:
            _Met.now = ALONE
            return False
        JOB.open()
        opened = True
    if JOB.group is not dist.group.WORLD:
        JOB.meet(opened=opened)
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        ranks.owners = tuple(ranks.gather_objects(Owner.here()))
        _Met.now = ranks
    return opened


def _leave() -> None:
    JOB.leave()
    _Met.now = ALONE


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
