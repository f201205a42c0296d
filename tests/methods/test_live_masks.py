"""Masks of live options: what stays is connected, and it is the best of what could have stayed."""

import itertools
import random

import pytest
import torch

from bayesarch.methods.masks import best_path, cut_to, remaining
from bayesarch.methods.single import live_table
from bayesarch.spaces import NB201, Limits
from helpers import several

SEVERAL = several(NB201)
GATES = torch.arange(30) % 5 == 0
ROUTES = (("3<-0",), ("1<-0", "3<-1"), ("2<-0", "3<-2"), ("1<-0", "2<-1", "3<-2"))
"""Every way from the cell's input to its output, as edges."""


def paths():
    """Every path of single operations, as flat options."""
    operations = {c.name: [g for g in NB201.columns(p) if g % 5] for p, c in enumerate(NB201.choices)}
    for route in ROUTES:
        yield from itertools.product(*(operations[edge] for edge in route))


def random_case(seed):
    rng = random.Random(seed)
    live = torch.tensor([g % 5 != 0 and rng.random() < 0.7 for g in range(30)])
    if not SEVERAL.connected(live_table(SEVERAL, live)):
        live |= ~GATES
    return live, torch.tensor([rng.random() < 0.6 for _ in range(30)]), [rng.random() for _ in range(30)]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_path_is_the_best_of_all(seed):
    scores = random_case(seed)[2]
    assert tuple(best_path(NB201, "cell", scores)) == max(paths(), key=lambda path: sum(scores[g] for g in path))


@pytest.mark.parametrize("seed", range(20))
def test_what_remains_is_what_lies_on_a_path_of_what_did_not_fail(seed):
    live, failing, scores = random_case(seed)
    left = remaining(SEVERAL, live, failing, scores=scores, rule="test")
    sound = {g for g in range(30) if live[g] and not failing[g] and not failing[g - g % 5]}
    whole = [path for path in paths() if sound >= set(path)]
    if not whole:  # the cell would have fallen apart: its best path comes back, and what of the rest meets it
        back = max((path for path in paths() if all(live[g] for g in path)), key=lambda p: sum(scores[g] for g in p))
        assert left.guarded == len(set(back) - sound)
        whole = [path for path in paths() if sound | set(back) >= set(path)]
    expected = {g for path in whole for g in path}
    assert set(left.live.nonzero().flatten().tolist()) == expected
    assert set(left.why) == {g for g in range(30) if live[g]} - expected
    for g, why in left.why.items():
        named = {"test"} if failing[g] else {"gate"} if failing[g - g % 5] else {"dependency", "inactive"}
        assert why in named


@pytest.mark.parametrize("seed", range(10))
def test_what_scores_least_goes_until_the_limits_are_kept(seed):
    live, _, scores = random_case(seed)
    live = remaining(SEVERAL, live, torch.zeros_like(GATES), scores=scores, rule="test").live
    limits = Limits(("macs",), (3.5,), (0.0,), (tuple(float(g % 5 != 0) for g in range(30)),))
    cut = cut_to(SEVERAL, live, limits, scores=torch.tensor(scores))
    assert int(cut.sum()) <= 3
    assert SEVERAL.connected(live_table(SEVERAL, cut))
    before = live
    while int(before.sum()) > 3:  # the naive version: of all single removals that leave a path, the one of least score
        options = sorted(before.nonzero().flatten().tolist(), key=lambda g: scores[g])
        for g in options:
            kept = {int(k) for k in before.nonzero()} - {g}
            on_paths = {k for path in paths() if kept >= set(path) for k in path}
            if on_paths:
                before = torch.tensor([k in on_paths for k in range(30)])
                break
    assert cut.tolist() == before.tolist()


def test_limits_that_one_path_alone_breaks_leave_that_path():
    live = torch.zeros(30, dtype=torch.bool)
    live[[NB201.labels.index("1<-0/skip_connect"), NB201.labels.index("3<-1/avg_pool_3x3")]] = True
    limits = Limits(("macs",), (1.5,), (0.0,), (tuple(float(g % 5 != 0) for g in range(30)),))
    assert cut_to(SEVERAL, live, limits, scores=torch.zeros(30)).tolist() == live.tolist()
