"""What every posterior keeps: its marginals, draws, log probabilities and entropy are of one distribution."""

import itertools
import json
import math

import numpy as np

from bayesarch.posteriors import ArchitecturePosterior, from_json
from bayesarch.spaces import Architecture

__all__ = ["check_posterior"]


def check_posterior(posterior: ArchitecturePosterior, *, draws: int = 4000, enumerate_up_to: int = 20_000) -> None:
    """Check a posterior against enumeration of its space, or against its own draws where the space is large.

    Draws are compared within five standard errors: with fewer than 40 options a sound posterior fails with a
    probability below 3e-5 per call, and the seed is fixed.

    Args:
        posterior: the posterior.
        draws: number of draws.
        enumerate_up_to: enumerate the space if it is at most this large.

    Raises:
        AssertionError: saying what is broken.
    """
    assert isinstance(posterior, ArchitecturePosterior), "it must keep the protocol"
    space, marginals = posterior.space, posterior.marginals()
    assert marginals.shape == (space.n_options,), "marginals have one entry per option"
    assert posterior.sample(200, seed=0) == posterior.sample(200, seed=0), "the same seed must give the same draws"
    drawn = posterior.sample(draws, seed=0)
    assert all(math.isfinite(posterior.log_prob(arch)) for arch in drawn), "what is drawn must be possible"
    frequency = np.zeros(space.n_options)
    for arch in drawn:
        frequency[list(arch.columns)] += 1.0 / draws
    error = np.sqrt(np.maximum(marginals * (1 - marginals), 1e-9) / draws)
    assert (np.abs(frequency - marginals) <= 5 * error + 1e-9).all(), "draws must follow the marginals"
    surprise = -np.mean([posterior.log_prob(arch) for arch in drawn])
    spread = _spread_of_surprise(posterior, drawn, enumerate_up_to) / math.sqrt(draws)
    assert abs(surprise - posterior.entropy()) <= 5 * spread + 1e-9, "entropy must be the mean surprise of draws"
    if space.size <= enumerate_up_to:
        _check_enumeration(posterior)
    _check_ranking(posterior)
    record = json.loads(json.dumps(posterior.to_json()))
    again = from_json(record, space)
    assert again.to_json() == posterior.to_json(), "JSON must round-trip"
    assert again.mode() == posterior.mode(), "the mode must survive JSON"


def _spread_of_surprise(posterior: ArchitecturePosterior, drawn: list[Architecture], enumerate_up_to: int) -> float:
    """Return the standard deviation of -log p: exactly where the space is small, for rare members are not drawn."""
    if posterior.space.size > enumerate_up_to:
        return float(np.std([posterior.log_prob(arch) for arch in drawn]))
    logs = np.array([posterior.log_prob(Architecture(posterior.space, picks)) for picks in posterior.space.all_picks()])
    logs = logs[np.isfinite(logs)]
    return float(np.sqrt(max((np.exp(logs) * logs**2).sum() - (np.exp(logs) * logs).sum() ** 2, 0.0)))


def _check_enumeration(posterior: ArchitecturePosterior) -> None:
    """Check sum, marginals, entropy against the full sum over architectures."""
    total, entropy, marginals = 0.0, 0.0, np.zeros(posterior.space.n_options)
    for picks in posterior.space.all_picks():
        arch = Architecture(posterior.space, picks)
        log_p = posterior.log_prob(arch)
        if log_p > -math.inf:
            p = math.exp(log_p)
            total, entropy = total + p, entropy - p * log_p
            marginals[list(arch.columns)] += p
    assert abs(total - 1) < 1e-9, f"probabilities must sum to 1, got {total}"
    assert np.allclose(marginals, posterior.marginals(), atol=1e-9), "marginals must be sums of probabilities"
    assert abs(entropy - posterior.entropy()) < 1e-6, "entropy must be the full sum"


def _check_ranking(posterior: ArchitecturePosterior) -> None:
    """Check that the most probable come first, without repeats, and that credible sets hold what they say."""
    ranked = list(itertools.islice(posterior.most_probable(), 50))
    weights = [weight for _, weight in ranked]
    assert weights == sorted(weights, reverse=True), "most probable first"
    assert len({arch for arch, _ in ranked}) == len(ranked), "no architecture twice"
    assert all(abs(math.log(w) - posterior.log_prob(a)) < 1e-9 for a, w in ranked), "weights must be probabilities"
    half = posterior.credible_set(0.5, limit=10_000)
    assert half.mass >= 0.5 - 1e-9 or not half.complete, "a credible set must hold its mass"
    assert half.mass - half[-1][1] < 0.5, "a credible set must not be larger than needed"
    assert len(posterior.credible_set(1.0, limit=1)) == 1, "the limit must be kept"
