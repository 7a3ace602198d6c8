"""`adabet report`, from a run of `adabet tune` to a delta that is loaded as the page says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from adabet.cli import app
from adabet.ranking import Ranking
from adabet.selection import Selection
from tests.report.grids import write_results
from tests.report.reading import read

WRONG_INPUT = 2


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run on gray images of two classes."""
    images = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for name, low in (("dark", 0), ("light", 128)):
            (images / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 128, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / name / f"{index}.png")
    place = tmp_path_factory.mktemp("runs") / "run"
    done = run("tune", "demo", images, "--epochs", 2, "--lr", 0.003, "--layer-ratio", 0.2, "--run-dir", place)
    assert done.exit_code == 0, done.stderr
    return place


def test_writes_the_page_into_the_run_folder(folder):
    done = run("report", folder)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.replace("\n", "") == f"report: {folder / 'report.html'}"
    page = read((folder / "report.html").read_text(encoding="utf-8"))
    accuracy = json.loads((folder / "test.json").read_text())["accuracy"]
    told = page.one("p", class_="verdict").text.replace("\u00a0", " ")
    assert told.startswith("adabet trained 4 of 24 layers and the head, ")
    assert f"reached {100 * accuracy:.1f} % accuracy on 8 test images" in told


def test_the_lines_on_the_page_load_the_delta(folder, monkeypatch):
    run("report", folder)
    page = read((folder / "report.html").read_text(encoding="utf-8"))
    scope = {}
    exec(page.one("section", id="delta").one("code").text, scope)
    model = scope["model"]
    (folder / "report.html").unlink()
    assert not model.training
    result = json.loads((folder / "result.json").read_text())
    delta = load_file(folder / f"{result['kept']}.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in delta.items())
    assert len(delta) >= 5


def test_tune_keeps_what_the_report_needs(folder):
    task = json.loads((folder / "task.json").read_text())
    assert (task["model"], task["classes"]) == ("demo", ["dark", "light"])
    assert task["images"] == {"train": 24, "val": 8, "test": 8}
    ranking = Ranking.from_json((folder / "ranking.json").read_text())
    assert task["layers"] == [ranked.layer.name for ranked in ranking.layers]
    assert ranking.select(layer_ratio=0.2) == Selection.from_json((folder / "selection.json").read_text())


def test_of_a_comparison_beside_its_results(tmp_path):
    path = write_results(tmp_path / "grid.db")
    done = run("report", path, "--json")
    assert json.loads(done.stdout) == {"report": str(tmp_path / "grid.html")}
    assert read((tmp_path / "grid.html").read_text(encoding="utf-8")).one("h1").text == "demo on photos"


def test_into_another_file(folder, tmp_path):
    assert run("report", folder, "--output", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").is_file()


def test_wrong_input_is_one_line_and_exit_code_2(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for source in (tmp_path, tmp_path / "nowhere", tmp_path / "notes.txt"):
        done = run("report", source)
        assert done.exit_code == WRONG_INPUT
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(folder, tmp_path):
    done = run("report", folder, "--output", tmp_path / "no" / "such" / "page.html")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: could not write ")
