"""The cell of NAS-Bench-201 for series: the same graph, its operations along one axis. Ours.

A series of shape (channels, length) is an image one pixel high; kernels are 1 x 3 and 1 x 1, and reductions halve the
length.
"""

from dataclasses import replace

from bayesarch.spaces.nb201 import NB201

__all__ = ["NB201_SERIES"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1", "nor_conv_3", "avg_pool_3")

NB201_SERIES = replace(
    NB201,
    name="nb201-series",
    choices=tuple(replace(choice, options=OPERATIONS) for choice in NB201.choices),
    skeleton="residual-series",
)
"""The space, written as the benchmark's cells are, with the names of its own operations."""
