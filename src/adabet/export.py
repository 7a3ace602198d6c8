"""The adapted model as others run it: an ONNX file, a ``torch.export`` program, or one file of whole weights.

A delta can be merged, so that one file holds the adapted model, or stay apart, so that many deltas share one base::

    export_onnx(model, "adapted.onnx", images, delta="run/best.safetensors")      # merged
    merge_delta("base.safetensors", "run/best.safetensors", "adapted.safetensors")  # merged, without building the model
    program = export_program(model, images)                                      # apart: the base once,
    adabet.load_delta(program.module(), "run/best.safetensors")                  # and a delta on the device
"""

import copy
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adabet.errors import ModelError, OptionError
from adabet.extras import require
from adabet.files import replacing
from adabet.freezing.channels import SliceOf
from adabet.layers.batches import (
    device_of,
    forward_call,
    inputs_of,
    join_samples,
    map_tensors,
    sample_count,
    tensors_of,
)
from adabet.layers.observe import observing
from adabet.layers.wrappers import on_bare_model
from adabet.methods.lora import remove
from adabet.training.delta import load_delta
from adabet.training.merge import merge_delta

__all__ = ["export_onnx", "export_program", "merge_delta"]

Delta = str | os.PathLike[str]

BATCH = "batch"
"""What the axis of samples is called."""

ROOM = 1e-3
"""How far ONNX Runtime may be from PyTorch, as a share of the largest output; more in low precision."""

ONE_FILE = 2**31 - 1
"""Bytes that one ONNX file can hold, a limit of its format."""


@on_bare_model
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    delta: Delta | None = None,
    dynamic_batch: bool = True,
    check: bool = True,
) -> Path:
    """Write a model as one ONNX file that computes what it computes in eval mode.

    A copy is exported: the model stays as it is. A selection that is still applied is taken off the copy, adapters
    (``method="lora"``, or PEFT's own) are merged into its weights, and a model that lost channels (``"prune-train"``)
    is exported at the size that it has.

    Args:
        model: adapted, or with the base weights if ``delta`` is given.
        path: the file; a former one is replaced once the new one is whole.
        example: a batch as the model is fed, labels allowed, on any device; its shapes are those that the file takes.
        delta: what a run wrote (``best.safetensors``), to be merged into the copy.
        dynamic_batch: let the file take any number of samples, at the names' first axis; otherwise that of ``example``.
        check: run the file in ONNX Runtime on the example, and on one sample if ``dynamic_batch``, and compare with
            the model: no output may be off by more than a thousandth of the largest.

    Returns:
        The path.

    Raises:
        ModelError: if the model cannot be exported, or the file computes something else; nothing is written then.
        CheckpointError: if the delta does not fit the model.
        StorageError: if the file cannot be written; a former one is whole.
        MissingExtraError: if onnx, onnxscript or onnxruntime is missing.
    """
    for library in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        require(library, "exporting to ONNX")
    path = Path(path)
    if path.suffix != ".onnx":
        raise OptionError(f"expected a path that ends in .onnx, got {path}")
    with replacing(path) as temporary:
        plain = _plain_copy(model, delta)
        size = sum(tensor.nbytes for tensor in plain.state_dict().values())
        if size > ONE_FILE:
            raise ModelError(f"expected weights of at most 2 GB, which one ONNX file can hold, got {size:,} bytes")
        inputs = _inputs(plain, example, dynamic_batch=dynamic_batch)
        program = _program(plain, inputs, dynamic_batch=dynamic_batch)
        with observing(plain):
            *_, axes = _arguments(inputs, dynamic_batch=dynamic_batch)
            onnx_program = _onnx_program(plain, program, _output_names(forward_call(plain, inputs)), axes)
            onnx_program.save(temporary, external_data=False)
            if check:
                _compare(plain, inputs, temporary, sizes=(sample_count(inputs), 1) if dynamic_batch else (None,))
    return path


@on_bare_model
def export_program(
    model: nn.Module,
    example: Any,
    *,
    delta: Delta | None = None,
    path: str | os.PathLike[str] | None = None,
    dynamic_batch: bool = True,
) -> torch.export.ExportedProgram:
    """The model in eval mode as a ``torch.export`` program, which needs no code of the model's.

    As `export_onnx`, it exports a copy. The program's module has the model's names, so a delta that was kept apart
    fits it: ``adabet.load_delta(program.module(), path)``.

    Args:
        model: adapted, or with the base weights.
        example: a batch as the model is fed, labels allowed.
        delta: to be merged into the copy.
        path: also write the program there (``torch.export.load`` reads it), whole or not at all; ends in ``.pt2``.
        dynamic_batch: let it take any number of samples; otherwise that of ``example``.

    Raises:
        ModelError: if the model cannot be exported.
        CheckpointError: if the delta does not fit the model.
        StorageError: if the file cannot be written; a former one is whole.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        >>> program = export_program(model, torch.zeros(2, 4))
        >>> images = torch.randn(5, 4)
        >>> torch.equal(program.module()(images), model(images))
        True
    """
    if path is None:
        return _program_of(model, example, delta, dynamic_batch=dynamic_batch)
    path = Path(path)
    if path.suffix != ".pt2":
        raise OptionError(f"expected a path that ends in .pt2, got {path}")
    with replacing(path) as temporary:
        program = _program_of(model, example, delta, dynamic_batch=dynamic_batch)
        with temporary.open("wb") as file:
            torch.export.save(program, file)
    return program


