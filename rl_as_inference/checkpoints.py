"""Checkpoints: tensors and JSON in one safetensors file; loading one never runs code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rl_as_inference.whole_files import written_whole

__all__ = [
    "StoredTensors",
    "copy_rows",
    "load_policy",
    "load_tensors",
    "open_tensors",
    "outline",
    "save_policy",
    "save_tensors",
    "under",
]

_FORMAT = "rl-as-inference policy 1"

_BLOCK = 2**22
"""Bytes that are read, or looked at, at a time."""

_LONGEST_HEADER = 100_000_000
"""Bytes, as in safetensors itself."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Writes tensors and a record that JSON can hold to ``path``: the whole file, or nothing.

    Raises:
        ValueError: if the file cannot be written.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    # One entry, as safetensors writes several in no fixed order: the same content is the same file.
    metadata = {"rlai": json.dumps({"record": text, "sha256": _checksum(held, text)})}
    try:
        with written_whole(path) as temporary:
            safetensors.torch.save_file(held, str(temporary), metadata=metadata)
    except safetensors.SafetensorError as error:
        raise ValueError(f"path: cannot write {str(path)!r}: {error}") from error


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors at ``path``, on the host, and the record saved with them.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    stored, record = open_tensors(path)
    return dict(stored), record


def open_tensors(path: str | Path) -> tuple[StoredTensors, dict[str, Any]]:
    """Returns the tensors at ``path``, each of which is read when it is asked for, and the record saved with them.

    The whole file is looked through here, block by block.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    try:
        # One handle for all that is read: while a run goes on another file may take the path at any time.
        file = path.open("rb", buffering=0)
        try:
            places, told = _header(file)
        except BaseException:
            file.close()
            raise
        stored = StoredTensors(file, places)
        record = json.loads(told.get("rlai", "{}"))
        if isinstance(record, dict) and {"sha256", "record"} & record.keys():  # those of other makers have neither
            if record["sha256"] != stored.checksum(record["record"]):
                raise ValueError("its content is not what was saved")
            record = json.loads(record["record"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"path: {str(path)!r} is not a readable checkpoint: {error}") from error
    return stored, record if isinstance(record, dict) else {}


class _Place(NamedTuple):
    """Where a tensor stands in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for; :meth:`read_into` needs no second copy."""

    def __init__(self, file: io.RawIOBase, places: Mapping[str, _Place], owner: StoredTensors | None = None) -> None:
        self._file, self._places, self._owner = file, dict(places), owner
        if owner is None:
            weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._read(place.begin, _bytes_of(tensor))
        return tensor

    def outline(self, name: str) -> Tensor:
        """Returns a tensor of the same shape and dtype without values, for which nothing is read."""
        return torch.empty(self._places[name].shape, dtype=self._places[name].dtype, device="meta")

    def under(self, prefix: str) -> StoredTensors:
        """Returns those whose names begin with ``prefix``, by what follows it."""
        places = {n.removeprefix(prefix): place for n, place in self._places.items() if n.startswith(prefix)}
        return StoredTensors(self._file, places, self)

    def read_into(self, name: str, targets: Iterable[Tensor]) -> None:
        """Reads a tensor's rows ``tensor[0], tensor[1], …`` into tensors of their shape, of any dtype and device."""
        place, begin = self._places[name], self._places[name].begin
        for target in targets:
            if target.dtype == place.dtype and target.device.type == "cpu" and target.is_contiguous():
                begin = self._read(begin, _bytes_of(target))
                continue
            for part in target.split(max(1, _BLOCK // max(1, target[:1].numel() * place.dtype.itemsize))):
                held = torch.empty(part.shape, dtype=place.dtype)
                begin = self._read(begin, _bytes_of(held))
                part.copy_(held)

    def checksum(self, text: str) -> str:
        """Returns the SHA-256 of the tensors and the text saved with them."""
        digest, block = hashlib.sha256(text.encode()), bytearray(_BLOCK)
        for name, (dtype, shape, begin, end) in sorted(self._places.items()):
            digest.update(f"{name} {dtype} {shape}".encode())
            while begin < end:
                part = memoryview(block)[: min(_BLOCK, end - begin)]
                begin = self._read(begin, part)
                digest.update(part)
        return digest.hexdigest()

    def _read(self, begin: int, target: memoryview) -> int:
        """Fills ``target`` from the file, and returns where the file goes on."""
        self._file.seek(begin)
        filled = 0
        while filled < len(target):
            count = self._file.readinto(target[filled : filled + _BLOCK])
            if not count:
                raise ValueError("it ends too early")
            filled += count
        return begin + len(target)


def under(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Returns the tensors whose names begin with ``prefix``, by what follows it; stored ones are not read for it."""
    if isinstance(tensors, StoredTensors):
        return tensors.under(prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def outline(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns one of the tensors for its shape and dtype; a stored one is not read for it, and is without values."""
    return tensors.outline(name) if isinstance(tensors, StoredTensors) else tensors[name]


def copy_rows(tensors: Mapping[str, Tensor], name: str, targets: Sequence[Tensor]) -> None:
    """Copies the rows of one of the tensors into as many targets; those of a stored one are read into place."""
    if isinstance(tensors, StoredTensors):
        tensors.read_into(name, targets)
        return
    for target, row in zip(targets, tensors[name], strict=True):
        target.copy_(row)


def _header(file: io.RawIOBase) -> tuple[dict[str, _Place], dict[str, str]]:
    """Returns where the tensors of a safetensors file stand, and the strings that it has beside them."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8) or b"", "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError("it is no safetensors file")
    header = json.loads(file.read(length) or b"")
    told = header.pop("__metadata__", {})
    places: dict[str, _Place] = {}
    start = end = 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, after = (start + int(offset) for offset in entry["data_offsets"])
        whole = all(isinstance(number, int) and number >= 0 for number in shape)
        if not whole or begin != end or after - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its header does not say where {name!r} stands")
        places[name], end = _Place(dtype, shape, begin, after), after
    if end != size:
        raise ValueError(f"it has {size} bytes, and its header tells of {end}")
    return places, told


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of tensors and the text saved with them: safetensors notices no damage inside tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.stride(-1) != 1 if tensor.dim() else False:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def save_policy(policy: nn.Module, path: str | Path, **notes: Any) -> None:
    """Writes a policy's tensors, and notes that JSON can hold, to ``path``."""
    record = {"format": _FORMAT, "policy": type(policy).__name__, "notes": notes}
    save_tensors(path, policy.state_dict(), record)


def load_policy(policy: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fills ``policy`` with the tensors at ``path``, and returns the notes saved with them.

    Raises:
        ValueError: if there is no such file, it is damaged or not a policy's, or its tensors do not
            fit; the policy is then as it was.
    """
    tensors, record = load_tensors(path)
    path = str(path)
    if record.get("format") != _FORMAT:
        raise ValueError(f"path: {path!r} holds tensors, but no policy written by save_policy")
    if not isinstance(notes := record.get("notes"), dict):
        raise ValueError(f"path: {path!r} lacks notes, so save_policy did not write it as it is")
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(
            f"path: {path!r} holds a {record.get('policy')} that does not fit this {type(policy).__name__}: "
            f"{wrong[0]!r} has shape {found.get(wrong[0])}, wanted {expected.get(wrong[0])}"
        )
    policy.load_state_dict(tensors)
    return notes
