"""What one search is made of beside its method: settings, the place it has reached, and who is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from bayesarch.config import Config
from bayesarch.engine.device import Precision

__all__ = ["EngineConfig", "Interrupted", "Observer", "Place"]


class Interrupted(Exception):
    """The search was asked to stop and has saved its place."""


class EngineConfig(Config):
    """How weights are fitted during a search."""

    epochs: int = Field(default=80, ge=1)
    """Cap on search epochs; also the nominal length of the learning-rate schedule."""
    closing_epochs: int = Field(default=5, ge=0)
    """Epochs of weight training after everything is decided."""
    batch_size: int = Field(default=64, ge=2)
    """Examples per batch, on each split."""
    lr: float = Field(default=0.025, gt=0)
    """First learning rate of the weights (SGD)."""
    lr_min: float = Field(default=0.001, ge=0)
    """Last learning rate; between the two half a cosine."""
    schedule: Literal["cosine", "restarts", "steps"] = "cosine"
    """Half a cosine over all epochs; cosines begun again, each twice as long; or a factor at each milestone."""
    restart_epochs: int = Field(default=10, ge=1)
    """Epochs of the first cosine, where they are begun again."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the rate falls in steps."""
    step_factor: float = Field(default=0.1, gt=0, le=1)
    """By what it falls there."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = False
    """Whether momentum looks ahead."""
    weight_decay: float = Field(default=3e-4, ge=0)
    """L2 coefficient of the weights."""
    clip: float = Field(default=5.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast; beliefs are always fp32."""
    score_batches: int | None = Field(default=50, ge=1)
    """Batches (of four times the batch size) of the selection split scored after each round; null: all."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the CPU; null: as many as a step keeps busy, or what `OMP_NUM_THREADS` says."""
    recompute: bool = False
    """Whether cells are computed a second time on the way back instead of kept: less memory, the same numbers, about a
    third more time. `memory_limit` sets it where it is needed."""
    parts: int = Field(default=1, ge=1)
    """Take each batch in so many parts, of which one at a time is held; norms then take the statistics of each part.
    `memory_limit` sets it where it is needed."""
    own_pages: bool = False
    """Whether large tensors have pages of their own (a CPU, glibc): the process then takes about what its tensors take,
    up to a third of what it takes otherwise, and steps take up to 2.4 times as long. `memory_limit` sets it."""
    compile: bool = False
    """Whether what leaves each node is compiled, once for all copies of a cell; on a CPU by a C++ compiler. First
    steps, and those after a pruning, then take up to minutes: for searches of thousands of steps (docs/speed.md)."""
    fused: bool = False
    """Whether gates, norms and sums of a supernet's cells are computed by kernels of ours, on a CPU, compiled in some
    seconds by a C compiler and kept: faster, the more so in bf16, and up to rounding the same (docs/speed.md)."""
    graphs: bool = False
    """Whether steps on a card are captured and replayed as one program (CUDA graphs), wherever the host would say the
    same again: small networks wait for the host otherwise. Has only run on a pretended card (docs/speed.md)."""
    memory_limit: float | None = Field(default=None, gt=0)
    """Most memory a search may take beside Python and torch, in MiB; null: no limit. What keeps it is chosen before the
    search and printed; see docs/first-steps.md."""
    recalibrate: bool = True
    """Whether the found network's norms take their running statistics anew at the end, from up to 20 batches."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Longest time between two checkpoints; one is written after every round in any case."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop searching when so much time has gone, keep the best so far, and use what is left for the closing epochs;
    null: no limit. Looked at after every step; the learning rate falls so as to end with the time. Such runs depend on
    the machine's speed and cannot be repeated bit for bit."""


@dataclass
class Observer:
    """Who is told what happens; every field may be replaced."""

    on_step: Callable[["Place"], None] = lambda place: None
    on_round: Callable[[dict[str, Any]], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Place:
    """Where a search is. `stage` is search, closing, examine or done."""

    stage: str = "search"
    rounds: int = 0
    """Rounds finished in this stage."""
    step: int = 0
    """Steps finished in the current round."""
    steps: int = 0
    """Steps finished in all."""
    searched: int = 0
    """Steps of them that the search took, known when it has ended."""
    records: int = 0
    """Round records written."""
    images: int = 0
    """Images that went forward through the network so far."""
    macs: int = 0
    """MACs of those passes, counted from the options that were computed."""
    seconds: float = 0.0
    """Time spent so far, what is measured at the end included, over all processes that worked on this search."""
    over: bool = False
    """Whether the search ends with the current round, by its cap or because its time is over."""
    cut: bool = False
    """Whether the time allowed ended the search."""
    closing_lr: float = 0.0
    """Learning rate at which the closing epochs start."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over the current round of what `step` reports."""
