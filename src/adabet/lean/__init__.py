"""Lean training: forward passes that keep for the backward pass only what the selection needs."""

from adabet.lean import (  # noqa: F401 - imported so that their rules register
    activation,
    arithmetic,
    attention,
    average_pooling,
    convolution,
    dropout,
    embedding,
    interpolate,
    linear,
    normalization,
    pooling,
)
from adabet.lean.mode import lean

__all__ = ["lean"]
