"""What can be chosen: the layers and channels of any `torch.nn.Module`."""

from adabet.layers.batches import forward_call, inputs_of, join_samples, sample_count, take_samples
from adabet.layers.finding import find_layers
from adabet.layers.fingerprint import Fingerprint, fingerprint
from adabet.layers.head import find_head
from adabet.layers.layer import Layer, Layers
from adabet.layers.observe import observing

__all__ = [
    "Fingerprint",
    "Layer",
    "Layers",
    "find_head",
    "find_layers",
    "fingerprint",
    "forward_call",
    "inputs_of",
    "join_samples",
    "observing",
    "sample_count",
    "take_samples",
]
