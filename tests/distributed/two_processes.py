"""Two real processes as the ranks of a job, forked from the server of :mod:`apart`, each running functions by name."""

import importlib
import inspect
import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import apart

_context = multiprocessing.get_context("forkserver")


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(module: str, names: list[str], folder: Path, size: int = 2, **options: Any) -> list[BaseProcess]:
    """Starts the ranks; each writes what the functions return to ``FOLDER/RANK.json``, or how they failed."""
    apart._begin_server()
    port, here = free_port(), str(Path(__file__).parent)
    processes = [
        _context.Process(
            target=_run, args=(rank, size, port, here, module, names, folder, {"folder": str(folder), **options})
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def start_rlai(words: list[list[str]], folder: Path) -> list[BaseProcess]:
    """Starts ``rlai`` as the ranks of a job, each with words of its own; output is in ``FOLDER/RANK.out``, ``.err``."""
    apart._begin_server()
    port = free_port()
    processes = [
        _context.Process(target=_run_rlai, args=(rank, len(words), port, folder, each))
        for rank, each in enumerate(words)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[BaseProcess], folder: Path, within: float = 120.0) -> list[apart.Ended]:
    """Waits for commands."""
    end = time.monotonic() + within
    found = []
    for rank, process in enumerate(processes):
        process.join(max(end - time.monotonic(), 0.1))
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = ((folder / f"{rank}.{name}").read_text() for name in ("out", "err"))
        found.append(apart.Ended(process.exitcode or 0, out, err))
    return found


def _run_rlai(rank: int, size: int, port: int, folder: Path, words: list[str]) -> None:
    _be_rank(rank, size, port)
    (folder / f"{rank}.out").unlink(missing_ok=True)
    (folder / f"{rank}.err").unlink(missing_ok=True)
    apart._run(words, [folder / f"{rank}.out", folder / f"{rank}.err"], folder / f"begun-{rank}", "utf-8")


def _be_rank(rank: int, size: int, port: int) -> None:
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({key: str(value) for key, value in local.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def results(processes: list[BaseProcess], folder: Path, within: float = 120.0) -> list[dict[str, Any]]:
    """Waits for the ranks, and returns what each wrote."""
    end = time.monotonic() + within
    for process in processes:
        process.join(max(end - time.monotonic(), 0.1))
        if process.exitcode is None:
            process.kill()
    files = [folder / f"{rank}.json" for rank in range(len(processes))]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def _run(
    rank: int, size: int, port: int, here: str, module: str, names: list[str], folder: Path, options: dict[str, Any]
) -> None:
    _be_rank(rank, size, port)
    sys.path.insert(0, here)
    checks, found = importlib.import_module(module), {}
    for name in names:
        began = time.process_time()
        try:
            found[name] = _called(getattr(checks, name), options)
        except BaseException as error:
            found[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        found[f"{name} seconds"] = time.process_time() - began  # of this process, however busy the machine
        (folder / f"{rank}.json").write_text(json.dumps(found))


def _called(check: Any, options: dict[str, Any]) -> Any:
    return check(**{name: value for name, value in options.items() if name in inspect.signature(check).parameters})
