"""What the command line was asked to adapt, and to what: kept with a run, so that its delta can be used later."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adabet.errors import CheckpointError, StorageError
from adabet.files import write_text
from adabet.ranking import Ranking
from adabet.records import read_record, write_record
from adabet.training.run_folder import RunFolder

KIND = "adabet/task"

TASK, RANKING = "task.json", "ranking.json"
"""Files that the command line adds to a run folder."""


@dataclass(frozen=True)
class Task:
    """Model and data of a run.

    Attributes:
        model: its name, as `adabet.models.load_model` takes it.
        model_options: what else `load_model` was told, only what was given.
        data: name or folder.
        classes: names, in the order of the model's outputs.
        images: how many there are, by split: ``train``, ``val``, ``test``.
        layers: module paths of the layers that can be chosen, in the order of a forward pass.

    Examples:
        >>> task = Task("demo", {}, "photos", ("cat", "dog"), {"train": 20, "val": 4, "test": 6})
        >>> Task.from_json(task.to_json()) == task
        True
    """

    model: str
    model_options: Mapping[str, Any]
    data: str
    classes: tuple[str, ...]
    images: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The task as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """A task from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no task, or of another version.
        """
        values = read_record(KIND, text)
        try:
            lists = {name: tuple(map(str, values[name])) for name in ("classes", "layers")}
            return cls(**{**values, **lists})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this task lacks or misnames a field: {error}") from error

    def loading(self, delta: str) -> str:
        """Lines of Python that make the adapted model."""
        options = "".join(f", {name}={value!r}" for name, value in self.model_options.items())
        return "\n".join(
            [
                "import adabet",
                "from adabet.models import load_model",
                "",
                f"loaded = load_model({self.model!r}, num_classes={len(self.classes)}{options})",
                f"adabet.load_delta(loaded.model, {delta!r})",
                "model = loaded.model.eval()",
            ]
        )


def keep_task(folder: Path, task: Task, ranking: Ranking | None) -> None:
    """Write the task, and by what the layers were ranked, into the folder of a run that has not started yet.

    A folder that holds a run is left as it is: a resumed run goes on with what it has, and no other may start there.

    Raises:
        StorageError: if the folder cannot be made or written to.
    """
    if any(file.exists() for file in RunFolder(folder).files):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"could not make the run folder {folder}: {error.strerror}") from error
    write_text(folder / TASK, task.to_json() + "\n")
    if ranking is None:
        (folder / RANKING).unlink(missing_ok=True)
    else:
        write_text(folder / RANKING, ranking.to_json() + "\n")


def drop_task(folder: Path) -> None:
    """Take back what `keep_task` wrote, and the folder if it is then empty, unless a run has started there since."""
    if any(file.exists() for file in RunFolder(folder).files):
        return
    for name in (TASK, RANKING):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody keeps something else there
        folder.rmdir()
