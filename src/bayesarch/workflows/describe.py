"""`show ARCHITECTURE`: what an architecture is and costs, without a run."""

from typing import Any

from bayesarch.errors import ConfigError
from bayesarch.nets import architecture_cost, tidy_sizes
from bayesarch.spaces import Architecture, Space

__all__ = ["describe"]


def describe(text: str, *, space: str | Space, input_shape: str, classes: int) -> dict[str, Any]:
    """Return notation, canonical form, inactive choices, parameters and MACs of an architecture.

    Args:
        text: the space's notation, or JSON.
        space: the space or its name.
        input_shape: `channels,height,width`.
        classes: number of classes.

    Raises:
        SpaceError: if the architecture is not of the space; names the choice and the nearest option.
        ConfigError: if the input shape or the number of classes makes no network.
    """
    arch = Architecture.parse(text, space)
    parts = input_shape.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--input-shape is channels,height,width such as 3,32,32; got {input_shape!r}")
    channels, height, width = (int(part) for part in parts)
    shape = (channels, height, width)
    cost = architecture_cost(arch, sizes=tidy_sizes(arch.space, None), input_shape=shape, classes=classes)
    return {
        "architecture": str(arch),
        "canonical": arch.canonical,
        "digest": arch.digest,
        "inactive": [arch.space.choices[position].name for position in sorted(arch.inactive)],
        "connected": arch.connected,
        "params": cost.params,
        "macs": cost.macs,
        "input_shape": list(shape),
        "classes": classes,
    }
