"""scikit-learn's face: `BayesArchClassifier(...).fit(X, y).predict_proba(X)`.

Tables of shape (n, F) are searched in the space `mlp`, images (n, H, W), (n, H, W, C) or (n, C, H, W) in `nb201`, and
with `space="nb201-series"` series of shape (n, channels, length). Everything happens in this process and nothing is
left on disk; for runs that can be resumed, looked at and exported there is `bayesarch run`.
"""

import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bayesarch.data import DataConfig, Examples, Partition, as_examples, scaling_of, split, splits_on
from bayesarch.engine import Engine, EngineConfig, Setting, TrainConfig, Trainer, found_by, resolve_device
from bayesarch.ensembles import Mixture, fit_mixture
from bayesarch.errors import ConfigError, nearest
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from bayesarch.nets import Supernet, build
from bayesarch.spaces import SPACES, Architecture, Space
from bayesarch.workflows.predictor import Predictor

__all__ = ["BayesArchClassifier"]

ENOUGH = 10
"""Examples of the rarest class from which parts are held out; with fewer everything is of the training examples."""


class BayesArchClassifier(ClassifierMixin, BaseEstimator):
    """A calibrated ensemble of networks found by a search.

    Args:
        space: name of a space, or `auto`: mlp for tables, nb201 for images.
        method: name of a search method over operations.
        members: networks in the ensemble.
        source: where members come from: `samples` of the posterior, `top` of it, or `deepens`, the found one again.
        search_epochs: cap on the search's epochs.
        train_epochs: epochs of each member's training.
        batch_size: examples per batch.
        lr: first learning rate of members (SGD, cosine to 0).
        sizes: macro sizes such as {"channels": 8}; None: the space's for few examples.
        device: auto, cpu, cuda or cuda:N.
        random_state: seed, or a numpy RandomState; decides everything random.

    Attributes:
        classes_: the K class labels.
        n_features_in_: columns of a table.
        architecture_: what the search found.
        posterior_: over architectures.
        predictor_: members, mixture and scaling.
        held_out_: whether architecture, and temperature were decided on examples that trained no weights.
    """

    def __init__(  # noqa: PLR0913 - scikit-learn wants every parameter here
        self,
        *,
        space: str = "auto",
        method: str = "bpnas",
        members: int = 3,
        source: str = "samples",
        search_epochs: int = 30,
        train_epochs: int = 40,
        batch_size: int = 64,
        lr: float = 0.05,
        sizes: dict[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.space = space
        self.method = method
        self.members = members
        self.source = source
        self.search_epochs = search_epochs
        self.train_epochs = train_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.sizes = sizes
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Search, train members, calibrate; return the estimator.

        Args:
            X: (n, F), (n, H, W), (n, H, W, C), (n, C, H, W), or (n, channels, length) for nb201-series.
            y: labels, shape (n,).
            sample_weight: how much each example counts, shape (n,); examples of weight 0 are left out.

        Raises:
            ValueError: for input that scikit-learn's classifiers refuse as well.
            ConfigError: for an unknown space, method or source.
        """
        X, y = validate_data(self, X, y, allow_nd=True, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept] / weights[kept].mean()
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes; y has one class, {self.classes_}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        space = self._space(X.ndim)
        examples = as_examples(
            X, labels, layout="cl" if X.ndim == 3 and self._series else "auto",
            classes=tuple(map(str, self.classes_)), source="X",
        )  # fmt: skip
        partition = self._partition(examples)
        device = resolve_device(self.device)
        config = DataConfig(source="digits", crop=0)
        names = ("weights", "architecture", "selection", "test")
        data = splits_on(examples, partition, names, config=config, device=device, sample_weights=weights)
        both = partition.for_training() if self.held_out_ else partition
        training = splits_on(
            examples, both, ("weights", "selection", "test"), config=config, device=device, sample_weights=weights
        )
        shape, k = examples.input_shape, len(self.classes_)
        with tempfile.TemporaryDirectory() as folder:
            sizes = self._search(Path(folder), space, data, shape, k, seed, device)
            nets = [
                self._member(Path(folder), arch, sizes, training, shape, k, seed + 1 + i, device)
                for i, arch in enumerate(self._architectures(seed))
            ]
        mean, std = scaling_of(examples, both, config)
        equal = (1 / len(nets),) * len(nets)
        self.predictor_ = Predictor(
            nets,
            Mixture(equal, (1.0,) * len(nets)),
            mean,
            std,
            examples.classes,
            shape,
            tuple(self._architectures(seed)),
        )
        logits, truth = self.predictor_.logits_on(training["test"])
        counting = None if weights is None else weights[both.indices["test"]]
        self.predictor_.mixture = fit_mixture(logits, truth, equal, "joint", counting=counting)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities, shape (n, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, allow_nd=True, dtype=np.float32, reset=False)
        if X.ndim == 2:
            X = X[:, None, None, :]
        elif X.ndim == 3 and self._series:
            X = X.transpose(0, 2, 1)[:, None]
        return self.predictor_.predict_proba(X)

    def predict(self, X: Any) -> np.ndarray:
        """Return class labels, shape (n,)."""
        said = self.predict_proba(X).argmax(1)
        labels: np.ndarray = self.classes_[said]
        return labels

    @property
    def _series(self) -> bool:
        """Whether three axes are channels and length, and not height and width."""
        return self.space == "nb201-series"

    def _space(self, ndim: int) -> Space:
        name = self.space if self.space != "auto" else "mlp" if ndim == 2 else "nb201"
        if name not in SPACES or SPACES[name].open:
            raise ConfigError(f"no space {name!r}, {nearest(name, [s for s, v in SPACES.items() if not v.open])}")
        if self.method not in METHODS or METHODS[self.method].channels:
            raise ConfigError(
                f"no method {self.method!r}, {nearest(self.method, [m for m, v in METHODS.items() if not v.channels])}"
            )
        return SPACES[name]

    def _partition(self, examples: Examples) -> Partition:
        """Return splits; the last, `test`, calibrates, since the examples to test on are the caller's."""
        counts = np.bincount(examples.labels)
        self.held_out_ = bool(counts.min() >= ENOUGH)
        if self.held_out_:
            return split(examples, DataConfig(source="digits", fractions=(0.45, 0.35, 0.1, 0.1)))
        everyone = np.arange(len(examples.labels))
        return Partition(dict.fromkeys(("weights", "architecture", "selection", "test"), everyone))

    def _search(
        self, folder: Path, space: Space, data: Any, shape: Any, k: int, seed: int, device: torch.device
    ) -> Any:
        """Search, keep what was found, and return the sizes of the networks."""
        entry, streams = METHODS[self.method], Streams(seed, device)
        method = entry.make(space, entry.config())
        few = getattr(space.sizes, "few_examples", {})
        net = Supernet(
            space, input_shape=shape, classes=k, sizes={**few, **(self.sizes or {})}, generator=streams["init"]
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        counts = {name: len(part) for name, part in data.items()}
        batch = min(self.batch_size, *counts.values())
        setting = Setting(net.n_copies, counts, batch, counts["weights"] // batch, device, classes=k)
        engine = Engine(
            method=method,
            net=net,
            state=method.init(setting, streams=streams),
            data=data,
            config=EngineConfig(epochs=self.search_epochs, closing_epochs=0, batch_size=max(batch, 2)),
            streams=streams,
            checkpoint=folder / "search.safetensors",
        ).run()
        self.posterior_, self.architecture_ = method.posterior(engine.state), found_by(method, engine.state)
        return net.sizes

    def _architectures(self, seed: int) -> list[Architecture]:
        """Return the members' architectures.

        Raises:
            ConfigError: for an unknown source.
        """
        if self.source == "deepens":
            return [self.architecture_] * self.members
        if self.source == "samples":
            return self.posterior_.sample(self.members, seed=seed)
        if self.source == "top":
            return [arch for arch, _ in self.posterior_.credible_set(1.0, limit=self.members)]
        raise ConfigError(f"no source {self.source!r}, {nearest(self.source, ('samples', 'top', 'deepens'))}")

    def _member(
        self, folder: Path, arch: Architecture, sizes: Any, data: Any, shape: Any, k: int, seed: int, device: Any
    ) -> torch.nn.Module:
        """Return one trained network."""
        streams = Streams(seed, device)
        net = build(arch, input_shape=shape, classes=k, sizes=sizes, generator=streams["init"])
        batch = max(min(self.batch_size, len(data["weights"])), 2)
        config = TrainConfig(
            epochs=self.train_epochs, batch_size=batch, lr=self.lr, nesterov=True, checkpoint_minutes=1e6
        )
        Trainer(
            net.to(device, memory_format=torch.channels_last), classes=k, training=data["weights"],
            selection=data["selection"], config=config, streams=streams, checkpoint=folder / f"{seed}.safetensors",
        ).run()  # fmt: skip
        trained: torch.nn.Module = net.eval().requires_grad_(False)
        return trained

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
