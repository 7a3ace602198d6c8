"""What `adabet compare` shows: a table for each model and data, and what the numbers cannot say."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adabet.experiments import Difference, Entry, EntryResult, GridResults
from adabet.experiments.export import middle, selection_seconds
from adabet.sizes import format_size

GAP = 2
"""Spaces between columns: one is padding, one the place of a rule."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: above it.
        cells: a text for each line.
        rank: 0 for a column that is always shown; the higher, the earlier it gives way where the terminal is narrow.
    """

    heading: str
    cells: tuple[str, ...]
    rank: int = 0

    @property
    def width(self) -> int:
        """Characters."""
        return max(map(len, (*self.heading.splitlines(), *self.cells)), default=0)


def compare_tables(results: GridResults, reference: str, *, width: int) -> Iterable[Table]:
    """A table for each model and data.

    Args:
        results: of a grid, whole or not.
        reference: label of the method that the others are compared with.
        width: characters that there is room for.
    """
    lines, epochs = results.entries, results.grid.settings.epochs
    found = {difference.entry: difference for difference in results.differences(reference)}
    columns = fitting(_columns(lines, found, reference, len(results.grid.seeds)), width)
    places = range(len(lines))
    for (model, data), group in groupby(places, key=lambda place: (lines[place].entry.model, lines[place].entry.data)):
        title = f"{model.label} on {data.label}: test {_metric(lines)}, {epochs} epoch{'s' * (epochs > 1)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(
                column.heading, justify="right" if number else "left", no_wrap=True, min_width=column.width
            )
        for place in group:
            line = lines[place]
            style = "bold" if line.entry.method.label == reference else "dim" if line.summary is None else None
            table.add_row(*(column.cells[place] for column in columns), style=style)
        yield table


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that a width has room for; empty ones and those of the highest rank give way."""
    left = [column for column in columns if any(column.cells) or not column.rank]
    while sum(column.width + GAP for column in left) > width:
        last = max(left, key=lambda column: column.rank)
        if not last.rank:
            break
        left.remove(last)
    return left


def compare_notes(results: GridResults, reference: str) -> list[str]:
    """What a reader of the tables has to know: missing results, and how much the seeds can tell."""
    notes = [f"{line.entry}: {line.problem}" for line in results.entries if line.problem]
    if results.waiting:
        notes.append(f"{results.waiting} cells that can run now have not; the same command goes on")
    if results.others:
        notes.append(f"{results.path} also keeps {results.others} cells of other grids")
    found = results.differences(reference)
    if not found:
        return notes
    widths = sorted(difference.resolution for difference in found)
    count = max(len(difference.seeds) for difference in found)
    weak = "; that is little: more seeds tell more" if count < 5 else ""
    notes.append(
        f"'noise' is a difference from {reference} that {count} paired seeds do not tell from none (paired t test, "
        f"Holm's correction over the methods of a table, 5 %). Their 95 % intervals are typically "
        f"± {widths[len(widths) // 2]:.3f} wide{weak}"
    )
    return notes


def _columns(lines: Sequence[EntryResult], found: dict[Entry, Difference], reference: str, seeds: int) -> list[Column]:
    def column(heading: str, cells: Iterable[str], rank: int = 0) -> Column:
        return Column(heading, tuple(cells), rank)

    shares = {line.entry.share for line in lines if line.entry.share is not None}
    return [
        column("method", (line.entry.method.label for line in lines)),
        column("share", (_known(line.entry.share) for line in lines), 1 if len(shares) > 1 else 8),
        column("lr", (_known(line.learning_rate, "g") for line in lines), 4),
        column("test", (_test(line, seeds) for line in lines)),
        column("95 %", (_interval(line) for line in lines), 3),
        column(f"vs {reference}", (_versus(found.get(line.entry)) for line in lines)),
        column("", (_verdict(found.get(line.entry)) for line in lines)),
        column("trains", (_parameters(line) for line in lines), 6),
        column("peak of\na step", (_size(line.peak) for line in lines), 2),
        column(
            "peak of\nchoosing", (_size(None if line.selection is None else line.selection.peak) for line in lines), 5
        ),
        column("choosing\ntakes", (_known(selection_seconds(line), ".1f", " s") for line in lines), 7),
        column("a step\ntakes", (_milliseconds(line) for line in lines), 7),
    ]


def _metric(lines: Sequence[EntryResult]) -> str:
    return next((line.outcomes[0].monitor for line in lines if line.outcomes), "accuracy")


def _test(line: EntryResult, seeds: int) -> str:
    if line.summary is None:
        return "failed" if line.problem else "..."
    lost = "" if line.summary.count == seeds else f" ({line.summary.count}/{seeds})"
    return f"{line.summary}{lost}"


def _interval(line: EntryResult) -> str:
    found = line.summary
    return "" if found is None or found.high is None else f"±{found.high - found.mean:.3f}"


def _versus(difference: Difference | None) -> str:
    return "" if difference is None else f"{difference.mean:+.3f} ±{difference.resolution:.3f}"


def _verdict(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return "noise" if difference.within_noise else "better" if difference.mean > 0 else "worse"


def _parameters(line: EntryResult) -> str:
    count = middle(line, lambda outcome: outcome.parameters)
    if count is None:
        return ""
    return f"{count / 1000:.1f} k" if count < 999_950 else f"{count / 10**6:.2f} M"


def _milliseconds(line: EntryResult) -> str:
    seconds = middle(line, lambda outcome: outcome.step_seconds)
    return "" if seconds is None else f"{1000 * seconds:.0f} ms"


def _size(size: float | None) -> str:
    return "" if size is None else format_size(size)


def _known(value: object, form: str = "", unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}" if form else str(value)
