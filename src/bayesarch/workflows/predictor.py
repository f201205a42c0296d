"""What answers: one network or several, with what is done to an image before and to their logits after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesarch.ensembles import Mixture
from bayesarch.errors import ConfigError, DataError
from bayesarch.spaces import Architecture

if TYPE_CHECKING:
    from bayesarch.data import Split

__all__ = ["Predictor", "alone"]


@dataclass
class Predictor:
    """Networks that answer together.

    Attributes:
        networks: plain modules, in eval mode, logits of shape (B, K) for normalised images of shape (B, C, H, W).
        mixture: weights and temperatures.
        mean: subtracted from each channel, shape (C,).
        std: each channel is divided by it, shape (C,).
        classes: names of the K classes.
        input_shape: (channels, height, width).
        architectures: of the networks, where they have one.
    """

    networks: list[nn.Module]
    mixture: Mixture
    mean: np.ndarray
    std: np.ndarray
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    architectures: tuple[Architecture | None, ...] = ()

    def prepare(self, images: np.ndarray) -> Tensor:
        """Return images as the networks take them, shape (n, C, H, W), float32.

        Args:
            images: as they were trained on: (n, H, W, C), (n, C, H, W), or (n, H, W) for one channel; same range.

        Raises:
            DataError: if the shape is another.
        """
        x, (c, h, w) = np.asarray(images), self.input_shape
        if c == 1 and x.shape[1:] == (h, w):
            x = x[..., None]
        elif x.shape[1:] == (c, h, w) and x.shape[1:] != (h, w, c):
            x = x.transpose(0, 2, 3, 1)
        if x.ndim != 4 or x.shape[1:] != (h, w, c):
            raise DataError(f"images must have shape (n, {h}, {w}, {c}) or (n, {c}, {h}, {w}); got {np.shape(images)}")
        scaled = (x.astype(np.float32) - self.mean.astype(np.float32)) / self.std.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    @torch.no_grad()
    def logits(self, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Return every network's logits for raw images, shape (M, n, K), float64."""
        return self._through(self.prepare(images).split(batch_size))

    @torch.no_grad()
    def logits_on(self, split: "Split", *, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Return every network's logits on a split, shape (M, n, K), and the true classes, shape (n,)."""
        batches = list(split.in_order(batch_size, None))
        labels = torch.cat([batch.labels for batch in batches]).cpu().numpy()
        return self._through([batch.images for batch in batches]), labels

    def _through(self, batches: Sequence[Tensor]) -> np.ndarray:
        device = next(self.networks[0].parameters()).device
        made = [
            torch.cat([net.eval()(part.to(device)).float().cpu() for part in batches]).double().numpy()
            for net in self.networks
        ]
        return np.stack(made)

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """Return class probabilities of raw images, shape (n, K)."""
        return self.mixture(self.logits(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return class names of raw images, shape (n,)."""
        return np.array(self.classes)[self.predict_proba(images).argmax(1)]

    def to(self, device: Any) -> "Predictor":
        """Move the networks to a device and return this object."""
        for net in self.networks:
            net.to(device)
        return self


def alone(net: nn.Module, **fields: Any) -> Predictor:
    """Return a predictor of one network at temperature 1.

    Raises:
        ConfigError: if it is no module.
    """
    if not isinstance(net, nn.Module):
        raise ConfigError(f"a predictor needs a torch.nn.Module; got {type(net).__name__}")
    return Predictor([net.eval()], Mixture((1.0,), (1.0,)), **fields)
