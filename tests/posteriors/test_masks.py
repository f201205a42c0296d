"""Channel masks: one rate per group, every channel its own coin."""

import itertools
import math

import pytest

from bayesarch.posteriors import ChannelMasks
from bayesarch.spaces import MODULE, Architecture, GateGroup, channel_space
from bayesarch.testing import check_posterior

SPACE = channel_space(MODULE, [GateGroup("a", 3), GateGroup("b", 2), GateGroup("c", 4)])


@pytest.mark.parametrize("keep", [(0.9, 0.2, 0.6), (0.5, 0.5, 0.5), (1.0, 0.0, 0.3)])
def test_contract(keep):
    check_posterior(ChannelMasks(SPACE, keep))


def test_ranking_is_that_of_enumeration():
    posterior = ChannelMasks(SPACE, (0.9, 0.2, 0.6))
    everything = sorted((posterior.log_prob(Architecture(SPACE, picks)) for picks in SPACE.all_picks()), reverse=True)
    ranked = [math.log(weight) for _, weight in posterior.most_probable()]
    assert ranked == pytest.approx(everything, abs=1e-9)
    assert len({arch for arch, _ in posterior.most_probable()}) == 2**9


def test_the_mode_keeps_or_drops_whole_groups():
    mode = ChannelMasks(SPACE, (0.9, 0.2, 0.5)).mode()
    assert mode.picks == ((0, 1, 2), (), (0, 1, 2, 3))


def test_many_channels_are_ranked_lazily():
    space = channel_space(MODULE, [GateGroup("a", 5000)])
    first = list(itertools.islice(ChannelMasks(space, [0.9]).most_probable(), 3))
    assert [len(arch.columns) for arch, _ in first] == [5000, 4999, 4999]


def test_wrong_rates_are_refused():
    for keep in ((0.5, 0.5), (0.5, 0.5, 1.5), (0.5, 0.5, math.nan)):
        with pytest.raises(ValueError, match="one probability"):
            ChannelMasks(SPACE, keep)
