"""Who chooses: the methods, each behind the same door."""

from adabet.methods import adabet, baselines
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.registry import METHODS, Method, Request, find_method, rank, register, select, start
from adabet.methods.tensors import choose_tensors

__all__ = [
    "METHODS",
    "Dynamic",
    "Method",
    "Moment",
    "Request",
    "Turn",
    "adabet",
    "baselines",
    "choose_tensors",
    "find_method",
    "rank",
    "register",
    "select",
    "start",
]
