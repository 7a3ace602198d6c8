"""A picture of what training takes: one bar for each method, divided by what the memory is for."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from adabet.errors import OptionError
from adabet.extras import require
from adabet.files import replacing
from adabet.memory import MemoryReport, Peak
from adabet.memory.report import CATEGORIES
from adabet.sizes import format_size

INK, QUIET, FAINT = "#222222", "#5f5f5f", "#cccccc"
COLOURS = {
    "weights": "#8c8c8c",
    "inputs": "#d9d9d9",
    "gradients": "#e69f00",
    "optimizer": "#56b4e9",
    "saved": "#0072b2",
    "workspace": "#009e73",
}
"""Greys, and colours of Okabe and Ito, which people who see colours differently tell apart."""

LIGHT = frozenset({"inputs", "gradients", "optimizer"})
"""Categories on which dark text reads better."""

WIDTH, ROW_HEIGHT, HEAD_HEIGHT, FOOT_HEIGHT, DOTS_PER_INCH = 10.0, 0.5, 1.15, 0.3, 150
NAME_CHARACTERS, CHARACTER_WIDTH = 28, 0.09
"""Names of rows are broken after so many characters, each about so many inches wide."""

LABEL_SHARE = 0.09
"""A part at least this share of the axis is wide enough to have its bytes written on it."""

FORMATS = frozenset({".png", ".svg", ".pdf"})


def draw_memory(reports: Mapping[str, MemoryReport], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Write a picture of stacked bars: the peak of a training step by category, a row for each report.

    The first row is plain inference, where the first report has it.

    Args:
        reports: measurements by what to call them, such as the method that chose what trains.
        path: the file to write, by its ending PNG, SVG or PDF.
        title: in place of one that says what is shown.

    Raises:
        OptionError: if there is no report, or the file's ending is another.
        MissingExtraError: if matplotlib is not installed.
        StorageError: if the file cannot be written.
    """
    ending = Path(path).suffix.lower()
    if not reports or ending not in FORMATS:
        raise OptionError(
            f"expected at least one report and a file that ends in {', '.join(sorted(FORMATS))}; "
            f"got {len(reports)} and {os.fspath(path)!r}"
        )
    first = next(iter(reports.values()))
    rows = {name: report.training for name, report in reports.items()}
    if first.inference is not None:
        rows = {"inference": first.inference, **rows}
    height = HEAD_HEIGHT + ROW_HEIGHT * len(rows) + FOOT_HEIGHT
    figure = require("matplotlib.figure", "a picture of memory").Figure(
        figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white"
    )
    names = [fill(name, NAME_CHARACTERS) for name in rows]
    left = (0.3 + CHARACTER_WIDTH * max(len(line) for name in names for line in name.splitlines())) / WIDTH
    axes = figure.add_axes((left, FOOT_HEIGHT / height, 0.98 - left, ROW_HEIGHT * len(rows) / height))
    _draw_rows(axes, list(rows.values()))
    axes.set_yticks(range(len(rows)), names)
    _draw_head(figure, axes, title or f"Peak memory of a training step, {first.model}", _setting(reports))
    with replacing(path) as temporary:
        figure.savefig(temporary, format=ending[1:])


def _setting(reports: Mapping[str, MemoryReport]) -> str:
    """What all reports have in common."""
    first, *others = reports.values()
    parts = {
        "batch_size": f"batch {first.batch_size}",
        "micro_batch": f"in slices of {first.micro_batch}",
        "mode": first.mode,
        "optimizer": first.optimizer,
        "device": first.device,
    }
    common = {
        name: text
        for name, text in parts.items()
        if all(getattr(other, name) == getattr(first, name) for other in others)
    }
    if first.micro_batch == first.batch_size:
        common.pop("micro_batch", None)
    return ", ".join(common.values())


def _draw_rows(axes: Any, rows: Sequence[Peak]) -> None:
    widest = max(peak.total for peak in rows)
    for row, peak in enumerate(rows):
        left = 0
        for category, colour in COLOURS.items():
            size = getattr(peak, category)
            axes.barh(row, size, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8)
            if size > LABEL_SHARE * widest:
                ink = INK if category in LIGHT else "white"
                axes.text(left + size / 2, row, format_size(size), ha="center", va="center", fontsize=9, color=ink)
            left += size
        axes.annotate(
            format_size(left), (left, row), (6, 0), textcoords="offset points", va="center", fontsize=11,
            fontweight="bold", color=INK,
        )  # fmt: skip
    axes.set(xlim=(0, 1.12 * widest), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.tick_params(length=0, labelsize=11, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "left")
        spine.set_color(FAINT)


def _draw_head(figure: Any, axes: Any, title: str, setting: str) -> None:
    """Title, setting, and the categories' names in their colours, in the order of the bars."""
    inches = figure.get_figheight()
    figure.text(0.02, 1 - 0.2 / inches, title, fontsize=13, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.5 / inches, setting, fontsize=10, color=QUIET, va="top")
    handles = [axes.barh(0, 0, color=colour, label=CATEGORIES[name]) for name, colour in COLOURS.items()]
    figure.legend(
        handles=handles, ncols=len(handles), loc="upper left", bbox_to_anchor=(0.012, 1 - 0.72 / inches),
        frameon=False, fontsize=10, labelcolor=INK, handlelength=0.9, handleheight=0.9, columnspacing=1.4,
        handletextpad=0.5,
    )  # fmt: skip
