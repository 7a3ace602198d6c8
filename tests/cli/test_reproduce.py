"""`adabet reproduce` in this process: the list, a quick table, and wrong input."""

import json

import pytest
from typer.testing import CliRunner

import adabet.cli.show
from adabet.cli import app
from adabet.experiments.reproduce import REPRODUCTIONS

WRONG_INPUT = 2

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adabet.cli.show.out, "_width", 200)


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def fails(*arguments):
    result = run(*arguments)
    assert result.exit_code == WRONG_INPUT, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_alone_it_lists_what_there_is():
    result = run()
    assert result.exit_code == 0
    for name, item in REPRODUCTIONS.items():
        assert name in result.stdout
        assert item.duration.split(";")[0] in result.stdout


def test_the_list_as_json_explains_every_column():
    items = json.loads(run("--json").stdout)
    assert [item["name"] for item in items] == list(REPRODUCTIONS)
    assert all(meaning for item in items for meaning in item["columns"].values())


def test_a_table_of_ones_own_model(tmp_path):
    result = run("table3", "--quick", "--models", "demo", "--output", tmp_path / "made", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"][0]["trains"] == "Inference"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["table3.csv", "table3.md", "table3.png"]
    assert found["columns"].keys() == found["rows"][0].keys()


def test_a_table_for_people():
    result = run("table3", "--models", "demo")
    assert result.exit_code == 0, result.stderr
    assert "Full training" in result.stdout
    assert "reproduced/table3.csv" in result.stdout
    assert "note: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table33"], "did you mean 'table3'"),
        (["table3", "--weights", "w.safetensors"], "single --models"),
        (["table3", "--models", "demo", "--models", "timm/resnet50", "--image-size", "64"], "single --models"),
        (["table3", "--max-train", "5"], "--data"),
        (["table3", "--models", "no/such"], "unknown model"),
        (["table3", "--models", "demo", "--grid", "grid.toml"], "--grid FILE, or --models"),
        (["table3", "--grid", "missing.toml"], "missing.toml"),
    ],
)
def test_wrong_input_is_one_line(arguments, words):
    assert words in fails(*arguments)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("table3", "--models", "demo", "--output", tmp_path / "file")
    assert result.exit_code == 1
    assert "could not make the folder" in result.stderr
