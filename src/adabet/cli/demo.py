"""`adabet demo`."""

from pathlib import Path
from typing import Annotated

import typer

from adabet.cli import setup
from adabet.cli.show import err, note, out, ranking_table

EXAMPLE = "Example: `adabet demo --output demo.png`"


def command(
    *,
    seeds: Annotated[int, typer.Option(help="Training runs for each method.")] = 3,
    output: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("adabet-demo.png"),
    as_json: setup.Json = False,
) -> None:
    """Watch a digit reader adapt to one user: offline, on real handwriting, within a minute."""
    from rich.table import Table

    from adabet.demo import run_demo
    from adabet.sizes import format_size

    with err.status("loading") as status:
        result = run_demo(
            seeds=seeds,
            output=output,
            progress=lambda doing, done, total: status.update(f"{doing} ({done} of {total} runs)"),
        )
    if as_json:
        out.print_json(result.to_json())
        return
    out.print(
        f"A reader of handwritten digits is right on {result.clean:.1%} of new digits. A user writes under other "
        f"conditions: {result.before:.1%}. {result.ranking.samples} digits without labels tell AdaBet which layers to "
        f"train, {result.training} with labels train them."
    )
    out.print()
    out.print(ranking_table(result.ranking, result.selection, rows=12))
    for text in result.ranking.notes:
        note(text)
    table = Table(title=f"After {result.epochs} epochs, {result.seeds} seeds", title_justify="left")
    table.add_column("what trains")
    for heading in ("layers", "parameters", f"accuracy on {result.test} digits", "peak memory of a step"):
        table.add_column(heading, justify="right")
    table.add_row("nothing", "0", "0", f"{result.before:.1%}", f"{format_size(result.inference_memory)} (inference)")
    for outcome in result.methods:
        table.add_row(
            outcome.label,
            str(outcome.trained_layers),
            f"{outcome.trained_parameters:,}",
            f"{outcome.accuracy:.1%} ± {outcome.spread:.1%}",
            format_size(outcome.memory),
            style="bold green" if outcome.method == "adabet" else None,
        )
    out.print(table)
    out.print(f"picture: {result.picture} (took {result.seconds:.0f} s)", soft_wrap=True)


command.__name__ = "demo"
