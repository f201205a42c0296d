"""Your own search space: three nodes, and a choice of what flows between them. Data only, no torch.

python examples/own_space.py
"""

import tempfile

import bayesarch as ba
from bayesarch.spaces import NB201
from bayesarch.testing import check_space, check_supernet

OPTIONS = ("none", "skip_connect", "nor_conv_3x3")
SMALL = ba.Space(
    name="small",
    choices=tuple(
        ba.Choice(name=f"{source}-{target}", options=OPTIONS, zero=0, source=source, target=target)
        for source, target in (("in", "middle"), ("middle", "out"), ("in", "out"))
    ),
    inputs=frozenset({"in"}),
    outputs=frozenset({"out"}),
    skeleton="residual-stages",  # the macro network of NAS-Bench-201
    sizes=NB201.sizes,
)

check_space(SMALL)  # the contracts that our own spaces keep
check_supernet(SMALL, sizes={"channels": 4, "cells": 1})

run = ba.search(
    "digits",
    space=SMALL,
    limit=400,
    out=tempfile.mkdtemp() + "/run",
    set={"space.channels": 4, "engine.epochs": 12, "method.alpha_lr": 0.1},
)
print(run.architecture)
