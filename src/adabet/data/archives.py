"""Published archives: fetched with a checksum, unpacked safely, whole or not at all."""

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from adabet.data.decode import Progress
from adabet.errors import DataError, StorageError
from adabet.sizes import format_size

BLOCK = 2**20
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class RemoteFile:
    """A file that its authors publish, pinned by its checksum.

    Attributes:
        url: where it is.
        sha256: of its content, in hexadecimal.
        size: bytes.
        name: what it is called here.
        into: folder, inside the dataset's, that a tar archive is unpacked to or another file is put in.
    """

    url: str
    sha256: str
    size: int
    name: str
    into: str = "."


def install(
    files: Sequence[RemoteFile], folder: Path, *, download: bool = True, progress: Progress | None = None
) -> None:
    """Fetch files and unpack them into a new folder, which appears only when all of it is there.

    A file that already lies beside the folder, put there by hand, is taken if its checksum is right. Fetched
    files are removed once they are unpacked.

    Args:
        files: tar archives (of any compression), which are unpacked, and other files, which are copied.
        folder: the folder to make; if it exists already, nothing is done.
        download: whether files may be fetched.
        progress: told the bytes fetched, of all bytes.

    Raises:
        DataError: if a file cannot be fetched, has another checksum, or holds anything but plain files and
            folders inside itself.
        StorageError: if the disk is full or cannot be written; nothing half-written is left.
    """
    if folder.is_dir():
        return
    with _storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lying = {file for file in files if (folder.parent / file.name).is_file()}
        done, total = 0, sum(file.size for file in files)
        for file in files:
            if file in lying:
                _verify(file, folder.parent / file.name)
            elif download:
                _fetch(file, folder.parent, progress, done, total)
            else:
                raise DataError(f"{folder.parent} lacks {file.name}, and download is off: fetch it from {file.url}")
            done += file.size
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for file in files:
                target = temporary / file.into
                target.mkdir(parents=True, exist_ok=True)
                if file.name.endswith(ARCHIVE_SUFFIXES):
                    unpack(folder.parent / file.name, target)
                else:
                    shutil.copyfile(folder.parent / file.name, target / file.name)
            temporary.chmod(0o755)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for file in set(files) - lying:
            (folder.parent / file.name).unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive: plain files and folders only, and none outside the folder.

    Args:
        archive: a tar file of any compression.
        folder: an existing folder.

    Raises:
        DataError: if the archive is broken, or has a link, a device, or a path that leads outside.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = _inside(folder, member, archive)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                if source is not None:
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, BLOCK)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the archive {archive} is broken ({error}): delete it, and try again") from error


def _inside(folder: Path, member: tarfile.TarInfo, archive: Path) -> Path:
    """Where a member goes, if it may."""
    path = PureWindowsPath(member.name)  # understands both kinds of separators, and drives
    if not (member.isfile() or member.isdir()):
        raise DataError(f"the archive {archive} is refused: {member.name} is a link or a device")
    if path.anchor or ".." in path.parts:
        raise DataError(f"the archive {archive} is refused: {member.name} leads outside of it")
    return folder.joinpath(*path.parts)


def _verify(file: RemoteFile, path: Path) -> None:
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != file.sha256:
        raise DataError(f"{path} is not the file that {file.url} publishes (its sha256 differs): delete it")


def _fetch(file: RemoteFile, folder: Path, progress: Progress | None, done: int, total: int) -> None:
    """Fetch a file into a folder, where it appears only whole and verified."""
    partial = folder / f"{file.name}.{os.getpid()}.part"
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as target:
            for block in _blocks(file, folder):
                target.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(min(done, total), total)
        if digest.hexdigest() != file.sha256:
            sent, expected = format_size(partial.stat().st_size), format_size(file.size)
            raise DataError(
                f"{file.url} sent {sent} that are not {file.name} ({expected}; the sha256 differs): "
                f"try again, or put the file at {folder / file.name}"
            )
        partial.replace(folder / file.name)
    finally:
        partial.unlink(missing_ok=True)


def _blocks(file: RemoteFile, folder: Path) -> Iterator[bytes]:
    """The content of a remote file, piece by piece."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "adabet"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            while block := response.read(BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{file.url} cannot be fetched ({error}): check the network, or put it at {folder / file.name}"
        ) from error


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """Turn the failure to write into a StorageError that says where and why."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():
            return  # another process made the same folder in the meantime
        raise StorageError(f"{folder} cannot be written ({error.strerror or error})") from error
