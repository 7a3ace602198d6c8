"""The primitive of every measurement: what torch's allocator gave out while something ran.

On a CPU torch reports each allocation and release to its profiler, scratch of kernels (oneDNN, im2col)
included; on a GPU the caching allocator does the same and keeps peak statistics besides. Not seen on
either: what a library takes from the system itself (packing buffers of BLAS, compiled kernels, the CUDA
context), memory that the worker threads of a kernel allocate on their own, and Python's objects;
the process's resident memory counts those, unnamed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch._C._autograd import _enable_profiler, _profiler_enabled
from torch._C._profiler import RecordScope, _ExtraFields_Allocation, _ProfilerEvent
from torch.autograd.profiler import profile, record_function

from adabet.errors import TrainingError
from adabet.memory.high_water import RESIDENT, Rise, cuda_high_water

MARK = "adabet.mark"
LOG_LEVEL = "KINETO_LOG_LEVEL"
SILENT = "6"


@dataclass
class Block:
    """One piece of memory from its allocation to its release.

    Attributes:
        address: where it starts.
        size: bytes.
        start: number of the event that allocated it.
        stop: number of the event that released it; None if it outlives the region.
        label: what `Recording.mark` called it; empty if nothing did.
    """

    address: int
    size: int
    start: int
    stop: int | None = None
    label: str = ""


@dataclass
class Recording:
    """Everything that was allocated on one device while a region ran; complete once the region has ended.

    Attributes:
        device: where.
        resident: the process's resident memory over the same time.
        statistics: the device allocator's own peak over the same time; None on a CPU, which keeps none.
        blocks: in order of their allocation.
    """

    device: torch.device
    resident: Rise
    statistics: Rise | None = None
    blocks: list[Block] = field(default_factory=list)
    _live: dict[int, Block] = field(default_factory=dict)
    _marks: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    _moment: int = 0

    def mark(self, label: str, addresses: Sequence[int]) -> None:
        """Name the blocks that are live at these addresses now; a block keeps its first name.

        Memory from before the region is passed over.
        """
        # The annotation puts the mark in order among the allocations: addresses are used again and again.
        with record_function(self._mark_name(len(self._marks))):
            self._marks.append((label, addresses))

    def settle(self) -> None:
        """Work through what the profiler has seen so far: its events take memory themselves until then."""
        _profiler.stop()
        _profiler.start()

    def peak(self, counts: Callable[[Block], bool] = lambda _: True) -> tuple[int, list[Block]]:
        """The most bytes alive at once, and the blocks that were alive when it was first reached.

        Args:
            counts: whether a block is looked at.
        """
        blocks = [block for block in self.blocks if counts(block)]
        changes = [(block.start, block.size) for block in blocks]
        changes += [(block.stop, -block.size) for block in blocks if block.stop is not None]
        level = highest = moment = 0
        for number, change in sorted(changes):
            level += change
            if level > highest:
                highest, moment = level, number
        alive = [b for b in blocks if b.start <= moment and (b.stop is None or b.stop > moment)]
        return highest, alive

    def _mark_name(self, number: int) -> str:
        return f"{MARK}:{id(self)}:{number}"

    def _read(self, events: Sequence[_ProfilerEvent]) -> None:
        """Follow the next stretch of profiler events."""
        names = {self._mark_name(number): mark for number, mark in enumerate(self._marks)}
        for event in events:
            memory = event.typed[1]
            if isinstance(memory, _ExtraFields_Allocation):
                if memory.device == self.device:
                    self._change(memory.ptr, memory.alloc_size)
            elif event.name in names:
                label, addresses = names[event.name]
                for address in addresses:
                    if address in self._live and not self._live[address].label:
                        self._live[address].label = label

    def _change(self, address: int, size: int) -> None:
        self._moment += 1
        if size > 0:
            self._live[address] = Block(address, size, self._moment)
            self.blocks.append(self._live[address])
        elif address in self._live:
            # Other releases are of memory from before the region.
            self._live.pop(address).stop = self._moment


class _MarksOnly(profile):
    """torch's profiler, which of what runs records our annotations alone, no operators: allocations come regardless.

    With operators a step of MobileNetV2 left tens of megabytes of events.
    """

    def _start_trace(self) -> None:
        enable: Callable[..., None] = _enable_profiler  # torch's stubs lack the scopes
        enable(self.config(), self.kineto_activities, {RecordScope.USER_SCOPE})  # type: ignore[no-untyped-call]


class _Profiler:
    """torch's profiler, shared by all open recordings since only one can run in a thread."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self.running: tuple[ExitStack, _MarksOnly] | None = None

    def start(self) -> None:
        """Start it, if anything is being recorded."""
        if not self.recordings:
            return
        if _profiler_enabled():
            raise TrainingError(
                "expected no other torch profiler while memory is measured, one is running; stop it first"
            )
        stack, profiler = ExitStack(), _MarksOnly(use_kineto=True, profile_memory=True)
        with _silent_tracing():
            stack.enter_context(profiler)
        self.running = stack, profiler

    def stop(self) -> None:
        """Stop it, if it runs, and hand what it saw to all recordings."""
        if self.running is None:
            return
        (stack, profiler), self.running = self.running, None
        stack.close()
        results = profiler.kineto_results
        if results is not None:
            events = _in_order(results.experimental_event_tree())
            for recording in self.recordings:
                recording._read(events)


