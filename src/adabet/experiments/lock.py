"""One writer at a time: a lock that the system lets go of when its process ends, however it ends."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from adabet.errors import StorageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BEYOND_THE_TEXT = 1 << 20
"""On Windows a locked byte cannot be read by others, so one is locked that holds nothing."""


class FileLock:
    """An exclusive lock on a file that says who has it.

    The system gives it back when the process is gone, killed or not, so there is no stale lock to clear; what a dead
    process has left in the file is overwritten.

    Args:
        path: of the lock file, beside what it protects.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def take(self, what: str) -> None:
        """Take it, or say who has it.

        Args:
            what: that is protected, for the message.

        Raises:
            StorageError: if another process has it, or the file cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"could not write {self._path}: {error.strerror}") from error
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise StorageError(
                f"{what} is in use by another comparison ({holder}): wait for it, stop it, or give another --results"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give it back. The file stays, so that two processes never hold locks on different files of one name."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _holder(text: str) -> str:
    try:
        values = json.loads(text)
        return f"process {values['process']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        file.seek(BEYOND_THE_TEXT)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
