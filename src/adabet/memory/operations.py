"""What a network computes on one sample, operation by operation: the sizes that the papers' formulas need."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from adabet.layers.batches import forward_call, inputs_of, sample_count, tensors_of
from adabet.layers.observe import observing

RESIDUAL_BLOCKS = frozenset({"BasicBlock", "Bottleneck"})
"""Classes of blocks that keep their input until their end."""

SKIP_FLAGS = ("use_res_connect", "has_skip")
"""Attributes with which torchvision's and timm's blocks say that they do."""


@dataclass(frozen=True)
class Operation:
    """One leaf module or function call in a forward pass. Sizes are elements of one sample.

    Attributes:
        name: path of the module, or the function's name.
        module: the leaf module; None for a function and for the network's input.
        input_size: elements of its first input.
        output_size: elements of its first output.
        residual_size: elements of the inputs of the residual blocks that it runs inside.
        inputs: numbers of the operations whose results it takes.
    """

    name: str
    module: nn.Module | None
    input_size: int
    output_size: int
    residual_size: int
    inputs: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 for anything else."""
        return self.module.groups if isinstance(self.module, _ConvNd) else 1


def trace_operations(model: nn.Module, batch: Any) -> list[Operation]:
    """All operations of a forward pass in the order in which they run; the first stands for the input.

    The model runs in eval mode without gradients. On the meta device nothing is computed or allocated.

    Args:
        model: any module.
        batch: what `adabet.layers.forward_call` takes; of any number of samples.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> [(found.name, found.output_size) for found in trace_operations(net, torch.zeros(2, 4))]
        [('input', 4), ('0', 3), ('1', 3)]
    """
    tape = _Tape(sample_count(inputs_of(batch)))

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tape.add("input", None, [], tensors_of([args, kwargs]))

    with observing(model) as handles, tape:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                handles += tape.watch_leaf(name, module)
            elif _keeps_input(module):
                handles += tape.watch_block(module)
        handles.append(model.register_forward_pre_hook(start, with_kwargs=True, prepend=True))
        forward_call(model, batch)
    return tape.operations


class _Tape(TorchFunctionMode):
    """Notes leaf modules and the functions between them, and which result goes where."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.samples = samples
        self.makers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inside_leaf = 0
        self.kept: list[int] = []

    def add(self, name: str, module: nn.Module | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Note an operation, and that it made its outputs."""
        first_in, first_out = (tensors[0].numel() // self.samples if tensors else 0 for tensors in (inputs, outputs))
        makers = dict.fromkeys(self.makers[tensor] for tensor in inputs if tensor in self.makers)
        self.operations.append(Operation(name, module, first_in or first_out, first_out, sum(self.kept), tuple(makers)))
        for tensor in outputs:
            self.makers[tensor] = len(self.operations) - 1

    def watch_leaf(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks that note a leaf module as one operation, whatever functions it calls."""
        taken: list[list[Tensor]] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inside_leaf += 1
            taken.append(tensors_of([args, kwargs]))

        def leave(_: nn.Module, args: Any, outputs: Any) -> None:  # noqa: ARG001 - the protocol of hooks
            self.inside_leaf -= 1
            self.add(name, module, taken.pop(), tensors_of(outputs))

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave)

    def watch_block(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks that note that a residual block keeps its input while it runs."""

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.kept.append(tensors_of(args)[0].numel() // self.samples)

        def leave(_: nn.Module, args: Any, outputs: Any) -> None:  # noqa: ARG001 - the protocol of hooks
            self.kept.pop()

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function; note it if it makes tensors out of noted ones between leaf modules."""
        result = func(*args, **(kwargs or {}))
        outputs = tensors_of(result)
        if not self.inside_leaf and outputs:
            inputs = tensors_of([args, dict(kwargs or {})])
            if any(tensor in self.makers for tensor in inputs):
                self.add(getattr(func, "__name__", str(func)), None, inputs, outputs)
        return result


def _keeps_input(module: nn.Module) -> bool:
    return type(module).__name__ in RESIDUAL_BLOCKS or any(getattr(module, flag, False) for flag in SKIP_FLAGS)
