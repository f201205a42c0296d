"""`mlp`: perceptrons for plain tables; five choices that all hidden layers share, 288 architectures. Ours.

Written `(width=64, depth=2, activation=relu, skip=residual, norm=batch)`.
"""

from bayesarch.config import Config
from bayesarch.errors import SpaceError, nearest
from bayesarch.spaces.architecture import Architecture
from bayesarch.spaces.space import Choice, Picks, Space

__all__ = ["MLP", "MLPSizes"]


class MLPSizes(Config):
    """A perceptron's sizes are its choices."""


OPTIONS: dict[str, tuple[str, ...]] = {
    "width": ("16", "32", "64", "128"),
    "depth": ("1", "2", "3", "4"),
    "activation": ("relu", "gelu", "tanh"),
    "skip": ("plain", "residual"),
    "norm": ("none", "batch", "layer"),
}


def _format(arch: Architecture) -> str:
    pairs = [f"{choice.name}={arch.option_names(p)[0]}" for p, choice in enumerate(arch.space.choices)]
    return f"({', '.join(pairs)})"


def _parse(text: str, space: Space) -> Picks:
    """Return the picks of a perceptron.

    Raises:
        SpaceError: naming the choice and the nearest option, or the expected form.
    """
    given = dict(term.strip().partition("=")[::2] for term in text.strip("()").split(","))
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise SpaceError(f"an mlp has no choice {unknown[0]!r}, {nearest(unknown[0], OPTIONS)}")
    missing = [name for name in OPTIONS if name not in given]
    if missing:
        raise SpaceError(f"an mlp reads like (width=64, depth=2, ...); {', '.join(missing)} not given in {text!r}")
    return tuple((choice.index(given[choice.name]),) for choice in space.choices)


def _canonical(arch: Architecture) -> str:
    """Return the notation; with one hidden layer there is nothing to skip."""
    text = str(arch)
    return text.replace("skip=residual", "skip=plain") if "depth=1" in text else text


MLP = Space(
    name="mlp",
    choices=tuple(Choice(name=name, options=options) for name, options in OPTIONS.items()),
    skeleton="perceptron",
    sizes=MLPSizes,
    additive=False,
    format_fn=_format,
    parse_fn=_parse,
    canonical_fn=_canonical,
)
"""The space."""
