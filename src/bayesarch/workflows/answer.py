"""One module from raw images to everything an export gives: probabilities, members, entropy, disagreement."""

import torch
from torch import Tensor, nn

from bayesarch.workflows.predictor import Predictor

__all__ = ["OUTPUTS", "Answer"]

OUTPUTS = {
    "probabilities": "of the classes, mixed and calibrated, shape (n, K)",
    "members": "probabilities of each member after its temperature, shape (M, n, K)",
    "entropy": "total uncertainty, nats, shape (n,)",
    "aleatoric": "mean entropy of the members, nats, shape (n,)",
    "epistemic": "entropy of the mixture before its temperature minus aleatoric, nats, shape (n,)",
    "disagreement": "share of pairs of members that name different classes, shape (n,)",
}
"""What comes out, in this order."""


class Answer(nn.Module):
    """A predictor as one module.

    Args:
        predictor: networks, mixture and preprocessing.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.networks = nn.ModuleList(predictor.networks)
        self.mean: Tensor
        self.std: Tensor
        self.weights: Tensor
        self.temperatures: Tensor
        mixture = predictor.mixture
        self.register_buffer("mean", torch.tensor(predictor.mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(predictor.std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("weights", torch.tensor(mixture.weights, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("temperatures", torch.tensor(mixture.temperatures, dtype=torch.float32).view(-1, 1, 1))
        self.joint = float(mixture.joint)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what `OUTPUTS` names, for raw images of shape (n, C, H, W), float32."""
        x = (images - self.mean) / self.std
        logits = torch.stack([net(x) for net in self.networks])
        members = torch.softmax(logits / self.temperatures, -1)
        mixed = (members * self.weights).sum(0)
        probabilities = mixed if self.joint == 1.0 else torch.softmax(mixed.clamp(min=1e-30).log() / self.joint, -1)
        aleatoric = (_entropy(members) * self.weights[:, :, 0]).sum(0)
        epistemic = (_entropy(mixed) - aleatoric).clamp(min=0)
        said = members.argmax(-1)
        m = len(self.networks)
        pairs = [(said[i] != said[j]).to(images.dtype) for i in range(m) for j in range(i)]
        disagreement = sum(pairs, torch.zeros_like(aleatoric)) / max(len(pairs), 1)
        return probabilities, members, _entropy(probabilities), aleatoric, epistemic, disagreement


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-30).log()).sum(-1)
