"""What AdaBet's own choices do: the normalization, the number of samples, selecting again, channels."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.experiments.reproduce.accuracy import how, lines_of, peak_of, problems, result_of, run_pairs
from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import new_figure, quiet, save
from adabet.experiments.reproduce.published import LAYER_RATIO, SEEDS, SETTINGS
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.specs import MethodSpec, Share
from adabet.report.memory_plot import FAINT, INK, QUIET

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "variant": "what is different from the paper's AdaBet",
    "seeds": "how many runs there are",
    "learning_rate": "the best on validation",
    "accuracy": "on test, mean over the seeds, in %",
    "std": "its standard deviation over the seeds, in points; empty for one seed",
    "peak_mb": "of a training step as measured, weights included, in MB of 1e6 bytes",
    "selection_seconds": "processor time of choosing, median over the seeds; empty where that is part of training",
    "problem": "why there is no result, or empty",
}

PAPER = "the paper's: b1 / activations, 40 samples"

VARIANTS = (
    MethodSpec("adabet", PAPER),
    MethodSpec("adabet", "b1 / parameters", {"normalize": "parameters"}),
    MethodSpec("adabet", "b1 alone", {"normalize": "none"}),
    MethodSpec("size", "1 / activations, no topology"),
    MethodSpec("adabet", "8 samples", {"samples": 8}),
    MethodSpec("adabet", "80 samples", {"samples": 80}),
    MethodSpec("adabet", "the published code's sums", {"reference": True}),
    MethodSpec("adabet", "selects again every 5 epochs", {"every": 5}),
    MethodSpec("adabet", "half of the channels", {"channel_ratio": 0.5}),
    MethodSpec("adabet", "a tenth of the channels", {"channel_ratio": 0.1}),
)

QUICK = (PAPER, "b1 alone", "1 / activations, no topology", "a tenth of the channels")


def make(task: Task) -> Found:
    """Train with every variant at the paper's ratio."""
    place = find_place(task)
    variants = [variant for variant in VARIANTS if not task.quick or variant.label in QUICK]
    shares = (Share(layer_ratio=LAYER_RATIO),)
    found = run_pairs(task, place, variants, SETTINGS, shares=shares, rates={}, seeds=SEEDS)
    rows = tuple(_row(model.label, data.label, line) for model, data, line in lines_of(found))
    said = how(task, SETTINGS, SEEDS, found)
    setting = f"{described(place)}; a tenth of the layers, {said}"
    return Found(rows, lambda path: draw(rows, setting, path), (*place.notes, said, *problems(found)))


def _row(model: str, data: str, line: Any) -> Row:
    times = [outcome.selection_seconds for outcome in line.outcomes if outcome.selection_seconds is not None]
    return {
        "model": model,
        "data": data,
        "variant": line.entry.method.label,
        **result_of(line),
        "peak_mb": peak_of(line),
        "selection_seconds": statistics.median(times) if times else None,
    }


ROW = 0.36
"""Inches for a variant."""


def draw(rows: Sequence[Row], setting: str, path: Path) -> None:
    """Left the accuracy, a mark for each pair of model and data and a bar at their mean; right the measured peak."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    height = 1.15 + ROW * len(variants) + 0.45
    figure = new_figure("AdaBet's own choices: test accuracy, %", setting, height=height)
    tall, bottom = ROW * len(variants) / height, 0.45 / height
    left = figure.add_axes((0.3, bottom, 0.36, tall))
    right = figure.add_axes((0.7, bottom, 0.27, tall), sharey=left)
    for axes, column in ((left, "accuracy"), (right, "peak_mb")):
        for place, variant in enumerate(variants):
            own = [row[column] for row in rows if row["variant"] == variant and row[column] is not None]
            if own:
                mean = statistics.fmean(own)
                axes.plot(own, [place] * len(own), "o", color="#0072b2", alpha=0.45, markersize=5)
                axes.plot(mean, place, "|", color=INK, markersize=13, mew=2)
                axes.annotate(f"{mean:.1f}", (1, place - 0.08), xycoords=("axes fraction", "data"), ha="right",
                              va="bottom", fontsize=9, color=QUIET)  # fmt: skip
    left.set_yticks(range(len(variants)), variants)
    left.set_ylim(len(variants) - 0.5, -0.5)
    right.set_xlim(left=0)
    for axes, name in ((left, "accuracy"), (right, "measured peak of a step, MB")):
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.15 * (high - low))
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
        quiet(axes)
        axes.hlines(range(len(variants)), 0, 1, transform=axes.get_yaxis_transform(), color=FAINT, lw=0.6, zorder=0)
    right.tick_params(labelleft=False)
    save(figure, path)
