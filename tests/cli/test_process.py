"""The installed command, in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def run(*arguments, folder):
    command = [sys.executable, "-m", "adabet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


def test_standard_output_is_for_the_result_alone(images, tmp_path):
    done = run("rank", "demo", images, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ranking"]["samples"] == 12
    assert all(line.startswith("note: ") for line in done.stderr.splitlines())


def test_an_error_is_one_line(tmp_path):
    done = run("rank", "demo", "no-such-folder", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown dataset or folder 'no-such-folder'")
