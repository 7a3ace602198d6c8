"""What a reproduction runs on: what was asked for, the paper's where it can be had, otherwise what is there."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from adabet.data import load_data, transforms
from adabet.errors import DataError, ModelError
from adabet.experiments.reproduce.published import DATA, MODELS
from adabet.experiments.reproduce.task import Task
from adabet.experiments.specs import DataSpec, ModelSpec
from adabet.extras import require
from adabet.models import DataConfig, load_model

LOCAL = "ADABET_DATA"
"""The environment variable that may name a folder with ``images/NAME/`` and ``weights/``, for want of downloads."""

DEMO = ModelSpec("demo", label="digit reader")
COUNTS = {"train": 300, "val": 100, "test": 442}
QUICK_COUNTS = {"train": 200, "val": 60, "test": 100}
"""Digits that are written out; the demo trains and tests on the larger numbers too."""

Spec = TypeVar("Spec", ModelSpec, DataSpec)


@dataclass(frozen=True)
class Place:
    """What a reproduction runs on.

    Attributes:
        models: at least one.
        data: at least one.
        published: whether these are the paper's own models and data, all of them.
        notes: what is missing and what stands in for it.
    """

    models: tuple[ModelSpec, ...]
    data: tuple[DataSpec, ...]
    published: bool
    notes: tuple[str, ...]


def find_place(task: Task, *, models: Sequence[ModelSpec] = MODELS, data: Sequence[DataSpec] = DATA) -> Place:
    """Models and data: those of the task, else the paper's that can be had, else local ones.

    Args:
        task: what was asked for; quickly, local ones are taken at once.
        models: the paper's.
        data: the paper's.

    Raises:
        MissingExtraError: if nothing else is there, and scikit-learn, which has the bundled digits, neither.
    """
    notes: list[str] = []
    chosen = task.models or _available(models, lambda spec: load_model(spec.name, pretrained=True), notes, task)
    if not chosen:
        chosen = (DEMO,) if task.quick else _local_models()
        notes.append(f"model: {', '.join(spec.label for spec in chosen)}, in place of the paper's")
    images = task.data or _available(data, _fetch, notes, task)
    if not images:
        images = _local_data(task, of_demo=chosen == (DEMO,))
        notes.append(f"data: {', '.join(spec.label for spec in images)}, in place of the paper's")
    whole = chosen == tuple(models) and images == tuple(data)
    return Place(chosen, images, whole, tuple(notes))


def _available(specs: Sequence[Spec], load: Callable[[Spec], Any], notes: list[str], task: Task) -> tuple[Spec, ...]:
    """Those that can be loaded; after one that cannot be fetched, the others are not tried."""
    if task.quick:
        return ()
    found: list[Spec] = []
    for spec in specs:
        try:
            with _quiet_hub():
                load(spec)
        except (ModelError, DataError) as error:
            notes.append(f"{spec.label} cannot be had: {str(error).partition(': check the network')[0]}")
            break
        found.append(spec)
    return tuple(found)


def _fetch(spec: DataSpec) -> None:
    """Fetch a dataset unless it is there, and read little of it."""
    transform = transforms(DataConfig((3, 32, 32)), train=False)
    load_data(spec.name, transform_train=transform, transform_eval=transform, max_train=200, max_val=200, max_test=200)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from telling of each attempt; what fails is told once, as a note."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _local_models() -> tuple[ModelSpec, ...]:
    """MobileNetV2 with local weights, or the demo's digit reader."""
    weights = Path(os.environ.get(LOCAL, ""), "weights", "mobilenetv2_100.safetensors")
    if LOCAL not in os.environ or not weights.is_file():
        return (DEMO,)
    # as TensorFlow, whose weights these are, pads and scales
    return (
        ModelSpec(
            "timm/mobilenetv2_100",
            label="MobileNetV2 (de-quantised int8)",
            weights=str(weights),
            mean=0.5,
            std=0.5,
            arguments={"pad_type": "same"},
        ),
    )


def _local_data(task: Task, *, of_demo: bool) -> tuple[DataSpec, ...]:
    """Folders of local images, or the bundled digits; the demo's digit reader always gets digits."""
    images = Path(os.environ.get(LOCAL, ""), "images")
    if LOCAL in os.environ and images.is_dir() and not (of_demo or task.quick):
        folders = [folder for folder in sorted(images.iterdir()) if (folder / "train").is_dir()]
        if folders:
            return tuple(DataSpec(str(folder)) for folder in folders)
    folder = write_digits(task.folder / "digits", QUICK_COUNTS if task.quick else COUNTS)
    return (DataSpec(str(folder), label="digits of a new user"),)


def write_digits(folder: Path, counts: dict[str, int]) -> Path:
    """The demo's digits under a user's conditions, as a folder of images: ``SPLIT/DIGIT/NUMBER.png``.

    Args:
        folder: to make; one that a former call has finished is taken as it is.
        counts: images of each split; of ``train`` and ``val`` together at most 400, of ``test`` 442.

    Returns:
        The folder that holds these counts, below ``folder``.

    Raises:
        MissingExtraError: if scikit-learn or pillow is not installed.
    """
    from adabet.demo.digits import load_part, user_conditions

    image = require("PIL.Image", "writing digits as images")
    folder = folder / "-".join(str(count) for count in counts.values())
    done = folder / "done"
    if done.exists():
        return folder
    labelled, test = load_part("labelled"), load_part("test")
    starts = {"train": (labelled, 0), "val": (labelled, counts["train"]), "test": (test, 0)}
    for split, (digits, start) in starts.items():
        pixels = user_conditions(digits.images[start : start + counts[split]])
        labels = digits.labels[start : start + counts[split]]
        for number, (drawn, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / split / str(int(label))
            place.mkdir(parents=True, exist_ok=True)
            image.fromarray((drawn[0] * 255).round().byte().numpy()).save(place / f"{number:03}.png")
    done.touch()
    return folder


def described(place: Place) -> str:
    """Models and data in a few words, for the line below a title."""
    names = [spec.label for spec in place.models]
    sets = [spec.label for spec in place.data]
    return f"{_few(names)} on {_few(sets)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{len(names)} ({names[0]}, ...)"


def smaller(place: Place, *, max_train: int) -> Place:
    """The same with fewer images to train on, where no limit is set."""
    data = tuple(spec if spec.max_train else replace(spec, max_train=max_train) for spec in place.data)
    return replace(place, data=data)
