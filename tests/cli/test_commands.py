"""The commands in this process, on tiny images and the demo's small model."""

import inspect
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import adabet.training
from adabet.__main__ import main
from adabet.cli import app
from adabet.cli.show import out
from adabet.errors import StorageError, TrainingError
from adabet.memory import MemoryReport
from adabet.methods import METHODS
from adabet.planning import Plan
from adabet.ranking import Ranking
from adabet.selection import Selection

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Gray images of two classes in three splits, that differ in brightness."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for name, low in (("dark", 0), ("light", 128)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 128, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Nothing that a command writes by default lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


class TestHelp:
    def test_lists_the_commands_and_exit_codes(self):
        text = succeeds("--help").stdout
        for word in ("demo", "rank", "tune", "methods", "130 interrupted"):
            assert word in text

    @pytest.mark.parametrize("command", ["demo", "rank", "tune", "methods"])
    def test_has_an_example(self, command):
        text = succeeds(command, "--help").stdout
        assert f"Example: adabet {command}" in text

    def test_is_what_no_command_gets(self):
        assert "Usage" in run().output


def test_without_its_extra_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"^error: .* needs typer, .* pip install 'adabet\[cli\]'$"):
        main()


class TestMethods:
    def test_are_listed(self):
        lines = succeeds("methods").stdout.splitlines()
        shown = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].strip()]
        groups = {
            kind: sorted(method.name for method in METHODS.values() if method.kind == kind)
            for kind in ("ranks layers", "selects", "selects again")
        }
        ranking = groups.pop("ranks layers")
        ranking.remove("adabet")
        expected = [["adabet", *ranking], *groups.values()]
        assert shown == [name for group in expected for name in ("method", *group)]

    def test_with_a_star_where_they_keep_to_a_budget(self):
        marked = {line.split()[0] for line in succeeds("methods").stdout.splitlines() if " * " in line}
        assert marked == {method.name for method in METHODS.values() if method.budget}

    @pytest.mark.parametrize("columns", [60, 80, 120])
    def test_one_is_described_within_the_terminal(self, monkeypatch, columns):
        monkeypatch.setattr(out, "_width", columns)
        lines = succeeds("methods", "tinytrain").stdout.splitlines()
        assert all(len(line) <= min(columns, 100) for line in lines)
        words = " ".join(lines).replace("`", "").split()
        said = inspect.getdoc(METHODS["tinytrain"].start).replace("`", "").split()
        assert " ".join(said) in " ".join(words)
        assert "    macs: see above; None for no such budget. The paper's is about 0.15." in lines or columns == 60
        assert "options, with what they are unless given: memory_units=None" in " ".join(words)

    def test_are_listed_for_machines(self):
        entries = json.loads(succeeds("methods", "--json").stdout)
        assert {entry["name"] for entry in entries} == set(METHODS)
        assert len(entries) == len(METHODS)
        assert all(entry["summary"] and entry["needs"] and entry["source"] for entry in entries)


