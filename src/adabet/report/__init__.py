"""Pages and plots."""

from adabet.report.memory_plot import draw_memory

__all__ = ["draw_memory"]
