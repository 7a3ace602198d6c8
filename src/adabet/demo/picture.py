"""The demo's picture: the shift, the ranking along the network, and accuracy against memory."""

import os
from typing import Any

from torch import Tensor

from adabet.demo.result import DemoResult
from adabet.extras import require
from adabet.files import replacing
from adabet.ranking import Ranking
from adabet.sizes import format_size

INK, QUIET, GREY, FAINT = "#222222", "#5f5f5f", "#8c8c8c", "#cccccc"
CHOSEN, WRONG = "#0072b2", "#d55e00"
"""Okabe and Ito's blue and vermilion, which people who see colours differently tell apart."""

WIDTH, HEIGHT, DOTS_PER_INCH = 10.0, 9.0, 150
PLACES = {
    "digits": (0.012, 0.688, 0.968, 0.238),
    "ranking": (0.065, 0.44, 0.915, 0.16),
    "accuracy": (0.12, 0.05, 0.5, 0.185),
    "memory": (0.66, 0.05, 0.32, 0.185),
}
"""Left, bottom, width and height of each panel, as shares of the picture."""

ROW_LABELS = 1.04
"""Inches from the picture's left margin to the axes of accuracy."""

DOT = {"fmt": "o", "markersize": 6, "capsize": 6, "elinewidth": 1.6}


def draw_picture(result: DemoResult, clean: Tensor, shifted: Tensor, path: str | os.PathLike[str]) -> None:
    """Write the demo's picture as PNG, 1500 x 1350 pixels.

    Args:
        result: what to show.
        clean: the digits of ``result.readings`` as the reader knows them, ``(n, 1, height, width)``.
        shifted: the same under the user's conditions.
        path: the file to write.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        StorageError: if the file cannot be written.
    """
    new_figure = require("matplotlib.figure", "the demo's picture").Figure
    figure = new_figure(figsize=(WIDTH, HEIGHT), dpi=DOTS_PER_INCH, facecolor="white")
    axes = {panel: figure.add_axes(place) for panel, place in PLACES.items()}
    _draw_digits(axes["digits"], result, clean, shifted)
    _draw_ranking(axes["ranking"], result.ranking, set(result.selection.layers))
    _draw_outcomes(axes["accuracy"], axes["memory"], result)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _title(axes: Any, title: str, subtitle: str, *, left: float) -> None:
    """Title and subtitle above a panel, from ``left`` inches off the axes: the picture's left margin."""
    above = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(title, (0, 1), (72 * left, 26), fontsize=13, fontweight="bold", color=INK, **above)
    axes.annotate(subtitle, (0, 1), (72 * left, 10), fontsize=10, color=QUIET, **above)


def _draw_digits(axes: Any, result: DemoResult, clean: Tensor, shifted: Tensor) -> None:
    """Two strips of digits, and below what the reader takes them for; mistakes are struck in vermilion."""
    _title(
        axes,
        f"A digit reader meets a new user: from {result.clean:.0%} of digits read right to {result.before:.0%}",
        "the same digits as the reader knows them, and on a tilted page with a thin pen and fading ink",
        left=0.04,
    )
    strips = [(2.08, "as it knows\nthem", clean), (1.02, "as this user\nwrites", shifted)]
    for bottom, label, images in strips:
        axes.text(-0.2, bottom + 0.48, label, ha="right", va="center", fontsize=10, color=INK)
        for column in range(len(result.readings)):
            _draw_digit(axes, images[column, 0], left=column, bottom=bottom)
    for height, label, answers in [
        (0.62, "read before", [reading.before for reading in result.readings]),
        (0.18, "after AdaBet", [reading.after for reading in result.readings]),
    ]:
        axes.text(-0.2, height, label, ha="right", va="center", fontsize=10, color=INK)
        for column, (reading, answer) in enumerate(zip(result.readings, answers, strict=True)):
            right = answer == reading.digit
            text = str(answer) if right else f"{answer} ✗"
            style = {"color": INK} if right else {"color": WRONG, "fontweight": "bold"}
            axes.text(column + 0.48, height, text, ha="center", va="center", fontsize=11.5, **style)
    axes.set(xlim=(-1.75, len(result.readings)), ylim=(0, 3.06))
    axes.set_axis_off()


def _draw_digit(axes: Any, image: Tensor, *, left: float, bottom: float) -> None:
    extent = (left, left + 0.96, bottom, bottom + 0.96)
    axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto")
    rectangle = require("matplotlib.patches", "the demo's picture").Rectangle
    axes.add_patch(rectangle((left, bottom), 0.96, 0.96, fill=False, edgecolor=FAINT, linewidth=0.8))


