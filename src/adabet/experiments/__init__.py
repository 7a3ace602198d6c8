"""Compare methods: models x data x methods x shares x learning rates x seeds, each cell a run that is kept."""

from adabet.experiments.grid import Entry, Grid, read_grid
from adabet.experiments.pools import LocalPool, Pool
from adabet.experiments.results import CellResult, EntryResult, GridResults
from adabet.experiments.runner import Report, compare
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share
from adabet.experiments.statistics import Difference, Summary

__all__ = [
    "CellResult",
    "DataSpec",
    "Difference",
    "Entry",
    "EntryResult",
    "Grid",
    "GridResults",
    "LocalPool",
    "MethodSpec",
    "ModelSpec",
    "Pool",
    "Report",
    "Settings",
    "Share",
    "Summary",
    "compare",
    "read_grid",
]
