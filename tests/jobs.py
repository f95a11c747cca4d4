"""Jobs of several ranks, as ``torchrun`` starts them, whose processes begin at once."""

import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from apart import _begin_server, _context


def job(size: int, function: Callable[..., Any], *arguments: Any, within: float = 120.0) -> list[Any]:
    """Returns what a function returns on each rank of a job, or the exception that it raised there.

    Args:
        size: the number of ranks.
        function: of a module, as processes find it by its name.
        *arguments: of the function; where there is a list of ``size``, each rank has its own.
        within: seconds until it is given up.
    """
    _begin_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends, processes = [], []
    for rank in range(size):
        ours, theirs = _context.Pipe(duplex=False)
        own = [each[rank] if isinstance(each, list) and len(each) == size else each for each in arguments]
        processes.append(_context.Process(target=_run, args=(theirs, rank, size, port, function, own), daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    answers = []
    for rank, end in enumerate(ends):
        assert end.poll(within), f"rank {rank} of {size} goes on and on"
        answers.append(end.recv())
    for process in processes:
        process.join(within)
    return answers


def _run(end: Connection, rank: int, size: int, port: int, function: Callable[..., Any], arguments: list[Any]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
    end.send(answer)
