"""The house style of the pictures: a title and a setting above, quiet axes, colours that everybody tells apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.extras import require
from adabet.files import replacing
from adabet.report.memory_plot import DOTS_PER_INCH, FAINT, INK, QUIET, WIDTH

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#222222", "#b2a100")
"""Okabe and Ito's colours, then greys; the first is AdaBet's, where it is shown."""

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
"""Beside the colours, so that nothing hangs on them alone."""

TITLE_HEIGHT, LEGEND_HEIGHT = 0.75, 0.3
"""Inches above the panels, without and for a legend."""


def new_figure(title: str, setting: str, *, height: float) -> Any:
    """An empty figure with what is shown, and how it was made, in its upper left corner.

    Args:
        title: what is shown.
        setting: models, data, sizes, in one line.
        height: inches, of all.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "a picture").Figure(
        figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white"
    )
    figure.text(0.02, 1 - 0.18 / height, title, fontsize=13, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.46 / height, setting, fontsize=10, color=QUIET, va="top")
    return figure


def add_legend(figure: Any, handles: Sequence[Any], *, columns: int | None = None) -> None:
    """A legend in one line, below the setting."""
    inches = figure.get_figheight()
    figure.legend(
        handles=handles, ncols=columns or len(handles), loc="upper left", bbox_to_anchor=(0.012, 1 - 0.68 / inches),
        frameon=False, fontsize=10, labelcolor=INK, handlelength=1.2, columnspacing=1.3, handletextpad=0.4,
        labelspacing=0.3,
    )  # fmt: skip


def quiet(axes: Any, *, grid: str = "") -> None:
    """Only the left and lower spine, faint; no ticks; a faint grid along ``grid`` (``"x"``, ``"y"`` or nothing)."""
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)


def name_panel(axes: Any, text: str, *, size: float = 10) -> None:
    """What a panel shows, above its left edge, in points of ``size``."""
    axes.set_title(text, loc="left", fontsize=size, fontweight="bold", color=INK, pad=5)


def save(figure: Any, path: Path) -> None:
    """Write the figure whole or not at all, in the format of the path's ending."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
