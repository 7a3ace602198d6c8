"""`adabet rank`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adabet.cli import setup
from adabet.cli.show import bar, note, out, ranking_table

EXAMPLE = "Example: `adabet rank timm/mobilenetv2_100 photos/ --weights mobilenetv2.safetensors --layer-ratio 0.1`"


def command(
    model: setup.Model,
    data: setup.Data,
    *,
    method: setup.MethodName = "adabet",
    layer_ratio: setup.LayerRatio = 0.1,
    channel_ratio: setup.ChannelRatio = 1.0,
    axis: setup.Axis = "out",
    samples: setup.Samples = 40,
    normalize: setup.Normalize = "activations",
    samples_in_memory: setup.SamplesInMemory = None,
    sketch: setup.Sketch = None,
    option: setup.MethodOptions = None,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    mean: setup.Mean = None,
    std: setup.Std = None,
    seed: setup.Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the selection to this JSON file.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many layers to show; 0 for all.")] = 25,
    as_json: setup.Json = False,
) -> None:
    """Rank a model's layers; by AdaBet with unlabelled samples, in forward passes only."""
    from adabet.files import write_text
    from adabet.methods import find_method, rank
    from adabet.models import new_head

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
    config = setup.sample_config(loaded)
    if find_method(method).labelled:
        splits = setup.labelled_splits(data, config, seed=seed)
        torch.manual_seed(seed)
        new_head(loaded.model, len(splits.classes))
        batches: Iterable[Any] = splits.loaders(batch_size=8, seed=seed).train
    else:
        batches = setup.sample_batches(data, config, samples=samples, seed=seed)
    if channel_ratio < 1 and method == "adabet":
        options |= {"channels": layer_ratio, "axis": axis}
    with setup.notes_for_warnings(), bar("looking at samples") as progress:
        ranking = rank(loaded.model, batches, method=method, seed=seed, progress=progress, **options)
    selection = ranking.select(layer_ratio=layer_ratio, channel_ratio=channel_ratio, axis=axis)  # type: ignore[arg-type]
    if output is not None:
        write_text(output, selection.to_json() + "\n")
    if as_json:
        out.print_json(
            json.dumps({"ranking": json.loads(ranking.to_json()), "selection": json.loads(selection.to_json())})
        )
        return
    out.print(ranking_table(ranking, selection, rows=rows or None))
    out.print(str(selection).partition("\n")[0])
    for text in ranking.notes:
        note(text)


command.__name__ = "rank"
