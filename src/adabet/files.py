"""Files that are either whole or not there: written beside their place, synced, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adabet.errors import StorageError

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of a file that is still being written; one that a killed process leaves can be deleted."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader sees the former one or the new one, never a part of it.

    Yields a path in the same folder to write to. When the block ends, that file is flushed to the disk and
    takes the place of ``path`` in one rename; when the block fails or is interrupted, it is removed.

    Args:
        path: the file to write; its folder has to exist.

    Raises:
        StorageError: if the operating system refuses (disk full, no permission, no such folder).

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "notes.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [entry.name for entry in Path(folder).iterdir()]
        ['notes.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers make files that only their owner may read.
        temporary.chmod(mode)
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        kept = "the file that stood there is whole" if path.exists() else "nothing was left there"
        raise StorageError(f"could not write {path}: {error.strerror or error}; {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) as `replacing` does.

    Raises:
        StorageError: if it cannot be written; whatever stood there before is whole.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporary_files(folder: Path) -> None:
    """Delete what a process that was killed while writing left in a folder."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
