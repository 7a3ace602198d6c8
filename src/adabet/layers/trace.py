"""One forward pass over one sample: which modules run, in which order, and how large their outputs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adabet.layers.batches import Forward, inputs_of, take_samples, tensors_of
from adabet.layers.observe import observing
from adabet.layers.structure import Unit


@dataclass
class Seen:
    """What the hooks saw of one module.

    Attributes:
        order: its place among all modules by when it first finished.
        input_size: elements of its input, summed over calls.
        output_size: elements of its output, summed over calls.
        calls: how many times it ran.
        input_shape: of the first call.
        output_shape: of the first call.
    """

    order: int
    input_size: int = 0
    output_size: int = 0
    calls: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


def trace(model: nn.Module, units: Sequence[Unit], batch: Any, forward: Forward) -> dict[nn.Module, Seen]:
    """Run one sample and note sizes and order of every module inside a unit."""
    seen: dict[nn.Module, Seen] = {}
    finished = 0

    def note(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal finished
        tensor = first_floating(output)
        if tensor is None:
            return
        record = seen.setdefault(module, Seen(order=finished))
        finished += 1
        given = next(iter(tensors_of([list(arguments), keywords])), tensor)
        record.input_size += given.numel()
        record.output_size += tensor.numel()
        record.calls += 1
        record.input_shape = record.input_shape or tuple(given.shape)
        record.output_shape = record.output_shape or tuple(tensor.shape)

    watched = {inner for unit in units if unit.name for inner in (*unit.module.modules(), *unit.tied.values())}
    with observing(model) as handles:
        for module in watched:
            handles.append(module.register_forward_hook(note, with_kwargs=True))
        forward(model, take_samples(inputs_of(batch), 0, 1))
    return seen


def first_floating(output: Any) -> Tensor | None:
    """The first floating-point tensor of a module's output: its activation."""
    return next((tensor for tensor in tensors_of(output) if tensor.is_floating_point()), None)
