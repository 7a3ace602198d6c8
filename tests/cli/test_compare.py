"""`adabet compare`: what it asks for, what it shows, and how it goes on."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import adabet.experiments
from adabet.cli import app
from adabet.cli.compare_table import Column, fitting
from adabet.experiments import GridResults
from adabet.experiments.outcome import Done
from adabet.experiments.store import Store
from tests.experiments.grids import FakePool, scored

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def by_rate(cell):
    """AdaBet is best, with some noise over the seeds."""
    less = {"adabet": 0.0, "head": 0.1, "full": 0.005}.get(cell.method.label, 0.02)
    return 0.8 + cell.learning_rate - less + 0.01 * (cell.seed % 2) - 0.002 * cell.seed * less


@pytest.fixture
def pool(monkeypatch):
    """Cells are answered at once."""
    pools = []

    def make(workers=None, *, threads=None):
        pools.append(FakePool(scored(by_rate)))
        return pools[-1]

    monkeypatch.setattr(adabet.experiments, "LocalPool", make)
    return pools


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Nothing that the command writes by default lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adabet.cli.show.out, "_width", 200)


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def succeeds(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


SMALL = ("demo", "photos", "--methods", "adabet,head,full", "--seeds", "3", "--lr", "0.01,0.1")


class TestShows:
    def test_a_line_a_method_with_what_is_noise(self, pool):
        result = succeeds(*SMALL)
        lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
        assert lines["adabet"][1:4] == ["0.1", "0.1", "0.903"]
        assert "worse" in lines["head"]
        assert "±0.000" in lines["head"]
        assert "3 paired seeds" in result.stderr
        assert "more seeds tell more" in result.stderr
        assert "12 training runs in compare.db" in result.stdout

    def test_the_same_again_from_the_file_alone(self, pool):
        first = succeeds(*SMALL)
        assert succeeds().stdout == first.stdout
        assert not pool[1].seen

    @pytest.mark.parametrize("width", [80, 100, 120])
    def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(self, pool, monkeypatch, width):
        monkeypatch.setattr(adabet.cli.show.out, "_width", width)
        monkeypatch.setattr(adabet.cli.compare.out, "_width", width)
        text = succeeds(*SMALL).stdout
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "0.903 ± 0.006" in text

    def test_json_holds_lines_and_runs(self, pool):
        values = json.loads(succeeds(*SMALL, "--json").stdout)
        assert values["complete"]
        assert [line["method"] for line in values["lines"]] == ["adabet", "head", "full"]
        assert values["lines"][1]["difference"] == pytest.approx(-0.1, abs=0.01)
        assert values["lines"][1]["within_noise"] is False
        assert len(values["runs"]) == 12
        assert values["runs"][0]["peak_workspace"] == 1000

    def test_csv_is_the_table(self, pool, tmp_path):
        succeeds(*SMALL, "--csv", tmp_path / "table.csv")
        rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
        assert [row["method"] for row in rows] == ["adabet", "head", "full"]
        assert float(rows[0]["test"]) == GridResults.read(tmp_path / "compare.db").entries[0].summary.mean

    def test_a_cell_that_fails_is_told_and_the_rest_goes_on(self, monkeypatch):
        def fails(job):
            if job.cell.method.label == "head":
                return Done("failed", error="the worker process was killed by SIGKILL")
            return scored(by_rate)(job)

        monkeypatch.setattr(adabet.experiments, "LocalPool", lambda *_, **__: FakePool(fails))
        result = succeeds(*SMALL)
        assert "head on demo, photos: lr 0.01, seed 0: the worker process was killed by SIGKILL" in result.stderr
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["head"])
        assert "failed" in line
        assert "note: head on demo, photos: the worker process was killed" in result.stderr

    def test_columns_give_way_by_their_rank(self):
        columns = [
            Column("a", ("123456",)),
            Column("b", ("123456",), 2),
            Column("c", ("123",), 1),
            Column("d", ("",), 1),
        ]
        assert [column.heading for column in fitting(columns, 100)] == ["a", "b", "c"]
        assert [column.heading for column in fitting(columns, 15)] == ["a", "c"]
        assert [column.heading for column in fitting(columns, 3)] == ["a"]


class TestAsks:
    def told(self, pool, *arguments):
        succeeds(*arguments)
        return pool[-1].seen

    def test_for_what_the_options_say(self, pool):
        jobs = self.told(
            pool,
            *("demo", "photos", "--methods", "adabet,random", "--option", "adabet:samples=16", "--lr", "0.02"),
            *("--seeds", "7,9", "--epochs", "2", "--batch-size", "4", "--max-train", "64", "--image-size", "32"),
            *("--memory", "2MB", "--no-selection-memory", "--optimizer", "adam"),
        )
        assert len(jobs) == 4
        cell = jobs[0].cell
        assert (cell.model.image_size, cell.data.max_train, cell.method.options) == (32, 64, {"samples": 16})
        assert (cell.settings.epochs, cell.settings.batch_size, cell.settings.optimizer) == (2, 4, "adam")
        assert {job.cell.seed for job in jobs} == {7, 9}
        assert {job.budget for job in jobs} == {2_000_000}

    def test_a_grid_file_is_changed_by_options(self, pool, tmp_path):
        (tmp_path / "grid.toml").write_text(
            'models = ["demo"]\ndata = ["one", "two"]\nmethods = ["head"]\nseeds = 3\nlearning_rates = [0.1]\n'
        )
        jobs = self.told(pool, "--grid", tmp_path / "grid.toml", "--seeds", "1", "--no-selection-memory")
        assert [(job.cell.data.label, job.cell.seed) for job in jobs] == [("one", 0), ("two", 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected MODEL and DATA, --grid FILE, or --results"),
        (("demo",), "expected MODEL and DATA, or --grid FILE"),
        (("demo", "photos", "--methods", "adabett"), "unknown method 'adabett'; did you mean 'adabet'?"),
        (("demo", "photos", "--option", "adabet:sample=3"), "did you mean 'samples'?"),
        (("demo", "photos", "--option", "samples=3"), "expected --option METHOD:NAME=VALUE"),
        (("demo", "photos", "--seeds", "few"), "expected --seeds as a number of seeds"),
        (("demo", "photos", "--lr", "fast"), "expected --lr as numbers with commas"),
        (("demo", "photos", "--memory", "much"), "expected a size such as '200MB'"),
        (("demo", "photos", "--reference", "head2"), "expected --reference to be one of adabet, head, full"),
        (("demo", "photos", "--workers", "0"), "at least 1 worker"),
        (("--grid", "none.toml"), "could not read the grid none.toml"),
        (("--grid", "none.toml", "--max-train", "3"), "in a grid they stand in the file"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(arguments, message, tmp_path):
    result = run(*arguments)
    assert result.exit_code == WRONG_INPUT
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_an_interrupted_comparison_says_how_to_go_on(monkeypatch, tmp_path):
    stops = FakePool(scored(by_rate), stop_after=2)
    monkeypatch.setattr(adabet.experiments, "LocalPool", lambda *_, **__: stops)
    result = run(*SMALL)
    assert result.exit_code == INTERRUPTED
    assert "stopped; what is finished is in compare.db: go on with the same command" in result.stderr
    assert stops.ended
    assert len(GridResults.read(tmp_path / "compare.db").cells) == 2


def test_results_of_another_version_are_left_alone(pool, tmp_path):
    succeeds(*SMALL)
    with sqlite3.connect("compare.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = (tmp_path / "compare.db").read_bytes()
    for arguments in (SMALL, ()):
        result = run(*arguments)
        assert result.exit_code == WRONG_INPUT
        assert "holds results of version 7, this adabet reads and writes version 1" in result.stderr
    assert (tmp_path / "compare.db").read_bytes() == before


def test_help_has_examples():
    text = succeeds("--help").stdout
    assert "Example: adabet compare mcu/mbv2-w0.35" in text
    assert "compare --grid grid.toml" in " ".join(text.split())


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name, low in (("dark", 0), ("light", 60)):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 160, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{index}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_kill_9_in_the_middle_and_again_no_cell_is_lost_or_run_twice(images, tmp_path):
    arguments = ["demo", images, "--methods", "head,last-k", "--seeds", "2", "--lr", "0.01,0.1", "--epochs", "3"]
    arguments += ["--no-selection-memory", "--workers", "1", "--threads", "1", "--reference", "head"]
    command = [sys.executable, "-m", "adabet", "compare", *map(str, arguments)]
    path = tmp_path / "compare.db"

    def kept():
        return {run.cell.key: run for run in GridResults.read(path).cells}

    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 100
    while not path.exists() or path.stat().st_size == 0 or not _grid_is_there(path) or len(kept()) < 2:
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    second = run(*arguments)
    assert second.exit_code == FAILED
    assert f"compare.db is in use by another comparison (process {first.pid} on " in second.stderr
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = kept()
    succeeds(*arguments)
    found = GridResults.read(path)
    assert found.complete
    assert len(found.cells) == 6
    assert 2 <= len(before) < 6
    assert {key: run for key, run in kept().items() if key in before} == before
    with Store(path) as store:
        starts = store.starts()
    assert starts.keys() == {run.cell.key for run in found.cells}
    assert all(starts[key] == 1 for key in before)
    assert sum(starts.values()) <= 7, "one cell at most was running when it was killed"


def _grid_is_there(path):
    try:
        GridResults.read(path)
    except adabet.errors.AdabetError:
        return False
    return True
