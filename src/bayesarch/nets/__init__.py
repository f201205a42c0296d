"""Networks: operations, supernets told their gates, plain networks, and what they cost.

To add an operation: one line in `operations.py`. To add a macro network: one function in `skeletons.py` and
one line in `families.py`.
`bayesarch.testing.check_supernet` holds what every supernet must keep.
"""

from bayesarch.nets.auxiliary import AuxiliaryHead as AuxiliaryHead
from bayesarch.nets.cells import node_order as node_order
from bayesarch.nets.classics import CLASSICS as CLASSICS
from bayesarch.nets.convolving import convolving as convolving
from bayesarch.nets.cost import Cost as Cost
from bayesarch.nets.cost import architecture_cost as architecture_cost
from bayesarch.nets.cost import cost_limits as cost_limits
from bayesarch.nets.cost import latency_ms as latency_ms
from bayesarch.nets.cost import network_cost as network_cost
from bayesarch.nets.cost import option_costs as option_costs
from bayesarch.nets.cost import widest as widest
from bayesarch.nets.coupling import Units as Units
from bayesarch.nets.coupling import cut_units as cut_units
from bayesarch.nets.coupling import held_inputs as held_inputs
from bayesarch.nets.coupling import mask_units as mask_units
from bayesarch.nets.coupling import pick_inputs as pick_inputs
from bayesarch.nets.drop import PathDrop as PathDrop
from bayesarch.nets.families import SKELETONS as SKELETONS
from bayesarch.nets.families import Skeleton as Skeleton
from bayesarch.nets.following import units_of as units_of
from bayesarch.nets.gated import GatedSupernet as GatedSupernet
from bayesarch.nets.gated import close_space as close_space
from bayesarch.nets.gated import kept_by as kept_by
from bayesarch.nets.gated import supernet_from as supernet_from
from bayesarch.nets.masking import MaskCosts as MaskCosts
from bayesarch.nets.masking import MaskedNetwork as MaskedNetwork
from bayesarch.nets.operations import OPERATIONS as OPERATIONS
from bayesarch.nets.plain import PlainNetwork as PlainNetwork
from bayesarch.nets.plain import build as build
from bayesarch.nets.plain import tidy_sizes as tidy_sizes
from bayesarch.nets.stacking import Stack as Stack
from bayesarch.nets.stacking import stack as stack
from bayesarch.nets.supernet import Supernet as Supernet

__all__ = [
    "CLASSICS",
    "OPERATIONS",
    "SKELETONS",
    "AuxiliaryHead",
    "Cost",
    "GatedSupernet",
    "MaskCosts",
    "MaskedNetwork",
    "PathDrop",
    "PlainNetwork",
    "Skeleton",
    "Stack",
    "Supernet",
    "Units",
    "architecture_cost",
    "build",
    "close_space",
    "convolving",
    "cost_limits",
    "cut_units",
    "held_inputs",
    "kept_by",
    "latency_ms",
    "mask_units",
    "network_cost",
    "node_order",
    "option_costs",
    "pick_inputs",
    "stack",
    "supernet_from",
    "tidy_sizes",
    "units_of",
    "widest",
]
