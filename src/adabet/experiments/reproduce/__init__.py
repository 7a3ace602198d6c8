"""The papers' tables and figures: each a function that gives rows and a picture, by name."""

from adabet.experiments.reproduce.registry import PAPERS, REPRODUCTIONS, Reproduction, find_reproduction
from adabet.experiments.reproduce.task import Found, Task
from adabet.experiments.reproduce.writing import Written, reproduce

__all__ = ["PAPERS", "REPRODUCTIONS", "Found", "Reproduction", "Task", "Written", "find_reproduction", "reproduce"]
