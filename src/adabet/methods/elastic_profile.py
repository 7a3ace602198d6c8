"""How long each tensor's part of a backward pass takes, measured or counted on the autograd graph itself.

A backward pass through everything is walked node by node. Each node runs alone, once for every tensor whose gradient
it takes part in and once for the error that it passes on, and a meter says what that took.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adabet.errors import CheckpointError, OptionError
from adabet.layers import sample_count, take_samples
from adabet.layers.batches import device_of
from adabet.layers.structure import kind_of
from adabet.methods.elastic_graph import Gradients, walk
from adabet.methods.elastic_probe import probing
from adabet.records import read_record, write_record
from adabet.step import Loss, train_step
from adabet.tables import table

KIND = "adabet/elastic-profile"
UNITS = ("seconds", "macs")


@dataclass(frozen=True)
class TensorTime:
    """What one tensor takes in a backward pass.

    Attributes:
        name: full name of the tensor.
        t_dw: time of its own gradient.
        t_dy: time to pass the error through it: its share of the operation that it is used in, and whatever runs
            between it and the tensor that is used next.
    """

    name: str
    t_dw: float
    t_dy: float


@dataclass(frozen=True)
class Profile:
    """What every tensor takes in a backward pass.

    Attributes:
        tensors: in the order in which a forward pass uses them.
        unit: ``"seconds"``, or ``"macs"`` for multiply-accumulates.
        samples: in the batch that it was made with.
        device: where.
        forward: seconds of a forward pass, if measured.
        backward: seconds of a whole backward pass, if measured; the tensors' times sum to about this.
    """

    tensors: tuple[TensorTime, ...]
    unit: str
    samples: int
    device: str
    forward: float | None = None
    backward: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the tensors."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def t_dw(self) -> tuple[float, ...]:
        """Times of the tensors' own gradients."""
        return tuple(tensor.t_dw for tensor in self.tensors)

    @property
    def t_dy(self) -> tuple[float, ...]:
        """Times to pass the error through the tensors."""
        return tuple(tensor.t_dy for tensor in self.tensors)

    @property
    def total(self) -> float:
        """Sum of all times."""
        return sum(self.t_dw) + sum(self.t_dy)

    def to_json(self) -> str:
        """The profile as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Profile":
        """A profile from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no profile, or of another version.
        """
        values = read_record(KIND, text)
        try:
            return cls(**{**values, "tensors": tuple(TensorTime(**tensor) for tensor in values["tensors"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this profile lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        total = self.total or 1.0
        shares = [(item.name, item.t_dw / total, item.t_dy / total) for item in self.tensors]
        rows = [(name, f"{own:.2%}", f"{reach:.2%}") for name, own, reach in shares]
        title = f"backward pass over {self.samples} samples on {self.device}: {self.total:.4g} {self.unit}"
        return f"{title}\n" + table(("tensor", "own gradient", "passing on"), rows)


def profile_backward(
    model: nn.Module,
    batch: Any,
    *,
    unit: str = "seconds",
    loss: Loss | None = None,
    samples: int = 4,
    train: bool = False,
    warm_up: int = 2,
    repeats: int = 5,
    clock: Callable[[], float] = perf_counter,
) -> Profile:
    """Profile the backward pass of a model on its device.

    What only one tensor needs counts as that tensor's own gradient. The rest of a node counts as passing the error
    through the first tensor of the module whose operation it is, and what belongs to no tensor, such as a ReLU, a sum
    or the scores of attention, as passing it through the tensor used before it. So a bias's own operation gives it a
    t_dw only, and what follows it a t_dy; a norm's whole time is that of passing the error through its shift.

    It keeps stock autograd's graph over the few samples and runs every piece ``warm_up + repeats`` times.

    Args:
        model: any module; left as it was.
        batch: with labels.
        unit: ``"seconds"``, or ``"macs"``: multiply-accumulates of products and one for an element of anything else
            that is computed, which is the same at each call.
        loss: see `train_step`.
        samples: of the batch, the first ones; the paper's 4.
        train: whether dropout and batch-norms are in train mode.
        warm_up: runs that are not timed.
        repeats: runs of which the fastest counts: whatever else the machine does only adds time.
        clock: gives seconds.

    Raises:
        OptionError: if an option makes no sense or the batch has no labels.
    """
    if unit not in UNITS:
        raise OptionError(f"expected unit to be one of {', '.join(UNITS)}, got {unit!r}")
    if min(samples, repeats) < 1 or warm_up < 0:
        raise OptionError(
            f"expected samples and repeats of at least 1 and warm_up from 0, got {samples}, {repeats} and {warm_up}"
        )
    part = take_samples(batch, 0, min(samples, sample_count(batch)))
    device = device_of(model)
    with probing(model, train=train) as parameters:
        norms = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if kind_of(module) == "norm"
            for name, _ in module.named_parameters(recurse=False)
        }
        timer = Timer(device, warm_up, repeats, clock) if unit == "seconds" else None
        forward, backward = _whole_times(model, part, loss, parameters, timer) if timer else (None, None)
        walked: dict[str, tuple[float, float]] = {}
        train_step(
            model,
            part,
            loss,
            lean=False,
            backward=lambda value: walked.update(walk(value, parameters, norms, timer or count_macs)),
        )
    tensors = tuple(TensorTime(name, *times) for name, times in walked.items())
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Profile(tensors, unit, sample_count(part), place, forward, backward)


class Timer:
    """Measures pieces of a backward pass: the fastest of some runs.

    Args:
        device: where the pieces run.
        warm_up: runs before those that count.
        repeats: runs that count.
        clock: gives seconds.
    """

    def __init__(self, device: torch.device, warm_up: int, repeats: int, clock: Callable[[], float]) -> None:
        self.runs, self._warm_up, self._device, self._clock = warm_up + repeats, warm_up, device, clock

    def __call__(self, piece: Callable[[], Gradients], incoming: Gradients) -> tuple[float, Gradients]:
        """Seconds of a piece, and what it gave."""
        del incoming  # how long it takes says how large they are
        times = []
        found: Gradients = ()
        for _ in range(self.runs):
            found = ()  # a second result at the same time would make the peak higher
            start = self.now()
            found = piece()
            times.append(self.now() - start)
        return self.fastest(times), found

    def now(self) -> float:
        """The time at which the device has done all that it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def fastest(self, times: Sequence[float]) -> float:
        """The shortest of those runs that count."""
        return min(times[self._warm_up :])


