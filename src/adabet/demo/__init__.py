"""The demo: a digit reader adapts to one user, offline, on real handwriting, in well under a minute."""

from adabet.demo.network import demo_model
from adabet.demo.result import DemoResult, MethodOutcome, Reading
from adabet.demo.story import run_demo

__all__ = ["DemoResult", "MethodOutcome", "Reading", "demo_model", "run_demo"]
