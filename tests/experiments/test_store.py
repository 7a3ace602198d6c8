"""The results file: one writer, whole cells, and nothing touched that is not ours."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time

import pytest

from adabet.errors import CheckpointError, StorageError
from adabet.experiments.outcome import Done
from adabet.experiments.search import training_cell
from adabet.experiments.store import Store, read_rows
from tests.experiments.grids import make_grid, record

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

GRID = make_grid()


def cells(count):
    return [training_cell(GRID, GRID.entries[0], 0.01, seed) for seed in range(count)]


class OtherProcess:
    """A function in a process of its own, forked so that it starts at once; it says things through a pipe."""

    def __init__(self, function, path):
        context = multiprocessing.get_context("fork")
        self.says, end = context.Pipe(duplex=False)
        self.process = context.Process(target=function, args=(path, end.send), daemon=True)
        self.process.start()
        end.close()

    def kill(self):
        """As ``kill -9`` does; returns all that it has said since."""
        os.kill(self.process.pid, signal.SIGKILL)
        said = []
        try:
            while True:
                said.append(self.says.recv())
        except (EOFError, OSError):
            self.process.join()
            return said


def hold(path, say):
    with Store(path):
        say("holds")
        time.sleep(600)


def write(path, say):
    with Store(path) as store:
        for cell in cells(2000):
            store.keep(cell, Done("done", record(0.5, 0.25)))
            say(cell.seed)


def test_what_is_kept_comes_back(tmp_path):
    cell, path = cells(1)[0], tmp_path / "results.db"
    with Store(path) as store:
        store.set_grid(GRID.to_dict())
        kept = store.keep(cell, Done("done", record(0.5, 0.25), environment={"host": "here"}, started=3.0, seconds=4.0))
    grid, created, rows = read_rows(path)
    assert rows == {cell.key: kept}
    assert rows[cell.key].record == record(0.5, 0.25)
    assert rows[cell.key].known.score == (0.5, -1.0)
    assert grid == json.loads(json.dumps(GRID.to_dict()))
    assert created > 1e9


def test_a_cell_is_kept_once(tmp_path):
    cell, path = cells(1)[0], tmp_path / "results.db"
    with Store(path) as store:
        store.keep(cell, Done("done", record(0.5, 0.25)))
        with pytest.raises(StorageError, match="what it held before is whole"):
            store.keep(cell, Done("done", record(0.9, 0.9)))
        assert store.rows()[cell.key].record["val"] == {"accuracy": 0.5}


def test_failed_cells_can_be_dropped_and_no_others(tmp_path):
    done, diverged, failed = cells(3)
    with Store(tmp_path / "results.db") as store:
        store.keep(done, Done("done", record(0.5, 0.25)))
        store.keep(diverged, Done("diverged", error="the loss became nan"))
        store.keep(failed, Done("failed", error="out of memory"))
        assert store.forget_failed() == 1
        assert store.rows().keys() == {done.key, diverged.key}


class TestLock:
    def test_a_second_writer_is_refused_and_told_who_has_it(self, tmp_path):
        path = tmp_path / "results.db"
        holder = OtherProcess(hold, path)
        assert holder.says.recv() == "holds"
        before = path.read_bytes()
        with pytest.raises(StorageError, match=rf"is in use .*process {holder.process.pid} on .*") as error:
            Store(path).__enter__()
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before
        holder.kill()

    def test_that_of_a_killed_process_is_taken_over(self, tmp_path):
        path = tmp_path / "results.db"
        holder = OtherProcess(hold, path)
        assert holder.says.recv() == "holds"
        holder.kill()
        assert str(holder.process.pid) in (tmp_path / "results.db.lock").read_text()
        with Store(path) as store:
            assert store.rows() == {}

    def test_a_reader_needs_no_lock(self, tmp_path):
        path = tmp_path / "results.db"
        with Store(path) as store:
            store.set_grid(GRID.to_dict())
            store.keep(cells(1)[0], Done("done", record(0.5, 0.25)))
            assert len(read_rows(path)[2]) == 1

    def test_is_given_back_when_the_file_is_refused(self, tmp_path):
        path = tmp_path / "results.db"
        path.write_text("notes of mine")
        for _ in range(2):
            with pytest.raises(CheckpointError, match="no results file"):
                Store(path).__enter__()


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_reported(tmp_path):
    path = tmp_path / "results.db"
    writer = OtherProcess(write, path)
    told = {writer.says.recv() for _ in range(40)}
    told |= set(writer.kill())
    with Store(path) as store:
        kept = {row.cell["seed"]: row for row in store.rows().values()}
        store.keep(training_cell(GRID, GRID.entries[0], 0.1, 0), Done("done", record(0.5, 0.25)))
    assert told <= kept.keys()
    assert len(kept) - len(told) <= 1
    assert all(row.record == record(0.5, 0.25) for row in kept.values())


class TestForeignFiles:
    @pytest.fixture
    def results(self, tmp_path):
        path = tmp_path / "results.db"
        with Store(path) as store:
            store.set_grid(GRID.to_dict())
            store.keep(cells(1)[0], Done("done", record(0.5, 0.25)))
        return path

    def refused(self, path, message):
        before = path.read_bytes()
        for read in (read_rows, lambda path: Store(path).__enter__()):
            with pytest.raises(CheckpointError, match=message) as error:
                read(path)
            assert "\n" not in str(error.value)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("version", [0, 2, 99])
    def test_another_version_is_left_as_it_is(self, results, version):
        with sqlite3.connect(results) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        self.refused(results, f"results of version {version}, this adabet reads and writes version 1")

    def test_a_database_of_something_else(self, tmp_path):
        path = tmp_path / "photos.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE cells (key TEXT)")
        connection.close()
        self.refused(path, "a database of something else")

    def test_text(self, tmp_path):
        path = tmp_path / "results.db"
        path.write_text("{}")
        self.refused(path, "no results file")

    def test_a_damaged_file(self, results):
        whole = results.read_bytes()
        results.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
        with pytest.raises(CheckpointError, match="damaged"):
            read_rows(results)

    def test_a_missing_one(self, tmp_path):
        with pytest.raises(CheckpointError, match="could not read"):
            read_rows(tmp_path / "none.db")

    def test_one_in_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="could not write"):
            Store(tmp_path / "file" / "results.db").__enter__()
