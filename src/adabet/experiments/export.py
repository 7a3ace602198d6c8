"""A comparison as flat rows, for CSV and JSON."""

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from adabet.experiments.outcome import Outcome
from adabet.experiments.results import CellResult, EntryResult, GridResults
from adabet.experiments.statistics import Difference
from adabet.memory.report import CATEGORIES


def line_values(line: EntryResult, difference: Difference | None) -> dict[str, Any]:
    """A line of the table as plain values; None for what is not known.

    Args:
        line: the line.
        difference: from the reference method, if there is one.
    """
    found = line.summary
    return {
        "model": line.entry.model.label,
        "data": line.entry.data.label,
        "method": line.entry.method.label,
        "share": None if line.entry.share is None else str(line.entry.share),
        "learning_rate": line.learning_rate,
        "seeds": 0 if found is None else found.count,
        "test": None if found is None else found.mean,
        "test_std": None if found is None else found.std,
        "test_low": None if found is None else found.low,
        "test_high": None if found is None else found.high,
        "reference": None if difference is None else difference.reference.method.label,
        "difference": None if difference is None else difference.mean,
        "difference_low": None if difference is None else difference.low,
        "difference_high": None if difference is None else difference.high,
        "p": None if difference is None else difference.p,
        "p_holm": None if difference is None else difference.p_holm,
        "within_noise": None if difference is None else difference.within_noise,
        "parameters": middle(line, lambda outcome: outcome.parameters),
        "budget": line.budget,
        "training_peak": line.peak,
        "selection_peak": None if line.selection is None else line.selection.peak,
        "selection_seconds": selection_seconds(line),
        "step_seconds": middle(line, lambda outcome: outcome.step_seconds),
        "training_seconds": middle(line, lambda outcome: outcome.training_seconds),
        "problem": line.problem,
    }


def cell_values(run: CellResult) -> dict[str, Any]:
    """A training run as plain values, its memory by category."""
    cell, outcome = run.cell, run.outcome
    values: dict[str, Any] = {
        "key": cell.key,
        "model": cell.model.label,
        "data": cell.data.label,
        "method": cell.method.label,
        "share": None if cell.share is None else str(cell.share),
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "status": run.status,
        "error": run.error,
        "val": run.val,
        "test": run.test,
        "seconds": run.seconds,
    }
    if outcome is None:
        return values
    peaks = {} if outcome.memory is None else {name: getattr(outcome.memory.training, name) for name in CATEGORIES}
    return values | {
        "best_epoch": outcome.best_epoch,
        "parameters": outcome.parameters,
        "layers": [layer.name for layer in outcome.layers],
        "turns": outcome.turns,
        "training_peak": sum(peaks.values()) if peaks else None,
        **{f"peak_{name}": size for name, size in peaks.items()},
        "step_seconds": outcome.step_seconds,
        "step_wall_seconds": outcome.step_wall_seconds,
    }


def table_values(results: GridResults, reference: str) -> list[dict[str, Any]]:
    """All lines of the table as plain values."""
    found = {difference.entry: difference for difference in results.differences(reference)}
    return [line_values(line, found.get(line.entry)) for line in results.entries]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV text with a heading; what is not known is empty.

    Examples:
        >>> print(to_csv([{"method": "head", "test": 0.5}, {"method": "full", "test": None}]), end="")
        method,test
        head,0.5
        full,
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def middle(line: EntryResult, value: Callable[[Outcome], float]) -> float | None:
    """The median over the seeds, None without a result."""
    values = [value(outcome) for outcome in line.outcomes]
    return statistics.median(values) if values else None


def selection_seconds(line: EntryResult) -> float | None:
    """Processor time of choosing: of the runs, or, of a method that chooses in the run, of its first choice."""
    times = [outcome.selection_seconds for outcome in line.outcomes if outcome.selection_seconds is not None]
    if times:
        return statistics.median(times)
    return None if line.selection is None else line.selection.seconds
