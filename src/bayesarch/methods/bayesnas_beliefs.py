"""Settings and beliefs of BayesNAS; how they move is in `bayesnas.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from bayesarch.config import Config
from bayesarch.engine import RECALIBRATED, Setting
from bayesarch.functional import ard

__all__ = ["BayesNASConfig", "BayesNASState", "gaussians", "look_passes"]


class BayesNASConfig(Config):
    """Settings of BayesNAS."""

    dependency: ard.Dependency = "full"
    """What an operation's prior depends on: nothing, the gate of its edge, or what enters its source as well."""
    update: Literal["exact", "published"] = "exact"
    """Variances that lower the evidence bound, or the paper's update, which leaves out cross terms."""
    penalty_share: float = Field(default=0.4, gt=0)
    """lambda as a share of what an average operation is worth (`ard.relative_lambda`), asked again at every update."""
    penalty_gates: float | None = Field(default=None, gt=0)
    """lambda of gates: 1 / the examples that the mean loss is taken to stand for; null: by `penalty_share`."""
    penalty_operations: float | None = Field(default=None, gt=0)
    """lambda of operations; null: by `penalty_share` (published: .007 and .01)."""
    penalised: bool = True
    """Whether switches pay the penalty while they are trained; without it only the criterion prunes (an ablation)."""
    step: Literal["proximal", "gradient"] = "proximal"
    """How the penalty moves switches: a proximal step after the optimiser's, or its gradient (published)."""
    warmup_steps: int = Field(default=150, ge=0)
    """Steps of the weights alone before the first round, rounded up to epochs (published: one epoch, 5,000 images)."""
    round_steps: int = Field(default=150, ge=1)
    """Steps between two updates, rounded up to epochs (published: one epoch of 2,500 steps of 18 images)."""
    rounds: int = Field(default=3, ge=1)
    """Updates of the variances, each followed by a removal; 1 is the released code."""
    switch_lr: float | None = Field(default=None, gt=0)
    """Learning rate of switches (SGD); null: that of the weights."""
    switch_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of switches."""
    train_on: Literal["architecture", "both"] = "architecture"
    """Split that weights and switches are trained on together; warm-up is on the weights split (published)."""
    first_variance: float = Field(default=1.0, gt=0)
    """Variances before the first update."""
    curvature: Literal["exact", "mc"] = "exact"
    """GGN by a backward pass per class, or Monte-Carlo Fisher by one."""
    curvature_batches: int | None = Field(default=None, ge=1)
    """Batches of the architecture split that curvature is taken on; null: all."""
    rule: Literal["evidence", "entropy"] = "evidence"
    """When an option goes: no evidence for letting it vary (no scale), or entropy of its variance (the paper's)."""
    threshold: float = Field(default=ard.ENTROPY_THRESHOLD, gt=0)
    """Variance at or below which the entropy rule removes; 1 / (2 pi e) is where the entropy is 0."""
    decide_on: Literal["effective", "switch"] = "effective"
    """Whether the evidence rule asks of w_0 w_o or of w_o alone, whose curvature goes as its gate goes."""
    slab: float = Field(default=1.0, gt=0)
    """Variance of the slab of inclusion probabilities."""
    prior_odds: float = Field(default=1.0, gt=0)
    """Prior odds that an option is there, of inclusion probabilities."""


@dataclass(frozen=True)
class BayesNASState:
    """Beliefs: switches with momentum, variances, the penalty in force, evidence, the live mask, what was removed."""

    w: Tensor
    """Switches, shape (L, G)."""
    velocity: Tensor
    """Their momentum, shape (L, G)."""
    gamma: Tensor
    """Free variances (as stored, where the update is the published one), shape (G,)."""
    weight: Tensor
    """Weights of the penalty, shape (G,)."""
    share: Tensor
    """Shares of the penalty, shape (G, G); (0,) where it is separable."""
    spread: Tensor
    """Posterior standard deviation of each switch when last looked at, shape (L, G)."""
    log_factor: Tensor
    """Log Bayes factor of each option and gate when last looked at, nats, shape (G,)."""
    break_even: Tensor
    """lambda at which each option or gate would have gone by the evidence when last looked at, shape (G,)."""
    lam: Tensor
    """lambda by `penalty_share` when last looked at, shape (); 0 before."""
    live: Tensor
    undecided: Tensor
    """What was live when one option per choice, or what the limits allow, was picked, shape (G,)."""
    batch_size: int
    look_passes: float = 0.0
    """What curvature costs, in passes forward over the architecture split."""
    weighed: bool = False
    """Whether lambda has been asked for."""
    updates: int = 0
    removed: tuple[Any, ...] = ()
    """[update, option, why] of each option removed; why is evidence or entropy, gate, dependency, inactive, single,
    limits or cap."""
    kept_by_guard: int = 0
    """Options that a criterion would have removed and the last path needed."""
    decided: bool = False
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""


def look_passes(config: BayesNASConfig, setting: Setting) -> float:
    """Return what a look at curvature costs, in passes forward over the architecture split.

    A pass back to the gates costs one forward; norms are recalibrated first.
    """
    n, batch, most = setting.n_examples["architecture"], setting.batch_size, config.curvature_batches
    seen = n if most is None else min(n, most * batch)
    back = setting.classes if config.curvature == "exact" else 2
    return (min(setting.n_examples["weights"], RECALIBRATED * batch) + (1 + back) * seen) / n


def gaussians(state: BayesNASState, labels: Sequence[str]) -> dict[str, Any]:
    """Return the Gaussian of every switch, by its option: mean and standard deviation in every copy of its cell."""
    mean, sd = state.w.double().cpu().T.tolist(), state.spread.double().cpu().T.tolist()
    return {
        label: {"mean": [round(v, 6) for v in m], "sd": [round(v, 6) for v in d]}
        for label, m, d in zip(labels, mean, sd, strict=True)
    }
