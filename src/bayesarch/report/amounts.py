"""Numbers as people read them."""

__all__ = ["amount", "counted", "duration", "score", "tick"]

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, unit: str = "") -> str:
    """Return a number with a thousand-step prefix."""
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def tick(value: float) -> str:
    """Return the label of a number on an axis: 500 k, 2 M; no more digits than it has."""
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"


def score(value: float) -> str:
    """Return a score with four decimals, and one below a thousandth by two digits: 0.0123, 4.1e-05."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def counted(n: int, what: str) -> str:
    """Return how many of something there are: 1 run, 2 runs."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time with its unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