class TestRank:
    def test_shows_the_layers_best_first_with_the_chosen_marked(self, images):
        result = succeeds("rank", "demo", images, "--layer-ratio", "0.1")
        lines = result.stdout.splitlines()
        assert lines[0].strip() == "adabet: 24 layers, best first"
        marked = [line for line in lines if "●" in line]
        assert len(marked) == 2
        assert lines[-1].startswith("adabet: 2 of 24 layers and the head")
        assert "note: only 24 of 40 samples were given" in result.stderr

    def test_for_machines(self, images, tmp_path):
        result = succeeds("rank", "demo", images, "--json", "--output", tmp_path / "selection.json", "--samples", 16)
        found = json.loads(result.stdout)
        ranking = Ranking.from_json(json.dumps(found["ranking"]))
        selection = Selection.from_json(json.dumps(found["selection"]))
        assert ranking.samples == 16
        assert ranking.select(layer_ratio=0.1) == selection
        assert Selection.from_json((tmp_path / "selection.json").read_text()) == selection

    def test_is_the_same_each_time(self, images):
        runs = [json.loads(succeeds("rank", "demo", images, "--json", "--seed", seed).stdout) for seed in (1, 1, 2)]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    @pytest.mark.parametrize("method", ["size", "last-k", "random", "full", "head"])
    def test_by_other_methods(self, images, method):
        assert f"{method}: 24 layers" in succeeds("rank", "demo", images, "--method", method).stdout

    @pytest.mark.parametrize(
        "options",
        [
            ("--samples-in-memory", 16),
            ("--sketch", 64),
            ("--normalize", "parameters"),
            ("--channel-ratio", 0.5),
            ("--channel-ratio", 0.5, "--axis", "in"),
            ("--image-size", 16, "--mean", 0.5, "--std", 0.5),
        ],
    )
    def test_options(self, images, options):
        selection = json.loads(succeeds("rank", "demo", images, "--json", *options).stdout)["selection"]
        assert len(selection["choices"]) == 3
        sliced = [choice for choice in selection["choices"] if choice["channels"] is not None]
        assert bool(sliced) == ("--channel-ratio" in options)

    def test_rows(self, images):
        few, every = (succeeds("rank", "demo", images, "--rows", rows).stdout for rows in (3, 0))
        assert "and 21 more; --rows 0 shows all" in few
        assert len(every.splitlines()) - len(few.splitlines()) > 15

    def test_random_weights_are_said(self, images):
        result = succeeds("rank", "timm/mobilenetv2_035", images, "--image-size", 32, "--method", "size")
        assert "note: the model has random weights" in result.stderr
        assert "random" not in succeeds("rank", "demo", images, "--method", "size").stderr

    def test_unreadable_images_are_named(self, images, tmp_path):
        folder = tmp_path / "some"
        folder.mkdir()
        for index, path in enumerate(sorted((images / "train" / "dark").iterdir())):
            (folder / f"{index}.png").write_bytes(path.read_bytes())
        (folder / "broken.png").write_bytes(b"broken")
        result = succeeds("rank", "demo", folder)
        assert f"note: {folder / 'broken.png'} cannot be read and was left out:" in result.stderr

    def test_names_that_look_like_markup_are_shown_as_they_are(self, images, tmp_path):
        folder = tmp_path / "[bold] photos [" / "x"
        folder.mkdir(parents=True)
        for name in ("dark", "light"):
            for path in (images / "train" / name).iterdir():
                (folder / f"{name}{path.name}").write_bytes(path.read_bytes())
        (folder / "[red]broken.png").write_bytes(b"broken")
        assert "[bold] photos [/x/[red]broken.png cannot be read" in succeeds("rank", "demo", folder).stderr


