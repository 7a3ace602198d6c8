"""`adabet compare`."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adabet.cli import setup
from adabet.cli.show import counting_bar, fail, note, out
from adabet.errors import OptionError

if TYPE_CHECKING:
    from adabet.experiments import Grid, GridResults, Pool, Report

EXAMPLE = (
    "Example: `adabet compare mcu/mbv2-w0.35 photos/ --weights mbv2-w0.35.safetensors --methods adabet,head,full "
    "--memory adabet:0.1 --seeds 3 --results photos.db`. Several models and data: `adabet compare --grid grid.toml`"
)

Text = str | None
GOES_ON = "go on with the same command"


def command(
    model: Annotated[Text, typer.Argument(help="As of `adabet tune`; not with --grid.")] = None,
    data: Annotated[Text, typer.Argument(help="As of `adabet tune`; not with --grid.")] = None,
    *,
    grid: Annotated[Path | None, typer.Option(help="A TOML or JSON file with models, data, methods and so on.")] = None,
    methods: Annotated[Text, typer.Option(help="Who chooses, with commas; default: adabet, head, full.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="METHOD:NAME=VALUE", help="Of a method; may be repeated.")
    ] = None,
    layer_ratio: Annotated[
        Text, typer.Option(help="Shares of the layers, with commas; default 0.1 unless --memory is given.")
    ] = None,
    memory: Annotated[
        Text, typer.Option(help="Budgets with commas: 200MB, or adabet:0.1 for what AdaBet's tenth takes.")
    ] = None,
    seeds: Annotated[Text, typer.Option(help="How many, or which with commas; default 3.")] = None,
    lr: Annotated[Text, typer.Option(help="Candidates, with commas; default 0.0003 to 0.03.")] = None,
    search: Annotated[Text, typer.Option(help="Learning rate by 'uphill' (first seed) or 'all' (all seeds).")] = None,
    head_lr_factor: Annotated[
        float | None, typer.Option(help="The head's learning rate in units of all else's; default 1.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images; default 5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default 8.")] = None,
    optimizer: Annotated[Text, typer.Option(help="sgdw (default), sgd, adam or adamw.")] = None,
    max_train: Annotated[int | None, typer.Option(help="Train on so many images at most.")] = None,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    mean: setup.Mean = None,
    std: setup.Std = None,
    selection_memory: Annotated[bool, typer.Option(help="Measure what choosing takes, in extra processes.")] = True,
    results: Annotated[Path, typer.Option(help="Where every cell is kept; an interrupted comparison goes on.")] = Path(
        "compare.db"
    ),
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells that failed again.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: half the cores, 4 at most.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each worker; default: the cores shared out.")] = None,
    ray: Annotated[Text, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster, such as auto.")] = None,
    ray_gpus: Annotated[float, typer.Option(help="GPUs that a cell takes on the cluster.")] = 0,
    ray_memory: Annotated[str, typer.Option(help="Memory that a cell takes on the cluster.")] = "2GB",
    reference: Annotated[
        Text, typer.Option(help="The method that the others are compared with; default: adabet, or the first.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    as_json: setup.Json = False,
) -> None:
    """Compare methods over models, data and seeds: learning rate by validation, result on test, every run kept."""
    from adabet.experiments import Grid, compare
    from adabet.files import write_text

    given = {
        "methods": _methods(methods, option, grid),
        "layer_ratios": _numbers("--layer-ratio", layer_ratio),
        "budgets": setup.texts(memory),
        "seeds": _seeds(seeds),
        "learning_rates": _numbers("--lr", lr),
        "search": search,
        "head_lr_factor": head_lr_factor,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "selection_memory": None if selection_memory else False,
    }
    one_model = {
        "weights": None if weights is None else str(weights),
        "pretrained": pretrained or None,
        "arguments": setup.model_arguments(model_arg) or None,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    values = _start(model, data, grid, one_model, max_train, results)
    values |= {name: value for name, value in given.items() if value is not None}
    if {"layer_ratios", "budgets"} & given.keys() and (given["layer_ratios"] or given["budgets"]):
        values.pop("shares", None)
    chosen = Grid.from_dict(values)
    base = _reference(chosen, reference)
    pool = _pool(ray, workers, threads, gpus=ray_gpus, memory=ray_memory)
    try:
        with _bar(pool) as progress:
            found = compare(chosen, results, pool, retry_failed=retry_failed, progress=progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; what is finished is in {results}: {_again()}") from stop
    if csv is not None:
        from adabet.experiments.export import table_values, to_csv

        write_text(csv, to_csv(table_values(found, base)))
    _show(found, base, as_json=as_json)


def _start(
    model: Text, data: Text, grid: Path | None, one_model: dict[str, Any], max_train: int | None, results: Path
) -> dict[str, Any]:
    """What is compared, before the options that change it: a model and data, a grid file, or what the results hold."""
    from adabet.experiments import read_grid

    of_model = {name: value for name, value in one_model.items() if value is not None}
    if model is not None and data is not None and grid is None:
        images: dict[str, Any] = {"name": data} | ({} if max_train is None else {"max_train": max_train})
        return {"models": [{"name": model, **of_model}], "data": [images], "methods": ["adabet", "head", "full"]}
    if model is not None or data is not None:
        raise OptionError("expected MODEL and DATA, or --grid FILE with both")
    if of_model or max_train is not None:
        raise OptionError("options of the one model and data go with MODEL and DATA; in a grid they stand in the file")
    if grid is not None:
        return read_grid(grid)
    if results.exists():
        from adabet.experiments.store import read_rows

        return read_rows(results)[0]
    raise OptionError("expected MODEL and DATA, --grid FILE, or --results with a comparison to go on with")


def _methods(names: Text, options: Sequence[str] | None, grid: Path | None) -> list[Any] | None:
    """Methods as tables of a grid; ``METHOD:NAME=VALUE`` belongs to one that is named."""
    if options and grid is not None:
        raise OptionError("options of methods stand in the grid file: methods = [{method = 'adabet', options = {...}}]")
    if names is None and not options:
        return None
    found = {name: {"method": name, "options": {}} for name in setup.texts(names) or ["adabet", "head", "full"]}
    for text in options or ():
        name, colon, pair = text.partition(":")
        if not colon or name not in found:
            raise OptionError(f"expected --option METHOD:NAME=VALUE with one of {', '.join(found)}; got {text!r}")
        found[name]["options"] |= setup.named_values("--option", [pair])  # type: ignore[operator]
    return list(found.values())


def _numbers(option: str, text: Text) -> list[float] | None:
    items = setup.texts(text)
    try:
        return None if items is None else [float(item) for item in items]
    except ValueError as error:
        raise OptionError(f"expected {option} as numbers with commas, got {text!r}") from error


def _seeds(text: Text) -> int | list[int] | None:
    items = setup.texts(text)
    try:
        numbers = None if items is None else [int(item) for item in items]
    except ValueError as error:
        raise OptionError(f"expected --seeds as a number of seeds, or seeds with commas; got {text!r}") from error
    return numbers[0] if numbers is not None and len(numbers) == 1 else numbers


def _reference(grid: "Grid", reference: Text) -> str:
    """The label of the method that the others are compared with."""
    labels = [method.label for method in grid.methods]
    if reference is None:
        return "adabet" if "adabet" in labels else labels[0]
    if reference not in labels:
        raise OptionError(f"expected --reference to be one of {', '.join(labels)}; got {reference!r}")
    return reference


def _pool(address: Text, workers: int | None, threads: int | None, *, gpus: float, memory: str) -> "Pool":
    from adabet.experiments import LocalPool

    if address is None:
        return LocalPool(workers, threads=threads)
    from adabet.experiments.cluster import RayPool
    from adabet.sizes import parse_size

    if workers is not None:
        raise OptionError("expected --workers or --ray ADDRESS: a cluster runs as many cells as it has room for")
    return RayPool(address, threads=threads or 1, gpus=gpus, memory=parse_size(memory))


@contextmanager
def _bar(pool: "Pool") -> Iterator[Callable[["Report"], None]]:
    """A bar over all cells on standard error, and a line for each that failed."""
    with counting_bar() as progress:
        task = progress.add_task("starting", total=None)

        def tell(report: "Report") -> None:
            failed = f", {report.failed} failed" if report.failed else ""
            progress.update(task, description=f"{pool.name}{failed}", completed=report.done, total=report.total)
            if report.result is not None and report.result.status == "failed":
                fail(f"{report.cell}: {report.result.error}")

        yield tell


def _show(found: "GridResults", reference: str, *, as_json: bool) -> None:
    from adabet.cli.compare_table import compare_notes, compare_tables
    from adabet.experiments.export import cell_values, table_values

    if as_json:
        runs = [cell_values(run) for run in found.cells]
        lines = table_values(found, reference)
        values = {"results": str(found.path), "complete": found.complete, "lines": lines, "runs": runs}
        out.print_json(json.dumps(values))
        return
    for table in compare_tables(found, reference, width=out.width):
        out.print(table)
    for text in compare_notes(found, reference):
        note(text)
    out.print(f"{len(found.cells)} training runs in {found.path}", soft_wrap=True)


def _again() -> str:
    """How to go on, as one can paste it."""
    return f"{GOES_ON} (adabet {shlex.join(sys.argv[1:])})" if len(sys.argv) > 1 else GOES_ON


command.__name__ = "compare"
