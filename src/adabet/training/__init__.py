"""Train what was selected: the loop, schedules, checkpoints and deltas."""

from adabet.training.delta import load_delta, save_delta
from adabet.training.evaluation import evaluate
from adabet.training.fit import fit
from adabet.training.objective import accuracy
from adabet.training.optimizer import SGDW
from adabet.training.progress import Progress, TerminalProgress
from adabet.training.result import EpochRecord, FitResult
from adabet.training.schedule import constant, cosine

__all__ = [
    "SGDW",
    "EpochRecord",
    "FitResult",
    "Progress",
    "TerminalProgress",
    "accuracy",
    "constant",
    "cosine",
    "evaluate",
    "fit",
    "load_delta",
    "save_delta",
]
