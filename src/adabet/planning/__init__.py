"""The best selection, and the cheapest way to train it, for a memory budget."""

from adabet.planning.plan import Plan
from adabet.planning.planner import plan

__all__ = ["Plan", "plan"]
