"""Checkpoints: tensors and JSON in one safetensors file; loading one never runs code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rl_as_inference.whole_files import written_whole

__all__ = ["load_policy", "load_tensors", "save_policy", "save_tensors"]

_FORMAT = "rl-as-inference policy 1"


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
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    try:
        # Read at once: safetensors.safe_open opens a file twice, for its header and for its content, and while a run
        # goes on another file may take its place between.
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        record = json.loads(header.get("__metadata__", {}).get("rlai", "{}"))
        if isinstance(record, dict) and "sha256" in record:  # files of other makers, and older ones, have none
            if record["sha256"] != _checksum(tensors, record["record"]):
                raise ValueError("its content is not what was saved")
            record = json.loads(record["record"])
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path: {str(path)!r} is not a readable checkpoint: {error}") from error
    return tensors, record if isinstance(record, dict) else {}


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of tensors and the text saved with them: safetensors notices no damage inside tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))  # whatever its strides
        digest.update(flat.view(torch.uint8).numpy().tobytes())
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
