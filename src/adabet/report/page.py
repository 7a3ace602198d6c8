"""A whole page: one file that loads nothing, follows light and dark, and prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adabet.report.markup import Content, Markup, escape, join, tag
from adabet.report.plots.rows import patterns

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for the page: nothing but what is in it."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: of its link, in lower case letters and hyphens.
        title: its heading.
        body: what is in it.
    """

    name: str
    title: str
    body: Markup


def write_page(
    *,
    title: str,
    kicker: str,
    verdict: Sequence[str],
    doubt: str,
    notice: str | None,
    sections: Sequence[Section],
    footer: str,
) -> str:
    """A page as text.

    Args:
        title: its heading.
        kicker: the line above it.
        verdict: what came out, a paragraph each.
        doubt: what that cannot say.
        notice: what a reader has to know before, or None.
        sections: in order.
        footer: where it all comes from.
    """
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - adabet report"),
        tag("style", style),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.name}")) for section in sections]
    top = tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", title),
        None if notice is None else tag("p", notice, class_="notice"),
        paragraphs(*verdict, class_="verdict"),
        paragraphs(doubt, class_="quiet"),
        tag("nav", tag("ul", *links), aria_label="On this page"),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        patterns(),
        top,
        tag("main", *map(_section, sections), id="results", tabindex="-1"),
        tag("footer", tag("p", footer)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def paragraphs(*texts: Content, class_: str | None = None) -> Markup:
    """A paragraph for each text."""
    return join(tag("p", text, class_=class_) for text in texts if text is not None)


def code(text: str, label: str) -> Markup:
    """Lines of a program or for a terminal, which scroll by themselves where they are wide; the label says what for."""
    return tag("pre", tag("code", escape(text)), tabindex="0", role="region", aria_label=label)


def _section(section: Section) -> Markup:
    heading = f"{section.name}-heading"
    return tag(
        "section",
        tag("h2", section.title, id=heading),
        section.body,
        id=section.name,
        aria_labelledby=heading,
    )