def _whole_times(
    model: nn.Module, batch: Any, loss: Loss | None, parameters: Mapping[str, nn.Parameter], timer: Timer
) -> tuple[float, float]:
    """Seconds of a forward pass, with its loss, and of a whole backward pass, measured in turn."""
    leaves = list(parameters.values())
    forward: list[float] = []
    backward: list[float] = []

    def stop(value: Tensor) -> None:
        middle = timer.now()
        torch.autograd.grad(value, leaves, allow_unused=True)
        forward.append(middle - start)
        backward.append(timer.now() - middle)

    for _ in range(timer.runs):
        start = timer.now()
        train_step(model, batch, loss, lean=False, backward=stop)
    return timer.fastest(forward), timer.fastest(backward)


def count_macs(piece: Callable[[], Gradients], incoming: Gradients) -> tuple[float, Gradients]:
    """Multiply-accumulates of a piece's products; without any, the elements of its largest tensor, if it computes."""
    with FlopCounterMode(display=False, custom_mapping=CONVOLUTION) as counter:
        found = piece()
    macs = counter.get_total_flops() // 2
    if not macs and not _is_view(incoming, found):
        macs = max((item.numel() for item in (*incoming, *found) if item is not None), default=0)
    return float(macs), found


def _convolution_backward(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    mask: Sequence[bool],
    **_: object,
) -> int:
    """Floating-point operations of a convolution's gradients; torch's own formula ignores groups for the weight's."""
    places = inputs if transposed else gradient
    return 2 * prod(places) * prod(weight[1:]) * (int(mask[0]) + int(mask[1]))


CONVOLUTION = {torch.ops.aten.convolution_backward: _convolution_backward}


def _is_view(incoming: Gradients, found: Gradients) -> bool:
    """Whether gradients were only handed on, in another shape at most."""
    memory = {_memory(gradient) for gradient in incoming}
    return all(gradient is None or _memory(gradient) in memory for gradient in found)


def _memory(gradient: Tensor | None) -> int | None:
    plain = gradient is not None and gradient.layout == torch.strided
    return gradient.untyped_storage().data_ptr() if gradient is not None and plain else None
