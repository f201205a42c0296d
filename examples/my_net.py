"""A network of one's own, to search for the channels it needs.

    bayesarch search --module examples/my_net.py:Net --set engine.epochs=40

Any module will do that takes images and returns one logit per class. Where its constructor has arguments named
`input_shape` and `classes`, it is given those of the data.
"""

import torch
from torch import nn


class Net(nn.Module):
    """Three convolutions, the last two a residual block, and a linear layer."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(input_shape[0], 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 3, padding=1)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, classes)."""
        x = self.stem(images)
        x = torch.relu(x + self.block(x))
        logits: torch.Tensor = self.head(self.pool(x).flatten(1))
        return logits


if __name__ == "__main__":
    import tempfile

    import bayesarch as ba

    run = ba.search(
        "digits",
        limit=600,
        space="module",
        method="pgnas",
        set={"space.path": f"{__file__}:Net", "engine.epochs": 10, "method.candidates": 15},
        out=tempfile.mkdtemp() + "/run",
    )
    small = run.network()
    accuracy = run.summary["selection_accuracy"]
    print(f"{run.summary['params']:,} parameters are left, {accuracy:.3f} on the selection split")
    print(small)
