"""The results file: SQLite, one row a finished cell, written in one transaction each.

A cell that was running when the machine stopped has no row, so it runs again; one with a row never does, unless it
failed and that is asked for. The rollback journal is used, not the write-ahead log: after every transaction all of the
results are in the one file, which may be copied at any time.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adabet.errors import CheckpointError, StorageError
from adabet.experiments.cells import Cell
from adabet.experiments.lock import FileLock
from adabet.experiments.outcome import Done, Status
from adabet.experiments.search import Known

APPLICATION_ID = 0x41646142
"""Marks a SQLite file as ours: "AdaB" in ASCII."""

VERSION = 1
WAIT_SECONDS = 30
"""How long to wait while another process has the file for the length of a transaction."""

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, status TEXT NOT NULL, cell TEXT NOT NULL, record TEXT NOT NULL,
    error TEXT NOT NULL, details TEXT NOT NULL, environment TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE starts (key TEXT NOT NULL, worker TEXT NOT NULL, started REAL NOT NULL);
"""


@dataclass(frozen=True)
class Row:
    """A finished cell as it is stored; see `adabet.experiments.outcome.Done`."""

    kind: str
    status: Status
    cell: Mapping[str, Any]
    record: Mapping[str, Any]
    error: str
    details: str
    environment: Mapping[str, Any]
    started: float
    seconds: float

    @property
    def known(self) -> Known:
        """As much as the search has to know."""
        if self.status != "done" or self.kind == "selection":
            return Known(self.status)
        if self.kind == "budget":
            return Known(self.status, bytes=int(self.record["bytes"]))
        record = self.record
        best = next(item for item in record["history"] if item["epoch"] == record["best_epoch"])
        return Known(self.status, (record["val"][record["monitor"]], -best["val_loss"]))


class Store:
    """A results file that this process writes; use it as a context manager.

    Args:
        path: the file; made if it is missing.

    Raises:
        CheckpointError: if it is something else, damaged, or of another version; it is left as it is.
        StorageError: if it cannot be written, or another comparison is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def __enter__(self) -> Self:
        self._lock.take(f"the results file {self.path}")
        try:
            new = not self.path.exists() or self.path.stat().st_size == 0
            if not new:
                check(self.path)
            self._connection = _connect(self.path, "rwc")
            if new:
                self._make()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._lock.release()

    def set_grid(self, grid: Mapping[str, Any]) -> None:
        """Note which grid the file is about from now on; the cells of others stay."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('grid', ?)", (json.dumps(grid),))

    @property
    def created(self) -> float:
        """When the file was made, seconds since 1970."""
        return float(_meta(self._connection, "created"))

    def rows(self) -> dict[str, Row]:
        """All finished cells, by key."""
        return _rows(self._connection, self.path)

    def note_start(self, cell: Cell, worker: str) -> None:
        """Note that a worker has begun with a cell."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO starts VALUES (?, ?, ?)", (cell.key, worker, time.time()))

    def starts(self) -> dict[str, int]:
        """How often each cell was begun."""
        return dict(self._connection.execute("SELECT key, COUNT(*) FROM starts GROUP BY key"))

    def keep(self, cell: Cell, done: Done) -> Row:
        """Write a finished cell, once.

        Raises:
            StorageError: if the disk refuses, or the cell is there already.
        """
        texts = [json.dumps(value) for value in (cell.to_dict(), done.record)]
        values = (cell.key, cell.kind, done.status, *texts, done.error, done.details, json.dumps(done.environment))
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, done.started, done.seconds)
            )
        return _row((cell.kind, done.status, *texts, *values[5:], done.started, done.seconds))

    def forget_failed(self) -> int:
        """Drop the cells that failed, so that they run again; tells how many."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM cells WHERE status = 'failed'").rowcount

    def _make(self) -> None:
        with self._transaction() as connection:
            for statement in TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('created', ?)", (repr(time.time()),))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise StorageError(f"could not write {self.path}: {error}; what it held before is whole") from error


def check(path: Path) -> None:
    """Make sure that a file holds results of this version; nothing is written.

    Raises:
        CheckpointError: if it does not.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"could not read the results file {path}: {error.strerror}") from error
    if head != b"SQLite format 3\0":
        raise CheckpointError(f"{path} is no results file of `adabet compare`; name another one")
    with closing(_connect(path, "ro")) as connection, _damage(path):
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if found != APPLICATION_ID:
        raise CheckpointError(f"{path} is a database of something else, not results; name another one")
    if version != VERSION:
        raise CheckpointError(
            f"{path} holds results of version {version}, this adabet reads and writes version {VERSION}; it was left "
            "as it is: name another one, or read it with the adabet that wrote it"
        )


def read_rows(path: Path) -> tuple[dict[str, Any], float, dict[str, Row]]:
    """The grid, when the file was made, and all finished cells; the file may be in use.

    Raises:
        CheckpointError: if it is no results file, damaged, or of another version.
    """
    check(path)
    with closing(_connect(path, "ro")) as connection, _damage(path):
        grid = _meta(connection, "grid")
        if not grid:
            raise CheckpointError(f"{path} holds no grid yet: nothing was compared")
        return json.loads(grid), float(_meta(connection, "created")), _rows(connection, path)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=WAIT_SECONDS
        )
    except sqlite3.Error as error:
        raise StorageError(f"could not open the results file {path}: {error}") from error


def _meta(connection: sqlite3.Connection, name: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return "" if row is None else str(row[0])


def _rows(connection: sqlite3.Connection, path: Path) -> dict[str, Row]:
    columns = "key, kind, status, cell, record, error, details, environment, started, seconds"
    with _damage(path):
        return {row[0]: _row(row[1:]) for row in connection.execute(f"SELECT {columns} FROM cells")}


def _row(values: tuple[Any, ...]) -> Row:
    kind, status, cell, record, error, details, environment, started, seconds = values
    return Row(
        kind,
        status,
        json.loads(cell),
        json.loads(record),
        error,
        details,
        json.loads(environment),
        started,
        seconds,
    )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the results file {path} is damaged: {error}") from error
