"""`adabet plan`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from adabet.cli import setup
from adabet.cli.show import bar, out

EXAMPLE = "Example: `adabet plan timm/resnet50 photos/ --memory 200MB --output plan.json`"


def command(
    model: setup.Model,
    data: setup.Data,
    *,
    memory: Annotated[str, typer.Option(help="Budget for a step at its peak, everything counted, such as 200MB.")],
    method: setup.MethodName = "adabet",
    layer_ratio: Annotated[float, typer.Option(help="Share of the layers that may train at most.")] = 1.0,
    axis: Annotated[str, typer.Option(help="Whose channels where a layer does not fit whole: 'out' or 'in'.")] = "out",
    whole_layers: Annotated[bool, typer.Option("--whole-layers", help="Never train a slice of a layer.")] = False,
    time_ratio: Annotated[
        float | None, typer.Option(help="Share of the time of a whole backward pass that a step's may take.")
    ] = None,
    samples: setup.Samples = 40,
    normalize: setup.Normalize = "activations",
    samples_in_memory: setup.SamplesInMemory = None,
    sketch: setup.Sketch = None,
    option: setup.MethodOptions = None,
    optimizer: Annotated[str, typer.Option(help="sgd, 'sgd momentum', adam or adamw.")] = "sgd momentum",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 8,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    mean: setup.Mean = None,
    std: setup.Std = None,
    seed: setup.Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the plan to this JSON file.")] = None,
    as_json: setup.Json = False,
) -> None:
    """Find the best selection that trains within a memory budget, and how."""
    from adabet.files import write_text
    from adabet.methods import find_method
    from adabet.models import new_head
    from adabet.planning import plan
    from adabet.planning.options import CHANNEL_RATIOS
    from adabet.sizes import parse_size

    parse_size(memory)  # a wrong one is told before the data is read
    options = setup.method_options(
        method, option, samples=samples, normalize=normalize, samples_in_memory=samples_in_memory, sketch=sketch
    )
    loaded = setup.load(
        model,
        weights=weights,
        pretrained=pretrained,
        model_arg=model_arg,
        image_size=image_size,
        mean=mean,
        std=std,
    )
    splits = setup.labelled_splits(data, setup.sample_config(loaded), seed=seed)
    torch.manual_seed(seed)
    new_head(loaded.model, len(splits.classes))
    with setup.notes_for_warnings(), bar("planning"):
        found = plan(
            loaded.model,
            splits.loaders(batch_size=batch_size, seed=seed).train,
            unlabelled=None if find_method(method).labelled else setup.unlabelled(splits, samples, seed),
            memory=memory,
            method=method,
            layer_ratio=layer_ratio,
            axis=axis,  # type: ignore[arg-type]
            time_ratio=time_ratio,
            optimizer=optimizer,
            seed=seed,
            channel_ratios=() if whole_layers else CHANNEL_RATIOS,
            **options,
        )
    if output is not None:
        write_text(output, found.to_json() + "\n")
    if as_json:
        out.print_json(found.to_json())
    else:
        out.print(str(found))
        out.print(str(found.selection))


command.__name__ = "plan"
