"""Latencies are measured by the threads that a network would be run with."""

import pytest
import torch
from torch import nn

from bayesarch.engine.device import MACS_PER_THREAD
from bayesarch.workflows import latency


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("macs", "threads"), [(1000, 1), (2 * MACS_PER_THREAD, 2)])
def test_one_image_has_as_many_threads_as_it_keeps_busy(macs, threads, two_threads, monkeypatch):
    cost = type("Cost", (), {"macs": macs})
    monkeypatch.setattr(latency, "network_cost", lambda net, shape: cost)
    monkeypatch.setattr(latency, "latency_ms", lambda net, shape, repeats: torch.get_num_threads())
    assert latency.image_latency(nn.Identity(), (1, 8, 8)) == threads
    assert torch.get_num_threads() == 2
