import random
import time

import pytest

from bayesarch.spaces import NB201, NO_LIMITS, TOY, Architecture, Choice, Limits, Space


def made_up(seed, *, resources=2, tightness=0.3):
    """Return limits with random costs and budgets, and random scores, on the toy space."""
    rng = random.Random(seed)
    costs = tuple(tuple(float(rng.randrange(10)) for _ in range(9)) for _ in range(resources))
    base = tuple(float(rng.randrange(3)) for _ in range(resources))
    budgets = tuple(b + tightness * 27 for b in base)
    return Limits(tuple("ab"[:resources]), budgets, base, costs), [rng.gauss(0, 1) for _ in range(9)]


def brute_force(limits, scores, live):
    """Return every allowed architecture with its score, highest first."""
    rows = []
    for picks in TOY.all_picks():
        columns = Architecture(TOY, picks).columns
        spent = [b + sum(row[g] for g in columns) for b, row in zip(limits.base, limits.costs, strict=True)]
        if all(live[g] for g in columns) and all(s <= b for s, b in zip(spent, limits.budgets, strict=True)):
            rows.append((picks, sum(scores[g] for g in columns)))
    return sorted(rows, key=lambda row: -row[1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("resources", [1, 2])
def test_best_first_equals_brute_force(seed, resources):
    limits, scores = made_up(seed, resources=resources)
    rng = random.Random(seed)
    live = [rng.random() < 0.8 for _ in range(9)]
    ours, expected = list(limits.best(TOY, scores, live)), brute_force(limits, scores, live)
    assert {picks for picks, _ in ours} == {picks for picks, _ in expected}
    assert [score for _, score in ours] == pytest.approx([score for _, score in expected])
    assert limits.possible(TOY, live) == bool(expected)
    used = {g for picks, _ in expected for g in Architecture(TOY, picks).columns}
    assert limits.reachable(TOY, live) == [g in used for g in range(9)]


def test_no_limits_allow_everything():
    assert not NO_LIMITS
    assert NO_LIMITS.possible(NB201, [True] * 30)
    assert NO_LIMITS.reachable(NB201, [True] * 30) == [True] * 30
    scores = [float(i % 5) for i in range(30)]
    picks, score = next(NO_LIMITS.best(NB201, scores, [True] * 30))
    assert (picks, score) == (((4,),) * 6, 24.0)


def test_of_equals_the_first_is_taken_and_without_search():
    """All scores equal: the answer is the first option everywhere, at once, not after 5^6 partial ones."""
    assert next(picks for picks, _ in NO_LIMITS.best(NB201, [0.0] * 30, [True] * 30)) == ((0,),) * 6
    wide = Space(
        name="wide",
        choices=tuple(Choice(name=str(i), options=("a", "b", "c")) for i in range(200)),
        skeleton=TOY.skeleton,
        sizes=TOY.sizes,
    )
    start = time.perf_counter()
    assert next(NO_LIMITS.best(wide, [0.0] * 600, [True] * 600))[0] == ((0,),) * 200
    assert time.perf_counter() - start < 5


def test_an_excluded_option_is_never_picked():
    scores = [float("-inf"), 0.0, 0.0] * 3
    assert all(0 not in {i for (i,) in picks} for picks, _ in NO_LIMITS.best(TOY, scores, [True] * 9))
    assert list(NO_LIMITS.best(TOY, [0.0] * 9, [False] * 3 + [True] * 6)) == []


def test_cost_and_round_trip():
    limits, _ = made_up(3)
    picks = ((1,), (0,), (2,))
    assert limits.cost(TOY, picks) == {
        name: limits.base[r] + limits.costs[r][1] + limits.costs[r][3] + limits.costs[r][8]
        for r, name in enumerate("ab")
    }
    assert Limits.from_json(limits.to_json()) == limits
    assert Limits.from_json(None) == NO_LIMITS
    assert limits.allow(TOY, picks) == (picks in {p for p, _ in brute_force(limits, [0.0] * 9, [True] * 9)})


def test_what_cannot_be_completed_is_never_entered():
    """Forty choices that would all rather be dear, and a budget for cheap ones only: one path, not 2^40."""
    wide = Space(
        name="wide",
        choices=tuple(Choice(name=str(i), options=("cheap", "dear")) for i in range(40)),
        skeleton=TOY.skeleton,
        sizes=TOY.sizes,
    )
    limits = Limits(("cost",), (40.0,), (0.0,), ((1.0, 2.0) * 40,))
    start = time.perf_counter()
    assert next(limits.best(wide, [0.0, 1.0] * 40, [True] * 80))[0] == ((0,),) * 40
    assert limits.reachable(wide, [True] * 80) == [True, False] * 40
    assert time.perf_counter() - start < 10
