"""Put a selection onto a model and take it off: gradients, batch-norm policy, channel slices."""

from adabet.freezing.apply import Applied, apply
from adabet.freezing.slices import SlicedModule, slice_module

__all__ = ["Applied", "SlicedModule", "apply", "slice_module"]
