"""Pages and plots."""

from adabet.report.memory_plot import draw_memory
from adabet.report.writing import write_report

__all__ = ["draw_memory", "write_report"]
