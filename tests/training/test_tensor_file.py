"""One file for tensors and a document: what goes in comes out, and damage is noticed."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from adabet import records
from adabet.errors import CheckpointError, StorageError
from adabet.training import tensor_file
from adabet.training.tensor_file import read_tensor_file, write_tensor_file

KIND = "adabet/checkpoint"

TENSORS = {
    "plain": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "view": torch.arange(100.0)[10:20],
    "trained": torch.nn.Parameter(torch.ones(3)),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, KIND, TENSORS, {"a": [1, None, "ä"]})
    return path


def test_what_goes_in_comes_out(path):
    tensors, document = read_tensor_file(path, KIND)
    assert document == {"a": [1, None, "ä"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_tensors_that_share_memory_are_written_twice(tmp_path):
    shared = torch.arange(4.0)
    write_tensor_file(tmp_path / "f", KIND, {"a": shared[:2], "b": shared[1:3]}, {})
    tensors, _ = read_tensor_file(tmp_path / "f", KIND)
    assert tensors["a"].tolist() == [0, 1]
    assert tensors["b"].tolist() == [1, 2]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is not a whole file of tensors"):
        read_tensor_file(path, KIND)


def test_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tensor_file(path, KIND)


def test_a_file_of_another_program(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="is not one that adabet wrote"):
        read_tensor_file(tmp_path / "weights.safetensors", KIND)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="is not a whole file of tensors"):
        read_tensor_file(tmp_path / "config.json", KIND)


def test_a_file_of_another_kind(path):
    with pytest.raises(CheckpointError, match="expected a file of kind 'adabet/delta', got 'adabet/checkpoint'"):
        read_tensor_file(path, "adabet/delta")


def test_a_file_of_another_version(path, monkeypatch):
    monkeypatch.setattr(records, "VERSION", 4)
    with pytest.raises(CheckpointError, match=r"cannot be used: expected version 4 of .*, got 1"):
        read_tensor_file(path, KIND)


def test_a_record_that_is_no_json(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "f", {"adabet": "{"})
    with pytest.raises(CheckpointError, match=r"cannot be used: .* not JSON"):
        read_tensor_file(tmp_path / "f", KIND)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is none"):
        read_tensor_file(tmp_path / "nothing", KIND)


def test_a_disk_that_fills_while_it_is_written(path):
    """A limit on the size of files, which the system enforces as it enforces a full disk."""
    before = path.read_bytes()
    program = """
import resource, sys, torch
from adabet.errors import StorageError
from adabet.training.tensor_file import write_tensor_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_tensor_file(sys.argv[1], "adabet/checkpoint", {"a": torch.ones(1_000_000)}, {})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "could not write" in done.stdout
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_no_pickle_is_written(path):
    header_length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_length])
    assert json.loads(header["__metadata__"]["adabet"])["kind"] == "adabet/checkpoint"
    assert set(header) - {"__metadata__"} == TENSORS.keys()
    assert tensor_file.bytes_of(torch.tensor([1.0])).tolist() == [0, 0, 128, 63]


def test_missing_folder(tmp_path):
    with pytest.raises(StorageError, match="could not write"):
        write_tensor_file(tmp_path / "missing" / "f", KIND, TENSORS, {})
