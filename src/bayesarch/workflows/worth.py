"""What probabilities are worth on a test split, as records for tables and pages: scores, sets, uncertainty, curves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bayesarch.ensembles import Mixture
from bayesarch.functional import uncertainty as un

__all__ = [
    "BINS",
    "MEASURES",
    "conformal",
    "curves",
    "differences",
    "least_sure",
    "paired",
    "score_row",
    "told_apart",
    "uncertainty",
]

BINS = 15


DRAWS = 500


ALPHA = 0.1


Measure = Callable[[np.ndarray, np.ndarray], float]


MEASURES: dict[str, Measure] = {
    "accuracy": un.accuracy,
    "nll": un.nll,
    "brier": un.brier,
    "ece_width": lambda p, y: un.calibration_error(p, y, bins=BINS),
    "ece_mass": lambda p, y: un.calibration_error(p, y, bins=BINS, equal="mass"),
    "aurc": lambda p, y: un.risk_coverage(p, y)[2],
}


def _seen(key: str, p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return less that a measure cannot tell from p and y: resampled hundreds of times, it takes a part of the time.

    For the log likelihood the probability of the true class; for what asks no more, that of the top class, and whether
    it is the true one. Both as if there were one class, the first.
    """
    if key == "brier":
        return p, y
    if key == "nll":
        return p[np.arange(len(y)), y][:, None], np.zeros_like(y)
    return p.max(1, keepdims=True), (p.argmax(1) != y).astype(y.dtype)


def _resampled(key: str, p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return a measure of the examples whose indices it is given."""
    measure, (q, z) = MEASURES[key], _seen(key, p, y)
    return lambda index: measure(q[index], z[index])


def score_row(name: str, p: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """Return every measure with its interval."""
    row: dict[str, Any] = {"name": name}
    for key, measure in MEASURES.items():
        low, high = un.bootstrap(_resampled(key, p, y), len(y), draws=DRAWS, seed=seed)
        row[key] = {"value": measure(p, y), "low": low, "high": high}
    return row


def differences(answers: dict[str, np.ndarray], y: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Return differences paired by example: what temperatures do, and whether a plain network is beaten."""
    first = next(iter(answers))
    pairs = [(name, first) for name in answers if name.startswith(f"{first}, T")]
    if "plain ResNet" in answers:
        pairs += [(first, "plain ResNet"), (f"{first}, T joint", "plain ResNet, T")]
    return [{"name": other, "minus": base, **paired(answers[other], answers[base], y, seed)} for other, base in pairs]


def paired(p: np.ndarray, base: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """Return by how much accuracy and loss of one answer exceed another's on the same examples, with intervals.

    Args:
        p: probabilities, shape (n, K).
        base: the other's.
        y: true classes, shape (n,).
        seed: of the bootstrap.
    """
    row: dict[str, Any] = {}
    for key in ("accuracy", "nll"):
        mine, theirs = _resampled(key, p, y), _resampled(key, base, y)
        mean, low, high = un.paired_bootstrap(mine, theirs, len(y), draws=DRAWS, seed=seed)
        row[key] = {"value": mean, "low": low, "high": high}
    return row


def told_apart(inside: np.ndarray, outside: np.ndarray, seed: int) -> dict[str, float]:
    """Return how well entropy tells other images from test images: AUROC, with its interval over pairs of images.

    Args:
        inside: probabilities of test images, shape (n, K).
        outside: of as many others.
        seed: of the bootstrap.
    """
    mine, theirs = un.entropy(inside), un.entropy(outside)
    low, high = un.bootstrap(lambda i: un.auroc(mine[i], theirs[i]), len(mine), draws=DRAWS, seed=seed)
    return {"value": un.auroc(mine, theirs), "low": low, "high": high}


def uncertainty(mixture: Mixture, logits: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the split of uncertainty, overall and where the answer is right or wrong, and members' disagreement."""
    members = mixture.members(logits)
    parts = dict(zip(("total", "aleatoric", "epistemic"), un.split_uncertainty(members, mixture.weights), strict=True))
    right = mixture(logits).argmax(1) == y
    means = {
        name: {
            "all": float(values.mean()),
            "right": float(values[right].mean()) if right.any() else None,
            "wrong": float(values[~right].mean()) if (~right).any() else None,
        }
        for name, values in parts.items()
    }
    return {"nats": means, "disagreement": un.disagreement(members), "wrong": int((~right).sum())}


def conformal(
    mixture: Mixture, logits: np.ndarray, y: np.ndarray, held: np.ndarray, held_y: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Return coverage and mean size of sets that promise 90 %: by threshold, and APS."""
    p, q, rng = mixture(logits), mixture(held), np.random.default_rng(seed)
    scores = {
        "threshold": (1 - q, 1 - p),
        "APS": (un.aps_scores(q, rng.random(len(q))), un.aps_scores(p, rng.random(len(p)))),
    }
    rows = []
    for name, (calibrated, tested) in scores.items():
        threshold = un.conformal_threshold(calibrated[np.arange(len(held_y)), held_y], ALPHA)
        inside = un.prediction_sets(tested, threshold)
        covered = inside[np.arange(len(y)), y]
        low, high = un.bootstrap(lambda i, c=covered: float(c[i].mean()), len(y), draws=DRAWS, seed=seed)  # type: ignore[misc]
        rows.append(
            {
                "name": name,
                "promised": 1 - ALPHA,
                "coverage": {"value": float(covered.mean()), "low": low, "high": high},
                "mean_size": float(inside.sum(1).mean()),
                "empty": float((inside.sum(1) == 0).mean()),
            }
        )
    return rows


def curves(answers: dict[str, np.ndarray], y: np.ndarray) -> dict[str, Any]:
    """Return what the report draws: reliability and risk against coverage."""
    made = {}
    for name, p in answers.items():
        diagram = un.reliability(p, y, bins=BINS)
        coverage, risk, _ = un.risk_coverage(p, y)
        step = max(len(coverage) // 200, 1)
        made[name] = {
            "n": diagram.n.tolist(),
            "confidence": diagram.confidence.tolist(),
            "accuracy": diagram.accuracy.tolist(),
            "coverage": coverage[step - 1 :: step].tolist(),
            "risk": risk[step - 1 :: step].tolist(),
        }
    return made


def least_sure(p: np.ndarray, y: np.ndarray, count: int = 12) -> list[dict[str, Any]]:
    """Return the test examples of the highest entropy."""
    h = un.entropy(p)
    return [
        {"index": int(i), "true": int(y[i]), "said": int(p[i].argmax()), "confidence": float(p[i].max()),
         "entropy": float(h[i])}
        for i in np.argsort(-h, kind="stable")[:count]
    ]  # fmt: skip
