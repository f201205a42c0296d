"""Threads follow the size of a step, and are put back."""

import pytest
import torch

import bayesarch as ba
from bayesarch.engine import SHARED_THREADS, EngineConfig, resolve_device, working_threads
from bayesarch.engine.device import MACS_PER_THREAD
from bayesarch.nets import Supernet
from bayesarch.spaces import SPACES


@pytest.fixture
def four(monkeypatch):
    """Four threads, whatever the machine and its environment say."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.9, 1), (2.1, 2), (3.6, 4), (100.0, 4)])
def test_threads_follow_the_size_of_a_step(four, share, expected):
    with working_threads(share * MACS_PER_THREAD) as threads:
        assert threads == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_what_is_given_is_taken_and_put_back_after_an_error(four, monkeypatch):
    with working_threads(0.0, given=3):
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with working_threads(0.0) as threads:
        assert threads == 4  # the user's word
    monkeypatch.setenv(SHARED_THREADS, "1")
    with working_threads(2.1 * MACS_PER_THREAD) as threads:
        assert threads == 2  # of the four that are this process's share
    with pytest.raises(ZeroDivisionError), working_threads(0.0, given=2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


def test_a_small_search_takes_one_thread_and_leaves_the_process_as_it_was(four, tmp_path):
    settings = {"engine.epochs": 1, "engine.closing_epochs": 0, "method.reopen_steps": 0}
    run = ba.search("planted", space="toy", out=tmp_path / "one", set=settings)
    assert run.folder.read_json("environment.json")["threads"] == 1
    assert torch.get_num_threads() == 4
    run = ba.search("planted", space="toy", out=tmp_path / "two", set={**settings, "engine.threads": 2})
    assert run.folder.read_json("environment.json")["threads"] == 2
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("side", "channels", "expected"), [(8, 16, 1), (16, 16, 3), (28, 8, 3), (32, 16, 4)])
def test_digits_have_one_thread_and_larger_images_several(side, channels, expected, four):
    """At the default batch, where a second thread was measured to pay (decision 9)."""
    sizes, generator = {"channels": channels, "cells": 1}, torch.Generator()
    net = Supernet(SPACES["nb201"], input_shape=(1, side, side), classes=10, sizes=sizes, generator=generator)
    with working_threads(EngineConfig().batch_size * net.full_macs) as threads:
        assert threads == expected


def test_torchrun_gives_each_process_a_card_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
