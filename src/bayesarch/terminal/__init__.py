"""What people see in a terminal: progress, tables, one-line answers. rich, no torch."""

from bayesarch.terminal.compressions import CompressionProgress as CompressionProgress
from bayesarch.terminal.compressions import print_compression as print_compression
from bayesarch.terminal.ensembles import EnsembleProgress as EnsembleProgress
from bayesarch.terminal.ensembles import RoadProgress as RoadProgress
from bayesarch.terminal.ensembles import print_answers as print_answers
from bayesarch.terminal.ensembles import print_evaluation as print_evaluation
from bayesarch.terminal.progress import Progress as Progress
from bayesarch.terminal.progress import TrainingProgress as TrainingProgress
from bayesarch.terminal.progress import plan_line as plan_line
from bayesarch.terminal.searches import print_architecture as print_architecture
from bayesarch.terminal.searches import print_comparison as print_comparison
from bayesarch.terminal.searches import print_data_check as print_data_check
from bayesarch.terminal.searches import print_doctor as print_doctor
from bayesarch.terminal.searches import print_overview as print_overview
from bayesarch.terminal.searches import print_repeats as print_repeats
from bayesarch.terminal.searches import print_samples as print_samples
from bayesarch.terminal.searches import print_summary as print_summary
from bayesarch.terminal.searches import print_training as print_training
from bayesarch.terminal.searches import status_line as status_line

__all__ = [
    "CompressionProgress",
    "EnsembleProgress",
    "Progress",
    "RoadProgress",
    "TrainingProgress",
    "plan_line",
    "print_answers",
    "print_architecture",
    "print_comparison",
    "print_compression",
    "print_data_check",
    "print_doctor",
    "print_evaluation",
    "print_overview",
    "print_repeats",
    "print_samples",
    "print_summary",
    "print_training",
    "status_line",
]
