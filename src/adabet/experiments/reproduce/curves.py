"""Accuracy epoch by epoch, as the AdaBet paper's curves show it; the runs are those of table 2."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.experiments.reproduce.accuracy import how, lines_of, problems, run_sixteen
from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import LINES, MARKS, add_legend, name_panel, new_figure, quiet, save
from adabet.experiments.reproduce.published import SEEDS, SETTINGS
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.report.memory_plot import INK

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "method": "who chooses",
    "seed": "of head, samples, selection and order",
    "learning_rate": "of the run",
    "epoch": "from 1",
    "accuracy": "on validation after the epoch, in %",
    "train_loss": "mean over the epoch",
    "seconds": "by the clock, of the epoch",
}


def make(task: Task) -> Found:
    """The history of every run."""
    place = find_place(task)
    found = run_sixteen(task, place)
    rows: list[Row] = []
    for model, data, line in lines_of(found):
        for run in line.runs:
            for record in () if run.outcome is None else run.outcome.history:
                rows.append(
                    {
                        "model": model.label,
                        "data": data.label,
                        "method": line.entry.method.label,
                        "seed": run.cell.seed,
                        "learning_rate": run.cell.learning_rate,
                        "epoch": record.epoch,
                        "accuracy": 100 * record.val_metrics["accuracy"],
                        "train_loss": record.train_loss,
                        "seconds": record.seconds,
                    }
                )
    notes = (*place.notes, how(task, SETTINGS, SEEDS, found), *problems(found))
    setting = f"{described(place)}; {how(task, SETTINGS, SEEDS, found)}"
    return Found(tuple(rows), lambda path: draw(rows, "Validation accuracy by epoch, %", setting, path), notes)


def draw(rows: Sequence[Row], title: str, setting: str, path: Path) -> None:
    """A panel for each pair of model and data: the mean over the seeds, and from the least to the most of them."""
    pairs = list(dict.fromkeys((row["model"], row["data"]) for row in rows))
    across = 1 if len(pairs) == 1 else 2 if len(pairs) <= 4 else 4
    deep = -(-len(pairs) // across)
    panel = 3.0 if across < 4 else 2.2
    height = 1.75 + panel * deep
    figure = new_figure(title, setting, height=height)
    grid = figure.add_gridspec(
        deep, across, left=0.06, right=0.97, top=1 - 1.55 / height, bottom=0.5 / height, hspace=0.4, wspace=0.22
    )
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, pair in enumerate(pairs):
        axes = figure.add_subplot(grid[number // across, number % across])
        shown = [row for row in rows if (row["model"], row["data"]) == pair]
        handles = [_draw_line(axes, shown, method, methods.index(method)) for method in methods]
        axes.set_xlabel("epoch", fontsize=9, color=INK)
        axes.locator_params(axis="x", integer=True)
        quiet(axes, grid="y")
        name_panel(axes, f"{pair[0]}, {pair[1]}", size=8 if across == 4 else 10)
    add_legend(figure, handles, columns=4)
    save(figure, path)


def _draw_line(axes: Any, rows: Sequence[Row], method: str, number: int) -> Any:
    own = [row for row in rows if row["method"] == method]
    epochs = sorted({row["epoch"] for row in own})
    values = [[row["accuracy"] for row in own if row["epoch"] == epoch] for epoch in epochs]
    colour = LINES[number % len(LINES)]
    if any(len(found) > 1 for found in values):
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.13, lw=0)
    return axes.plot(
        epochs, [statistics.fmean(found) for found in values], color=colour, linewidth=1.7, label=method,
        marker=MARKS[number % len(MARKS)], markersize=4.5, markevery=max(1, len(epochs) // 10),
    )[0]  # fmt: skip
