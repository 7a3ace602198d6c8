"""Accuracy against memory, with what no other method beats in both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adabet.report.markup import Markup, join, tag
from adabet.report.plots.axis import Axis, linear, logarithmic
from adabet.report.plots.frame import frame, key, line, mark, percent
from adabet.report.plots.labels import label_places

HEIGHT = 320

WIDE = 8
"""A largest cost this many times the smallest is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """A method.

    Attributes:
        name: what it is called.
        cost: less is better, above zero.
        gain: more is better.
        spread: of the gain, drawn to both sides; None if unknown.
        strong: whether it stands out from the others.
    """

    name: str
    cost: float
    gain: float
    spread: float | None = None
    strong: bool = False


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats: none costs less or as much and gains more, or costs less and gains as much.

    Returns:
        By rising cost.

    Examples:
        >>> cheap, middling, worse = Point("a", 1, 0.7), Point("b", 3, 0.9), Point("c", 4, 0.8)
        >>> [point.name for point in frontier([middling, worse, cheap])]
        ['a', 'b']
    """
    kept = [
        point
        for point in points
        if not any(
            other.cost <= point.cost
            and other.gain >= point.gain
            and (other.cost < point.cost or other.gain > point.gain)
            for other in points
        )
    ]
    return tuple(sorted(kept, key=lambda point: (point.cost, point.gain)))


def draw_scatter(
    title: str,
    points: Sequence[Point],
    *,
    cost: str,
    gain: str,
    cost_text: Callable[[float], str],
    gain_text: Callable[[float], str],
    reference: str,
) -> Markup:
    """Numbered points, those on the frontier filled and joined, and the names of the numbers below.

    Args:
        title: what is shown.
        points: at least one.
        cost: name of the horizontal axis.
        gain: name of the vertical axis.
        cost_text: how a cost is written.
        gain_text: how a gain is written.
        reference: what the points that stand out are called.
    """
    best = frontier(points)
    across, up = _axes(points, cost_text, gain_text)
    steps: list[tuple[float, float]] = []
    for point, following in zip(best, (*best[1:], None), strict=True):
        steps += [(point.cost, point.gain), (across.high if following is None else following.cost, point.gain)]
    content = [line(steps, across, up, class_="frontier", height=HEIGHT)]
    # the frontier is drawn last, so that it lies on top
    offsets = label_places([(across.place(point.cost), HEIGHT * (1 - up.place(point.gain))) for point in points])
    order = sorted(enumerate(points), key=lambda item: (item[1] in best, item[1].strong))
    content += [_point(index + 1, point, across, up, offsets[index], filled=point in best) for index, point in order]
    told = "; ".join(f"{point.name} {gain_text(point.gain)} at {cost_text(point.cost)}" for point in best)
    others = len(points) - len(best)
    description = f"On the frontier, from the least {cost}: {told}. {others} more lie below it."
    plot = frame(title, description, across, up, *content, names=(cost, gain), height=HEIGHT)
    looks = [("circle", "tone-1", "filled: on the frontier, no other takes less and is as good")]
    if others:
        looks.append(("circle", "tone-quiet hollow", "hollow: below it"))
    if 0 < sum(point.strong for point in points) < len(points):
        looks.append(("square", "tone-1 hollow", f"square: {reference}"))
    names = [
        tag(
            "li",
            tag("span", str(number), class_="number"),
            tag("span", tag("strong" if point.strong else "span", point.name), _told(point, cost_text, gain_text)),
        )
        for number, point in enumerate(points, start=1)
    ]
    return join([key(looks), plot, tag("ol", *names, class_="points")])


def _told(point: Point, cost_text: Callable[[float], str], gain_text: Callable[[float], str]) -> str:
    spread = "" if point.spread is None else f" ± {gain_text(point.spread)}"
    return f": {gain_text(point.gain)}{spread} at {cost_text(point.cost)}"


def _axes(
    points: Sequence[Point], cost_text: Callable[[float], str], gain_text: Callable[[float], str]
) -> tuple[Axis, Axis]:
    costs = [point.cost for point in points]
    gains = [point.gain + side * (point.spread or 0.0) for point in points for side in (-1, 1)]
    wide = max(costs) >= WIDE * min(costs)
    return (logarithmic if wide else linear)(costs, cost_text), linear(gains, gain_text)


def _point(number: int, point: Point, across: Axis, up: Axis, offset: tuple[float, float], *, filled: bool) -> Markup:
    """A point with its spread, and its number beside it."""
    x, y = percent(across.place(point.cost)), round(HEIGHT * (1 - up.place(point.gain)), 2)
    parts: list[Markup] = []
    if point.spread:
        ends = [round(HEIGHT * (1 - up.place(point.gain + side * point.spread)), 2) for side in (-1, 1)]
        parts.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_="error"))
    shape = "square" if point.strong else "circle"
    look = "" if filled else "hollow"
    parts.append(mark(shape, point.cost, point.gain, across, up, class_=look, height=HEIGHT))
    place = {"dx": offset[0], "dy": f"{offset[1] + 4.5:g}"}
    parts.append(tag("text", str(number), x=x, y=y, **place, text_anchor="middle", class_="strong"))
    return tag("g", *parts, class_="tone-1" if filled or point.strong else "tone-quiet")
