"""A worker's process, seen from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adabet.experiments.outcome import Done

READY = "ready"
"""The first line of a worker: everything is imported."""

SHOWN = 4000
"""Bytes of a dead worker's last words that are kept."""

PATIENCE = 10
"""Seconds that a process gets to end by itself."""


class WorkerDied(Exception):  # noqa: N818 - it is no error of ours, and becomes a failed cell
    """A worker ended in the middle of a cell.

    Attributes:
        details: the end of what it wrote to standard error.
    """

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class WorkerProcess:
    """Starts a worker and talks to it; from any one thread.

    It is in a session of its own: Ctrl-C in the terminal goes to the process that started it, which then ends it.

    Args:
        threads: for numeric libraries that read it when they are loaded.
        environment: more variables for it.
    """

    def __init__(self, *, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._folder = Path(tempfile.mkdtemp(prefix="adabet-worker-"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adabet.experiments.worker", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})},
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._ready = False
        self._closing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def process_id(self) -> int:
        """Of the worker."""
        return self._process.pid

    def run(self, job: Mapping[str, Any]) -> Done:
        """Have a job done.

        Args:
            job: as `adabet.experiments.work.Job.to_dict` gives it.

        Raises:
            WorkerDied: if the worker ends before it has answered.
        """
        if self._process.stdin is None:
            raise ValueError("the worker has no input")
        try:
            if not self._ready:
                self._ready = self._line() == READY
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            return Done(**json.loads(self._line()))
        except (OSError, EOFError, ValueError) as error:
            raise self._death() from error

    def end(self) -> None:
        """End the worker, whatever it is doing."""
        with self._closing:
            self._process.kill()
            self._process.wait(PATIENCE)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue  # what was still to be written to it is lost, as it should be
            self._words.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line.endswith("\n"):
            raise EOFError("the worker's output ended")
        return line.rstrip("\n")

    def _death(self) -> WorkerDied:
        """How it ended; one that lives but no longer makes sense is ended."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(PATIENCE)
        with self._closing:
            if self._words.closed:
                return WorkerDied("the worker process was ended", "")
            self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - SHOWN))
            words = self._words.read().decode(errors="replace")
        return WorkerDied(f"the worker process {how_it_ended(code)}", words)


def how_it_ended(code: int) -> str:
    """An exit code in words.

    Examples:
        >>> how_it_ended(-9)
        'was killed by SIGKILL: out of memory, or killed by somebody'
        >>> how_it_ended(3)
        'ended with code 3'
    """
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    why = ": out of memory, or killed by somebody" if name == "SIGKILL" else ""
    return f"was killed by {name}{why}"
