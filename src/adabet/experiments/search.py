"""Which cells a grid needs, given what is known: the learning rate first, then the seeds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from adabet.experiments.cells import Cell
from adabet.experiments.grid import Entry, Grid
from adabet.experiments.outcome import Status
from adabet.experiments.specs import MethodSpec, Share

Score = tuple[float, float]
"""A validation metric and minus the validation loss, which decides between equals."""

WORST: Score = (-math.inf, -math.inf)


@dataclass(frozen=True)
class Known:
    """As much of a cell's result as the search has to know.

    Attributes:
        status: how it ended.
        score: on validation; of a cell that did not end well the worst.
        bytes: of a budget, otherwise 0.
    """

    status: Status
    score: Score = WORST
    bytes: int = 0


def training_cell(grid: Grid, entry: Entry, learning_rate: float, seed: int) -> Cell:
    """The run of an entry at a learning rate with a seed."""
    return Cell("train", entry.model, entry.data, entry.method, entry.share, seed, learning_rate, grid.settings)


def selection_cell(grid: Grid, entry: Entry) -> Cell:
    """What choosing takes, measured with the first seed."""
    settings = grid.settings
    return Cell("selection", entry.model, entry.data, entry.method, entry.share, grid.seeds[0], None, settings)


def budget_cell(grid: Grid, entry: Entry) -> Cell | None:
    """The measurement that an entry's budget is named after, with the first seed; None if it names none."""
    reference = None if entry.share is None else entry.share.reference
    if reference is None:
        return None
    method, ratio = reference
    share = Share(layer_ratio=ratio)
    return Cell("budget", entry.model, entry.data, MethodSpec(method), share, grid.seeds[0], None, grid.settings)


@dataclass(frozen=True)
class Standing:
    """Where an entry stands.

    Attributes:
        needed: cells that it is known to need, finished ones included.
        wanted: those of them that can run now.
        learning_rate: the best on validation, once it is known.
        tried: learning rates that the search has asked for so far.
        open: whether a learning rate may still be found.
    """

    needed: tuple[Cell, ...]
    wanted: tuple[Cell, ...]
    learning_rate: float | None
    tried: tuple[float, ...]
    open: bool


def standing(grid: Grid, entry: Entry, known: Mapping[str, Known]) -> Standing:
    """Where an entry stands, from the results alone, whatever the order in which they came.

    Args:
        grid: what is compared.
        entry: one of its lines.
        known: results by the keys of cells.
    """
    budget = budget_cell(grid, entry)
    if budget is not None and (budget.key not in known or known[budget.key].status != "done"):
        waiting = budget.key not in known
        return Standing((budget,), (budget,) if waiting else (), None, (), waiting)

    def result(rate: float, seed: int) -> Known | None:
        return known.get(training_cell(grid, entry, rate, seed).key)

    if grid.search == "all":
        asked, best = list(grid.learning_rates), _best_mean(grid, result)
        runs = [(rate, seed) for rate in asked for seed in grid.seeds]
    else:
        asked, best = uphill(grid.learning_rates, lambda rate: result(rate, grid.seeds[0]))
        runs = [(rate, grid.seeds[0]) for rate in asked]
        runs += [(best, seed) for seed in grid.seeds if best is not None]
    cells = [] if budget is None else [budget]
    cells += [training_cell(grid, entry, rate, seed) for rate, seed in dict.fromkeys(runs)]
    searching = best is None and any(cell.key not in known for cell in cells)
    if grid.selection_memory:
        cells.append(selection_cell(grid, entry))
    wanted = tuple(cell for cell in cells if cell.key not in known)
    return Standing(tuple(cells), wanted, best, tuple(asked), searching)


def wanted_cells(grid: Grid, known: Mapping[str, Known]) -> Iterator[Cell]:
    """All cells that can run now, in the order of the table, each once."""
    seen = set()
    for entry in grid.entries:
        for cell in standing(grid, entry, known).wanted:
            if cell.key not in seen:
                seen.add(cell.key)
                yield cell


def uphill(rates: Sequence[float], result: Callable[[float], Known | None]) -> tuple[list[float], float | None]:
    """Go from the middle rate to its better neighbour until there is none.

    Of equals the former stays, then the smaller. A search whose first rates all fail (not: diverge) ends there.

    Args:
        rates: ascending.
        result: what is known at a rate, or None.

    Returns:
        The rates that are needed so far, and the best one if it is known.

    Examples:
        >>> score = {0.1: 0.7, 0.3: 0.8, 1.0: 0.9, 3.0: 0.2}.get
        >>> uphill((0.1, 0.3, 1.0, 3.0), lambda rate: Known("done", (score(rate), 0.0)))
        ([0.3, 1.0, 3.0], 1.0)
        >>> uphill((0.1, 0.3, 1.0), lambda rate: None)
        ([0.1, 0.3, 1.0], None)
    """
    place = len(rates) // 2
    asked: set[int] = set()
    while True:
        near = [index for index in (place, place - 1, place + 1) if 0 <= index < len(rates)]
        asked |= set(near)
        needed = [rates[index] for index in sorted(asked)]
        found = [result(rates[index]) for index in near]
        if any(known is None for known in found):
            return needed, None
        known_here = [known for known in found if known is not None]
        if all(known.status == "failed" for known in known_here):
            return needed, None
        scores = {index: known.score for index, known in zip(near, known_here, strict=True)}
        if len(set(scores.values())) == 1 and known_here[0].score == WORST and place > 0:
            place -= 1  # all of them diverged: a smaller rate may not
            continue
        best = max(near, key=lambda index: scores[index])
        if best == place:
            return needed, (None if scores[best] == WORST else rates[best])
        place = best


def _best_mean(grid: Grid, result: Callable[[float, int], Known | None]) -> float | None:
    """The rate with the best mean over all seeds, once all are known; one that a seed failed at is worst."""
    means: dict[float, Score] = {}
    for rate in grid.learning_rates:
        found = [result(rate, seed) for seed in grid.seeds]
        scores = [known.score for known in found if known is not None]
        if len(scores) < len(found):
            return None
        means[rate] = (
            math.fsum(score[0] for score in scores) / len(scores),
            math.fsum(score[1] for score in scores) / len(scores),
        )
    best = max(means, key=lambda rate: means[rate])
    return None if means[best] == WORST else best
