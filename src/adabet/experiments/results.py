"""Read what a comparison has found, while it runs or after."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adabet.experiments.cells import Cell
from adabet.experiments.grid import Entry, Grid
from adabet.experiments.outcome import Outcome, SelectionCost, Status
from adabet.experiments.search import Known, budget_cell, selection_cell, standing, training_cell
from adabet.experiments.statistics import Difference, Summary, differences, summary
from adabet.experiments.store import Row, read_rows


@dataclass(frozen=True)
class CellResult:
    """One training run of the grid.

    Attributes:
        cell: what was run: model, data, method, share, learning rate, seed, settings.
        status: ``"done"``; ``"diverged"``: a loss was not finite; ``"failed"``: see `error`.
        error: one line, empty if done.
        details: the traceback of an error that was not expected, or empty.
        outcome: what it gave, None unless done.
        environment: versions (``adabet``, ``torch``, ``python``, ``platform``), ``device``, ``host``, ``threads``,
            ``worker``.
        started: seconds since 1970.
        seconds: by the clock, loading included.
    """

    cell: Cell
    status: Status
    error: str
    details: str = field(repr=False)
    outcome: Outcome | None
    environment: Mapping[str, Any] = field(repr=False)
    started: float
    seconds: float

    @property
    def test(self) -> float | None:
        """The monitored metric on test, such as accuracy in [0, 1]."""
        return None if self.outcome is None else self.outcome.test[self.outcome.monitor]

    @property
    def val(self) -> float | None:
        """The monitored metric on validation, of the best epoch."""
        return None if self.outcome is None else self.outcome.val[self.outcome.monitor]


@dataclass(frozen=True)
class EntryResult:
    """One line of the table: a method on a model and data, at its best learning rate.

    Attributes:
        entry: model, data, method and share.
        learning_rate: the best on validation, None until it is known.
        runs: at that rate, one for each seed that has one, in the order of the seeds.
        tried: all runs, those of the search for the rate included.
        selection: what choosing takes, None if it is unknown.
        budget: bytes that the entry was to keep to, None if there is no budget or it is not known yet.
        problem: why it has no result, in one line, or empty.
        waiting: how many of its runs are known to be missing.
    """

    entry: Entry
    learning_rate: float | None
    runs: tuple[CellResult, ...]
    tried: tuple[CellResult, ...] = field(repr=False)
    selection: SelectionCost | None
    budget: int | None
    problem: str
    waiting: int

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Of the runs that are done."""
        return tuple(run.outcome for run in self.runs if run.outcome is not None)

    @property
    def tests(self) -> Mapping[int, float]:
        """The monitored metric on test by seed, of the runs that are done."""
        return {run.cell.seed: run.test for run in self.runs if run.test is not None}

    @property
    def summary(self) -> Summary | None:
        """Mean, spread and confidence interval over the seeds, None without a result."""
        return summary(tuple(self.tests.values())) if self.tests else None

    @property
    def grain(self) -> float:
        """The smallest step of an accuracy on test, one image; 0 where their number is not known."""
        counts = [outcome.test_images for outcome in self.outcomes if outcome.test_images]
        return 1 / min(counts) if counts else 0.0

    @property
    def peak(self) -> int | None:
        """Bytes of a training step at its peak, weights included: the largest of the seeds."""
        peaks = [outcome.memory.training.total for outcome in self.outcomes if outcome.memory is not None]
        return max(peaks, default=None)


