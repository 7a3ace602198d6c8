import errno
import hashlib
import io
import shutil
import tarfile
from dataclasses import replace

import pytest

from adabet.data import archives
from adabet.data.archives import RemoteFile, install, unpack
from adabet.errors import DataError, StorageError


def tar_of(path, files, *, others=(), mode="w:gz"):
    """A tar archive of files by name, and of other members."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    return path


def remote(server, name, **options):
    """What describes a file of the test server, by its true checksum."""
    folder, address = server
    content = (folder / name).read_bytes()
    return RemoteFile(f"{address}/{name}", hashlib.sha256(content).hexdigest(), len(content), name, **options)


@pytest.fixture
def published(server):
    """Two files on the server: an archive with a folder, and a list."""
    folder, _ = server
    tar_of(folder / "images.tar.gz", {"./images/a.png": b"first", "images/deep/b.png": b"second", "._x": b""})
    (folder / "list.mat").write_bytes(b"which is what")
    return [remote(server, "images.tar.gz"), remote(server, "list.mat", into="lists")]


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_are_fetched_unpacked_and_removed(tmp_path, published):
    told = []
    install(published, tmp_path / "root" / "data", progress=lambda *numbers: told.append(numbers))
    assert everything(tmp_path / "root") == {
        "data/images/a.png": b"first",
        "data/images/deep/b.png": b"second",
        "data/._x": b"",
        "data/lists/list.mat": b"which is what",
    }
    total = sum(file.size for file in published)
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_what_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / "data").mkdir()
    install([RemoteFile("http://127.0.0.1:9/none", "0" * 64, 1, "none.tar")], tmp_path / "data")


def test_files_put_there_by_hand_are_verified_and_kept(tmp_path, published, server):
    for name in ("images.tar.gz", "list.mat"):
        shutil.copy(server[0] / name, tmp_path / name)
    install(published, tmp_path / "data", download=False)
    assert (tmp_path / "data" / "images" / "a.png").read_bytes() == b"first"
    assert (tmp_path / "images.tar.gz").is_file()
    (tmp_path / "list.mat").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"list.mat is not the file that .* publishes \(its sha256 differs\): delete"):
        install(published, tmp_path / "other", download=False)
    assert not (tmp_path / "other").exists()


def test_download_off(tmp_path, published):
    with pytest.raises(DataError, match=r"lacks images.tar.gz, and download is off: fetch it from http"):
        install(published, tmp_path / "data", download=False)


def test_another_content_than_published(tmp_path, published):
    changed = [published[0], replace(published[1], sha256="0" * 64)]
    with pytest.raises(DataError, match=r"sent 13 B that are not list.mat \(13 B; the sha256 differs\): try again"):
        install(changed, tmp_path / "root" / "data")
    assert set(everything(tmp_path / "root")) == {"images.tar.gz"}


def test_no_such_file_on_the_server(tmp_path, published, server):
    gone = replace(published[0], url=f"{server[1]}/gone")
    with pytest.raises(DataError, match=r"gone cannot be fetched \(HTTP Error 404.*put it at .*images.tar.gz$"):
        install([gone], tmp_path / "root" / "data")
    assert everything(tmp_path / "root") == {}


def test_no_server(tmp_path, published):
    with pytest.raises(DataError, match=r"cannot be fetched .*: check the network"):
        install([replace(published[0], url="http://127.0.0.1:9/none")], tmp_path / "root" / "data")


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("files", "others", "reason"),
    [
        ({"../outside.txt": b"x"}, (), "leads outside"),
        ({"images/../../outside.txt": b"x"}, (), "leads outside"),
        ({"/tmp/outside.txt": b"x"}, (), "leads outside"),
        ({"..\\outside.txt": b"x"}, (), "leads outside"),
        ({"C:\\outside.txt": b"x"}, (), "leads outside"),
        ({}, (link("a", "/etc", tarfile.SYMTYPE),), "a link or a device"),
        ({}, (link("a", "b", tarfile.SYMTYPE),), "a link or a device"),
        ({}, (link("a", "/etc/passwd", tarfile.LNKTYPE),), "a link or a device"),
        ({}, (link("a", "", tarfile.FIFOTYPE),), "a link or a device"),
        ({}, (link("a", "", tarfile.CHRTYPE),), "a link or a device"),
    ],
)
def test_archives_that_reach_out_are_refused_and_leave_nothing(tmp_path, server, files, others, reason):
    tar_of(server[0] / "evil.tar", {"images/a.png": b"harmless", **files}, others=others, mode="w")
    with pytest.raises(DataError, match=rf"evil.tar is refused: .* {reason}"):
        install([remote(server, "evil.tar")], tmp_path / "root" / "data")
    assert set(everything(tmp_path / "root")) == {"evil.tar"}
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["evil.tar"]
    assert not list(tmp_path.rglob("outside*"))


def test_broken_archives(tmp_path):
    whole = tar_of(tmp_path / "a.tgz", {"a": bytes(range(256)) * 4000}).read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "a.tgz").write_bytes(content)
        (tmp_path / "into").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"a\.tgz is broken"):
            unpack(tmp_path / "a.tgz", tmp_path / "into")


def test_a_full_disk_leaves_nothing(tmp_path, published, monkeypatch):
    def fill(archive, folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "unpack", fill)
    with pytest.raises(StorageError, match=r"data cannot be written \(No space left on device\)"):
        install(published, tmp_path / "root" / "data")
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"images.tar.gz", "list.mat"}


def test_two_processes_at_once(tmp_path, published, monkeypatch):
    def unpack_late(archive, folder):
        other = tmp_path / "root" / "data"
        other.mkdir()
        (other / "made by another").write_text("x")

    monkeypatch.setattr(archives, "unpack", unpack_late)
    install(published, tmp_path / "root" / "data")
    assert [path.name for path in (tmp_path / "root" / "data").iterdir()] == ["made by another"]
    assert not list((tmp_path / "root").glob(".data-*"))
