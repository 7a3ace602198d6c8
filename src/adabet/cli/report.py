"""`adabet report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adabet.cli import setup
from adabet.cli.show import out

EXAMPLE = "Example: `adabet report runs/mobilenetv2_100-photos-adabet --output report.html`"


def command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_GRID", help="A run folder, or the results file of `adabet compare`.")
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the run folder, or beside the results file.")
    ] = None,
    as_json: setup.Json = False,
) -> None:
    """Write one HTML page about a run or a comparison: it needs no network and no script."""
    from adabet.report import write_report

    page = write_report(source, output)
    if as_json:
        out.print_json(json.dumps({"report": str(page)}))
    else:
        out.print(f"report: {page}", soft_wrap=True)


command.__name__ = "report"
