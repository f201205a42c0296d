"""Networks of a compression on disk: weights that a user brings, what a round has left."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bayesarch.errors import ConfigError
from bayesarch.runs import write_atomically

__all__ = ["load_weights", "read_state", "write_state"]


def load_weights(net: nn.Module, path: str) -> None:
    """Fill a network.

    Raises:
        ConfigError: if there is no such file, or it is not this network's.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"compress.weights: no file {path}")
    try:
        state: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        net.load_state_dict(state.get("state_dict", state))
    except Exception as error:  # whatever another program wrote
        raise ConfigError(f"compress.weights: {path} does not fill this network: {error}") from None


def write_state(path: Path, net: nn.Module, keep: Tensor | None = None, known: Tensor | None = None) -> None:
    """Write a network's tensors, which units it has, and what masks have learned, whole or not at all."""
    prefix = "" if keep is None else "net/"
    state = {f"{prefix}{name}": tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if keep is not None:
        state["keep"] = keep.to(torch.uint8)
    if known is not None:
        state["known"] = known
    write_atomically(path, safetensors.torch.save(state))


def read_state(path: Path) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Return what `write_state` wrote of a network whose units it was told: tensors, units, what masks have learned."""
    state = safetensors.torch.load_file(path)
    keep, known = state.pop("keep").bool(), state.pop("known", None)
    return {name.removeprefix("net/"): tensor for name, tensor in state.items()}, keep, known
