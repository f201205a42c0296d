import itertools
import math
import random

import numpy as np
import pytest

from bayesarch.errors import RunError
from bayesarch.posteriors import (
    ConditionalsAtMode,
    Listed,
    MeanField,
    WithinLimits,
    best_connected,
    from_json,
    jeffreys,
    word,
)
from bayesarch.spaces import NB201, TOY, Architecture, Limits
from bayesarch.testing import check_posterior

TABLE = [[0.2, 0.5, 0.3], [0.0, 0.9, 0.1], [0.6, 0.3, 0.1]]


def random_table(space, seed):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(len(choice.options)) * 0.7) for choice in space.choices]


@pytest.mark.parametrize("space", [TOY, NB201], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_contract(space, seed):
    table = random_table(space, seed)
    check_posterior(MeanField(space, table))
    mode = Architecture(space, tuple((int(np.argmin(row)),) for row in table))
    check_posterior(ConditionalsAtMode(mode, table))


def test_contract_can_fail():
    class Liar(MeanField):
        def entropy(self):
            return super().entropy() + 0.1

    with pytest.raises(AssertionError, match="entropy"):
        check_posterior(Liar(TOY, TABLE))

    class Fickle(MeanField):
        def sample(self, n, *, seed=0):
            return super().sample(n, seed=random.randrange(2**20))

    with pytest.raises(AssertionError, match="same seed"):
        check_posterior(Fickle(TOY, TABLE))


def test_mean_field_by_hand():
    posterior = MeanField(TOY, TABLE)
    assert posterior.mode() == Architecture(TOY, ((1,), (1,), (0,)))
    assert posterior.log_prob(posterior.mode()) == pytest.approx(math.log(0.5 * 0.9 * 0.6))
    assert posterior.log_prob(Architecture(TOY, ((1,), (0,), (0,)))) == -math.inf
    rows = [[0.2, 0.5, 0.3], [0.9, 0.1], [0.6, 0.3, 0.1]]
    assert posterior.entropy() == pytest.approx(-sum(p * math.log(p) for row in rows for p in row))
    best = [weight for _, weight in itertools.islice(posterior.most_probable(), 3)]
    assert best == pytest.approx([0.27, 0.162, 0.135])
    assert len(list(posterior.most_probable())) == 18


@pytest.mark.parametrize("seed", range(5))
def test_the_best_that_lets_something_through_by_enumeration(seed):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(5), size=6)
    table[:, 0] += 3.0  # nothing is the likely option nearly everywhere
    posterior = MeanField(NB201, table / table.sum(1, keepdims=True))
    every = (Architecture(NB201, tuple((i,) for i in picks)) for picks in itertools.product(range(5), repeat=6))
    expected = max((arch for arch in every if arch.connected), key=posterior.log_prob)
    assert not posterior.mode().connected
    assert best_connected(posterior) == expected
    assert best_connected(posterior, among=1) == posterior.mode(), "none of those looked at"


def test_conditionals_by_hand():
    mode = Architecture(TOY, ((1,), (1,), (2,)))
    posterior = ConditionalsAtMode(mode, TABLE, gaps=[[1.0, 0.0, 0.5], [math.nan, 0.0, 2.0], [0.0, 0.7, 1.8]])
    # one of three choices drawn anew: the mode stays with (.5 + .9 + .1) / 3
    assert math.exp(posterior.log_prob(mode)) == pytest.approx(0.5)
    neighbour = Architecture(TOY, ((1,), (1,), (0,)))
    assert math.exp(posterior.log_prob(neighbour)) == pytest.approx(0.2)
    assert posterior.log_prob(Architecture(TOY, ((0,), (1,), (0,)))) == -math.inf
    assert posterior.weights()["1<-0"] == {"none": 0.2, "skip": 0.5, "product": 0.3}
    assert posterior.mode() == mode
    record = posterior.to_json()
    assert record["gaps_nats"]["2<-0"]["none"] is None
    again = from_json(record)
    assert math.isnan(again.gaps[1][0])
    assert again.to_json() == record


def test_credible_set_says_when_its_limit_was_reached():
    posterior = MeanField(NB201, [[0.2] * 5] * 6)
    few = posterior.credible_set(0.5, limit=10)
    assert (len(few), few.complete) == (10, False)
    assert few.mass == pytest.approx(10 / 15_625)
    sharp = MeanField(TOY, [[0.0, 1.0, 0.0]] * 3).credible_set(0.99)
    assert (len(sharp), sharp.complete, sharp.mass) == (1, True, 1.0)
    with pytest.raises(ValueError, match="mass"):
        posterior.credible_set(1.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.5, 0.5, 0.5], *TABLE[1:]], "sum to 1"),
        ([[0.5, 0.5], *TABLE[1:]], "3 numbers"),
        ([[1.2, -0.2, 0.0], *TABLE[1:]], ">= 0"),
        ([[math.nan, 0.5, 0.5], *TABLE[1:]], ">= 0"),
        (TABLE[:2], "3 choices but 2 rows"),
    ],
)
def test_tables_are_checked(table, message):
    with pytest.raises(ValueError, match=message):
        MeanField(TOY, table)


