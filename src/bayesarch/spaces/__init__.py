"""What may be built: choices, options, architectures. Pure data, no torch.

To add a space: copy `nb201.py` or `toy.py`, write one `Space`, add one line to `SPACES`, and run
`bayesarch.testing.check_space` on it. What its operations compute is said once in `nets/operations.py`.
"""

from bayesarch.spaces.architecture import Architecture as Architecture
from bayesarch.spaces.bayesnas_cell import BAYESNAS_CELL as BAYESNAS_CELL
from bayesarch.spaces.channels import GateGroup as GateGroup
from bayesarch.spaces.channels import channel_space as channel_space
from bayesarch.spaces.darts import DARTS as DARTS
from bayesarch.spaces.densenet import DENSENET121 as DENSENET121
from bayesarch.spaces.enas_micro import ENAS_MICRO as ENAS_MICRO
from bayesarch.spaces.limits import NO_LIMITS as NO_LIMITS
from bayesarch.spaces.limits import Limits as Limits
from bayesarch.spaces.mlp import MLP as MLP
from bayesarch.spaces.module import MODULE as MODULE
from bayesarch.spaces.nb201 import NB201 as NB201
from bayesarch.spaces.nb201_series import NB201_SERIES as NB201_SERIES
from bayesarch.spaces.resnet_multi import RESNET50_MULTI as RESNET50_MULTI
from bayesarch.spaces.shake_shake import SHAKE_SHAKE as SHAKE_SHAKE
from bayesarch.spaces.space import Choice as Choice
from bayesarch.spaces.space import Picks as Picks
from bayesarch.spaces.space import Space as Space
from bayesarch.spaces.toy import TOY as TOY
from bayesarch.spaces.tree_cell import TREE_CELL as TREE_CELL
from bayesarch.spaces.tree_cell import TREE_CELL_18 as TREE_CELL_18
from bayesarch.spaces.tree_cell import tree_cell as tree_cell

__all__ = [
    "BAYESNAS_CELL",
    "DARTS",
    "DENSENET121",
    "ENAS_MICRO",
    "MLP",
    "MODULE",
    "NB201",
    "NB201_SERIES",
    "NO_LIMITS",
    "RESNET50_MULTI",
    "SHAKE_SHAKE",
    "SPACES",
    "TOY",
    "TREE_CELL",
    "TREE_CELL_18",
    "Architecture",
    "Choice",
    "GateGroup",
    "Limits",
    "Picks",
    "Space",
    "channel_space",
    "tree_cell",
]

SPACES: dict[str, Space] = {
    "nb201": NB201,
    "nb201-series": NB201_SERIES,
    "darts": DARTS,
    "bayesnas-cell": BAYESNAS_CELL,
    "tree-cell": TREE_CELL,
    "tree-cell-18": TREE_CELL_18,
    "shake-shake": SHAKE_SHAKE,
    "enas-micro": ENAS_MICRO,
    "densenet121": DENSENET121,
    "resnet50-multi": RESNET50_MULTI,
    "module": MODULE,
    "mlp": MLP,
    "toy": TOY,
}
"""Every space that can be asked for by name."""
