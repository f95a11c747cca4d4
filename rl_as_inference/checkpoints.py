"""Checkpoints: tensors and JSON in one safetensors file; loading one never runs code."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

__all__ = ["load_policy", "save_policy"]

_FORMAT = "rl-as-inference policy 1"


def save_policy(policy: nn.Module, path: str | Path, **notes: Any) -> None:
    """Writes a policy's tensors, and notes that JSON can hold, to ``path``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    metadata = {"format": _FORMAT, "policy": type(policy).__name__, "notes": notes}
    # One entry, as safetensors writes several in no fixed order: the same policy is the same file.
    safetensors.torch.save_file(tensors, str(path), metadata={"rlai": json.dumps(metadata, sort_keys=True)})


def load_policy(policy: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fills ``policy`` with the tensors at ``path``, and returns the notes saved with them.

    Raises:
        ValueError: if there is no such file, it is damaged or not a policy's, or its tensors do not
            fit; the policy is then as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("rlai", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"path: {str(path)!r} is not a readable checkpoint: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"path: {str(path)!r} holds tensors, but no policy written by save_policy")
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(
            f"path: {str(path)!r} holds a {metadata['policy']} that does not fit this {type(policy).__name__}: "
            f"{wrong[0]!r} has shape {found.get(wrong[0])}, wanted {expected.get(wrong[0])}"
        )
    policy.load_state_dict(tensors)
    notes: dict[str, Any] = metadata["notes"]
    return notes
