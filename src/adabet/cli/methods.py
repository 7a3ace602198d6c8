"""`adabet methods`."""

import inspect
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adabet.cli.setup import Json
from adabet.cli.show import out

if TYPE_CHECKING:
    from adabet.methods import Method

EXAMPLE = "Example: `adabet methods medyate`"


def command(
    name: Annotated[str | None, typer.Argument(help="Show all that is written about this one.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the methods that choose what trains, or describe one."""
    from adabet.methods import METHODS, find_method

    chosen = list(METHODS.values()) if name is None else [find_method(name)]
    if as_json:
        out.print_json(json.dumps([_entry(method) for method in chosen]))
        return
    if name is not None:
        _describe(chosen[0])
        return
    table = Table(
        title="Methods",
        title_justify="left",
        caption="adabet methods NAME: formula, source, options",
        caption_justify="left",
    )
    table.add_column("name", no_wrap=True)
    table.add_column("chooses", ratio=3)
    table.add_column("how", ratio=2)
    table.add_column("looks at", ratio=3)
    for method in chosen:
        table.add_row(method.name, method.summary, _kind(method), method.needs)
    out.print(table)


def _kind(method: "Method") -> str:
    return method.kind + (", keeps to a budget" if method.budget else "")


def _entry(method: "Method") -> dict[str, Any]:
    plain = {item.name: getattr(method, item.name) for item in fields(method) if item.name != "start"}
    return plain | {"kind": method.kind, "options": list(method.options)}


def _describe(method: "Method") -> None:
    out.print(f"{method.name}: {_kind(method)}; looks at {method.needs}", style="bold")
    out.print(f"{method.source}\n", style="dim")
    out.print(inspect.getdoc(method.start) or "", soft_wrap=True)
    signature = inspect.signature(method.start)
    options = [f"{name}={signature.parameters[name].default!r}" for name in method.options]
    if options:
        out.print("\noptions, with what they are unless given: " + ", ".join(options))


command.__name__ = "methods"
