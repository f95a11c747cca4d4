"""What a fit that was stopped goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.checkpoints import open_tensors, save_tensors
from rl_as_inference.distributed import RankError, Ranks
from rl_as_inference.sharing import failing_together

__all__ = ["FitCheckpoint"]

_FORMAT = "rl-as-inference fit 1"
_EVERY = 4
"""Steps between those after which it may be written: an answer of exact messages serves so many."""


class FitCheckpoint:
    """A file with parameters, Adam's moments, the history and rank 0's random numbers, written every so many seconds.

    Rank 0 writes it and reads it, and tells the others; so any number of ranks may go on from it. Alone it goes on bit
    for bit; of several ranks those but the first draw other random numbers from there on.

    Args:
        path: of the file.
        ranks: that fit together.
        seconds: the longest time between two files.
        options: with which a fit must have begun to be gone on with.
        modules: that are trained, by name.
        optimizer: Adam, over all their parameters.
        history: of every step, ``(steps,)``.
    """

    def __init__(
        self,
        path: str | Path,
        ranks: Ranks,
        seconds: float,
        options: Mapping[str, Any],
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        history: Tensor,
    ) -> None:
        self.path, self.ranks, self.seconds, self.history = Path(path), ranks, seconds, history
        self.options = {name: repr(value) for name, value in options.items()}
        self.modules, self.optimizer = modules, optimizer
        self.step, self.saved_at = 0, time.monotonic()

    def resume(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> int:
        """Brings everything to where the file was written, if there is one; returns how many steps were taken.

        Raises:
            ValueError: on every rank, if the file is damaged, or of another fit.
        """
        with failing_together(self.ranks):
            found = self._read() if self.ranks.is_first and self.path.exists() else None
        found = self.ranks.broadcast(found)
        if found is None:
            return 0
        tensors, record = found
        for name, module in self.modules.items():
            module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, record["rates"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        schedule.load_state_dict({**schedule.state_dict(), **record["schedule"]})
        self.step = int(record["step"])
        self.history[: self.step] = tensors["history"]
        if self.ranks.is_first:
            torch.set_rng_state(tensors["random"])
        return self.step

    def keep(self, step: int, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Writes the file after so many steps, if the last is long ago."""
        if step % _EVERY or not self.ranks.is_first or time.monotonic() - self.saved_at < self.seconds:
            return
        tensors = {
            f"{name}.{key}": each for name, module in self.modules.items() for key, each in module.state_dict().items()
        }
        for index, held in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": torch.as_tensor(each) for key, each in held.items()}
        tensors |= {"history": self.history[:step], "random": torch.get_rng_state()}
        record = {
            "format": _FORMAT,
            "step": step,
            "options": self.options,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": {"last_epoch": schedule.last_epoch, "_step_count": schedule._step_count},
        }
        save_tensors(self.path, {name: each.detach().contiguous() for name, each in tensors.items()}, record)
        self.step, self.saved_at = step, time.monotonic()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Says in a note to whatever ends the fit where to go on from."""
        try:
            yield
        except (RankError, KeyboardInterrupt) as error:
            self._note(error)
            raise

    def _note(self, error: BaseException) -> None:
        where = f"go on from {self.path}" if self.path.exists() else f"nothing is kept yet at {self.path}; begin again"
        error.add_note(f"{where}, with any number of ranks" if self.ranks.size > 1 else where)

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, record = open_tensors(self.path)
        if record.get("format") != _FORMAT or not isinstance(record.get("options"), dict):
            raise ValueError(f"checkpoint: {str(self.path)!r} was not written by a fit; name another file")
        for name in dict.fromkeys((*self.options, *record["options"])):
            before, now = record["options"].get(name), self.options.get(name)
            if before != now:
                raise ValueError(
                    f"checkpoint: the fit in {str(self.path)!r} has {name}={before}, and this has {now}; remove the "
                    f"file, or go on with the same"
                )
        held = {name: tensors[name] for name in tensors}
        if lacking := self._names() - held.keys():
            raise ValueError(f"checkpoint: {str(self.path)!r} lacks {sorted(lacking)[0]}; it is of another fit")
        return held, record

    def _names(self) -> set[str]:
        own: Sequence[str] = [f"{name}.{key}" for name, module in self.modules.items() for key in module.state_dict()]
        return {*own, "history", "random"}
