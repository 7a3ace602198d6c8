"""What training costs by the papers' formulas, for tables that are compared with theirs.

These count, they do not measure: neither gradients nor the optimizer's state nor what PyTorch really keeps
is in them. `adabet.measure_memory` tells what a step takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from adabet.errors import CheckpointError, OptionError, UnknownNameError
from adabet.memory.keras_order import keras_order
from adabet.memory.operations import Operation, trace_operations
from adabet.records import read_record, write_record
from adabet.sizes import format_size

KIND = "adabet/memory estimate"
Convention = Literal["tinytl", "adabet_table3"]

FLOAT_BYTES = 4
BITS_PER_BYTE = 8
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
ONE_BIT = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
SMOOTH = (nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Softmax)


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of training by a formula, in bytes.

    Attributes:
        convention: whose formula.
        batch_size: samples.
        parameters: all weights, at the bits that the convention gives frozen and trainable ones.
        activations: of the whole batch, at the operation where they peak.
        saved: of the whole batch, kept for the backward pass by the end of the forward pass.
        peak_at: the operation where the activations peak.
    """

    convention: str
    batch_size: int
    parameters: float
    activations: float
    saved: float
    peak_at: str

    @property
    def total(self) -> float:
        """Parameters and activations together."""
        return self.parameters + self.activations

    def to_json(self) -> str:
        """The estimate as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MemoryEstimate":
        """An estimate from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no estimate, or of another version.
        """
        try:
            return cls(**read_record(KIND, text))
        except TypeError as error:
            raise CheckpointError(f"this memory estimate lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        """The sum and its two parts."""
        return (
            f"{format_size(self.total)} by {self.convention}, batch {self.batch_size}: "
            f"{format_size(self.parameters)} parameters, {format_size(self.activations)} activations "
            f"(peak at {self.peak_at})"
        )


def estimate_memory(
    model: nn.Module,
    batch: Any,
    *,
    convention: Convention = "tinytl",
    batch_size: int = 8,
    frozen_bits: int | None = None,
) -> MemoryEstimate:
    """Memory of one training step by a paper's formula, for the layers that train now (``requires_grad``).

    ``"tinytl"``: trainable parameters take 32 bits, frozen ones ``frozen_bits`` (default 8), buffers
    nothing. A convolution, linear layer or norm keeps its input if its weight trains; ReLUs keep one bit an
    element and smooth activations their input if anything trains. While an operation runs, its input, a
    convolution's or linear layer's output (divided by its groups) and the inputs of the residual blocks
    around it are there too. The sum peaks at some operation; that times ``batch_size``, plus the
    parameters, is the memory. Layer-norms, GELU, SiLU and softmax modules, which TinyTL's networks do not
    have, count like their kin.

    ``"adabet_table3"``: the rule behind table 3 of the AdaBet paper, only to reproduce its numbers. Frozen
    parameters and batch-norm statistics take 4 bits; outputs count ``batch_size`` times over, before the
    whole is multiplied by ``batch_size``; an operation's input is the output of the operation before it in
    the order of Keras's ``model.layers``; only convolutions that are not depthwise, linear layers and
    batch-norms count, and ReLU6 as something of the image's size that is not kept.

    Args:
        model: any module; on the meta device nothing is computed.
        batch: any number of samples, whose shapes alone matter.
        convention: whose formula.
        batch_size: samples of the step that is estimated; the papers' is 8.
        frozen_bits: bits of a frozen parameter. Default: the convention's, 8 or 4.

    Raises:
        OptionError: if ``batch_size`` or ``frozen_bits`` is below 1.
        UnknownNameError: if there is no such convention.

    Source: Cai et al. 2020 (TinyTL, arXiv 2007.11622) and its memory profiler; Tenison et al. 2026
    (arXiv 2510.03101), table 3.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 5))
        >>> print(estimate_memory(net, torch.zeros(1, 100)))
        7.95 kB by tinytl, batch 8: 4.26 kB parameters, 3.69 kB activations (peak at 2)
    """
    rules: dict[str, Callable[..., MemoryEstimate]] = {"tinytl": _tinytl, "adabet_table3": _adabet_table3}
    if convention not in rules:
        raise UnknownNameError("convention", convention, rules)
    for name, value in (("batch_size", batch_size), ("frozen_bits", frozen_bits)):
        if value is not None and value < 1:
            raise OptionError(f"expected {name} of at least 1, got {value}")
    return rules[convention](model, batch, batch_size, frozen_bits)


def _tinytl(model: nn.Module, batch: Any, batch_size: int, frozen_bits: int | None) -> MemoryEstimate:
    training = any(parameter.requires_grad for parameter in model.parameters())
    saved, temporary = [], []
    operations = trace_operations(model, batch)
    for operation in operations:
        module, size = operation.module, float(FLOAT_BYTES * operation.input_size)
        keeps, occupies = 0.0, 0.0
        if isinstance(module, _ConvNd | nn.Linear):
            keeps = size if module.weight.requires_grad else 0.0
            occupies = size + FLOAT_BYTES * operation.output_size // operation.groups
        elif isinstance(module, NORMS):
            keeps, occupies = (size if _trains(module) else 0.0), size
        elif isinstance(module, ONE_BIT):
            keeps, occupies = (operation.input_size / BITS_PER_BYTE if training else 0.0), size
        elif isinstance(module, SMOOTH):
            keeps, occupies = (size if training else 0.0), size
        saved.append(keeps)
        temporary.append(occupies + FLOAT_BYTES * operation.residual_size)
    parameters = _parameter_bytes(model, frozen_bits or 8, buffers=False)
    return _summed("tinytl", operations, saved, temporary, batch_size, parameters)


def _adabet_table3(model: nn.Module, batch: Any, batch_size: int, frozen_bits: int | None) -> MemoryEstimate:
    operations = keras_order(trace_operations(model, batch))
    saved, temporary = [], []
    for before, operation in zip(operations[:1] + operations, operations, strict=False):
        module, size = operation.module, float(FLOAT_BYTES * before.output_size)
        keeps, occupies = 0.0, 0.0
        if isinstance(module, nn.Linear | _ConvNd) and not _is_depthwise(module):
            keeps = size if module.weight.requires_grad else 0.0
            # The reference code's slip: the whole batch's output, and all is multiplied by the batch again.
            occupies = size + FLOAT_BYTES * batch_size * operation.output_size / operation.groups
        elif isinstance(module, _BatchNorm):
            keeps, occupies = (size if _trains(module) else 0.0), size
        elif isinstance(module, nn.ReLU6):
            # Another: the image's size for every ReLU layer. Keras's plain ReLUs are activations, no layers.
            occupies = FLOAT_BYTES * operations[0].output_size
        saved.append(keeps)
        temporary.append(occupies)
    parameters = _parameter_bytes(model, frozen_bits or 4, buffers=True)
    return _summed("adabet_table3", operations, saved, temporary, batch_size, parameters)


def _summed(
    convention: str,
    operations: Sequence[Operation],
    saved: Sequence[float],
    temporary: Sequence[float],
    batch_size: int,
    parameters: float,
) -> MemoryEstimate:
    """Follow the forward pass: what is kept so far plus what the present operation needs."""
    kept = peak = 0.0
    peak_at = operations[0].name
    for operation, keeps, occupies in zip(operations, saved, temporary, strict=True):
        if kept + occupies > peak:
            peak, peak_at = kept + occupies, operation.name
        kept += keeps
    return MemoryEstimate(
        convention=convention,
        batch_size=batch_size,
        parameters=parameters,
        activations=peak * batch_size,
        saved=kept * batch_size,
        peak_at=peak_at,
    )


def _parameter_bytes(model: nn.Module, frozen_bits: int, *, buffers: bool) -> float:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if buffers:
        frozen += sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return FLOAT_BYTES * trainable + frozen_bits / BITS_PER_BYTE * frozen


def _trains(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and bool(weight.requires_grad)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1
