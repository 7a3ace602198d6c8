"""What a reproduction is asked for, and what it finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adabet.experiments.specs import DataSpec, ModelSpec

Row = Mapping[str, Any]
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Task:
    """How a table or figure is to be reproduced.

    Attributes:
        folder: where results go; it exists.
        models: to use in place of the paper's.
        data: likewise.
        quick: scaled down: smaller, shorter, fewer, on the bundled model and digits unless others are given.
        seed: of whatever is drawn.
        workers: processes for training runs, None for as many as `adabet compare` takes.
        progress: told how much is done and how much there is.
    """

    folder: Path
    models: tuple[ModelSpec, ...] = ()
    data: tuple[DataSpec, ...] = ()
    quick: bool = False
    seed: int = 0
    workers: int | None = None
    progress: Progress = _silent


@dataclass(frozen=True)
class Found:
    """What a reproduction found.

    Attributes:
        rows: of the table, all with the same columns; None for what is not known.
        draw: writes the picture to a path, in the format of its ending.
        notes: what a reader has to know, in words.
    """

    rows: tuple[Row, ...]
    draw: Callable[[Path], None] = field(repr=False)
    notes: tuple[str, ...] = ()
