"""The training runs of table 2 and of the curves: the paper's methods over models, data and seeds."""

from collections.abc import Sequence
from dataclasses import replace

from adabet.experiments.grid import LEARNING_RATES, Grid
from adabet.experiments.pools import LocalPool
from adabet.experiments.reproduce.local import Place, smaller
from adabet.experiments.reproduce.published import DATA, LAYER_RATIO, METHODS, MODELS, SEEDS, SETTINGS, learning_rate
from adabet.experiments.reproduce.task import Row, Task
from adabet.experiments.results import EntryResult, GridResults
from adabet.experiments.runner import Report, compare
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share

RESULTS = "runs.db"
"""Every finished run is kept in this file of the task's folder and never run again."""

QUICK_TRAIN, QUICK_EPOCHS, QUICK_RATE = 200, 3, 0.02


def run_sixteen(task: Task, place: Place) -> list[GridResults]:
    """The runs of table 2: the paper's methods on its pairs of model and data, or on what takes their place."""
    rates = {(model.label, data.label): learning_rate(model, data) for model in MODELS for data in DATA}
    shares, known = (Share(layer_ratio=LAYER_RATIO),), rates if place.published else {}
    return run_pairs(task, place, METHODS, SETTINGS, shares=shares, rates=known, seeds=SEEDS)


def run_pairs(
    task: Task,
    place: Place,
    methods: Sequence[MethodSpec],
    settings: Settings,
    *,
    shares: Sequence[Share],
    rates: dict[tuple[str, str], float],
    seeds: Sequence[int],
    quick_rate: float = QUICK_RATE,
) -> list[GridResults]:
    """Train every method on every pair of model and data, and keep each run; a rerun takes up what is there.

    Args:
        task: what was asked for; quickly, few images, epochs and one seed.
        place: models and data.
        methods: who chooses.
        settings: how everything trains.
        shares: how much may train.
        rates: learning rates by the labels of model and data; for other pairs it is searched by validation.
        seeds: of head, samples, selection and order.
        quick_rate: the only learning rate of a quick pass.

    Returns:
        Results for each pair, in the order of the models and then the data.
    """
    if task.quick:
        place, settings, seeds = (
            smaller(place, max_train=QUICK_TRAIN),
            replace(settings, epochs=QUICK_EPOCHS, batch_size=8),
            (0,),
        )
    pairs = [(model, data) for model in place.models for data in place.data]
    results = []
    for number, (model, data) in enumerate(pairs):
        rate = rates.get((model.label, data.label))
        candidates = (quick_rate,) if task.quick else LEARNING_RATES if rate is None else (rate,)
        grid = Grid(
            (model,), (data,), tuple(methods), tuple(shares), candidates, tuple(seeds), "uphill", settings, False
        )

        def tell(report: Report, number: int = number) -> None:
            # what is left of a pair is an estimate while learning rates are searched
            task.progress(number * report.total + report.done, len(pairs) * report.total)

        # quickly, one worker of one thread: starting more takes longer than what they do
        pool = LocalPool(task.workers or 1, threads=1) if task.quick else LocalPool(task.workers)
        results.append(compare(grid, task.folder / RESULTS, pool, progress=tell))
    return results


def how(task: Task, settings: Settings, seeds: Sequence[int], found: Sequence[GridResults]) -> str:
    """How the runs were made, in a line."""
    if task.quick:
        (only,) = found[0].grid.learning_rates
        return f"{QUICK_EPOCHS} epochs, learning rate {only:g}, one seed: too short to tell methods apart"
    searched = any(len(results.grid.learning_rates) > 1 for results in found)
    rate = "learning rate by validation" if searched else "the paper's learning rates"
    return f"{settings.epochs} epochs, batch {settings.batch_size}, {len(seeds)} seeds, {rate}"


def lines_of(found: Sequence[GridResults]) -> list[tuple[ModelSpec, DataSpec, EntryResult]]:
    """The lines of all results with their model and data."""
    return [(line.entry.model, line.entry.data, line) for results in found for line in results.entries]


def problems(found: Sequence[GridResults]) -> tuple[str, ...]:
    """A note for each line that has no result."""
    return tuple(f"{line.entry}: {line.problem}" for _, _, line in lines_of(found) if line.problem)


def result_of(line: EntryResult) -> Row:
    """A line's learning rate, accuracy on test over its seeds in %, and what went wrong, as columns."""
    summary = line.summary
    return {
        "seeds": 0 if summary is None else summary.count,
        "learning_rate": line.learning_rate,
        "accuracy": None if summary is None else 100 * summary.mean,
        "std": None if summary is None or summary.std is None else 100 * summary.std,
        "problem": line.problem,
    }


def peak_of(line: EntryResult) -> float | None:
    """A step's measured peak in MB of 1e6 bytes."""
    return None if line.peak is None else line.peak / 1e6