WRONG = [
    (("rank", "dema", "IMAGES"), "unknown model 'dema'; did you mean 'demo'?"),
    (("rank", "timm/resnet5", "IMAGES"), "did you mean 'timm/resnet50'?"),
    (("rank", "demo", "pest"), "unknown dataset or folder 'pest'; did you mean 'pets'?"),
    (("rank", "demo", "./nowhere/at-all"), "nowhere/at-all"),
    (("rank", "demo", "IMAGES", "--method", "adabit"), "unknown method 'adabit'; did you mean 'adabet'?"),
    (("rank", "demo", "IMAGES", "--layer-ratio", "1.5"), "layer_ratio from 0 to 1, got 1.5"),
    (("rank", "demo", "IMAGES", "--layer-ratio", "nan"), "layer_ratio from 0 to 1, got nan"),
    (("rank", "demo", "IMAGES", "--channel-ratio", "0"), "channel_ratio above 0 and up to 1, got 0.0"),
    (("rank", "demo", "IMAGES", "--axis", "up"), "axis of 'out' or 'in', got 'up'"),
    (("rank", "demo", "IMAGES", "--normalize", "size"), "normalize to be one of activations, parameters, none"),
    (("rank", "demo", "IMAGES", "--samples", "2"), "samples of at least 4"),
    (("rank", "demo", "IMAGES", "--samples", "0"), "got 0"),
    (("rank", "demo", "IMAGES", "--samples-in-memory", "4"), "samples_in_memory of at least 8"),
    (("rank", "demo", "IMAGES", "--sketch", "0"), "power of two"),
    (("rank", "demo", "IMAGES", "--model-arg", "pad_type"), "expected --model-arg NAME=VALUE, got 'pad_type'"),
    (("rank", "demo", "IMAGES", "--model-arg", "width=2"), "takes no other weights and no arguments"),
    (("rank", "timm/mobilenetv2_035", "IMAGES", "--model-arg", "widht=2"), "widht"),
    (("rank", "timm/mobilenetv2_035", "IMAGES", "--model-arg", "weights=2"), "got 'weights'; see --help"),
    (("rank", "timm/mobilenetv2_035", "IMAGES", "--model-arg", "name=2"), "got 'name'; see --help"),
    (("rank", "timm/mobilenetv2_035", "IMAGES", "--weights", "nothing.safetensors"), "nothing.safetensors"),
    (("rank", "timm/mobilenetv2_035", "IMAGES", "--weights", "x.pth"), "x.pth"),
    (("rank", "demo", "IMAGES", "--image-size", "0"), "image_size of at least 1 pixel"),
    (("memory", "demo", "--methods", "fool"), "did you mean 'full'?"),
    (("memory", "demo", "--methods", ","), "expected --methods with at least one name"),
    (("tune", "demo", "IMAGES", "--method", "fool"), "did you mean 'full'?"),
    (("tune", "demo", "./nowhere"), "nowhere"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_wrong_input_is_one_line_and_exit_code_two(images, arguments, message):
    result = run(*(images if argument == "IMAGES" else argument for argument in arguments))
    assert result.exit_code == WRONG_INPUT
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: ")
    assert message in line


def test_a_run_that_cannot_start_leaves_no_folder(images, tmp_path):
    result = run("tune", "demo", images, "--method", "lisa", "--memory", "1MB", "--run-dir", tmp_path / "run")
    assert result.exit_code == WRONG_INPUT
    assert "method 'lisa' keeps to no budget by itself" in result.stderr
    assert not (tmp_path / "run").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    run("tune", "demo", images, "--method", "lisa", "--memory", "1MB", "--run-dir", tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "arguments", [("rank",), ("rank", "demo"), ("nothing",), ("rank", "demo", "x", "--layer-ratio", "few")]
)
def test_wrong_usage_is_exit_code_two(arguments):
    result = run(*arguments)
    assert result.exit_code == WRONG_INPUT
    assert "Usage" in result.stderr


def test_what_fails_while_working_is_exit_code_one(images):
    result = run("rank", "demo", images, "--output", "no/such/folder/selection.json")
    assert result.exit_code == FAILED
    assert "error: could not write no/such/folder/selection.json" in result.stderr


class TestMemory:
    def test_each_method_has_its_peak(self):
        found = json.loads(succeeds("memory", "demo", "--methods", "full,head", "--json").stdout)
        assert list(found) == ["full", "head"]
        full, head = (MemoryReport.from_json(json.dumps(report)).training for report in found.values())
        assert full.optimizer > head.optimizer > 0

    def test_plan_finds_what_fits(self, images):
        found = Plan.from_json(succeeds("plan", "demo", images, "--memory", "1.6MB", "--whole-layers", "--json").stdout)
        assert found.measured <= 1_600_000
        assert all(choice.channels is None for choice in found.selection.choices)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--memory", "1kB"), "error: 1 kB is too little: training the head of"),
            (("--memory", "2MB", "--time-ratio", 2), "error: expected a time_ratio above 0 and up to 1, got 2.0"),
        ],
    )
    def test_what_cannot_be_planned_is_one_line(self, images, options, message):
        result = run("plan", "demo", images, *options)
        assert result.exit_code == WRONG_INPUT
        assert result.stderr.splitlines()[-1].startswith(message)


