"""Read a page back, with the standard library's parser and no help from what wrote it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


@dataclass
class Element:
    name: str
    attributes: dict
    children: list = field(default_factory=list)

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name=None, **attributes):
        """Descendants with a name and attributes; ``class_`` needs to be one of the classes."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                wanted = name in (None, child.name)
                for key, value in attributes.items():
                    have = child.attributes.get(key.rstrip("_"), "")
                    wanted = wanted and value in (have.split() if key == "class_" else [have])
                found += ([child] if wanted else []) + child.all(name, **attributes)
        return found

    def one(self, name=None, **attributes):
        (found,) = self.all(name, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(markup):
    """The elements of a page; fails where one is not closed."""
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].name}> is not closed"
    return reader.root


def rows_of(table):
    """The cells of a table as texts, headings first; no-break spaces as plain ones."""
    return [
        [cell.text.replace("\u00a0", " ") for cell in row.children if isinstance(cell, Element)]
        for row in table.all("tr")
    ]


def plain(element):
    return element.text.replace("\u00a0", " ")
