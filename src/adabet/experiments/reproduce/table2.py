"""Table 2 of the AdaBet paper: accuracy of methods on sixteen pairs of model and data."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.experiments.reproduce.accuracy import how, lines_of, problems, result_of, run_sixteen
from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import new_figure, save
from adabet.experiments.reproduce.published import (
    ACCURACIES,
    AVERAGES,
    PRUNE_TRAIN_RECOMPUTED,
    SEEDS,
    SETTINGS,
)
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.report.memory_plot import FAINT, INK, WIDTH

COLUMNS = {
    "model": "what is adapted; 'average' for the mean over all pairs",
    "data": "what to",
    "method": "who chooses, as the paper calls them",
    "seeds": "how many runs there are",
    "learning_rate": "the paper's, or the best on validation where models or data are others",
    "accuracy": "on test, mean over the seeds, in %",
    "std": "its standard deviation over the seeds, in points; empty for one seed",
    "published": "the paper's number, in %, where it is known here",
    "problem": "why there is no result, or empty",
}


def make(task: Task) -> Found:
    """Train every method on every pair."""
    place = find_place(task)
    found = run_sixteen(task, place)
    rows: list[Row] = []
    for model, data, line in lines_of(found):
        method = line.entry.method.label
        rows.append(
            {
                "model": model.label,
                "data": data.label,
                "method": method,
                **result_of(line),
                "published": ACCURACIES.get((model.label, data.label, method)),
            }
        )
    rows += averages(rows)
    notes = (
        *place.notes,
        how(task, SETTINGS, SEEDS, found),
        "published averages are over the paper's sixteen pairs; of its single cells only four are known here",
        f"the paper prints {AVERAGES['PruneTrain']:.2f} for PruneTrain; its cells average to {PRUNE_TRAIN_RECOMPUTED}",
        *problems(found),
    )
    setting = f"{described(place)}; {how(task, SETTINGS, SEEDS, found)}"
    return Found(tuple(rows), lambda path: draw(rows, setting, path), notes)


def averages(rows: Sequence[Row]) -> list[Row]:
    """A row for each method: the mean over all pairs, if it has a result on each, beside the paper's."""
    found: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        values = [row["accuracy"] for row in own if row["accuracy"] is not None]
        found.append(
            {
                "model": "average",
                "data": f"{len(own)} pair{'s' * (len(own) != 1)}",
                "method": method,
                "seeds": min(row["seeds"] for row in own),
                "learning_rate": None,
                "accuracy": statistics.fmean(values) if len(values) == len(own) else None,
                "std": None,
                "published": AVERAGES.get(method),
                "problem": "" if len(values) == len(own) else f"{len(own) - len(values)} without a result",
            }
        )
    return found


NAMES, ROW, WIDEST, UPRIGHT = 1.55, 0.34, 1.6, 1.1
"""Inches: for the methods' names, a row, a column at most; below the last, the names of pairs stand upright."""


PUBLISHED = ("published", "average")


def draw(rows: Sequence[Row], setting: str, path: Path) -> None:
    """The table itself: a row a method, a column a pair, the best of each in bold; last our and the paper's average."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    pairs = list(dict.fromkeys((row["model"], row["data"]) for row in rows))
    columns = [pair for pair in pairs if pair[0] != "average" or len(pairs) > 2] + [PUBLISHED]
    step = min(WIDEST, (WIDTH - NAMES - 0.4) / len(columns))
    top = 0.8 + (1.2 if step < UPRIGHT else 0.5)
    height = top + ROW * len(methods) + 0.2
    figure = new_figure("Test accuracy, %", setting, height=height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    for number, (model, data) in enumerate(columns):
        x = NAMES + 0.2 + step * (number + 0.5)
        turn = 90 if step < UPRIGHT else 0
        size = 8 if turn else 9
        axes.text(x, top - 0.1, f"{model}\n{data}", ha="center", va="bottom", fontsize=size, color=INK, rotation=turn)
        _draw_column(axes, _column(rows, methods, (model, data)), x, top, digits=1 if step < 0.7 else 2)
    for place, method in enumerate(methods):
        axes.text(0.2, top + ROW * (place + 0.5), method, va="center", fontsize=10, color=INK)
    for y in (top, top + ROW * len(methods)):
        axes.plot([0.2, NAMES + 0.2 + step * len(columns)], [y, y], color=FAINT, linewidth=0.8)
    save(figure, path)


def _draw_column(axes: Any, values: Sequence[float | None], x: float, top: float, *, digits: int) -> None:
    best = max((value for value in values if value is not None), default=None)
    for place, value in enumerate(values):
        if value is not None:
            weight = "bold" if value == best else "normal"
            y = top + ROW * (place + 0.5)
            axes.text(x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=10, fontweight=weight, color=INK)


def _column(rows: Sequence[Row], methods: Sequence[str], pair: tuple[str, str]) -> list[float | None]:
    """A pair's accuracies in the order of the methods; or the published averages."""
    if pair == PUBLISHED:
        return [AVERAGES.get(method) for method in methods]
    found = {row["method"]: row["accuracy"] for row in rows if (row["model"], row["data"]) == pair}
    return [found.get(method) for method in methods]
