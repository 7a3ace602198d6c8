"""`adabet tune`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adabet.cli import setup
from adabet.cli.show import bar, err, out
from adabet.errors import AdabetError
from adabet.sizes import format_size

EXAMPLE = (
    "Example: `adabet tune timm/mobilenetv2_100 photos/ --weights mobilenetv2.safetensors --layer-ratio 0.1 "
    "--epochs 5 --lr 0.01`"
)

PLANNED_OPTIMIZERS = {"sgdw": "sgd momentum", "sgd": "sgd momentum"}
"""What `plan` calls optimizers whose state is alike."""


def command(
    model: setup.Model,
    data: setup.Data,
    *,
    method: setup.MethodName = "adabet",
    layer_ratio: Annotated[
        float | None, typer.Option(help="Share of the layers to choose; default 0.1, with --memory as many as fit.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Budget for a step at its peak, everything counted, such as 200MB.")
    ] = None,
    channel_ratio: setup.ChannelRatio = 1.0,
    axis: setup.Axis = "out",
    samples: setup.Samples = 40,
    normalize: setup.Normalize = "activations",
    samples_in_memory: setup.SamplesInMemory = None,
    sketch: setup.Sketch = None,
    option: setup.MethodOptions = None,
    selection_file: Annotated[
        Path | None, typer.Option("--selection", help="Train this selection, written by `adabet rank --output`.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    lr: Annotated[float, typer.Option(help="Learning rate at the start of the cosine.")] = 1e-3,
    head_lr_factor: Annotated[float, typer.Option(help="The head's learning rate is --lr times this.")] = 1.0,
    weight_decay: Annotated[float, typer.Option(help="Decoupled, on every trained tensor.")] = 5e-4,
    optimizer: Annotated[str, typer.Option(help="sgdw, sgd, adam or adamw.")] = "sgdw",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 8,
    micro_batch: Annotated[int | None, typer.Option(help="Images in memory at once; the gradient is the same.")] = None,
    lean: Annotated[bool, typer.Option(help="Keep for the backward pass only what the selection needs.")] = True,
    early_stop: Annotated[int | None, typer.Option(help="End after so many epochs without a better one.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    mean: setup.Mean = None,
    std: setup.Std = None,
    max_train: Annotated[int | None, typer.Option(help="Train on so many images at most.")] = None,
    seed: setup.Seed = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of this run; default: runs/MODEL-DATA-METHOD.")] = None,
    tracker: Annotated[
        str | None, typer.Option(help="Also log to tensorboard, in the run folder, or another that accelerate knows.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    as_json: setup.Json = False,
) -> None:
    """Adapt a model to images: choose the layers, train them, test, and keep the delta."""
    from adabet.files import write_text
    from adabet.layers import find_layers
    from adabet.methods import find_method, rank
    from adabet.models import new_head
    from adabet.planning import Plan, plan
    from adabet.ranking import Ranking
    from adabet.report.task import Task, drop_task, keep_task
    from adabet.selection import Selection
    from adabet.sizes import parse_size
    from adabet.training import TerminalProgress, evaluate, fit

    if memory is not None:
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
    config = setup.sample_config(loaded)
    splits = setup.labelled_splits(data, config, seed=seed, max_train=max_train)
    torch.manual_seed(seed)
    new_head(loaded.model, len(splits.classes))
    loaders = splits.loaders(batch_size=batch_size, seed=seed)
    entry = find_method(method)
    chosen: Selection | Plan | None = None
    ranking: Ranking | None = None
    with setup.notes_for_warnings(), bar("choosing") as progress:
        if selection_file is not None:
            chosen = Selection.from_json(setup.read_file(selection_file))
        elif entry.kind != "ranks layers" or "every" in options:
            pass  # it selects within the run, and again
        elif memory is not None:
            chosen = plan(
                loaded.model,
                # not the loader that trains: its order of samples is to be that of a run without a budget
                splits.loaders(batch_size=batch_size, seed=seed).train,
                unlabelled=None if entry.labelled else setup.unlabelled(splits, samples, seed),
                memory=memory,
                method=method,
                layer_ratio=1.0 if layer_ratio is None else layer_ratio,
                axis=axis,  # type: ignore[arg-type]
                optimizer=PLANNED_OPTIMIZERS.get(optimizer, optimizer),
                seed=seed,
                **options,
            )
        elif entry.labelled:
            pass  # it looks at the training batches themselves
        else:
            ratio = 0.1 if layer_ratio is None else layer_ratio
            if channel_ratio < 1 and "channels" in entry.options:
                options |= {"channels": ratio, "axis": axis}
            ranking = rank(
                loaded.model,
                setup.unlabelled(splits, samples, seed),
                method=method,
                seed=seed,
                progress=progress,
                **options,
            )
            chosen = ranking.select(layer_ratio=ratio, channel_ratio=channel_ratio, axis=axis)  # type: ignore[arg-type]
    if chosen is not None:
        err.print(str(chosen))
    name = method if selection_file is None else Selection.from_json(setup.read_file(selection_file)).method
    folder = run_dir or Path("runs") / "-".join((model.rpartition("/")[2], Path(data).name, name))
    given = {
        "weights": None if weights is None else str(weights),
        "pretrained": pretrained or None,
        "image_size": image_size,
        "mean": mean,
        "std": std,
        **setup.model_arguments(model_arg),
    }
    keep_task(
        folder,
        Task(
            model=model,
            model_options={name: value for name, value in given.items() if value is not None},
            data=data,
            classes=splits.classes,
            images={"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
            layers=tuple(layer.name for layer in find_layers(loaded.model, next(iter(loaders.val)))),
        ),
        ranking,
    )
    unchosen: dict[str, Any] = {}
    if chosen is None:
        unchosen = {
            "method": method,
            "layer_ratio": layer_ratio,
            "channel_ratio": channel_ratio,
            "memory": memory,
            "method_options": options,
        }
    try:
        result = fit(
            loaded.model,
            loaders.train,
            loaders.val,
            chosen,
            optimizer=optimizer,
            lr=lr,
            head_lr_factor=head_lr_factor,
            weight_decay=weight_decay,
            epochs=epochs,
            early_stop=early_stop,
            micro_batch=micro_batch,
            lean=lean,
            mixed_precision=mixed_precision,
            seed=seed,
            run_dir=folder,
            resume=resume,
            progress=TerminalProgress(err),
            tracker=tracker,
            **unchosen,
        )
    except AdabetError:
        drop_task(folder)
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; the last whole epoch is in {folder}, go on with --resume") from stop
    # one at a time where only the run knows what fits
    at_once = chosen.micro_batch if isinstance(chosen, Plan) else micro_batch or (1 if memory else None)
    test = evaluate(loaded.model, loaders.test, micro_batch=at_once)
    write_text(folder / "test.json", json.dumps(test, indent=1) + "\n")
    if as_json:
        out.print_json(json.dumps({"run_dir": str(folder), "test": test, "result": json.loads(result.to_json())}))
        return
    out.print(str(result))
    out.print(
        f"test accuracy {test['accuracy']:.4f} on {len(splits.test)} {splits.report.what} ({result.kept} epoch)",
        style="bold",
    )
    delta = folder / f"{result.kept}.safetensors"
    out.print(f"delta: {delta} ({format_size(delta.stat().st_size)}); run folder: {folder}", soft_wrap=True)


command.__name__ = "tune"
