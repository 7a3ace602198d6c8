"""What people see: tables, bars and errors, all on one pair of consoles."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from adabet.ranking import Ranking
from adabet.selection import Selection

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


def fail(message: str) -> None:
    """One line on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def note(message: str) -> None:
    """Something to know, on standard error, so that standard output stays clean."""
    err.print(Text.assemble(("note: ", "yellow"), message), soft_wrap=True)


def counting_bar() -> Progress:
    """A bar with counts and the time left, on standard error, gone in the end; nothing if nobody sees it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, if somebody sees it.

    Yields:
        A function that is told how much is done and how much there is.
    """
    with counting_bar() as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def ranking_table(ranking: Ranking, selection: Selection, *, rows: int | None = None) -> Table:
    """A ranking, best first, the chosen layers marked.

    Args:
        ranking: the ranking.
        selection: what was chosen from it.
        rows: how many layers to show, None for all.
    """
    chosen = set(selection.layers)
    title = f"{ranking.method}: {len(ranking.layers)} layers, best first"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "layer", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in (_score_name(ranking), "± half", "cost", "priority", "parameters"):
        table.add_column(heading, justify="right")
    for ranked in ranking.order[:rows]:
        mark = ranked.layer.name in chosen
        table.add_row(
            "●" if mark else "",
            ranked.layer.name,
            ranked.layer.kind,
            f"{ranked.score:g}",
            f"{ranked.spread:.1f}" if ranking.samples else "",
            f"{ranked.cost:,.0f}",
            f"{ranked.priority:.3g}",
            f"{ranked.layer.parameter_count:,}",
            style="bold green" if mark else None,
        )
    hidden = 0 if rows is None else len(ranking.layers) - rows
    if hidden > 0:
        table.caption = f"and {hidden} more; --rows 0 shows all"
    return table


def _score_name(ranking: Ranking) -> str:
    return "b1" if ranking.method == "adabet" else "score"
