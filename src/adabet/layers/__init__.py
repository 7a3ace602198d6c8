"""What can be chosen: the layers and channels of any `torch.nn.Module`."""

from adabet.layers.batches import forward_call, inputs_of, join_samples, sample_count, take_samples
from adabet.layers.finding import find_layers
from adabet.layers.fingerprint import Fingerprint, fingerprint
from adabet.layers.head import find_head
from adabet.layers.layer import Layer, Layers
from adabet.layers.observe import observing
from adabet.layers.wrappers import bare, is_sharded, on_bare_model, uncompiled

__all__ = [
    "Fingerprint",
    "Layer",
    "Layers",
    "bare",
    "find_head",
    "find_layers",
    "fingerprint",
    "forward_call",
    "inputs_of",
    "is_sharded",
    "join_samples",
    "observing",
    "on_bare_model",
    "sample_count",
    "take_samples",
    "uncompiled",
]
