"""Figure E.16 of the AdaBet paper: resident memory and CPU use while a method chooses and trains."""

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adabet.errors import TrainingError
from adabet.experiments.cells import Cell
from adabet.experiments.outcome import Done
from adabet.experiments.process import WorkerDied, WorkerProcess
from adabet.experiments.reproduce.local import described, find_place, smaller
from adabet.experiments.reproduce.picture import LINES, add_legend, new_figure, quiet, save
from adabet.experiments.reproduce.published import LAYER_RATIO, METHODS, SETTINGS
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share
from adabet.experiments.work import GIVES_MEMORY_BACK, Job
from adabet.extras import require
from adabet.report.memory_plot import INK

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "method": "who chooses",
    "seconds": "by the clock, since the run began, model and images loaded",
    "resident_mb": "resident memory of the process, MB of 1e6 bytes",
    "above_start_mb": "the same above what the process held before, libraries, model and images loaded",
    "cpu_percent": "processor time since the row before, 100 for one core that is busy",
}
INTERVAL = 0.1
"""Seconds between two looks."""

METHOD_BEFORE = MethodSpec("head")
"""Runs first in each process, so that libraries, model and images are loaded before the looking begins."""

SHOWN = ("AdaBet", "Transfer learning", "Last-K", "Fisher", "ElasticTrainer", "Full training")
QUICK_SHOWN = ("AdaBet", "Transfer learning", "Full training")
EPOCHS, MAX_TRAIN, QUICK_TRAIN = 1, 400, 80
"""One epoch of a few images: later ones repeat it."""


@dataclass
class Watched:
    """What was seen of a process: for each look its seconds, bytes and CPU percent; and what it held before."""

    start: int = 0
    looks: list[tuple[float, int, float]] = field(default_factory=list)


def make(task: Task) -> Found:
    """Run each method in a process of its own, and look at it from outside."""
    require("psutil", "watching a process")
    place = smaller(find_place(task), max_train=QUICK_TRAIN if task.quick else MAX_TRAIN)
    model, data = place.models[0], place.data[0]
    methods = [method for method in METHODS if method.label in (QUICK_SHOWN if task.quick else SHOWN)]
    settings = replace(SETTINGS, epochs=EPOCHS)
    rows: list[Row] = []
    for number, method in enumerate(methods):
        task.progress(number, len(methods))
        watched = watch(_cell(model, data, method, settings, task.seed))
        rows += _rows(model, data, method, watched)
    task.progress(len(methods), len(methods))
    notes = (
        *place.notes,
        f"chooses, trains {EPOCHS} epoch and tests, on one thread, freed memory given back at once; before, in the "
        "same process, a run of the head alone loads libraries, model and images",
        "resident memory holds libraries, images and what the allocator keeps; `adabet memory` counts what is in use",
        *(["only the first model and data are shown"] if len(place.models) * len(place.data) > 1 else []),
    )
    return Found(tuple(rows), lambda path: draw(rows, f"{described(place)}; each in its own process", path), notes)


def _cell(model: ModelSpec, data: DataSpec, method: MethodSpec, settings: Settings, seed: int) -> Cell:
    share = Share(layer_ratio=LAYER_RATIO)
    return Cell("train", model, data, method, share if method.takes(share) else None, seed, 1e-3, settings)


def watch(cell: Cell) -> Watched:
    """Run a cell in a process of its own and look at it all the while.

    Raises:
        TrainingError: if the process dies or the run fails.
    """
    first = replace(cell, method=METHOD_BEFORE, share=None)
    with WorkerProcess(threads=1, environment=GIVES_MEMORY_BACK) as worker:
        _check(cell, _answer(worker, first))
        return _watch(worker, cell)


def _answer(worker: WorkerProcess, cell: Cell) -> Done | WorkerDied:
    try:
        return worker.run(Job(cell, None, 1).to_dict())
    except WorkerDied as death:
        return death


def _check(cell: Cell, answer: Done | WorkerDied) -> float:
    """When a cell was begun, in seconds since 1970; an error if it has failed."""
    if isinstance(answer, WorkerDied):
        raise TrainingError(f"{cell}: {answer}")
    if answer.status == "failed":
        raise TrainingError(f"{cell}: {answer.error}")
    return answer.started


def _watch(worker: WorkerProcess, cell: Cell) -> Watched:
    psutil = require("psutil", "watching a process")
    process = psutil.Process(worker.process_id)
    answers: list[Done | WorkerDied] = []
    thread = threading.Thread(target=lambda: answers.append(_answer(worker, cell)), daemon=True)
    thread.start()
    looks: list[tuple[float, int, float]] = []
    while thread.is_alive():
        thread.join(INTERVAL)
        try:
            with process.oneshot():
                used = process.cpu_times()
                looks.append((time.time(), process.memory_info().rss, used.user + used.system))
        except psutil.Error:
            break
    thread.join()
    return _since(_check(cell, answers[0]), looks)


def _since(started: float, looks: Sequence[tuple[float, int, float]]) -> Watched:
    """Looks from a moment on, processor time as a share of the time between them."""
    before = [look for look in looks if look[0] <= started] or list(looks[:1])
    watched = Watched(start=before[-1][1])
    for (earlier, _, used_before), (now, resident, used) in itertools.pairwise(looks):
        if now > started and now - earlier > INTERVAL / 2:
            watched.looks.append((now - started, resident, 100 * (used - used_before) / (now - earlier)))
    return watched


def _rows(model: ModelSpec, data: DataSpec, method: MethodSpec, watched: Watched) -> list[Row]:
    return [
        {
            "model": model.label,
            "data": data.label,
            "method": method.label,
            "seconds": seconds,
            "resident_mb": resident / 1e6,
            "above_start_mb": (resident - watched.start) / 1e6,
            "cpu_percent": percent,
        }
        for seconds, resident, percent in watched.looks
    ]


def draw(rows: Sequence[Row], setting: str, path: Path) -> None:
    """Resident memory above, CPU use below, over time; a line for each method."""
    height = 5.6
    figure = new_figure("Resident memory and CPU use of choosing and training", setting, height=height)
    grid = figure.add_gridspec(2, 1, left=0.075, right=0.97, top=1 - 1.15 / height, bottom=0.5 / height, hspace=0.16)
    memory = figure.add_subplot(grid[0])
    load = figure.add_subplot(grid[1], sharex=memory)
    handles: list[Any] = []
    for method, colour in zip(dict.fromkeys(row["method"] for row in rows), LINES, strict=False):
        own = [row for row in rows if row["method"] == method]
        at = [row["seconds"] for row in own]
        handles += memory.plot(at, [row["above_start_mb"] for row in own], color=colour, linewidth=1.6, label=method)
        load.plot(at, _smoothed([row["cpu_percent"] for row in own]), color=colour, linewidth=1.2)
    memory.set_ylabel("MB above the start", fontsize=9, color=INK)
    load.set_ylabel("CPU, % of a core", fontsize=9, color=INK)
    load.set_xlabel("seconds", fontsize=9, color=INK)
    load.set_ylim(bottom=0)
    for axes in (memory, load):
        quiet(axes, grid="y")
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
    memory.tick_params(labelbottom=False)
    add_legend(figure, handles)
    save(figure, path)


SMOOTH = 5
"""Looks whose mean is drawn: processor time is counted in steps of 10 ms."""


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running means over the last few."""
    return [
        sum(values[max(0, end - SMOOTH) : end]) / len(values[max(0, end - SMOOTH) : end])
        for end in range(1, len(values) + 1)
    ]