def test_records_are_checked():
    record = MeanField(TOY, TABLE).to_json()
    with pytest.raises(RunError, match=r"unknown kind of posterior 'meanfield'.*'mean-field'"):
        from_json({**record, "kind": "meanfield"})
    with pytest.raises(RunError, match=r"space of your own|over a space 'mine'"):
        from_json({**record, "space": "mine"})
    with pytest.raises(RunError, match="weights"):
        from_json({key: value for key, value in record.items() if key != "weights"})


def test_only_what_is_calibrated_is_called_a_probability():
    assert word(MeanField(TOY, TABLE)) == "relative weight"
    assert word(MeanField(TOY, TABLE, calibrated=True)) == "probability"


# --- listed, and within limits ---------------------------------------------------------------------------------------


def toy(*picks):
    return Architecture(TOY, tuple((i,) for i in picks))


@pytest.mark.parametrize("kind", ["exact", "candidates", "recurrence"])
def test_listed_contract(kind):
    rng = np.random.default_rng(1)
    everything = [Architecture(TOY, picks) for picks in TOY.all_picks()]
    check_posterior(Listed(list(zip(everything, rng.dirichlet(np.ones(27)), strict=True)), kind=kind))
    check_posterior(Listed([(toy(0, 1, 2), 3.0), (toy(1, 1, 2), 1.0), (toy(0, 1, 2), 1.0)], kind=kind))


def test_listed_joins_scales_and_refuses():
    posterior = Listed([(toy(0, 1, 2), 3.0), (toy(1, 1, 2), 1.0), (toy(0, 1, 2), 1.0)], kind="candidates")
    assert posterior.members == [(toy(0, 1, 2), 0.8), (toy(1, 1, 2), 0.2)]
    assert posterior.weights()["1<-0"] == pytest.approx({"none": 0.8, "skip": 0.2, "product": 0.0})
    assert posterior.log_prob(toy(2, 2, 2)) == -math.inf
    for bad in ([], [(toy(0, 0, 0), -1.0)], [(toy(0, 0, 0), math.nan)], [(toy(0, 0, 0), 0.0)]):
        with pytest.raises(ValueError, match="weight"):
            Listed(bad, kind="candidates")
    with pytest.raises(ValueError, match="repeated runs"):
        posterior.intervals()


def test_recurrence_counts_runs():
    found = [toy(0, 1, 2)] * 6 + [toy(0, 1, 1)] * 3 + [toy(1, 1, 2)]
    posterior = Listed.recurrence(found)
    check_posterior(posterior)
    assert posterior.mode() == toy(0, 1, 2)
    assert posterior.weights()["1<-0"] == pytest.approx({"none": 0.9, "skip": 0.1, "product": 0.0})
    assert posterior.intervals()["1<-0"]["none"] == jeffreys(9, 10)
    assert posterior.intervals()["2<-0"]["skip"] == jeffreys(10, 10)
    again = from_json(posterior.to_json())
    assert again.votes == 10
    assert again.intervals() == posterior.intervals()


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # as tabled in Brown, Cai and DasGupta (2001), recalled
    [(0, 7, 0.0, 0.292), (1, 7, 0.016, 0.501), (2, 7, 0.065, 0.648), (3, 7, 0.139, 0.766), (7, 7, 0.708, 1.0)],
)
def test_jeffreys_interval(k, n, low, high):
    assert jeffreys(k, n, level=0.95) == pytest.approx((low, high), abs=2e-3)


def test_jeffreys_interval_is_the_beta_quantile():
    """By Monte Carlo: the share of draws of the Beta posterior inside is the level."""
    draws = np.random.default_rng(0).beta(7.5, 13.5, size=200_000)
    low, high = jeffreys(7, 20, level=0.9)
    assert np.mean(draws < low) == pytest.approx(0.05, abs=2e-3)
    assert np.mean(draws > high) == pytest.approx(0.05, abs=2e-3)


LIMITS = Limits(("cost",), (3.0,), (1.0,), ((0.0, 1.0, 2.0) * 3,))


def test_within_limits_is_the_product_conditioned():
    posterior, product = WithinLimits(TOY, TABLE, LIMITS), MeanField(TOY, TABLE)
    check_posterior(posterior)
    allowed = [a for a in map(lambda p: Architecture(TOY, p), TOY.all_picks()) if sum(i for (i,) in a.picks) <= 2]
    mass = sum(math.exp(product.log_prob(a)) for a in allowed)
    for arch in (Architecture(TOY, picks) for picks in TOY.all_picks()):
        expected = product.log_prob(arch) - math.log(mass) if arch in allowed else -math.inf
        assert posterior.log_prob(arch) == pytest.approx(expected)
    assert posterior.mode() == max(allowed, key=product.log_prob)
    assert product.mode() == toy(1, 1, 0)
    assert WithinLimits(TOY, TABLE, Limits(("cost",), (2.0,), (1.0,), LIMITS.costs)).mode() == toy(0, 1, 0)


def test_within_limits_that_nothing_keeps():
    with pytest.raises(ValueError, match="no architecture"):
        WithinLimits(TOY, TABLE, Limits(("cost",), (0.5,), (1.0,), LIMITS.costs))


def test_a_certain_posterior_has_an_entropy_of_zero_and_not_of_minus_zero():
    arch = Architecture(TOY, ((1,), (2,), (1,)))
    assert f"{Listed([(arch, 1.0)], kind='recurrence').entropy():.2f}" == "0.00"
