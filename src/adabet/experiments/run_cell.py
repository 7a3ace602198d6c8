"""Run one cell: select, train and test; or measure what it is asked to."""

import json
import re
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adabet
from adabet.errors import AdabetError, TrainingError
from adabet.experiments.cells import Cell
from adabet.experiments.choice import Chosen, Stopwatch, choose, fit_options, look, step_peak
from adabet.experiments.outcome import Done, Outcome, SelectionCost, TrainedLayer
from adabet.experiments.site import Site, Sites
from adabet.layers import Layers, find_layers
from adabet.memory import MemoryReport
from adabet.memory.high_water import RESIDENT, cuda_high_water
from adabet.training.config import environment
from adabet.training.run_folder import RunFolder

NOT_FINITE = re.compile(r"became (nan|-?inf)")
"""How `adabet.fit` says that a loss is not finite."""


def run_cell(cell: Cell, sites: Sites, *, budget: int | None = None) -> Done:
    """Run a cell whatever happens, and say how it went.

    Args:
        cell: what to run; a ``"selection"`` cell is measured in this process, which should be its own.
        sites: what is loaded already.
        budget: bytes that the cell's method has to keep to.
    """
    started, watch = time.time(), Stopwatch()
    runs = {"train": _train, "budget": _measure_budget, "selection": _measure_selection}
    status, record, error, details = "done", {}, "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            record = runs[cell.kind](cell, sites.find(cell.model, cell.data), budget)
        except TrainingError as problem:
            status, error = ("diverged" if NOT_FINITE.search(str(problem)) else "failed"), str(problem)
        except AdabetError as problem:
            status, error = "failed", str(problem)
        except Exception as problem:
            status, error = "failed", f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
            details = traceback.format_exc()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = {**environment(device), "threads": torch.get_num_threads()}
    return Done(status, record, error, details, where, started, watch.wall_seconds)  # type: ignore[arg-type]


class StepTimes:
    """Progress that notes how long steps take; the first of each epoch is left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wall_seconds: list[float] = []
        self._last: Stopwatch | None = None

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None:
        """Nothing to do."""

    def step(self, *, epoch: int, step: int, loss: float) -> None:  # noqa: ARG002 - part of the protocol
        """Note the time since the step before."""
        if self._last is not None and step > 1:
            self.seconds.append(self._last.seconds)
            self.wall_seconds.append(self._last.wall_seconds)
        self._last = Stopwatch()

    def epoch(self, record: object) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""


def _train(cell: Cell, site: Site, budget: int | None) -> dict[str, Any]:
    """Select, train and test once; the seed decides head, samples, selection and order."""
    model = site.model(cell.seed)
    batch = site.batch(cell.settings.batch_size, cell.seed)
    layers = find_layers(model, batch)
    inference = _inference(model, batch)
    chosen = choose(cell, model, site, budget)
    loaders = site.splits.loaders(batch_size=cell.settings.batch_size, seed=cell.seed)
    times = StepTimes()
    with tempfile.TemporaryDirectory(prefix="adabet-") as folder:
        watch = Stopwatch()
        result = adabet.fit(
            model,
            loaders.train,
            loaders.val,
            lr=cell.learning_rate or 0.0,
            epochs=cell.settings.epochs,
            seed=cell.seed,
            run_dir=Path(folder) / "run",
            progress=times,
            **fit_options(cell),
            **chosen.told,
        )
        training = watch.seconds, watch.wall_seconds
        run = RunFolder(Path(folder) / "run")
        memory = _memory(run, inference)
        trained = _trained(run, result.layers)
    best = result.best if result.kept == "best" else result.last
    outcome = Outcome(
        monitor=result.monitor,
        val=dict(best.val_metrics),
        test=adabet.evaluate(model, loaders.test, micro_batch=cell.method.fit.get("micro_batch")),
        best_epoch=best.epoch,
        history=result.history,
        memory=memory,
        layers=_layers(trained, layers, chosen),
        parameters=result.trained_parameters,
        model_parameters=result.model_parameters,
        turns=result.turns,
        budget=budget,
        selection_seconds=chosen.seconds,
        selection_wall_seconds=chosen.wall_seconds,
        step_seconds=statistics.median(times.seconds) if times.seconds else training[0],
        step_wall_seconds=statistics.median(times.wall_seconds) if times.seconds else training[1],
        training_seconds=training[0],
        training_wall_seconds=training[1],
        test_images=len(site.splits.test),
    )
    return outcome.to_dict()


def _measure_budget(cell: Cell, site: Site, budget: int | None) -> dict[str, Any]:
    """The peak of a step that a budget is named after.

    The second of two: the first step of a process may take a little more, for what kernels prepare once.
    """
    model = site.model(cell.seed)
    selection = choose(cell, model, site, budget).told["selection"]
    batch = site.batch(cell.settings.batch_size, cell.seed)
    _, peak = (step_peak(cell, model, batch, selection) for _ in range(2))
    return {"bytes": peak}


def _measure_selection(cell: Cell, site: Site, budget: int | None) -> dict[str, Any]:
    """By how much memory rises while the method looks, with the images prepared before."""
    model = site.model(cell.seed)
    loaders = site.splits.loaders(batch_size=cell.settings.batch_size, seed=cell.seed)
    if site.splits.train.in_memory:
        for loader in (loaders.train, loaders.val):
            for _ in loader:
                pass
    mark = cuda_high_water(site.device) if site.device.type == "cuda" else RESIDENT
    watch = Stopwatch()
    with mark.watch() as rise:
        look(cell, model, site, budget)
    return asdict(SelectionCost(rise.bytes, watch.seconds, watch.wall_seconds))


def _inference(model: nn.Module, batch: Any) -> MemoryReport:
    """What a forward pass takes; the step that is measured beside it trains the head alone."""
    return adabet.measure_memory(model, batch, adabet.select("head", model, [batch]), inference=True)


def _memory(run: RunFolder, inference: MemoryReport) -> MemoryReport | None:
    if not run.memory.is_file():
        return None
    return replace(MemoryReport.from_json(run.memory.read_text(encoding="utf-8")), inference=inference.inference)


def _trained(run: RunFolder, layers: Iterable[str]) -> Mapping[str, int]:
    """The layers that trained, and in how many of the run's selections each was."""
    if not run.turns.is_file():
        return dict.fromkeys(layers, 1)
    turns = [json.loads(line)["layers"] for line in run.turns.read_text(encoding="utf-8").splitlines()]
    return Counter(layer for turn in turns for layer in dict.fromkeys(turn))


def _layers(trained: Mapping[str, int], layers: Layers, chosen: Chosen) -> tuple[TrainedLayer, ...]:
    """The layers that trained, in the order of the model."""
    positions = {layer.name: position for position, layer in enumerate(layers)}
    ranked = {} if chosen.ranking is None else {item.layer.name: item for item in chosen.ranking.layers}
    places = {} if chosen.ranking is None else {item.layer.name: 1 + n for n, item in enumerate(chosen.ranking.order)}
    found = [
        TrainedLayer(name, positions.get(name), places.get(name), ranked[name].score if name in ranked else None, turns)
        for name, turns in trained.items()
    ]
    return tuple(sorted(found, key=lambda layer: len(positions) if layer.position is None else layer.position))
