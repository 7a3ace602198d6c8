"""Curves over epochs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adabet.report.markup import Markup, join, tag
from adabet.report.plots.axis import Axis, linear
from adabet.report.plots.frame import frame, key, line, mark

LOOKS = (("circle", "tone-1"), ("square", "tone-2"), ("diamond", "tone-3"), ("triangle", "tone-4"))
"""Shape and colour of one curve after the other."""

MARKS_UP_TO = 40
"""Points of a curve that still get a mark each."""


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: what it shows.
        values: by epoch, from 1.
    """

    name: str
    values: Sequence[tuple[int, float]]


def draw_curves(
    title: str,
    curves: Sequence[Curve],
    *,
    text: Callable[[float], str],
    name: str,
    low: float | None = None,
    high: float | None = None,
    best: int | None = None,
    height: int = 180,
    up: Axis | None = None,
) -> Markup:
    """Curves over epochs, each with its own colour, shape and dashes.

    Args:
        title: what is shown.
        curves: at most as many as there are `LOOKS`, each with at least one finite value.
        text: how a value is written.
        name: of the vertical axis.
        low: where the vertical axis starts; None: below the values.
        high: where it ends at most.
        best: the epoch that is marked as the best.
        height: pixels.
        up: the vertical axis, where plots are to share one.
    """
    points = [point for curve in curves for point in curve.values if math.isfinite(point[1])]
    last = max(epoch for epoch, _ in points)
    across = linear([1, last], lambda value: f"{value:g}", low=1 if last > 1 else 0.5, high=last if last > 1 else 1.5)
    across = Axis(across.low, across.high, _whole_ticks(last), across.text)
    up = up or linear([value for _, value in points], text, low=low, high=high)
    content: list[Markup] = []
    if best is not None:
        x = f"{100 * across.place(best):.3f}%"
        content.append(tag("line", x1=x, x2=x, y1=0, y2=height, class_="best"))
    for curve, (shape, class_) in zip(curves, LOOKS, strict=False):
        finite = [point for point in curve.values if math.isfinite(point[1])]
        content.append(line(finite, across, up, class_=class_, height=height))
        if last <= MARKS_UP_TO:
            content += [mark(shape, x, y, across, up, class_=class_, height=height) for x, y in finite]
    ends = [f"{curve.name} from {text(curve.values[0][1])} to {text(curve.values[-1][1])}" for curve in curves]
    told = f"Over {last} epoch{'s' if last > 1 else ''}: {'; '.join(ends)}."
    if best is not None:
        told += f" The best epoch is {best}."
    plot = frame(title, told, across, up, *content, names=("epoch", name), height=height)
    if len(curves) == 1:
        return plot
    return join([key([(*look, curve.name) for curve, look in zip(curves, LOOKS, strict=False)]), plot])


def _whole_ticks(last: int) -> tuple[float, ...]:
    """The first and the last epoch, and some round ones between."""
    step = next(step * 10**power for power in range(9) for step in (1, 2, 5) if last <= 5 * step * 10**power)
    between = [tick for tick in range(step, last, step) if tick > 1 and last - tick >= 0.6 * step]
    return tuple(float(tick) for tick in dict.fromkeys([1, *between, last]))
