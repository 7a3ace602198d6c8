"""Measure what a training step and inference really allocate."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adabet.errors import OptionError, TrainingError, UnknownNameError
from adabet.freezing import apply
from adabet.layers.batches import device_of, forward_call, map_tensors, sample_count, tensors_of
from adabet.layers.observe import observing
from adabet.layers.wrappers import on_bare_model
from adabet.memory.allocator import Block, Recording, record_allocations
from adabet.memory.report import MemoryReport, Peak
from adabet.memory.unchanged import unchanged, values_kept
from adabet.selection import Selection
from adabet.step import Loss, train_step

OptimizerFactory = Callable[[Sequence[Any]], torch.optim.Optimizer]
"""Makes an optimizer for the parameters that train."""

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "sgd momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}
"""Optimizers that `measure_memory` knows by name."""

SAVED = "saved:"
GRADIENT = "gradient"
STATE = "optimizer state"
MODEL_ITSELF = "(model)"
LOSS = "(loss)"
RECOMPUTED = "(recomputed)"


@on_bare_model
def measure_memory(
    model: nn.Module,
    batch: Any,
    selection: Selection | None = None,
    *,
    loss: Loss | None = None,
    optimizer: str | OptimizerFactory = "sgd momentum",
    micro_batch: int | None = None,
    lean: bool = True,
    recompute: bool = False,
    batch_norm: str = "eval",
    inference: bool = True,
) -> MemoryReport:
    """Run a real training step, and inference, and tell what they allocate at their peak.

    Bytes are those that torch's allocator gives out, so the same run gives the same number; on a CPU it may
    depend on the number of threads, as the kernels' scratch does. The model is afterwards as it was:
    parameters and buffers bit by bit, gradients, training modes, ``requires_grad``, random states.

    Args:
        model: on a CPU or a CUDA device.
        batch: ``(inputs, labels)``, or a mapping of keywords with labels.
        selection: what trains, put onto the model in train mode. None measures the model as it stands, with
            its ``requires_grad`` and training modes.
        loss: ``loss(outputs, labels)``; default as in `adabet.step.train_step`.
        optimizer: ``"sgd"``, ``"sgd momentum"``, ``"adam"``, ``"adamw"``, or a function that makes one for
            a list of parameters.
        micro_batch: samples in memory at once while training; None takes the whole batch.
        lean: train in the lean mode.
        recompute: run repeated blocks again in the backward pass; what they then keep counts as workspace.
        batch_norm: how the selection treats chosen batch-norms, see `adabet.apply`.
        inference: also measure a forward pass over the whole batch without gradients, in eval mode.

    Raises:
        OptionError: if the model is neither on a CPU nor on a CUDA device.
        UnknownNameError: if there is no optimizer of that name.
        TrainingError: if nothing trains, slices cannot be exact, or another torch profiler is running.
        SelectionError: if the selection is for another model.
        LayerError: if ``recompute`` finds no repeated blocks.

    Examples:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> report = measure_memory(net, (torch.randn(8, 100), torch.zeros(8, dtype=torch.long)))
        >>> report.training.weights, report.training.gradients, report.training.optimizer
        (22240, 22240, 22240)
    """
    factory = _factory(optimizer)
    device = device_of(model)
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"expected a model on a cpu or cuda device, got {device.type}")
    # tensors of its own: what lean knows of the caller's, from earlier steps, must not change what this one keeps
    batch = map_tensors(lambda tensor: tensor.detach().to(device), batch)
    samples, inputs = sample_count(batch), sum(tensor.nbytes for tensor in tensors_of(batch))
    with unchanged(model):
        idle = _measure_inference(model, batch, inputs) if inference else None
        with apply(model, selection, batch_norm=batch_norm) if selection is not None else nullcontext():
            if selection is not None:
                model.train()
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if not trainable:
                raise TrainingError("expected at least one trainable parameter to measure a step; choose layers")
            step = partial(train_step, model, batch, loss, micro_batch=micro_batch, lean=lean, recompute=recompute)
            recording = _record_training(model, trainable, step, factory)
            # Channel slices are memory of their own, so the weights are counted while they are in place.
            training = _peak(recording, weights=_weight_bytes(model), inputs=inputs)
    saved, holders = recording.peak(lambda block: block.label.startswith(SAVED))
    return MemoryReport(
        model=type(model).__name__,
        device=str(device),
        batch_size=samples,
        micro_batch=min(micro_batch or samples, samples),
        lean=lean,
        recompute=recompute,
        optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "optimizer"),
        trainable=sum(parameter.numel() for parameter in trainable),
        training=training,
        inference=idle,
        saved=saved,
        layers=_by_layer(holders),
    )


def _factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer]


def _measure_inference(model: nn.Module, batch: Any, inputs: int) -> Peak:
    with observing(model), record_allocations(device_of(model)) as recording:
        forward_call(model, batch)
    return _peak(recording, weights=_weight_bytes(model), inputs=inputs)


def _record_training(
    model: nn.Module,
    trainable: Sequence[nn.Parameter],
    step: Callable[..., Tensor],
    factory: OptimizerFactory,
) -> Recording:
    """Record two steps: the first makes the optimizer's state, which only the second has from its start."""

    def backward(loss: Tensor) -> None:
        recording.settle()
        running[0] = RECOMPUTED
        loss.backward()
        running[0] = LOSS
        recording.mark(GRADIENT, _addresses(parameter.grad for parameter in trainable))
        recording.settle()

    running = [LOSS]
    with record_allocations(device_of(model)) as recording:
        optimizer = factory(list(trainable))
        for _ in range(2):
            with _saved_marked(model, recording, running):
                step(backward=backward, into_grad=True)
            with values_kept(trainable):
                optimizer.step()
            states = (value for state in optimizer.state.values() for value in state.values())
            recording.mark(STATE, _addresses(value for value in states if isinstance(value, Tensor)))
            optimizer.zero_grad()
            recording.settle()
    return recording


@contextmanager
def _saved_marked(model: nn.Module, recording: Recording, running: list[str]) -> Iterator[None]:
    """Mark each tensor that autograd saves with the last of what is running; modules add themselves to it."""

    def pack(tensor: Tensor) -> Tensor:
        recording.mark(SAVED + running[-1], _addresses([tensor]))
        return tensor

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name or MODEL_ITSELF)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where the memory of these tensors starts; those without memory of their own are passed over."""
    return [t.untyped_storage().data_ptr() for t in tensors if t is not None and t.layout == torch.strided]


def _weight_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers, shared memory once."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _peak(recording: Recording, *, weights: int, inputs: int) -> Peak:
    allocated, alive = recording.peak()
    statistics = recording.statistics
    if statistics is not None and statistics.bytes is not None:
        allocated = statistics.bytes
    parts = {
        "gradients": sum(block.size for block in alive if block.label == GRADIENT),
        "optimizer": sum(block.size for block in alive if block.label == STATE),
        "saved": sum(block.size for block in alive if block.label.startswith(SAVED)),
    }
    workspace = allocated - sum(parts.values())
    return Peak(weights=weights, inputs=inputs, workspace=workspace, resident=recording.resident.bytes, **parts)


def _by_layer(blocks: Sequence[Block]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for block in blocks:
        name = block.label.removeprefix(SAVED)
        sizes[name] = sizes.get(name, 0) + block.size
    return sizes
