"""`adabet methods`."""

import inspect
import json
import re
import textwrap
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adabet.cli.setup import Json
from adabet.cli.show import out

if TYPE_CHECKING:
    from adabet.methods import Method

EXAMPLE = "Example: `adabet methods medyate`"

GROUPS = {
    "ranks layers": "Rank the layers; the best of them train",
    "selects": "Select once, by themselves",
    "selects again": "Choose within the run, most of them again and again",
}
"""Titles by `Method.kind`, in the order in which they are shown."""

KINDS = {"ranks layers": "ranks the layers", "selects": "selects once", "selects again": "chooses within the run"}
"""What is said of a single method, by `Method.kind`."""

WIDEST = 100
"""Columns that text takes at most: longer lines are hard to read."""

SECTION = re.compile(r"\w+:$")
ITEM = re.compile(r"\s+[^\s:][^:]*: ")


def command(
    name: Annotated[str | None, typer.Argument(help="Show all that is written about this one.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the methods that choose what trains, or describe one."""
    from adabet.methods import METHODS, find_method

    chosen = sorted(METHODS.values(), key=_place) if name is None else [find_method(name)]
    if as_json:
        out.print_json(json.dumps([_entry(method) for method in chosen]))
    elif name is not None:
        _describe(chosen[0])
    else:
        _list(chosen)


def _place(method: "Method") -> tuple[bool, int, str]:
    """AdaBet first, then by group, then by name."""
    return method.name != "adabet", list(GROUPS).index(method.kind), method.name


def _list(methods: "list[Method]") -> None:
    widest = max(len(method.name) for method in methods)
    for kind, title in GROUPS.items():
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True)
        table.add_column("method", no_wrap=True, min_width=widest)
        table.add_column("chooses", ratio=5)
        table.add_column("looks at", ratio=4)
        for method in methods:
            if method.kind == kind:
                table.add_row(method.name + (" *" if method.budget else ""), method.summary, method.needs)
        out.print(table)
    out.print("* keeps to a memory budget by itself; those that rank layers are planned for one", style="dim")
    out.print("adabet methods NAME: formula, source, options", style="dim")


def _entry(method: "Method") -> dict[str, Any]:
    plain = {item.name: getattr(method, item.name) for item in fields(method) if item.name != "start"}
    return plain | {"kind": method.kind, "options": list(method.options)}


def _describe(method: "Method") -> None:
    width = min(out.width, WIDEST)
    kind = KINDS[method.kind] + (", keeps to a budget" if method.budget else "")
    out.print(f"{method.name}: {kind}; looks at {method.needs}", style="bold", width=width)
    out.print(f"{method.source}\n", style="dim", width=width)
    out.print(reflow(inspect.getdoc(method.start) or "", width), soft_wrap=True)
    signature = inspect.signature(method.start)
    options = [f"{name}={signature.parameters[name].default!r}" for name in method.options]
    if options:
        out.print("\noptions, with what they are unless given: " + ", ".join(options), width=width)


def reflow(text: str, width: int) -> str:
    r"""A docstring with its paragraphs and items filled to a width, and single backticks for double ones.

    Examples:
        >>> print(reflow("One line,\nand another.\n\nArgs:\n    a: is\n        long.\n    b: short.", 80))
        One line, and another.
        <BLANKLINE>
        Args:
            a: is long.
            b: short.
    """
    lines: list[str] = []
    for line in text.replace("``", "`").splitlines():
        if lines and _goes_on(lines[-1], line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(_filled(line, width) for line in lines)


def _goes_on(last: str, line: str) -> bool:
    """Whether a line belongs to the paragraph or item that the last one began."""
    code = line.lstrip().startswith((">>>", "...")) or last.lstrip().startswith((">>>", "..."))
    if code or not line.strip() or not last.strip() or SECTION.fullmatch(last):
        return False
    deeper = _indent(line) > _indent(last)
    return deeper or (_indent(line) == _indent(last) and not ITEM.match(line))


def _filled(line: str, width: int) -> str:
    start = " " * _indent(line)
    hanging = start + "    " if ITEM.match(line) else start
    return textwrap.fill(line, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


command.__name__ = "methods"
