"""HTML and SVG from Python values; whatever is not markup already is escaped."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

Numbers = Sequence[int]


class Markup(str):
    """Text that is markup already; any other text is escaped where it meets a `tag`."""

    __slots__ = ()


Content = str | Markup | None

EMPTY = frozenset({"br", "meta", "link", "circle", "rect", "line", "path", "polyline", "polygon", "use"})
"""Elements without content; they are closed at once."""


FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""What names of files may hold but a page must not: control characters, bytes that are no text, marks that turn the
direction of the text after them."""


def escape(text: str) -> Markup:
    """Text as markup, with nothing in it that a browser takes for more than text.

    Examples:
        >>> escape("<b>cats & dogs</b>")
        '&lt;b&gt;cats &amp; dogs&lt;/b&gt;'
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(FORBIDDEN.sub("\ufffd", text)))


def join(parts: Iterable[Content]) -> Markup:
    """Parts one after the other; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *content: Content, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: such as ``"p"``.
        content: what is in it; plain text is escaped, None left out.
        attributes: by name, with hyphens as underscores and one at the end dropped (``class_``); None and False
            leave an attribute out, True gives it no value.

    Examples:
        >>> tag("p", "1 < 2 ", tag("b", "yes"), class_="note", hidden=True)
        '<p class="note" hidden>1 &lt; 2 <b>yes</b></p>'
    """
    texts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        texts.append(f" {written}" if value is True else f' {written}="{escape(str(value))}"')
    start = f"<{name}{''.join(texts)}"
    return Markup(f"{start}/>" if name in EMPTY else f"{start}>{join(content)}</{name}>")


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    numbers: Numbers = (),
    marked: Numbers = (),
) -> Markup:
    """A table with a caption; the first cell of each row is the row's heading; it scrolls by itself where it is wide.

    Args:
        caption: what it shows.
        headings: one for each column.
        rows: cells.
        numbers: columns that are set flush right.
        marked: rows that are set bold.
    """

    def cell(name: str, content: Content, column: int, /, **attributes: Any) -> Markup:
        return tag(name, content, class_="number" if column in numbers else None, **attributes)

    head = tag("tr", *(cell("th", text, column, scope="col") for column, text in enumerate(headings)))
    body = [
        tag(
            "tr",
            cell("th", row[0], 0, scope="row"),
            *(cell("td", item, column) for column, item in enumerate(row[1:], start=1)),
            class_="marked" if index in marked else None,
        )
        for index, row in enumerate(rows)
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=f"Table: {caption}", tabindex="0")


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """Names with their values; those without a value are left out."""
    found = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None]
    return tag("dl", *found, class_="facts")


def figure(caption: str, plot: Markup, data: Markup | None = None, *, summary: str = "The numbers") -> Markup:
    """A plot with what it shows above it, and its data under it, folded."""
    folded = None if data is None else tag("details", tag("summary", summary), data)
    return tag("figure", tag("figcaption", caption), plot, folded)


def drawing(title: str, description: str, *content: Content, height: int, class_: str = "") -> Markup:
    """An SVG as wide as its place, with the text that a screen reader reads in its stead.

    Args:
        title: what it is.
        description: what it shows, in a sentence or two.
        content: its elements, with horizontal places in percent and vertical ones in pixels.
        height: pixels.
        class_: more classes for its style.
    """
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *content,
        role="img",
        class_=f"drawing {class_}".strip(),
        style=f"height:{height}px",
    )
