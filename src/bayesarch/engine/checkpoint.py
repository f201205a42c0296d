"""Checkpoints: one safetensors file of tensors and a JSON header, written atomically, loaded without unpickling."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bayesarch.errors import CheckpointError
from bayesarch.runs import write_atomically

__all__ = ["CHECKPOINT_FORMAT", "load_checkpoint", "pack", "save_checkpoint", "unpack"]

CHECKPOINT_FORMAT = 1

T = TypeVar("T")


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: where.
        tensors: by name; copied to the CPU.
        header: JSON-ready values.

    Raises:
        RunError: if it cannot be written.
    """
    record = json.dumps({"format": CHECKPOINT_FORMAT, **header}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={"bayesarch": record}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint's tensors (on the CPU) and header.

    Raises:
        CheckpointError: if it is missing, damaged or of another version.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})["bayesarch"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of ours ({error}); delete it to start this run from the beginning"
        ) from None
    if header.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')!r}, this bayesarch reads {CHECKPOINT_FORMAT}"
        )
    return tensors, header


def pack(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON-ready values of a state (a dataclass)."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        else:
            values[field.name] = value
    return tensors, values


def unpack(kind: type[T], tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, device: Any) -> T:
    """Return the state that `pack` took apart; `live` stays on the CPU, other tensors go to `device`.

    Raises:
        CheckpointError: if a field is missing.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in tensors:
            tensor = tensors[field.name]
            fields[field.name] = tensor if field.name == "live" else tensor.to(device)
        elif field.name in values:
            value = values[field.name]
            fields[field.name] = tuple(value) if isinstance(value, list) else value
        else:
            raise CheckpointError(f"the checkpoint has no {field.name!r} of {kind.__name__}; it is of another version")
    return kind(**fields)
