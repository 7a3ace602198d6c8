"""Adapt a pre-trained network where memory is short.

Rank a network's layers by the topology of their activations, train the best, and keep in memory only what
that needs.
"""

from adabet.drift import DriftReport
from adabet.export import export_onnx, export_program, merge_delta
from adabet.freezing import apply
from adabet.layers import Layer, Layers, find_layers
from adabet.lean import lean
from adabet.memory import MemoryReport, measure_memory
from adabet.methods import rank, select
from adabet.monitor import Monitor
from adabet.planning import Plan, plan
from adabet.ranking import Ranking
from adabet.selection import Choice, Selection
from adabet.topology import betti_one
from adabet.training import FitResult, evaluate, fit, load_delta, save_delta

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "DriftReport",
    "FitResult",
    "Layer",
    "Layers",
    "MemoryReport",
    "Monitor",
    "Plan",
    "Ranking",
    "Selection",
    "apply",
    "betti_one",
    "evaluate",
    "export_onnx",
    "export_program",
    "find_layers",
    "fit",
    "lean",
    "load_delta",
    "measure_memory",
    "merge_delta",
    "plan",
    "rank",
    "save_delta",
    "select",
]
