"""Answers without training: tables of what every architecture of a space reached. Never read during a search. No torch.

To add a benchmark: write its `Table` and add a line to `BENCHMARKS`.
"""

from bayesarch.benchmarks.tables import BENCHMARKS as BENCHMARKS
from bayesarch.benchmarks.tables import Answer as Answer
from bayesarch.benchmarks.tables import Benchmark as Benchmark
from bayesarch.benchmarks.tables import Table as Table
from bayesarch.benchmarks.tables import read_table as read_table

__all__ = ["BENCHMARKS", "Answer", "Benchmark", "Table", "read_table"]
