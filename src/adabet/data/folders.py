"""Folders of images or other files: a folder for each class, in one folder or in one for each split."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from adabet.data.decode import IMAGE_SUFFIXES
from adabet.data.images import Sample
from adabet.data.listing import Listing, name_some
from adabet.errors import DataError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names that a split's folder may have."""


@dataclass(frozen=True)
class FileKind:
    """What files a folder holds.

    Attributes:
        one: what one file is, in a word.
        many: the same in the plural.
        suffixes: of their names, in lower case; other files are not taken for such.
    """

    one: str
    many: str
    suffixes: frozenset[str]

    @property
    def layout(self) -> str:
        """How the folder has to look."""
        file = self.one.upper()
        return f"FOLDER/train/CLASS/{file} (val and test likewise), or FOLDER/CLASS/{file}"

    def owns(self, path: Path) -> bool:
        """Whether a file's name is one of such a file."""
        return path.suffix.lower() in self.suffixes and _visible(path.name)


IMAGES = FileKind("image", "images", IMAGE_SUFFIXES)


@dataclass(frozen=True)
class _ClassFolders:
    """The files of one folder of class folders, by class, and how many others there are."""

    files: dict[str, list[Path]]
    ignored: int


def list_folder(folder: Path, kind: FileKind = IMAGES) -> Listing:
    """List the images, or other files, of a folder.

    Either it holds the folders ``train`` and, if there are, ``val`` and ``test`` (or names like them), each
    with a folder for each class; or it holds the class folders themselves. Classes are sorted by name. Files
    of another kind, and hidden files and folders, are ignored.

    Args:
        folder: the folder.
        kind: of the files.

    Raises:
        DataError: if the folder is missing, unreadable, laid out otherwise, or without such files; if a class to
            train on is empty; or if another split has a class that train lacks.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "missing"
        raise DataError(f"expected a folder of {kind.many}, {kind.layout}; {folder} is {what}")
    splits, unsorted = _split_folders(folder)
    if "train" not in splits:
        if splits:
            raise DataError(
                f"{folder} has {name_some([path.name for path in splits.values()])} but no train folder; "
                f"expected {kind.layout}"
            )
        return _listing(folder, {"train": _read(folder, kind)}, kind)
    listing = _listing(folder, {split: _read(path, kind) for split, path in splits.items()}, kind)
    ignored = [f"{name} has no class folders and was ignored" for name in unsorted]
    return replace(listing, notes=(*ignored, *listing.notes))


def _split_folders(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Folders of splits, and the names of those that hold no class folders."""
    names = {path.name.lower(): path for path in _subfolders(folder)}
    found: dict[str, Path] = {}
    unsorted = []
    for split, aliases in SPLIT_FOLDERS.items():
        for path in (names[alias] for alias in aliases if alias in names):
            if _subfolders(path):
                found.setdefault(split, path)
            else:
                unsorted.append(path.name)
    return found, unsorted


def _read(folder: Path, kind: FileKind) -> _ClassFolders:
    """The files of every class folder in a folder, sorted."""
    found: dict[str, list[Path]] = {}
    ignored = sum(entry.is_file() for entry in _entries(folder))
    for subfolder in _subfolders(folder):
        files = _files(subfolder)
        found[subfolder.name] = [path for path in files if kind.owns(path)]
        ignored += len(files) - len(found[subfolder.name])
    return _ClassFolders(found, ignored)


def _listing(folder: Path, splits: dict[str, _ClassFolders], kind: FileKind) -> Listing:
    train = splits["train"].files
    if not any(train.values()):
        loose = sum(kind.owns(Path(entry.name)) for entry in _entries(folder))
        found = f"{loose} {kind.many} outside class folders" if loose else f"no {kind.many}"
        raise DataError(f"{folder} has {found}; expected {kind.layout}")
    if empty := [name for name, paths in train.items() if not paths]:
        raise DataError(
            f"{len(empty)} class folders to train on hold no {kind.many} ({name_some(empty)}): "
            f"add {kind.many} to them or remove them from {folder}"
        )
    if len(train) < 2:
        raise DataError(f"expected at least two classes, {folder} has {len(train)} ({name_some([*train])})")
    classes = tuple(sorted(train))
    notes = []
    samples: dict[str, tuple[Sample, ...] | None] = {"val": None, "test": None}
    for split, folders in splits.items():
        filled = {name for name, paths in folders.files.items() if paths}
        if strange := sorted(filled - set(classes)):
            raise DataError(
                f"{split} has classes that train lacks ({name_some(strange)}): "
                f"add {kind.many} of them to train, or remove them"
            )
        if absent := sorted(set(classes) - filled):
            notes.append(f"{split} has no {kind.many} of {len(absent)} classes ({name_some(absent)})")
        samples[split] = tuple(
            Sample(path, label) for label, name in enumerate(classes) for path in folders.files.get(name, [])
        )
    return Listing(
        classes=classes,
        train=samples["train"] or (),
        val=samples["val"] or None,
        test=samples["test"] or None,
        ignored=sum(folders.ignored for folders in splits.values()),
        notes=tuple(notes),
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, hidden entries too, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _unreadable(error)


def _subfolders(folder: Path) -> list[Path]:
    return [Path(entry) for entry in _entries(folder) if entry.is_dir() and _visible(entry.name)]


def _files(folder: Path) -> list[Path]:
    """All files in a folder and in the visible folders below it, sorted."""
    files = []
    for where, below, names in os.walk(folder, onerror=_unreadable):
        below[:] = filter(_visible, below)  # os.walk enters what is left here
        files += [Path(where, name) for name in names]
    return sorted(files)


def _visible(name: str) -> bool:
    return not name.startswith((".", "__"))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"the folder {error.filename} cannot be read ({error.strerror}): check its permissions") from error
