"""`adabet export`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from adabet.cli import setup
from adabet.cli.show import bar, out
from adabet.errors import OptionError
from adabet.models import DataConfig
from adabet.selection import Selection
from adabet.sizes import format_size

EXAMPLE = (
    "Example: `adabet export timm/resnet50 --weights base.safetensors --delta run/best.safetensors --output "
    "model.onnx`; with `--output model.pt2` the same for `torch.export.load`"
)


def command(
    model: setup.Model,
    *,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="The file: .onnx, or .pt2 for a torch.export program.")
    ],
    delta: Annotated[
        Path | None, typer.Option(help="What a run trained (best.safetensors), merged into the weights.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Fix the number of samples that the file takes; default: any.")
    ] = None,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    check: Annotated[bool, typer.Option(help="Compare an ONNX file's outputs with PyTorch's.")] = True,
    as_json: setup.Json = False,
) -> None:
    """Write an adapted model as one file for other runtimes: ONNX or torch.export, with equal outputs."""
    import torch

    from adabet.export import export_onnx, export_program

    if output.suffix not in (".onnx", ".pt2"):
        raise OptionError(f"expected --output to end in .onnx or .pt2, got {output}")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"expected --batch-size of at least 1 sample, got {batch_size}")
    loaded = setup.load(
        model,
        weights=weights,
        pretrained=pretrained,
        model_arg=model_arg,
        image_size=image_size,
        mean=None,
        std=None,
    )
    config = setup.sample_config(loaded)
    if delta is not None:
        _fit_head(loaded.model, delta)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(batch_size or 2, *config.input_size, generator=generator)
    with setup.notes_for_warnings(), bar("exporting"):
        if output.suffix == ".onnx":
            export_onnx(loaded.model, output, example, delta=delta, dynamic_batch=batch_size is None, check=check)
        else:
            export_program(loaded.model, example, delta=delta, path=output, dynamic_batch=batch_size is None)
    size = output.stat().st_size
    if as_json:
        out.print_json(json.dumps({"output": str(output), "bytes": size, "input": asdict(config)}))
        return
    shape = " x ".join(map(str, (batch_size or "any", *config.input_size)))
    out.print(f"{output} ({format_size(size)}): takes {shape}", soft_wrap=True)
    if isinstance(config, DataConfig):
        out.print(f"pixels in [0, 1], less mean {config.mean}, over std {config.std}", soft_wrap=True)
    else:
        out.print(str(config), soft_wrap=True)


def _fit_head(model: nn.Module, delta: Path) -> None:
    """Give the model a head of as many classes as the delta's."""
    from adabet.models import new_head
    from adabet.training.delta import KIND
    from adabet.training.tensor_file import read_tensor_file

    tensors, values = read_tensor_file(delta, KIND)
    own = model.state_dict()
    for name in Selection.from_json(values.get("selection", "")).head:
        if name in tensors and name in own and tensors[name].shape[:1] != own[name].shape[:1]:
            new_head(model, tensors[name].shape[0])
            return


command.__name__ = "export"