class TestTune:
    OPTIONS = ("--epochs", 1, "--lr", 0.01, "--layer-ratio", 0.1)

    def test_from_images_to_a_delta(self, images, tmp_path):
        folder = tmp_path / "run"
        result = succeeds("tune", "demo", images, *self.OPTIONS, "--run-dir", folder)
        written = {path.name for path in folder.iterdir()}
        assert written == {
            "config.json",
            "selection.json",
            "metrics.jsonl",
            "memory.json",
            "checkpoint.safetensors",
            "best.safetensors",
            "last.safetensors",
            "ranking.json",
            "result.json",
            "task.json",
            "test.json",
        }
        selection = Selection.from_json((folder / "selection.json").read_text())
        assert len(selection.layers) == 2
        (epoch,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        assert epoch["epoch"] == 1
        test = json.loads((folder / "test.json").read_text())
        assert f"test accuracy {test['accuracy']:.4f} on 8 images" in result.stdout
        assert "2 classes; train 24, val 8, test 8 images" in result.stderr

        again = run("tune", "demo", images, *self.OPTIONS, "--run-dir", folder)
        assert again.exit_code == WRONG_INPUT
        assert again.stderr.splitlines()[-1].startswith(f"error: {folder} already holds a run: resume it")

        before = load_file(folder / "last.safetensors")
        resumed = succeeds("tune", "demo", images, *self.OPTIONS, "--run-dir", folder, "--resume", "--json")
        found = json.loads(resumed.stdout)
        assert found["test"] == test
        assert found["run_dir"] == str(folder)
        after = load_file(folder / "last.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

        other = run("tune", "demo", images, "--epochs", 2, "--run-dir", folder, "--resume")
        assert other.exit_code == WRONG_INPUT
        assert "epochs (1 then, 2 now)" in other.stderr.splitlines()[-1]

    def test_a_selection_that_rank_wrote(self, images, tmp_path):
        succeeds("rank", "demo", images, "--method", "random", "--seed", 7, "--output", "chosen.json")
        succeeds("tune", "demo", images, *self.OPTIONS, "--selection", "chosen.json", "--run-dir", "run")
        chosen = Selection.from_json((tmp_path / "chosen.json").read_text())
        trained = Selection.from_json((tmp_path / "run" / "selection.json").read_text())
        assert trained.layers == chosen.layers

    def test_default_run_folder(self, images, tmp_path):
        succeeds("tune", "demo", images, *self.OPTIONS, "--method", "head")
        assert (tmp_path / "runs" / f"demo-{images.name}-head" / "result.json").is_file()

    @pytest.mark.parametrize("content", [None, "", "{}", b"\xff\xfe\x00"])
    def test_a_selection_that_is_none(self, images, tmp_path, content):
        path = tmp_path / "selection.json"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        result = run("tune", "demo", images, "--selection", path)
        assert result.exit_code == WRONG_INPUT
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert not isinstance(result.exception, OSError)

    def test_a_selection_of_another_model(self, images):
        succeeds(
            "rank", "timm/mobilenetv2_035", images, "--method", "size", "--image-size", 32, "--output", "other.json"
        )
        result = run("tune", "demo", images, "--selection", "other.json")
        assert result.exit_code == WRONG_INPUT
        assert "made for another model" in result.stderr.splitlines()[-1]

    def test_resuming_nothing(self, images):
        result = run("tune", "demo", images, *self.OPTIONS, "--resume", "--method", "head")
        assert result.exit_code == WRONG_INPUT
        assert "expected a run to resume in runs/demo-" in result.stderr.splitlines()[-1]

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (KeyboardInterrupt(), INTERRUPTED, "stopped; the last whole epoch is in runs/demo-"),
            (TrainingError("the loss is nan"), FAILED, "the loss is nan"),
            (StorageError("the disk is full"), FAILED, "the disk is full"),
        ],
    )
    def test_what_ends_it_early(self, images, monkeypatch, error, code, message):
        def fit(*_, **__):
            raise error

        monkeypatch.setattr(adabet.training, "fit", fit)
        result = run("tune", "demo", images, *self.OPTIONS, "--method", "head")
        assert result.exit_code == code
        assert result.stderr.splitlines()[-1].startswith(f"error: {message}")
