"""A user's own network as a space of channel masks."""

from bayesarch.config import Config
from bayesarch.spaces.space import Space

__all__ = ["MODULE", "ModuleSizes"]


class ModuleSizes(Config):
    """Which network."""

    path: str = ""
    """`FILE.py:NAME` of a class, or a function, that gives a `torch.nn.Module`."""


MODULE = Space(name="module", choices=(), skeleton="module", sizes=ModuleSizes)
"""The space, open until the module is known."""
