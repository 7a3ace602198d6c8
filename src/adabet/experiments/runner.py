"""Run what a grid still lacks, and keep each result as it comes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adabet.experiments.cells import Cell
from adabet.experiments.grid import Grid
from adabet.experiments.outcome import Done
from adabet.experiments.pools import Pool
from adabet.experiments.results import GridResults
from adabet.experiments.search import Known, budget_cell, standing, wanted_cells
from adabet.experiments.store import Store
from adabet.experiments.work import Job


@dataclass(frozen=True)
class Report:
    """Where a comparison stands, told after every cell.

    Attributes:
        done: cells of the grid that are finished.
        total: cells that it will need; an estimate as long as learning rates are searched.
        failed: how many of those finished failed.
        cell: the one that has just finished, None at the start.
        result: what it gave.
    """

    done: int
    total: int
    failed: int
    cell: Cell | None = None
    result: Done | None = None


def compare(
    grid: Grid,
    results: str | Path,
    pool: Pool,
    *,
    retry_failed: bool = False,
    progress: Callable[[Report], None] | None = None,
) -> GridResults:
    """Run the cells that a results file lacks, and keep each as it ends.

    Finished cells are kept and never run again; one that was running when the process ended, however it did, runs
    again. A grid that was changed takes up those of its cells that are there.

    Args:
        grid: what to compare.
        results: the SQLite file; made if it is missing.
        pool: who runs the cells; entered and left here.
        retry_failed: run cells that failed before again.
        progress: told after every cell.

    Raises:
        CheckpointError: if the results file is something else or of another version; it is left as it is.
        StorageError: if it cannot be written, or another comparison is writing it.
        KeyboardInterrupt: if interrupted; what is finished is in the file.
    """
    with Store(Path(results)) as store:
        store.set_grid(grid.to_dict())
        if retry_failed:
            store.forget_failed()
        rows = store.rows()
        known = {key: row.known for key, row in rows.items()}
        running: dict[str, Cell] = {}
        _tell(progress, grid, known)
        if next(wanted_cells(grid, known), None) is not None:
            with pool:
                while _hand_out(grid, store, pool, known, running):
                    job, done = pool.finished()
                    rows[job.cell.key] = row = store.keep(job.cell, done)
                    known[job.cell.key] = row.known
                    del running[job.cell.key]
                    _tell(progress, grid, known, job.cell, done)
        return GridResults.of(Path(results), grid, rows, created=store.created)


def _hand_out(grid: Grid, store: Store, pool: Pool, known: Mapping[str, Known], running: dict[str, Cell]) -> bool:
    """Give cells to workers that have none; whether anything runs."""
    if pool.free:
        for cell in wanted_cells(grid, known):
            if cell.key in running:
                continue
            store.note_start(cell, pool.name)
            pool.submit(Job(cell, _budget(grid, cell, known), pool.threads))
            running[cell.key] = cell
            if not pool.free:
                break
    return bool(running)


def _budget(grid: Grid, cell: Cell, known: Mapping[str, Known]) -> int | None:
    """Bytes that a cell has to keep to; its budget has been measured before it is wanted."""
    if cell.kind == "budget" or cell.share is None:
        return None
    for entry in grid.entries:
        budget = budget_cell(grid, entry)
        if budget is not None and (entry.model, entry.data, entry.share) == (cell.model, cell.data, cell.share):
            return known[budget.key].bytes
    return cell.share.bytes


def _tell(
    progress: Callable[[Report], None] | None,
    grid: Grid,
    known: Mapping[str, Known],
    cell: Cell | None = None,
    done: Done | None = None,
) -> None:
    if progress is None:
        return
    finished, waiting, later = set(), set(), 0
    for entry in grid.entries:
        now = standing(grid, entry, known)
        finished |= {item.key for item in now.needed if item.key in known}
        waiting |= {item.key for item in now.wanted}
        if now.open and grid.search == "uphill":
            later += len(grid.seeds) - 1
    failed = sum(known[key].status == "failed" for key in finished)
    progress(Report(len(finished), len(finished) + len(waiting) + later, failed, cell, done))
