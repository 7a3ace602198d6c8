"""Accuracy against the share of the layers that train, and against what a step with it takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.experiments.reproduce.accuracy import how, lines_of, peak_of, problems, result_of, run_pairs
from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import LINES, MARKS, add_legend, name_panel, new_figure, quiet, save
from adabet.experiments.reproduce.published import SEEDS, SETTINGS
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.specs import MethodSpec, Share
from adabet.report.memory_plot import FAINT, INK, QUIET

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "method": "who ranks the layers",
    "layer_ratio": "share of the layers that train beside the head; empty where a method has none",
    "seeds": "how many runs there are",
    "learning_rate": "the best on validation",
    "accuracy": "on test, mean over the seeds, in %",
    "std": "its standard deviation over the seeds, in points; empty for one seed",
    "parameters": "that train, of the first seed",
    "peak_mb": "of a training step as measured, weights included, in MB of 1e6 bytes",
    "problem": "why there is no result, or empty",
}

RATIOS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
QUICK_RATIOS = (0.1, 0.5)

METHODS = (
    MethodSpec("adabet", label="AdaBet"),
    MethodSpec("size", label="size alone"),
    MethodSpec("last-k", label="Last-K"),
    MethodSpec("random", label="random"),
    MethodSpec("head", label="head only"),
    MethodSpec("full", label="everything"),
)
"""AdaBet divides by a layer's activations: ``size`` is that without the topology."""

ENDS = ("head only", "everything")


def make(task: Task) -> Found:
    """Train with every method at every ratio."""
    place = find_place(task)
    shares = [Share(layer_ratio=ratio) for ratio in (QUICK_RATIOS if task.quick else RATIOS)]
    found = run_pairs(task, place, METHODS, SETTINGS, shares=shares, rates={}, seeds=SEEDS)
    rows = tuple(_row(model.label, data.label, line) for model, data, line in lines_of(found))
    said = how(task, SETTINGS, SEEDS, found)
    setting = f"{described(place)}; {said}"
    return Found(rows, lambda path: draw(rows, setting, path), (*place.notes, said, *problems(found)))


def _row(model: str, data: str, line: Any) -> Row:
    share = line.entry.share
    return {
        "model": model,
        "data": data,
        "method": line.entry.method.label,
        "layer_ratio": None if share is None else share.layer_ratio,
        **result_of(line),
        "parameters": line.outcomes[0].parameters if line.outcomes else None,
        "peak_mb": peak_of(line),
    }


def draw(rows: Sequence[Row], setting: str, path: Path) -> None:
    """For each pair of model and data two panels: by the share of the layers, and by the measured peak."""
    pairs = list(dict.fromkeys((row["model"], row["data"]) for row in rows))
    height = 1.45 + 2.9 * len(pairs)
    figure = new_figure("Test accuracy by what trains, %", setting, height=height)
    grid = figure.add_gridspec(
        len(pairs), 2, left=0.07, right=0.97, top=1 - 1.4 / height, bottom=0.55 / height, hspace=0.5, wspace=0.14
    )
    handles = []
    for number, pair in enumerate(pairs):
        shown = [row for row in rows if (row["model"], row["data"]) == pair and row["accuracy"] is not None]
        left = figure.add_subplot(grid[number, 0])
        right = figure.add_subplot(grid[number, 1], sharey=left)
        handles = _draw_pair(left, right, shown)
        name_panel(left, f"{pair[0]}, {pair[1]}")
        left.set_xlabel("share of the layers", fontsize=9, color=INK)
        right.set_xlabel("measured peak of a step, MB", fontsize=9, color=INK)
        right.tick_params(labelleft=False)
        for axes in (left, right):
            quiet(axes, grid="y")
    add_legend(figure, handles, columns=4)
    save(figure, path)


def _draw_pair(left: Any, right: Any, rows: Sequence[Row]) -> list[Any]:
    handles = []
    methods = [method.label for method in METHODS if method.label not in ENDS]
    for method, colour, mark in zip(methods, LINES, MARKS, strict=False):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["layer_ratio"])
        style = {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.5}
        heights = [row["accuracy"] for row in own]
        spread = [row["std"] or 0.0 for row in own]
        line = left.errorbar([row["layer_ratio"] for row in own], heights, spread, elinewidth=0.8, **style)
        handles.append(line.lines[0])
        handles[-1].set_label(method)
        measured = [row for row in own if row["peak_mb"] is not None]
        right.plot([row["peak_mb"] for row in measured], [row["accuracy"] for row in measured], **style)
    for row in rows:
        if row["method"] in ENDS:
            left.axhline(row["accuracy"], color=FAINT, linewidth=1.2, zorder=0)
            left.text(1.0, row["accuracy"], row["method"], transform=left.get_yaxis_transform(), ha="right",
                      va="bottom", fontsize=8, color=QUIET)  # fmt: skip
            if row["peak_mb"] is not None:
                right.plot(row["peak_mb"], row["accuracy"], "|", color=QUIET, markersize=11, mew=2)
                right.annotate(row["method"], (row["peak_mb"], row["accuracy"]), xytext=(0, 8), fontsize=8,
                               textcoords="offset points", ha="center", color=QUIET)  # fmt: skip
    left.set_xlim(left=0)
    right.set_xlim(0, 1.06 * right.get_xlim()[1])
    return handles
