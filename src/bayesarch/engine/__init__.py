"""How weights are fitted: one loop, devices and precision, checkpoints, scores. Knows methods only by a protocol.

Nothing here may name a space, a method or a data set. A new method needs no edit here.
"""

from bayesarch.engine.allocator import own_pages as own_pages
from bayesarch.engine.allocator import pages_can_be_owned as pages_can_be_owned
from bayesarch.engine.checkpoint import load_checkpoint as load_checkpoint
from bayesarch.engine.checkpoint import pack as pack
from bayesarch.engine.checkpoint import save_checkpoint as save_checkpoint
from bayesarch.engine.checkpoint import unpack as unpack
from bayesarch.engine.compiling import check_training as check_training
from bayesarch.engine.compiling import check_ways as check_ways
from bayesarch.engine.compiling import take_way as take_way
from bayesarch.engine.conditionals import conditional_losses as conditional_losses
from bayesarch.engine.curvature import Curvature as Curvature
from bayesarch.engine.curvature import gate_curvature as gate_curvature
from bayesarch.engine.device import SHARED_THREADS as SHARED_THREADS
from bayesarch.engine.device import autocast as autocast
from bayesarch.engine.device import resolve_device as resolve_device
from bayesarch.engine.device import threads_are_told as threads_are_told
from bayesarch.engine.device import working_threads as working_threads
from bayesarch.engine.joint import World as World
from bayesarch.engine.loop import Engine as Engine
from bayesarch.engine.masks import UnitMasks as UnitMasks
from bayesarch.engine.memory import SCORED as SCORED
from bayesarch.engine.memory import Line as Line
from bayesarch.engine.memory import economise as economise
from bayesarch.engine.memory import live_bytes as live_bytes
from bayesarch.engine.method import Clock as Clock
from bayesarch.engine.method import Info as Info
from bayesarch.engine.method import Method as Method
from bayesarch.engine.method import Setting as Setting
from bayesarch.engine.method import State as State
from bayesarch.engine.method import found_by as found_by
from bayesarch.engine.method import partial_of as partial_of
from bayesarch.engine.penalised import PenalisedTrainer as PenalisedTrainer
from bayesarch.engine.place import EngineConfig as EngineConfig
from bayesarch.engine.place import Interrupted as Interrupted
from bayesarch.engine.place import Observer as Observer
from bayesarch.engine.place import Place as Place
from bayesarch.engine.pressure import Pressure as Pressure
from bayesarch.engine.relevance import Relevance as Relevance
from bayesarch.engine.replay import Steps as Steps
from bayesarch.engine.replay import steps_of as steps_of
from bayesarch.engine.score import RECALIBRATED as RECALIBRATED
from bayesarch.engine.score import Score as Score
from bayesarch.engine.score import batch_loss as batch_loss
from bayesarch.engine.score import batch_statistics as batch_statistics
from bayesarch.engine.score import recalibrate as recalibrate
from bayesarch.engine.score import score as score
from bayesarch.engine.shrinking import RULES as RULES
from bayesarch.engine.shrinking import Asked as Asked
from bayesarch.engine.shrinking import Cut as Cut
from bayesarch.engine.shrinking import ShrinkConfig as ShrinkConfig
from bayesarch.engine.shrinking import cut_of_round as cut_of_round
from bayesarch.engine.shrinking import pressure_of_round as pressure_of_round
from bayesarch.engine.switches import Switches as Switches
from bayesarch.engine.switches import switch_curvature as switch_curvature
from bayesarch.engine.together import Together as Together
from bayesarch.engine.together import can_stack as can_stack
from bayesarch.engine.trainer import TrainConfig as TrainConfig
from bayesarch.engine.trainer import Trainer as Trainer
from bayesarch.engine.weight_curvature import curved_parameters as curved_parameters
from bayesarch.engine.weight_curvature import weight_curvature as weight_curvature
from bayesarch.engine.weights import Weights as Weights

__all__ = [
    "RECALIBRATED",
    "RULES",
    "SCORED",
    "SHARED_THREADS",
    "Asked",
    "Clock",
    "Curvature",
    "Cut",
    "Engine",
    "EngineConfig",
    "Info",
    "Interrupted",
    "Line",
    "Method",
    "Observer",
    "PenalisedTrainer",
    "Place",
    "Pressure",
    "Relevance",
    "Score",
    "Setting",
    "ShrinkConfig",
    "State",
    "Steps",
    "Switches",
    "Together",
    "TrainConfig",
    "Trainer",
    "UnitMasks",
    "Weights",
    "World",
    "autocast",
    "batch_loss",
    "batch_statistics",
    "can_stack",
    "check_training",
    "check_ways",
    "conditional_losses",
    "curved_parameters",
    "cut_of_round",
    "economise",
    "found_by",
    "gate_curvature",
    "live_bytes",
    "load_checkpoint",
    "own_pages",
    "pack",
    "pages_can_be_owned",
    "partial_of",
    "pressure_of_round",
    "recalibrate",
    "resolve_device",
    "save_checkpoint",
    "score",
    "steps_of",
    "switch_curvature",
    "take_way",
    "threads_are_told",
    "unpack",
    "weight_curvature",
    "working_threads",
]
