"""Put a selection onto a model and take it off: gradients, batch-norm policy, channel slices."""

from adabet.freezing.apply import Applied, apply
from adabet.freezing.slices import SlicedModule, change, slice_module
from adabet.freezing.trained import Trained, trained_parameters

__all__ = ["Applied", "SlicedModule", "Trained", "apply", "change", "slice_module", "trained_parameters"]