def _draw_ranking(axes: Any, ranking: Ranking, chosen: set[str]) -> None:
    """Scores along the depth of the network; the chosen layers stand out."""
    names = [ranked.layer.name for ranked in ranking.layers]
    _title(
        axes,
        f"{ranking.samples} unlabelled digits say which layers to train: {len(chosen)} of {len(names)}, and the head",
        "height: loops in the cloud of a layer's activations (b1, the number on its bar) per thousand activations",
        left=-0.49,
    )
    for position, ranked in enumerate(ranking.layers):
        marked = names[position] in chosen
        height = 1000 * ranked.priority
        axes.bar(position, height, width=0.74, color=CHOSEN if marked else FAINT)
        axes.annotate(
            f"{ranked.score:g}", (position, height), (0, 2), textcoords="offset points", ha="center", va="bottom",
            fontsize=9, color=CHOSEN if marked else QUIET, fontweight="bold" if marked else "normal",
        )  # fmt: skip
    short_names = [name.partition(".")[2].replace(".", " ") for name in names]
    axes.set_xticks(range(len(names)), short_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylim(0, 1150 * max(ranked.priority for ranked in ranking.layers))
    axes.yaxis.set_major_formatter("{x:g}")
    _plain(axes)
    for label, name in zip(axes.get_xticklabels(), names, strict=True):
        if name in chosen:
            label.set(color=CHOSEN, fontweight="bold")
    _name_blocks(axes, [name.partition(".")[0] for name in names])


def _name_blocks(axes: Any, blocks: list[str]) -> None:
    """A line under the layers of each block, with the block's name."""
    under_axis = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for block in dict.fromkeys(blocks):
        first = blocks.index(block)
        last = first + blocks.count(block) - 1
        axes.plot([first - 0.4, last + 0.4], [-0.47, -0.47], color=QUIET, linewidth=1, **under_axis)
        middle = (first + last) / 2
        axes.text(middle, -0.51, block, ha="center", va="top", fontsize=10, color=INK, **under_axis)


def _draw_outcomes(accuracy_axes: Any, memory_axes: Any, result: DemoResult) -> None:
    """A row for each method: test accuracy with its spread on the left, memory on the right."""
    seeds = "one seed" if result.seeds == 1 else f"{result.seeds} seeds"
    _title(
        accuracy_axes,
        "What training them brings",
        f"% of {result.test} test digits read right; mean ± standard deviation, {seeds}",
        left=-ROW_LABELS,
    )
    _title(memory_axes, "and the memory that it takes", "measured peak of a step, weights included", left=0)
    _draw_untrained(accuracy_axes, memory_axes, result)
    for row, outcome in enumerate(result.methods, start=1):
        colour, mark = (CHOSEN, CHOSEN) if outcome.method == "adabet" else (INK, GREY)
        accuracy, spread = 100 * outcome.accuracy, 100 * outcome.spread
        accuracy_axes.errorbar(accuracy, row, xerr=spread, color=mark, **DOT)
        text = f"{accuracy:.1f} ± {spread:.1f}"
        _beside(accuracy_axes, accuracy - spread, row, text, colour, leftwards=True)
        memory_axes.barh(row, outcome.memory, height=0.5, color=mark)
        _beside(memory_axes, outcome.memory, row, format_size(outcome.memory), colour)
    names = ["nothing", *(outcome.label for outcome in result.methods)]
    accuracy_axes.set_yticks(range(len(names)), names)
    memory_axes.set_yticks([])
    for axes in (accuracy_axes, memory_axes):
        axes.set_ylim(len(names) - 0.5, -0.5)
        _plain(axes)
    for label, outcome in zip(accuracy_axes.get_yticklabels()[1:], result.methods, strict=True):
        label.set(color=CHOSEN if outcome.method == "adabet" else INK, fontsize=11)
    accuracy_axes.set_xlim(min(100 * result.before - 14, 60), 101)
    accuracy_axes.grid(axis="x", color="#ececec", linewidth=0.8)
    accuracy_axes.set_axisbelow(True)
    memory_axes.set_xlim(0, 1.28 * max(outcome.memory for outcome in result.methods))
    memory_axes.set_xticks([])


def _draw_untrained(accuracy_axes: Any, memory_axes: Any, result: DemoResult) -> None:
    """The row of the reader as it came: its accuracy, and what inference takes."""
    accuracy_axes.errorbar(100 * result.before, 0, color=QUIET, mfc="white", **DOT)
    _beside(accuracy_axes, 100 * result.before, 0, f"{100 * result.before:.1f}", QUIET, leftwards=True)
    memory_axes.barh(0, result.inference_memory, height=0.5, color="white", edgecolor=QUIET)
    text = f"{format_size(result.inference_memory)}, inference"
    _beside(memory_axes, result.inference_memory, 0, text, QUIET)


def _beside(axes: Any, x: float, y: float, text: str, color: str, *, leftwards: bool = False) -> None:
    axes.annotate(
        text, (x, y), (-10 if leftwards else 6, 0), textcoords="offset points", color=color, fontsize=11,
        fontweight="bold", va="center", ha="right" if leftwards else "left",
    )  # fmt: skip


def _plain(axes: Any) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.tick_params(labelcolor=QUIET, labelsize=9.5, length=0)
