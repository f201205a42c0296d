"""A network of one's own, trained elsewhere, made smaller and written to a file that runs without us."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import bayesarch as ba
from bayesarch.data import DataConfig, load


class Net(nn.Module):
    """A convolution, a residual block, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.back(F.relu(self.inner(x))))
        return self.head(x.flatten(1))


net, digits = Net(), load(DataConfig(source="digits"))
images = torch.from_numpy(digits.images).float().permute(0, 3, 1, 2)
images, labels = (images - images.mean()) / images.std(), torch.from_numpy(digits.labels)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for _ in range(10):
    for index in torch.randperm(900).split(100):
        optimizer.zero_grad()
        F.cross_entropy(net(images[index]), labels[index]).backward()
        optimizer.step()

with tempfile.TemporaryDirectory() as folder:
    run = ba.compress(
        net, "digits", limit=600, max_macs=100_000, set={"train.epochs": 12}, out=Path(folder) / "smaller"
    )
    small = run.network(net)
    before, after = run.summary["rows"]
    print(type(small).__name__, [tuple(p.shape) for p in small.parameters() if p.ndim > 1])
    print(f"MACs {before['macs']:,} -> {after['macs']:,}")
    print(f"accuracy {before['accuracy']['value']:.3f} -> {after['accuracy']['value']:.3f}")
