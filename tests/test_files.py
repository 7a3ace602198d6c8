"""Files are whole or not there, whatever stops the writing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adabet.errors import StorageError
from adabet.files import remove_temporary_files, replacing, write_text


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_file_appears_whole(tmp_path):
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert names_in(tmp_path) == ["a.txt"]


def test_a_reader_sees_the_former_file_until_the_block_ends(tmp_path):
    write_text(tmp_path / "a.txt", "former")
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("next")
        assert (tmp_path / "a.txt").read_text() == "former"
        assert temporary.parent == tmp_path
    assert (tmp_path / "a.txt").read_text() == "next"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_stops_the_block_leaves_the_former_file_alone(tmp_path, stop):
    write_text(tmp_path / "a.txt", "former")

    def write_half() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert (tmp_path / "a.txt").read_text() == "former"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_disk_that_is_full_when_the_file_is_flushed(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "former")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; the file that stood there is whole"):
        write_text(tmp_path / "a.txt", "next")
    assert (tmp_path / "a.txt").read_text() == "former"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_limit_that_the_system_sets_on_the_size_of_files(tmp_path):
    write_text(tmp_path / "a.txt", "former")
    program = """
import resource, sys
from adabet.errors import StorageError
from adabet.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(sys.argv[1], "x" * 5000)
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.txt")], capture_output=True, text=True, check=True
    )
    assert "could not write" in done.stdout
    assert "File too large" in done.stdout
    assert (tmp_path / "a.txt").read_text() == "former"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory; nothing was left there"):
        write_text(tmp_path / "missing" / "a.txt", "x")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.txt.123.tmp").write_text("half")
    (tmp_path / "b.tmp").write_text("the user's")
    remove_temporary_files(tmp_path)
    assert names_in(tmp_path) == ["b.tmp"]
