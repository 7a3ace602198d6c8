"""Make a table or figure, and leave it as CSV, picture and a page of text."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adabet.errors import StorageError
from adabet.experiments.reproduce.registry import Reproduction
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.files import write_text


@dataclass(frozen=True)
class Written:
    """A reproduction and where it stands.

    Attributes:
        reproduction: what was made.
        found: its rows and notes.
        table: the CSV.
        picture: PNG.
        page: Markdown: what it is, notes, the rows, and what the columns mean.
    """

    reproduction: Reproduction
    found: Found
    table: Path
    picture: Path
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "name": self.reproduction.name,
            "shows": self.reproduction.shows,
            "source": self.reproduction.source,
            "files": {name: str(getattr(self, name)) for name in ("table", "picture", "page")},
            "notes": list(self.found.notes),
            "columns": dict(self.reproduction.columns),
            "rows": [dict(row) for row in self.found.rows],
        }


def reproduce(reproduction: Reproduction, task: Task) -> Written:
    """Make a table or figure into the task's folder, as ``NAME.csv``, ``NAME.png`` and ``NAME.md``.

    Raises:
        StorageError: if the folder or a file cannot be written.
        ModelError: if a model that was named cannot be loaded.
        DataError: if data that were named cannot be loaded.
        MissingExtraError: if something optional is not installed.
    """
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"could not make the folder {task.folder}: {error.strerror or error}") from error
    found = reproduction.make(task)
    paths = {ending: task.folder / f"{reproduction.name}.{ending}" for ending in ("csv", "png", "md")}
    write_text(paths["csv"], to_csv(reproduction.columns, found.rows))
    found.draw(paths["png"])
    write_text(paths["md"], to_page(reproduction, found, quick=task.quick))
    return Written(reproduction, found, paths["csv"], paths["png"], paths["md"])


def to_csv(columns: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Rows as CSV text with a heading; what is not known is empty.

    Examples:
        >>> print(to_csv({"model": "its name", "peak": "bytes"}, [{"model": "demo", "peak": None}]), end="")
        model,peak
        demo,
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


ROWS_ON_PAGE = 100
"""A longer table stands in the CSV alone."""


def to_page(reproduction: Reproduction, found: Found, *, quick: bool) -> str:
    """A page of Markdown: what it is, the picture, notes, the rows, and what the columns mean."""
    name = reproduction.name
    parts = [f"# {name}: {reproduction.shows}", reproduction.source + ".", f"![{name}]({name}.png)"]
    notes = (("a quick, scaled-down pass",) if quick else ()) + found.notes
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    if len(found.rows) <= ROWS_ON_PAGE:
        lines = [list(reproduction.columns), ["---"] * len(reproduction.columns)]
        lines += [[text_of(row[column]) for column in reproduction.columns] for row in found.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    meanings = [f"- `{column}`: {meaning}" for column, meaning in reproduction.columns.items()]
    parts.append("\n".join([f"Columns of `{name}.csv`:", "", *meanings]))
    return "\n\n".join(parts) + "\n"


def text_of(value: Any) -> str:
    """A value for people; nothing for None.

    Examples:
        >>> text_of(0.123456), text_of(None), text_of(777.12), text_of("AdaBet")
        ('0.1235', '', '777.12', 'AdaBet')
    """
    if value is None:
        return ""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
