"""`adabet export` in this process, on the demo's small model."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import adabet
from adabet.cli import app
from adabet.models import load_model, new_head

WRONG_INPUT, FAILED = 2, 1


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's model with a head of 3 classes, its delta and images."""
    torch.manual_seed(0)
    model = load_model("demo").model
    new_head(model, 3)
    images = torch.randn(4, 1, 24, 24)
    selection = adabet.select("last-k", model, [images], layer_ratio=0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * (name in selection.parameters)
    delta = tmp_path_factory.mktemp("run") / "best.safetensors"
    adabet.save_delta(model, selection, delta, buffers=())
    return model.eval(), delta, images


def run(*arguments):
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


def test_help_has_examples():
    text = run("--help").stdout
    assert "Example: adabet export timm/resnet50" in " ".join(text.split())


def test_onnx_with_a_delta_of_another_number_of_classes(tmp_path, trained):
    model, delta, images = trained
    result = run("demo", "--delta", delta, "--out", tmp_path / "model.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["bytes"] == (tmp_path / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(got, model(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_torch_export_with_a_fixed_batch(tmp_path, trained):
    model, delta, images = trained
    result = run("demo", "--delta", delta, "--output", tmp_path / "model.pt2", "--batch-size", 4)
    assert result.exit_code == 0, result.stderr
    assert "takes 4 x 1 x 24 x 24" in result.stdout
    assert "less mean (0.0,), over std (1.0,)" in result.stdout
    program = torch.export.load(tmp_path / "model.pt2")
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--out", "model.bin"], WRONG_INPUT, "expected --output to end in .onnx or .pt2, got model.bin"),
        (["--out", "model.onnx", "--batch-size", "0"], WRONG_INPUT, "expected --batch-size of at least 1 sample"),
        (["--out", "nowhere/model.onnx"], FAILED, "No such file or directory"),
        (["--out", "model.onnx", "--delta", "no.safetensors"], WRONG_INPUT, "at no.safetensors; there is none"),
        (["--out", "model.onnx", "--delta", "foreign.safetensors"], WRONG_INPUT, "made on other base weights"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    if "foreign.safetensors" in arguments:
        other = load_model("demo").model
        with torch.no_grad():
            next(other.parameters()).mul_(2)
        selection = adabet.select("head", other, [torch.zeros(2, 1, 24, 24)])
        adabet.save_delta(other, selection, tmp_path / "foreign.safetensors")
    before = sorted(tmp_path.iterdir())
    result = run("demo", *arguments)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
