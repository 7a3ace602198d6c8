"""What a step costs: measured, and by the papers' formulas."""

from adabet.memory.allocator import measure_peak, record_allocations
from adabet.memory.formulas import MemoryEstimate, estimate_memory
from adabet.memory.keras_order import keras_network
from adabet.memory.measure import measure_memory
from adabet.memory.report import MemoryReport, Peak

__all__ = [
    "MemoryEstimate",
    "MemoryReport",
    "Peak",
    "estimate_memory",
    "keras_network",
    "measure_memory",
    "measure_peak",
    "record_allocations",
]
