"""A run folder: config, selection, metrics, memory, checkpoint, deltas and result of one run."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adabet.errors import CheckpointError, RunError, StorageError
from adabet.files import remove_temporary_files, write_text
from adabet.records import read_record, write_record

KIND = "adabet/run"


class RunFolder:
    """The files of one run, by name.

    Attributes:
        path: the folder.
        config: options and environment of the run, JSON.
        selection: what trains, JSON; of a method that selects again while training, what it began with.
        plan: how it trains, JSON, if it was planned for a budget.
        turns: a JSON line for each selection that has trained.
        metrics: a JSON line per epoch.
        memory: what a training step holds, JSON.
        checkpoint: all that resuming needs.
        best: delta of the best epoch.
        last: delta of the last epoch.
        result: the finished run's result, JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.selection = path / "selection.json"
        self.plan = path / "plan.json"
        self.turns = path / "turns.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.memory = path / "memory.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.result = path / "result.json"

    @classmethod
    def free(cls, path: Path) -> "RunFolder":
        """A folder for a new run, which need not exist yet; nothing is written before `start`.

        Raises:
            RunError: if it holds a file of a run.
        """
        run = cls(path)
        if any(file.exists() for file in run.files):
            raise RunError(f"{path} already holds a run: resume it, or choose another folder")
        return run

    @classmethod
    def resume(cls, path: Path, options: Mapping[str, Any]) -> "RunFolder":
        """Open a run that was started with the same options.

        Raises:
            RunError: if the folder holds no run, or one with other options; names those that differ.
            CheckpointError: if its config is damaged or of another version.
        """
        run = cls(path)
        if not run.config.is_file():
            raise RunError(f"expected a run to resume in {path}; it has no {run.config.name}")
        former = run._read_options()
        given = json.loads(json.dumps(dict(options)))
        differing = [
            f"{name} ({former.get(name)!r} then, {given.get(name)!r} now)"
            for name in sorted(former.keys() | given.keys())
            if former.get(name) != given.get(name)
        ]
        if differing:
            raise RunError(
                f"the run in {path} was started with other options: {', '.join(differing)}; "
                "resume with the same, or start in another folder"
            )
        remove_temporary_files(path)
        return run

    def start(
        self,
        options: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        selection: str,
        plan: str | None = None,
        memory: str | None,
    ) -> None:
        """Make the folder and write what is known before the first step, unless it is there already.

        Args:
            options: what a resumed run has to agree with.
            environment: what is only noted, such as versions.
            selection: what trains, JSON.
            plan: how, JSON, or None if nothing was planned.
            memory: what a training step allocates, JSON, or None if unknown.

        Raises:
            StorageError: if the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"could not make the run folder {self.path}: {error.strerror}") from error
        config = write_record(KIND, {"options": dict(options), "environment": dict(environment)})
        # The config comes first: with it, a run that is killed here can be resumed.
        files = ((self.config, config), (self.plan, plan), (self.selection, selection), (self.memory, memory))
        for file, text in files:
            if text is not None and not file.exists():
                write_text(file, text + "\n")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that a run may have."""
        return (
            self.config,
            self.selection,
            self.plan,
            self.turns,
            self.metrics,
            self.memory,
            self.checkpoint,
            self.best,
            self.last,
            self.result,
        )

    def write_lines(self, file: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSON line for each record; the whole file each time, so that a kill leaves no half line."""
        write_text(file, "".join(json.dumps(record) + "\n" for record in records))

    def _read_options(self) -> dict[str, Any]:
        try:
            return dict(read_record(KIND, self.config.read_text(encoding="utf-8"))["options"])
        except (CheckpointError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.config} is not the config of a run: {error}") from error
