"""A second classifier on an inner layer, used in training alone."""

from torch import Tensor, nn

__all__ = ["AuxiliaryHead"]


class AuxiliaryHead(nn.Module):
    """DARTS's auxiliary head for CIFAR, for images of any side.

    Args:
        channels: of the layer.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, K)."""
        logits: Tensor = self.body(x)
        return logits
