"""The demo's story: a pre-trained reader, a new user, and what training a few layers does about it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adabet.demo.adaptation import LEARNING_RATES, TRAINING_COUNT, Adaptations, User, adapt, read
from adabet.demo.digits import load_part
from adabet.demo.network import demo_model
from adabet.demo.picture import draw_picture
from adabet.demo.result import DemoResult, MethodOutcome, Reading
from adabet.errors import OptionError, StorageError
from adabet.extras import require
from adabet.memory import MemoryReport, measure_memory
from adabet.methods import rank, select
from adabet.selection import Selection

LABELS = {"head": "head only", "adabet": "AdaBet", "full": "all layers"}
"""Methods that are compared, and what the demo calls them."""

LAYER_RATIO = 0.1
"""Share of the layers that AdaBet takes: the default of `adabet.fit`."""

EPOCHS = 4
"""Passes over the training digits: enough to tell the methods apart, few enough for half a minute in all."""

READINGS = 14
"""Test digits that the picture shows."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many training runs are behind, and how many there are."""


def run_demo(
    *,
    seeds: int = 3,
    epochs: int = EPOCHS,
    output: str | os.PathLike[str] = "adabet-demo.png",
    progress: Progress | None = None,
) -> DemoResult:
    """Adapt the pre-trained digit reader to one user: the head alone, AdaBet's layers, all layers.

    AdaBet chooses a tenth of the layers by 40 unlabelled digits. Each method takes the learning rate, of three
    candidates, that reads most validation digits right with the first seed, and trains with every seed. A seed
    decides which 300 of the 400 labelled digits are trained on, and in which order; the selection and the
    pre-trained weights are the same for all. No test digit takes part in any choice.

    Args:
        seeds: training runs for each method; the first one also serves to choose the learning rate.
        epochs: passes over the 300 training digits.
        output: where to write the picture, a PNG.
        progress: is told how far the demo is.

    Returns:
        Everything that there is to show.

    Raises:
        OptionError: if ``seeds`` or ``epochs`` is less than one.
        MissingExtraError: if scikit-learn, matplotlib, accelerate or safetensors is not installed.
        StorageError: if the picture cannot be written.
    """
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value < 1:
            raise OptionError(f"expected {name} of at least 1, got {value}")
    _check_output(Path(output))
    start = time.perf_counter()
    with _one_thread():
        result = _tell_story(seeds=seeds, epochs=epochs, output=output, progress=progress)
    return replace(result, seconds=round(time.perf_counter() - start, 1))


def _check_output(output: Path) -> None:
    """Find out what would keep the picture from being written before half a minute of training, not after it."""
    require("matplotlib.figure", "the demo's picture")
    if output.is_dir() or not output.parent.is_dir():
        raise StorageError(f"could not write {output}: expected a file's name in a folder that exists")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: so small a network gains nothing from more, and the figures are then the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tell_story(*, seeds: int, epochs: int, output: str | os.PathLike[str], progress: Progress | None) -> DemoResult:
    steps = _Steps(progress, total=sum(len(LEARNING_RATES[method]) + seeds - 1 for method in LABELS))
    steps.begin("ranking layers by unlabelled digits")
    user, reader = User.meet(), demo_model()
    ranking = rank(reader, user.unlabelled)
    selections = {
        "head": select("head", reader, user.unlabelled),
        "adabet": ranking.select(layer_ratio=LAYER_RATIO),
        "full": select("full", reader, user.unlabelled),
    }
    adaptations = {}
    for method, selection in selections.items():
        steps.begin(f"training {LABELS[method]}")
        rates = LEARNING_RATES[method]
        adaptations[method] = adapt(user, selection, learning_rates=rates, seeds=seeds, epochs=epochs, done=steps.done)
    steps.begin("measuring memory and drawing")
    batch = next(iter(user.loaders(seed=0)[0]))
    reports = {name: measure_memory(reader, batch, selection) for name, selection in selections.items()}
    clean_test = load_part("test").images
    before = read(reader, user.test.images)
    after = read(adaptations["adabet"].models[0], user.test.images)
    result = DemoResult(
        ranking=ranking,
        selection=selections["adabet"],
        methods=tuple(_outcome(user, selections[name], adaptations[name], reports[name]) for name in LABELS),
        clean=_share_right(read(reader, clean_test), user),
        before=_share_right(before, user),
        inference_memory=next(report.inference.total for report in reports.values() if report.inference),
        readings=_readings(user.test.labels, before, after),
        training=TRAINING_COUNT,
        test=len(user.test),
        epochs=epochs,
        picture=os.fspath(output),
        seconds=0.0,
    )
    draw_picture(result, clean_test[:READINGS], user.test.images[:READINGS], output)
    return result


class _Steps:
    """Counts training runs and tells the caller."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self._progress, self._total = progress, total
        self._doing, self._behind = "", 0

    def begin(self, doing: str) -> None:
        self._doing = doing
        self._tell()

    def done(self) -> None:
        self._behind += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._doing, self._behind, self._total)


def _outcome(user: User, selection: Selection, adaptations: Adaptations, report: MemoryReport) -> MethodOutcome:
    return MethodOutcome(
        method=selection.method,
        label=LABELS[selection.method],
        trained_layers=len(selection.choices),
        trained_parameters=selection.parameter_count,
        learning_rate=adaptations.learning_rate,
        validation=adaptations.validation,
        accuracies=tuple(_share_right(read(model, user.test.images), user) for model in adaptations.models),
        memory=report.training.total,
    )


def _share_right(answers: Tensor, user: User) -> float:
    return float((answers == user.test.labels).double().mean())


def _readings(labels: Tensor, before: Tensor, after: Tensor) -> tuple[Reading, ...]:
    shown = torch.stack([labels, before, after], dim=1)[:READINGS]
    return tuple(Reading(*row) for row in shown.tolist())
