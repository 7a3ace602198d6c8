"""`adabet methods`."""

import json
from dataclasses import asdict

from rich.table import Table

from adabet.cli.setup import Json
from adabet.cli.show import out

EXAMPLE = "Example: `adabet methods --json`"


def command(*, as_json: Json = False) -> None:
    """List the methods that choose what trains."""
    from adabet.methods import METHODS

    if as_json:
        entries = [
            {name: value for name, value in asdict(method).items() if name != "start"} for method in METHODS.values()
        ]
        out.print_json(json.dumps(entries))
        return
    table = Table(title="Methods", title_justify="left")
    for heading in ("name", "chooses", "looks at", "source"):
        table.add_column(heading, overflow="fold")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.needs, method.source)
    out.print(table)


command.__name__ = "methods"