_profiler = _Profiler()


@contextmanager
def record_allocations(device: torch.device | str = "cpu") -> Iterator[Recording]:
    """Record every allocation and release of torch on one device, in this thread, while the block runs.

    Regions may be nested. Memory from before a region is no part of it, neither its size nor its release.

    Args:
        device: a CPU or CUDA device.

    Raises:
        TrainingError: if a torch profiler of somebody else's is running.

    Examples:
        >>> with record_allocations() as recording:
        ...     first = torch.empty(1000)
        ...     del first
        ...     second = torch.empty(500)
        >>> [block.size for block in recording.blocks], recording.peak()[0]
        ([4000, 2000], 4000)
    """
    where = _numbered(torch.device(device))
    with RESIDENT.watch() as resident, ExitStack() as stack:
        recording = Recording(where, resident)
        if where.type == "cuda":
            recording.statistics = stack.enter_context(cuda_high_water(where).watch())
        _profiler.stop()
        _profiler.recordings.append(recording)
        try:
            _profiler.start()
            yield recording
        finally:
            _profiler.stop()
            _profiler.recordings.remove(recording)
            _profiler.start()


def measure_peak(function: Callable[[], object], *, device: torch.device | str = "cpu") -> int:
    """Peak bytes of allocations on a device while a function runs, over those at its start.

    By CUDA's peak statistics on a GPU, by torch's allocation events on a CPU.

    Examples:
        >>> measure_peak(lambda: torch.zeros(250).clone())
        2000
    """
    where = _numbered(torch.device(device))
    if where.type == "cuda":
        with cuda_high_water(where).watch() as rise:
            function()
        return rise.bytes or 0
    with record_allocations(where) as recording:
        function()
    return recording.peak()[0]


@contextmanager
def _silent_tracing() -> Iterator[None]:
    """Keep the tracing library from writing to standard error: it reads its level when it first starts."""
    chosen = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, SILENT)
    try:
        yield
    finally:
        if chosen is None:
            os.environ.pop(LOG_LEVEL, None)


def _numbered(device: torch.device) -> torch.device:
    """The device as allocation events name it: the CPU without an index, a GPU with one."""
    if device.type == "cpu":
        return torch.device("cpu")
    return torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)


def _in_order(roots: Sequence[_ProfilerEvent]) -> list[_ProfilerEvent]:
    """All events of a tree by the time of their start, parents before their children."""
    events: list[_ProfilerEvent] = []
    waiting = list(reversed(roots))
    while waiting:
        event = waiting.pop()
        events.append(event)
        waiting.extend(reversed(event.children))
    return sorted(events, key=lambda event: event.start_time_ns)
