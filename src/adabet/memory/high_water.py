"""High-water marks of memory: how far something rose while a region ran."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
LOWER_RESIDENT_PEAK = "5"


@dataclass
class Rise:
    """How far a mark rose over a region.

    Attributes:
        bytes: the most at any time in the region, minus what there was at its start; None where nobody tells.
    """

    bytes: int | None = None


class HighWater:
    """A mark that follows a peak and can be lowered to the present; its regions may be nested."""

    def __init__(self, read: Callable[[], int | None], lower: Callable[[], None]) -> None:
        self.read = read
        self.lower = lower
        self.open: list[tuple[Rise, int]] = []

    @contextmanager
    def watch(self) -> Iterator[Rise]:
        """Follow the mark while the block runs; the rise is complete after it."""
        rise = Rise()
        self._note()
        self.lower()
        start = self.read()
        if start is None:
            yield rise
            return
        self.open.append((rise, start))
        try:
            yield rise
        finally:
            self._note()
            self.open.remove((rise, start))

    def _note(self) -> None:
        """Bring all open regions up to date: a mark lowered for an inner one is lost to the outer ones."""
        mark = self.read()
        for rise, start in self.open:
            rise.bytes = max(rise.bytes or 0, (mark or start) - start)


def resident_peak() -> int | None:
    """The process's peak of resident memory, in bytes; None where the system does not tell.

    Only Linux can lower it; elsewhere, macOS included, it is that of the process's whole life, and a region's
    rise is a lower bound: zero unless it went above everything before it.
    """
    if STATUS.exists():
        fields = (line.split() for line in STATUS.read_text().splitlines())
        return next((int(field[1]) * 1024 for field in fields if field[0] == "VmHWM:"), None)
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lower_resident_peak() -> None:
    if sys.platform == "linux":
        # What the C library keeps of released memory would hide that the region takes it again.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    try:
        CLEAR_REFS.write_text(LOWER_RESIDENT_PEAK)
    except OSError:
        # No such file (macOS), or read-only (some containers): the mark stays where it is.
        return


RESIDENT = HighWater(resident_peak, _lower_resident_peak)


@cache
def cuda_high_water(device: torch.device) -> HighWater:
    """The peak of what CUDA's caching allocator has given out on a device."""

    def read() -> int:
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    return HighWater(read, lambda: torch.cuda.reset_peak_memory_stats(device))
