"""`adabet memory`."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adabet.cli import setup
from adabet.cli.show import err, out
from adabet.errors import OptionError
from adabet.sizes import format_size

EXAMPLE = "Example: `adabet memory timm/resnet50 --methods full,head,adabet --batch-size 8 --output memory.png`"


def command(
    model: setup.Model,
    data: Annotated[str | None, typer.Argument(help="Images for methods that look at some; default: noise.")] = None,
    *,
    methods: Annotated[str, typer.Option(help="Who chooses, with commas.")] = "head,adabet,full",
    layer_ratio: setup.LayerRatio = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 8,
    micro_batch: Annotated[int | None, typer.Option(help="Images in memory at once.")] = None,
    lean: Annotated[bool, typer.Option(help="Keep only what the selection needs, or what stock PyTorch keeps.")] = True,
    recompute: Annotated[bool, typer.Option(help="Run repeated blocks again in the backward pass.")] = False,
    optimizer: Annotated[str, typer.Option(help="sgd, 'sgd momentum', adam or adamw.")] = "sgd momentum",
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    seed: setup.Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Also draw stacked bars into this PNG, SVG or PDF.")] = None,
    as_json: setup.Json = False,
) -> None:
    """Measure what a training step really allocates at its peak, by method and category."""
    from adabet.memory import MemoryReport, measure_memory
    from adabet.memory.report import CATEGORIES
    from adabet.methods import select
    from adabet.models import load_model
    from adabet.report.memory_plot import draw_memory

    names = setup.texts(methods)
    if not names:
        raise OptionError("expected --methods with at least one name, such as head,full; got none")
    loaded = load_model(model, image_size=image_size, **setup.model_arguments(model_arg))
    config = setup.sample_config(loaded)
    torch.manual_seed(seed)
    noise = torch.randn(40, *config.input_size)
    batches = noise.split(8) if data is None else setup.sample_batches(data, config, samples=40, seed=seed)
    batch = noise[:1].expand(batch_size, *config.input_size).contiguous(), torch.zeros(batch_size, dtype=torch.long)
    reports: dict[str, MemoryReport] = {}
    for method in dict.fromkeys(names):
        with err.status(f"measuring {method}"), setup.notes_for_warnings():
            selection = select(method, loaded.model, batches, layer_ratio=layer_ratio, seed=seed)
            reports[method] = measure_memory(
                loaded.model,
                batch,
                selection,
                optimizer=optimizer,
                micro_batch=micro_batch,
                lean=lean,
                recompute=recompute,
                inference=not reports,
            )
    if output is not None:
        draw_memory(reports, output)
    if as_json:
        out.print_json(json.dumps({method: json.loads(report.to_json()) for method, report in reports.items()}))
        return
    title = f"{model}, batch {batch_size}, {'lean' if lean else 'stock autograd'}: peak of a step"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("what trains")
    for heading in (*CATEGORIES, "peak"):
        table.add_column(heading, justify="right")
    first = next(iter(reports.values())).inference
    rows = {"inference": first, **{method: report.training for method, report in reports.items()}}
    for name, peak in rows.items():
        if peak is not None:
            sizes = [format_size(getattr(peak, category)) for category in CATEGORIES]
            table.add_row(name, *sizes, format_size(peak.total))
    out.print(table)
    if output is not None:
        out.print(f"picture: {output}", soft_wrap=True)


command.__name__ = "memory"
