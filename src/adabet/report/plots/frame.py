"""A plot's frame: grid, ticks, names of the axes, and marks that keep their shape at any width."""

from collections.abc import Iterable, Sequence

from adabet.report.markup import Content, Markup, drawing, tag
from adabet.report.plots.axis import Axis

HEIGHT = 240

SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "diamond": "M0 -6L6 0L0 6L-6 0Z",
    "triangle": "M0 -6L5.5 4.5H-5.5Z",
    "cross": "M-5 -5L5 5M-5 5L5 -5",
    "plus": "M0 -6V6M-6 0H6",
}
"""Outlines around their middle, pixels."""


def percent(share: float) -> str:
    """A share of the width.

    Examples:
        >>> percent(0.123456)
        '12.346%'
    """
    return f"{100 * share:.3f}%"


def frame(
    title: str,
    description: str,
    across: Axis,
    up: Axis,
    *content: Content,
    names: tuple[str, str],
    height: int = HEIGHT,
) -> Markup:
    """A plot with both axes.

    Args:
        title: what it is.
        description: what it shows.
        across: the horizontal axis.
        up: the vertical axis.
        content: marks and lines on it.
        names: of the horizontal and of the vertical axis.
        height: of the part inside the axes, pixels.
    """
    grid: list[Markup] = []
    for value in up.ticks:
        y = round(height * (1 - up.place(value)), 2)
        grid.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        grid.append(tag("text", up.text(value), x=-8, y=y, dy="0.35em", text_anchor="end"))
    for value in across.ticks:
        x = percent(across.place(value))
        grid.append(tag("line", x1=x, x2=x, y1=height, y2=height + 5, class_="axis"))
        grid.append(tag("text", across.text(value), x=x, y=height + 19, text_anchor="middle"))
    grid.append(tag("line", x1="0", x2="100%", y1=height, y2=height, class_="axis"))
    grid.append(tag("text", names[0], x="100%", y=height + 38, text_anchor="end", class_="name"))
    grid.append(tag("text", names[1], x=-52, y=-12, class_="name"))
    return tag("div", drawing(title, description, *grid, *content, height=height), class_="plot")


def line(points: Sequence[tuple[float, float]], across: Axis, up: Axis, *, class_: str, height: int = HEIGHT) -> Markup:
    """A line through points, in the order given."""
    places = " ".join(f"{1000 * across.place(x):.2f},{height * (1 - up.place(y)):.2f}" for x, y in points)
    drawn = tag("polyline", points=places, class_=f"line {class_}", vector_effect="non-scaling-stroke")
    return tag(
        "svg",
        drawn,
        x="0",
        y="0",
        width="100%",
        height=height,
        viewBox=f"0 0 1000 {height}",
        preserveAspectRatio="none",
        class_="stretched",
    )


def mark(shape: str, x: float, y: float, across: Axis, up: Axis, *, class_: str, height: int = HEIGHT) -> Markup:
    """A mark at a point that keeps its shape whatever the plot's width."""
    path = tag("path", d=SHAPES[shape], class_=f"mark {class_}")
    return tag("svg", path, x=percent(across.place(x)), y=round(height * (1 - up.place(y)), 2), class_="mark-place")


def key(entries: Iterable[tuple[str, str, str]]) -> Markup:
    """A plot's key.

    Args:
        entries: shape, class and name of each.
    """
    items = [
        tag(
            "li",
            tag(
                "svg",
                tag("path", d=SHAPES[shape], class_=f"mark {class_}"),
                viewBox="-8 -8 16 16",
                class_="swatch",
                aria_hidden="true",
            ),
            name,
        )
        for shape, class_, name in entries
    ]
    return tag("ul", *items, class_="key")
