"""Plots of one row for each method: stacked bars, and strips that show where in the network each trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adabet.report.markup import Content, Markup, drawing, join, tag
from adabet.report.plots.frame import percent

BAR_HEIGHT, STRIP_HEIGHT = 22, 26

HEAD_GAP = 0.008
"""Between the layers and the head, as a share of the width."""


@dataclass(frozen=True)
class BarRow:
    """A bar.

    Attributes:
        name: what it is of.
        parts: sizes by name, in order.
        strong: whether its name is set bold.
    """

    name: str
    parts: Mapping[str, float]
    strong: bool = False

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


def draw_bars(rows: Sequence[BarRow], *, text: Callable[[float], str], limit: float | None = None) -> Markup:
    """Stacked bars, one under the other, each with its name and total above it.

    Parts have a colour and a pattern each, the same in every row.

    Args:
        rows: with the same parts each, or fewer.
        text: how a size is written.
        limit: a size that is marked by a line through each bar.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.parts))
    longest = max([row.total for row in rows] + ([] if limit is None else [limit])) or 1.0
    items = []
    for row in rows:
        content: list[Markup] = []
        start = 0.0
        for name, size in row.parts.items():
            if size > 0:
                place = {"x": percent(start / longest), "width": percent(size / longest), "height": BAR_HEIGHT}
                number = names.index(name) + 1
                content.append(tag("rect", **place, class_=f"part fill-{number}"))
                content.append(tag("rect", **place, class_="pattern", fill=f"url(#pattern-{number})"))
            start += size
        if limit is not None:
            x = percent(limit / longest)
            content.append(tag("line", x1=x, x2=x, y1=-3, y2=BAR_HEIGHT + 3, class_="limit"))
        told = ", ".join(f"{name} {text(size)}" for name, size in row.parts.items())
        bar = drawing(f"{row.name}: {text(row.total)}", f"{told}.", *content, height=BAR_HEIGHT)
        items.append(_row(row.name, text(row.total), bar, strong=row.strong))
    swatches = [_bar_swatch(number, name) for number, name in enumerate(names, start=1)] if len(names) > 1 else []
    above = tag("ul", *swatches, class_="key") if swatches else None
    return join([above, tag("ul", *items, class_="rows")])


@dataclass(frozen=True)
class StripRow:
    """Where in the network a method trains.

    Attributes:
        name: of the method.
        shares: for each layer, in the order of a forward pass, how often it trains, in [0, 1].
        head: the same for the head, None if there is none.
        told: what to write at the right, such as ``"5 of 24 layers"``.
        layers: a description for those who do not see it.
        strong: whether its name is set bold.
    """

    name: str
    shares: Sequence[float]
    head: float | None
    told: str
    layers: str
    strong: bool = False


def draw_strips(rows: Sequence[StripRow]) -> Markup:
    """Strips, one under the other: a cell for each layer, filled as high and as dark as it trains often.

    Args:
        rows: with as many layers each.
    """
    items = []
    for row in rows:
        width = (0.97 if row.head is not None else 1.0) / max(1, len(row.shares))
        cells = [_cell(index * width, width, share) for index, share in enumerate(row.shares)]
        if row.head is not None:
            cells.append(_cell(0.97 + HEAD_GAP, 0.03 - HEAD_GAP, row.head))
        strip = drawing(f"{row.name}: {row.told}", row.layers, *cells, height=STRIP_HEIGHT, class_="strip")
        items.append(_row(row.name, row.told, strip, strong=row.strong))
    has_head = any(row.head is not None for row in rows)
    ends = tag(
        "p",
        tag("span", "← first layer"),
        tag("span", "last layer, head →" if has_head else "last layer →"),
        class_="ends",
        aria_hidden="true",
    )
    return join([tag("ul", *items, class_="rows strips"), ends])


def patterns() -> Markup:
    """The patterns that tell parts of bars apart without colour; once on a page."""
    strokes: tuple[Content, ...] = (
        None,
        tag("circle", cx=4, cy=4, r=1.4, class_="dot"),
        tag("path", d="M-2 10L10 -2M-2 2L2 -2M6 10L10 6"),
        tag("path", d="M0 4H8"),
        tag("path", d="M-2 -2L10 10M-2 6L2 10M6 -2L10 2"),
        tag("path", d="M4 0V8"),
    )
    found = [
        tag("pattern", content, id=f"pattern-{number}", width=8, height=8, patternUnits="userSpaceOnUse")
        for number, content in enumerate(strokes, start=1)
    ]
    return tag("svg", tag("defs", *found), class_="definitions", aria_hidden="true")


def _cell(start: float, width: float, share: float) -> Markup:
    """A cell on its track; the filled part grows from the bottom."""
    place = {"x": percent(start), "width": percent(0.88 * width)}
    track = tag("rect", **place, y=0, height=STRIP_HEIGHT, class_="track")
    if share <= 0:
        return track
    height = max(4.0, share * STRIP_HEIGHT)
    filled = tag("rect", **place, y=round(STRIP_HEIGHT - height, 2), height=round(height, 2), class_="heat")
    return join([track, filled])


def _row(name: str, value: str, plot: Markup, *, strong: bool) -> Markup:
    label = tag("p", tag("span", name), tag("span", value, class_="value"), class_="row-name")
    return tag("li", label, plot, class_="strong" if strong else None)


def _bar_swatch(number: int, name: str) -> Markup:
    box = {"width": 14, "height": 14}
    swatch = tag(
        "svg",
        tag("rect", **box, class_=f"part fill-{number}"),
        tag("rect", **box, class_="pattern", fill=f"url(#pattern-{number})"),
        viewBox="0 0 14 14",
        class_="swatch",
        aria_hidden="true",
    )
    return tag("li", swatch, name)