@dataclass(frozen=True)
class GridResults:
    """All that a results file holds of its grid.

    Attributes:
        path: the file.
        grid: what is compared.
        cells: the training runs of the grid that are finished, in the order of the table.
        entries: the lines of the table.
        waiting: cells that can run now; more may follow from their results.
        others: finished cells of other grids that the file has held.
        created: when the file was made, seconds since 1970.

    Examples:
        A line a method, with what its last run trained::

            results = GridResults.read("compare.db")
            for line in results.entries:
                print(line.entry.method.label, line.summary, line.peak)
    """

    path: Path
    grid: Grid
    cells: tuple[CellResult, ...] = field(repr=False)
    entries: tuple[EntryResult, ...] = field(repr=False)
    waiting: int
    others: int
    created: float

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return self.waiting == 0

    @classmethod
    def read(cls, path: str | Path) -> "GridResults":
        """Read a results file; it may be in use.

        Raises:
            CheckpointError: if it is no results file, damaged, or of another version.
        """
        path = Path(path)
        grid, created, rows = read_rows(path)
        return cls.of(path, Grid.from_dict(grid), rows, created=created)

    @classmethod
    def of(cls, path: Path, grid: Grid, rows: Mapping[str, Row], *, created: float) -> "GridResults":
        """The results of a grid from the rows of a file."""
        known = {key: row.known for key, row in rows.items()}
        entries = tuple(_entry(grid, entry, rows, known) for entry in grid.entries)
        cells = {run.cell.key: run for entry in entries for run in entry.tried}
        own = cells.keys() | {selection_cell(grid, entry).key for entry in grid.entries}
        own |= {cell.key for cell in (budget_cell(grid, entry) for entry in grid.entries) if cell is not None}
        waiting = {cell.key for entry in grid.entries for cell in standing(grid, entry, known).wanted}
        return cls(
            path=path,
            grid=grid,
            cells=tuple(cells.values()),
            entries=entries,
            waiting=len(waiting),
            others=len(rows.keys() - own),
            created=created,
        )

    def differences(self, reference: str = "adabet") -> tuple[Difference, ...]:
        """Every method against a reference, over the seeds that both have, on each model, data and share.

        Args:
            reference: label of a method.

        Returns:
            One for each entry that has at least two seeds in common with the reference; corrected by Holm within
            each model and data.
        """
        return differences(self.entries, reference)


def _entry(grid: Grid, entry: Entry, rows: Mapping[str, Row], known: Mapping[str, Known]) -> EntryResult:
    now = standing(grid, entry, known)
    seeds = grid.seeds if grid.search == "all" else grid.seeds[:1]
    pairs = [(rate, seed) for rate in now.tried for seed in seeds]
    if now.learning_rate is not None:
        pairs += [(now.learning_rate, seed) for seed in grid.seeds]
    found = [training_cell(grid, entry, rate, seed) for rate, seed in dict.fromkeys(pairs)]
    tried = tuple(_result(cell, rows[cell.key]) for cell in found if cell.key in rows)
    runs = tuple(run for run in tried if run.cell.learning_rate == now.learning_rate)
    budget = budget_cell(grid, entry)
    budget_row = None if budget is None else rows.get(budget.key)
    selection = rows.get(selection_cell(grid, entry).key)
    return EntryResult(
        entry=entry,
        learning_rate=now.learning_rate,
        runs=tuple(sorted(runs, key=lambda run: grid.seeds.index(run.cell.seed))),
        tried=tried,
        selection=SelectionCost(**selection.record) if selection is not None and selection.status == "done" else None,
        budget=_budget(entry, budget_row),
        problem=_problem(now.learning_rate, runs, tried, budget_row, waiting=now.open),
        waiting=len(now.wanted),
    )


def _result(cell: Cell, row: Row) -> CellResult:
    return CellResult(
        cell=cell,
        status=row.status,
        error=row.error,
        details=row.details,
        outcome=Outcome.from_dict(row.record) if row.status == "done" else None,
        environment=row.environment,
        started=row.started,
        seconds=row.seconds,
    )


def _budget(entry: Entry, row: Row | None) -> int | None:
    if row is not None:
        return row.known.bytes or None
    return None if entry.share is None else entry.share.bytes


def _problem(
    rate: float | None,
    runs: tuple[CellResult, ...],
    tried: tuple[CellResult, ...],
    budget: Row | None,
    *,
    waiting: bool,
) -> str:
    """Why an entry has no result, or not all of its seeds."""
    if budget is not None and budget.status != "done":
        return f"its budget could not be measured: {budget.error}"
    if waiting:
        return ""
    lost = [run for run in (runs if rate is not None else tried) if run.status != "done"]
    if not lost:
        return ""
    seeds = f"seed {lost[0].cell.seed}: " if rate is not None else ""
    return f"{seeds}{lost[0].error}"
