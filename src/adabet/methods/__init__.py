"""Who chooses: the methods, each behind the same door."""

from adabet.methods import adabet, baselines
from adabet.methods.registry import METHODS, Method, Request, find_method, rank, register, select

__all__ = [
    "METHODS",
    "Method",
    "Request",
    "adabet",
    "baselines",
    "find_method",
    "rank",
    "register",
    "select",
]
