"""A results file with made-up results, written by the store that comparisons write with."""

from adabet.experiments import Grid, GridResults
from adabet.experiments.outcome import Done, Outcome, TrainedLayer
from adabet.experiments.search import training_cell
from adabet.experiments.store import Store
from adabet.memory import MemoryReport, Peak
from adabet.training import EpochRecord

ENVIRONMENT = {"adabet": "0.1.0", "torch": "2.6", "device": "cpu", "host": "here", "threads": 1, "worker": "1"}
NAMES = ("stem", "block1", "block2", "block3")
TEST = {"adabet": (0.90, 0.92, 0.94), "head": (0.80, 0.81, 0.85), "full": (0.91, 0.92, 0.96)}
PEAK = {"adabet": 2_000_000, "head": 1_000_000, "full": 8_000_000}
TRAINED = {"adabet": (1, 3), "head": (), "full": (0, 1, 2, 3)}


def make_grid(**values):
    usual = {
        "models": ["demo"],
        "data": ["photos"],
        "methods": ["adabet", "head", "full"],
        "learning_rates": [0.01],
        "seeds": 3,
        "epochs": 2,
        "selection_memory": False,
    }
    return Grid.from_dict(usual | values)


def make_memory(peak):
    training = Peak(
        weights=peak // 2, inputs=0, gradients=0, optimizer=0, saved=peak // 4, workspace=peak - 3 * peak // 4
    )
    return MemoryReport("Net", "cpu", 8, 8, True, False, "sgdw", 10, training, None, peak // 4, {"stem": peak // 4})


def make_outcome(method, test, seed=0, memory=True):
    history = tuple(
        EpochRecord(epoch, 0.5, 0.4, {"accuracy": test - 0.02 + 0.01 * epoch}, 0.01, 1.0, None) for epoch in (1, 2)
    )
    layers = [TrainedLayer(NAMES[place], place, None, None) for place in TRAINED[method] if seed or place != 1]
    return Outcome(
        monitor="accuracy",
        val={"accuracy": test},
        test={"accuracy": test, "loss": 0.3},
        best_epoch=2,
        history=history,
        memory=make_memory(PEAK[method]) if memory else None,
        layers=(*layers, TrainedLayer("head", None, None, None)),
        parameters=1000,
        model_parameters=9000,
        turns=1,
        budget=None,
        selection_seconds=0.5,
        selection_wall_seconds=0.5,
        step_seconds=0.02,
        step_wall_seconds=0.02,
        training_seconds=3.0,
        training_wall_seconds=3.0,
    )


def write_results(path, grid=None, results=TEST, *, memory=True):
    """Write results by method and seed: an accuracy, or the text of an error; a method that is missing has not run."""
    grid = grid or make_grid()
    with Store(path) as store:
        store.set_grid(grid.to_dict())
        for entry in grid.entries:
            for seed, found in zip(grid.seeds, results.get(entry.method.label, ()), strict=False):
                cell = training_cell(grid, entry, grid.learning_rates[0], seed)
                if isinstance(found, str):
                    store.keep(cell, Done("failed", error=found, environment=ENVIRONMENT))
                else:
                    outcome = make_outcome(entry.method.method, found, seed, memory)
                    store.keep(cell, Done("done", record=outcome.to_dict(), environment=ENVIRONMENT))
    return path


def read_results(path, **values):
    return GridResults.read(write_results(path, **values))
