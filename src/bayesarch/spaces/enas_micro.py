"""The cells that ENAS found in its micro space, stacked, every pointwise convolution's input channels gated.

References: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing", ICML 2018; super-networks E (36
filters, 4.6 M parameters) and EI (72) of Zhou et al., "Posterior-Guided Neural Architecture Search", AAAI 2020.
"""

from pydantic import Field

from bayesarch.config import Config
from bayesarch.spaces.space import Space

__all__ = ["ENAS_MICRO", "ENASMicroSizes"]


class ENASMicroSizes(Config):
    """Sizes of the network."""

    filters: int = Field(default=36, ge=2, multiple_of=2)
    """F: channels of the first cells, doubled at each reduction; 36 is E, 72 is EI."""
    layers: int = Field(default=15, ge=3)
    """Normal cells; two reductions come on top, behind a third and two thirds of them."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of operations switched off per example while training, rising from 0 over the layers (published: 0.4)."""


ENAS_MICRO = Space(name="enas-micro", choices=(), skeleton="enas-micro", sizes=ENASMicroSizes)
"""The space, open until its sizes and the data are known."""
