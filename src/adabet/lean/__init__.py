"""Lean training: forward passes that keep for the backward pass only what the selection needs."""

from adabet.lean import convolution, linear  # noqa: F401 - imported so that their rules register
from adabet.lean.mode import lean

__all__ = ["lean"]
