"""A worker: a process that reads cells from standard input and writes what they gave to standard output.

    python -m adabet.experiments.worker FOLDER

One JSON line each way for each cell. It ends when its input does, so also when the process that started it is killed,
even in the middle of a cell: what that gave would reach nobody. Temporary files are in the folder, which goes with it.
"""

import json
import os
import queue
import shutil
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

ATTEMPTS = 100  # to take the folder away


def main() -> None:
    """Run the cells that come in, one after the other."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for an answer
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    tempfile.tempdir = sys.argv[1]
    threading.Thread(target=_read, args=(sys.stdin, jobs), daemon=True).start()
    from adabet.experiments.process import READY
    from adabet.experiments.work import Workplace

    place = Workplace()
    try:
        _answer(answers, READY)
        while True:
            job = json.loads(jobs.get())
            _answer(answers, json.dumps(asdict(place.run(job))))
    finally:  # an answer that nobody waits for any more ends the process before `_read` has cleaned up
        _remove(sys.argv[1])


def _read(source: TextIO, jobs: "queue.SimpleQueue[str]") -> None:
    for line in source:
        jobs.put(line)
    _remove(sys.argv[1])
    os._exit(0)


def _remove(folder: str) -> None:
    """Take a folder away to which the other thread may still write."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return


def _answer(answers: TextIO, line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