def _plain_copy(model: nn.Module, delta: Delta | None) -> nn.Module:
    """A copy with the delta and nothing of adabet's or PEFT's in it: no slices, no adapters."""
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        _take_off_slices(module)
    if delta is not None:
        load_delta(plain, delta)
    remove(plain, merge=True)
    if hasattr(plain, "merge_and_unload"):  # PEFT's own wrapper
        plain = cast(Any, plain).merge_and_unload()
    return plain.requires_grad_(False)


def _take_off_slices(module: nn.Module) -> None:
    """Give a module of the copy plain parameters."""
    stacks: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    names = [name for name, stack in stacks.items() if isinstance(stack[0], SliceOf)]
    if names:
        # parametrize keeps its properties in a class, which a copy shares with its original: the copy gets its own
        kind = type(module)
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
    for name in names:
        parametrize.remove_parametrizations(module, name)


def _inputs(model: nn.Module, example: Any, *, dynamic_batch: bool) -> Any:
    """The model's inputs on its device, two samples at least where their number is to stay open."""
    device = device_of(model)
    inputs = map_tensors(lambda tensor: tensor.detach().to(device), inputs_of(example))
    if dynamic_batch and sample_count(inputs) == 1:  # which torch.export takes for a constant
        return map_tensors(lambda tensor: join_samples([tensor, tensor]) if _counts(tensor, 1) else tensor, inputs)
    return inputs


def _counts(tensor: Tensor, samples: int) -> bool:
    """Whether the first axis of a tensor counts the samples."""
    return tensor.dim() > 0 and tensor.shape[0] == samples


def _arguments(inputs: Any, *, dynamic_batch: bool) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """What the model is called with, by place and by name, and which axes stay open."""
    count, batch = sample_count(inputs), torch.export.Dim(BATCH)
    axes = map_tensors(lambda tensor: {0: batch} if _counts(tensor, count) else {}, inputs)  # type: ignore[arg-type, return-value]
    if isinstance(inputs, Mapping):
        return (), dict(inputs), axes if dynamic_batch else None
    return (inputs,), {}, (axes,) if dynamic_batch else None


def _program_of(
    model: nn.Module, example: Any, delta: Delta | None, *, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    plain = _plain_copy(model, delta)
    return _program(plain, _inputs(plain, example, dynamic_batch=dynamic_batch), dynamic_batch=dynamic_batch)


def _program(model: nn.Module, inputs: Any, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    by_place, by_name, axes = _arguments(inputs, dynamic_batch=dynamic_batch)
    with observing(model):
        forward_call(model, inputs)  # an error of the model's own is not one of exporting
        try:
            return torch.export.export(model, by_place, by_name, dynamic_shapes=axes)
        except Exception as error:  # torch documents no class for what it cannot export
            advice = "; if it fixes the number of samples, export it with dynamic_batch=False" if dynamic_batch else ""
            raise ModelError(f"{type(model).__name__} cannot be exported: {_reason(error)}{advice}") from error


def _onnx_program(model: nn.Module, program: torch.export.ExportedProgram, names: list[str], axes: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts, about each other
            return torch.onnx.export(program, output_names=names, dynamic_shapes=axes, dynamo=True, verbose=False)
    except Exception as error:  # see _program
        raise ModelError(f"{type(model).__name__} cannot be exported to ONNX: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The start of what may be a page."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _output_names(outputs: Any) -> list[str]:
    """Names of the tensors that a model returns: its own where they have some."""
    if isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values()):
        return list(outputs)
    count = len(tensors_of(outputs))
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _compare(model: nn.Module, inputs: Any, path: Path, *, sizes: tuple[int | None, ...]) -> None:
    """Make sure that ONNX Runtime computes from the file what the model does.

    Raises:
        ModelError: if it does not.
    """
    count = sample_count(inputs)
    for size in sizes:
        part = _first(inputs, count, size)
        try:
            outputs = _in_onnx_runtime(path, part)
        except Exception as error:  # ONNX Runtime has a class for each of its codes, and no base for them
            raise ModelError(
                f"ONNX Runtime cannot run the file of {type(model).__name__}: {_reason(error)}; try model.float(), or "
                "check=False for another runtime; nothing was written"
            ) from error
        for ours, theirs in zip(tensors_of(forward_call(model, part)), outputs, strict=True):
            wanted, got = ours.cpu().double(), theirs.double()
            room = max(ROOM, 10 * torch.finfo(ours.dtype).eps) if ours.is_floating_point() else 0.0
            largest = float(wanted.abs().max())
            off = float((wanted - got).abs().max()) if wanted.shape == got.shape else math.inf
            if not off <= room * max(largest, 1e-6):
                raise ModelError(
                    f"the ONNX file of {type(model).__name__} gives other outputs in ONNX Runtime, off by {off:.3g} "
                    f"where the largest is {largest:.3g}; nothing was written"
                )


def _first(inputs: Any, count: int, size: int | None) -> Any:
    """The first samples of some inputs."""
    return map_tensors(lambda tensor: tensor[:size] if _counts(tensor, count) else tensor, inputs)


def _in_onnx_runtime(path: Path, inputs: Any) -> list[Tensor]:
    runtime = require("onnxruntime", "exporting to ONNX")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    known = inputs if isinstance(inputs, Mapping) and set(names) <= set(inputs) else None
    tensors = [known[name] for name in names] if known is not None else tensors_of(inputs)
    given = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]
