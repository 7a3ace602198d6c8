"""`adabet reproduce`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adabet.cli import setup
from adabet.cli.show import bar, note, out
from adabet.errors import OptionError

if TYPE_CHECKING:
    from adabet.experiments import DataSpec, ModelSpec
    from adabet.experiments.reproduce import Reproduction, Written

EXAMPLE = "Example: `adabet reproduce table3 --quick`"

ROWS_SHOWN = 40
"""A longer table is only in the CSV."""


def command(
    name: Annotated[str | None, typer.Argument(help="Which table or figure; without it they are listed.")] = None,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Scaled down, on the bundled digits unless --models or --data say else.")
    ] = False,
    models: Annotated[
        list[str] | None, typer.Option(help="In place of the paper's, as of `adabet tune`; may be repeated.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folders or names in place of the paper's; may be repeated.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="A grid file as of `adabet compare`, whose models and data are taken.")
    ] = None,
    max_train: Annotated[int | None, typer.Option(help="Train on so many images of --data at most.")] = None,
    weights: setup.Weights = None,
    pretrained: setup.Pretrained = False,
    model_arg: setup.ModelArguments = None,
    image_size: setup.ImageSize = None,
    mean: setup.Mean = None,
    std: setup.Std = None,
    seed: setup.Seed = 0,
    workers: Annotated[int | None, typer.Option(help="Processes for training runs; default as of compare.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for CSV, picture and page, and for what a rerun takes up.")
    ] = Path("reproduced"),
    as_json: setup.Json = False,
) -> None:
    """Make a table or figure of the papers again, the published numbers beside ours."""
    from adabet.experiments.reproduce import REPRODUCTIONS, Task, find_reproduction, reproduce

    if name is None:
        _list(list(REPRODUCTIONS.values()), as_json=as_json)
        return
    chosen = find_reproduction(name)
    of_model = {
        "weights": None if weights is None else str(weights),
        "pretrained": pretrained or None,
        "arguments": setup.model_arguments(model_arg) or None,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    given = {option: value for option, value in of_model.items() if value is not None}
    specs = _specs(models or (), data or (), grid, given, max_train)
    with bar(name) as progress, setup.notes_for_warnings():
        task = Task(output, *specs, quick=quick, seed=seed, workers=workers, progress=progress)
        written = reproduce(chosen, task)
    if as_json:
        out.print_json(json.dumps(written.to_dict()))
        return
    _show(written)


def _specs(
    models: Sequence[str], data: Sequence[str], grid: Path | None, of_model: dict[str, Any], max_train: int | None
) -> "tuple[tuple[ModelSpec, ...], tuple[DataSpec, ...]]":
    """Models and data to use in place of the paper's; empty where none are given."""
    from adabet.experiments import DataSpec, Grid, ModelSpec, read_grid

    if grid is not None:
        if models or data or of_model or max_train is not None:
            raise OptionError(
                "expected --grid FILE, or --models and --data with their options: in a file they stand in it"
            )
        values = read_grid(grid)
        whole = Grid.from_dict({"methods": ["adabet"], **{key: values.get(key, ()) for key in ("models", "data")}})
        return whole.models, whole.data
    if of_model and len(models) != 1:
        raise OptionError("options of a model go with a single --models; for several, name them in --grid FILE")
    chosen = tuple(ModelSpec(model, **of_model) for model in models)
    images = tuple(DataSpec(folder) for folder in data)
    if max_train is not None and not images:
        raise OptionError("expected --max-train with --data")
    return chosen, tuple(replace(item, max_train=max_train) for item in images)


def _list(reproductions: "Sequence[Reproduction]", *, as_json: bool) -> None:
    from adabet.experiments.reproduce import PAPERS

    if as_json:
        fields = ("name", "shows", "source", "duration", "columns")
        out.print_json(json.dumps([{field: getattr(item, field) for field in fields} for item in reproductions]))
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    for heading in ("shows", "takes about", "of"):
        table.add_column(heading)
    for item in reproductions:
        table.add_row(item.name, item.shows, item.duration, f"{item.paper}, {item.place}")
    out.print(table)
    for paper, citation in PAPERS.items():
        out.print(f"{paper}: {citation}", style="dim", soft_wrap=True)
    out.print("adabet reproduce NAME [--quick]: CSV, picture and page", style="dim")


def _show(written: "Written") -> None:
    from adabet.experiments.reproduce.writing import text_of

    filled = {name for row in written.found.rows for name, value in row.items() if value not in (None, "")}
    columns = [column for column in written.reproduction.columns if column in filled]
    if len(written.found.rows) <= ROWS_SHOWN:
        title = f"{written.reproduction.name}: {written.reproduction.shows}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in columns:
            numbers = any(isinstance(row[column], int | float) for row in written.found.rows)
            table.add_column(column.replace("_", " "), justify="right" if numbers else "left")
        for row in written.found.rows:
            table.add_row(*(text_of(row[column]) for column in columns))
        out.print(table)
    for text in written.found.notes:
        note(text)
    out.print(f"{len(written.found.rows)} rows in {written.table}; picture: {written.picture}", soft_wrap=True)
    out.print(f"page with notes and the columns' meaning: {written.page}", soft_wrap=True)


command.__name__ = "reproduce"
