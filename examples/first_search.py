"""A search on the built-in digits, then a plain network out of it.

python examples/first_search.py
"""

import tempfile

import torch

import bayesarch as ba

out = tempfile.mkdtemp() + "/run"
run = ba.search("digits", config="recipes/digits-quick.yaml", limit=600, out=out)

print(run.architecture)
for edge, row in run.posterior.weights().items():
    print(edge, {option: round(weight, 3) for option, weight in row.items()})

net = run.network()  # a plain torch.nn.Module with the weights of the search, no gates left
print(sum(p.numel() for p in net.parameters()), "parameters")
print(torch.softmax(net(torch.zeros(1, 1, 8, 8)), 1))

for arch in run.posterior.sample(3, seed=1):
    fresh = ba.build(arch, input_shape=(1, 8, 8), classes=10, sizes={"channels": 8, "cells": 1})
    print(arch, sum(p.numel() for p in fresh.parameters()))
