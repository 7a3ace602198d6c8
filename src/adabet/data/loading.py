"""One door to data: ``load_data("pets", ...)`` or ``load_data("my/photos", ...)``."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adabet.data.archives import install
from adabet.data.decode import Progress, find_unreadable, read_image
from adabet.data.folders import IMAGES, FileKind, list_folder
from adabet.data.images import ImageDataset, Sample, Transform, channels_of
from adabet.data.listing import Listing, name_some
from adabet.data.published import PUBLISHED, REMEDY
from adabet.data.sampling import choose
from adabet.data.splits import DataReport, DataSplits, LeftOut
from adabet.data.transforms import ImageTransform
from adabet.errors import DataError, OptionError, UnknownNameError

CACHE_BYTES = 500 * 10**6
"""Prepared images are kept in memory by default up to this many bytes."""

CACHE_SHARE = 4
"""And up to one part in so many of the memory that is free."""


def load_data(
    name_or_path: str | Path,
    *,
    transform_train: Transform,
    transform_eval: Transform,
    seed: int = 0,
    val_share: float = 0.1,
    test_share: float = 0.2,
    max_train: int | None = None,
    max_val: int | None = None,
    max_test: int | None = None,
    root: str | Path | None = None,
    download: bool = True,
    cache: bool | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Find a dataset's images, split them, read each once, and leave out those that cannot be read.

    A split that the source has is taken as it is. A test set that is missing is set aside from the training
    images, then a validation set likewise; both at random but in proportion to the classes.

    Args:
        name_or_path: ``"pets"``, ``"flowers"``, ``"dogs"`` or ``"cub"``; or a folder with class folders,
            either in it or in its folders ``train``, ``val`` and ``test``. A `Path` is always a folder.
        transform_train: for training images; `adabet.data.transforms` makes it from a model's `data_config`.
        transform_eval: for validation, test and unlabelled images.
        seed: of the splits and subsets.
        val_share: of the training images that validate, in (0, 1), where there is no validation set.
        test_share: of all images that test, in (0, 1), where there is no test set.
        max_train: train on so many images at most, chosen in proportion to the classes.
        max_val: likewise for validation.
        max_test: likewise for the test.
        root: where published datasets are kept; None is ``~/.cache/adabet`` (or below ``XDG_CACHE_HOME``).
        download: whether a published dataset may be fetched.
        cache: keep prepared images in memory, so that no epoch reads a file; possible where the crop is
            central. None: if they take at most 500 MB, and a quarter of the memory that is free.
        progress: told ``(done, total)``, first in bytes fetched if there is something to fetch, then in
            images read.

    Raises:
        UnknownNameError: if there is no such dataset; offers the nearest name.
        DataError: if the folder's layout, a class or an archive is not as expected, or the network is down.
        OptionError: if an option makes no sense.
        StorageError: if the disk is full.
    """
    limits = {"train": max_train, "val": max_val, "test": max_test}
    check_shares(val_share, test_share, limits)
    listing = _list(name_or_path, root, download, progress)
    divided, notes = divide(listing, seed=seed, val_share=val_share, test_share=test_share)
    for split, limit in limits.items():
        divided[split] = limited(divided[split], limit, seed=seed)
    cached = _cache_bytes(transform_train, transform_eval, sum(map(len, divided.values())), cache)
    read = _read(divided, transform_eval, cached=cached > 0, progress=progress)
    _check_left(read, listing.classes)
    transform = {"train": transform_train, "val": transform_eval, "test": transform_eval}
    report = DataReport(
        name=str(name_or_path),
        counts={split: len(images.samples) for split, images in read.items()},
        classes=len(listing.classes),
        left_out=tuple(image for images in read.values() for image in images.left_out),
        ignored=listing.ignored,
        notes=(*listing.notes, *notes),
        cached=cached,
    )
    datasets = {
        split: ImageDataset(images.samples, transform=transform[split], pixels=images.pixels)
        for split, images in read.items()
    }
    return DataSplits(**datasets, classes=listing.classes, report=report, transform_eval=transform_eval)


def check_shares(val_share: float, test_share: float, limits: Mapping[str, int | None]) -> None:
    """Refuse shares outside 0 to 1 and limits below 1, by split.

    Raises:
        OptionError: naming the option.
    """
    for option, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise OptionError(f"expected {option} between 0 and 1, got {share}")
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise OptionError(f"expected max_{split} of at least 1, got {limit}")


@dataclass(frozen=True)
class _Read:
    """Images of a split that can be read, their prepared pixels if they are kept, and the others."""

    samples: tuple[Sample, ...]
    pixels: Tensor | None
    left_out: tuple[LeftOut, ...]


def _list(name_or_path: str | Path, root: str | Path | None, download: bool, progress: Progress | None) -> Listing:
    """The listing of a published dataset, or of a folder."""
    if name_or_path not in PUBLISHED:
        path = Path(name_or_path).expanduser()
        if isinstance(name_or_path, str) and path.name == name_or_path and not path.exists():
            raise UnknownNameError("dataset or folder", name_or_path, PUBLISHED)
        return list_folder(path)
    dataset = PUBLISHED[str(name_or_path)]
    folder = (default_root() if root is None else Path(root).expanduser()) / dataset.folder
    install(dataset.files, folder, download=download, progress=progress)
    try:
        return dataset.read(folder)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the lists in {folder} do not fit together ({error}): {REMEDY}") from error


def default_root() -> Path:
    """Where published datasets are kept unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adabet"


def divide(
    listing: Listing, *, seed: int, val_share: float, test_share: float, kind: FileKind = IMAGES
) -> tuple[dict[str, tuple[Sample, ...]], tuple[str, ...]]:
    """Set aside a test set and a validation set from the training files where the source has none."""
    splits = {"train": listing.train}
    notes = []
    for split, given, share in (("test", listing.test, test_share), ("val", listing.val, val_share)):
        if given is not None:
            splits[split] = given
            continue
        images = splits["train"]
        labels = [sample.label for sample in images]
        spare = len(images) - len(set(labels))
        if spare < 1:
            raise DataError(
                f"every class has a single {kind.one} to train on: none can be set aside to {split}; add {kind.many}, "
                f"or a {split} folder"
            )
        chosen = set(choose(labels, min(max(1, round(share * len(images))), spare), seed=seed, keep=1))
        splits[split] = tuple(sample for position, sample in enumerate(images) if position in chosen)
        splits["train"] = tuple(sample for position, sample in enumerate(images) if position not in chosen)
        missing = sorted(set(labels) - {sample.label for sample in splits[split]})
        notes.append(
            f"{split}: {len(chosen)} {kind.many} set aside from those to train on, in proportion to the classes "
            f"(seed {seed})"
            + (f"; none of {name_some([listing.classes[label] for label in missing])}" if missing else "")
        )
    return {split: splits[split] for split in ("train", "val", "test")}, tuple(notes)


def limited(samples: tuple[Sample, ...], limit: int | None, *, seed: int) -> tuple[Sample, ...]:
    """At most so many of the samples, in proportion to the classes."""
    if limit is None or limit >= len(samples):
        return samples
    return tuple(samples[position] for position in choose([s.label for s in samples], limit, seed=seed))


def _cache_bytes(train: Transform, evaluation: Transform, images: int, cache: bool | None) -> int:
    """Bytes of the prepared images if they are to be kept in memory, otherwise 0."""
    if cache is False:
        return 0
    if not isinstance(train, ImageTransform) or not train.prepares_like(evaluation):
        if cache:
            raise OptionError(
                "expected transforms of one configuration with a central crop for cache=True: "
                "make both with adabet.data.transforms(config, train=...)"
            )
        return 0
    channels, height, width = train.config.input_size
    needed = images * channels * height * width
    free = free_memory()
    if cache is None and (needed > CACHE_BYTES or free is None or needed > free // CACHE_SHARE):
        return 0
    return needed


def free_memory() -> int | None:
    """Bytes of memory that processes can still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read(
    splits: dict[str, tuple[Sample, ...]], transform: Transform, *, cached: bool, progress: Progress | None
) -> dict[str, _Read]:
    """Decode every image once; keep its prepared pixels if asked to."""
    channels = channels_of(transform)
    pixels: dict[str, Tensor] = {}
    if cached and isinstance(transform, ImageTransform):
        size = transform.config.input_size
        pixels = {split: torch.empty(len(images), *size, dtype=torch.uint8) for split, images in splits.items()}
    places = [(split, position) for split, images in splits.items() for position in range(len(images))]

    def read(index: int, path: Path) -> None:
        image = read_image(path, channels=channels)
        if pixels and isinstance(transform, ImageTransform):
            split, position = places[index]
            pixels[split][position] = transform.prepare(image)

    paths = [splits[split][position].path for split, position in places]
    unreadable = {places[i]: reason for i, reason in find_unreadable(paths, read, progress=progress).items()}
    result = {}
    for split, images in splits.items():
        good = [position for position in range(len(images)) if (split, position) not in unreadable]
        bad = [position for position in range(len(images)) if (split, position) in unreadable]
        result[split] = _Read(
            samples=tuple(images[position] for position in good),
            pixels=_compacted(pixels[split], good) if pixels else None,
            left_out=tuple(LeftOut(images[position].path, unreadable[split, position]) for position in bad),
        )
    return result


def _compacted(pixels: Tensor, kept: Sequence[int]) -> Tensor:
    """The rows that are kept, moved to the front in place: a copy would take the memory twice."""
    for target, source in enumerate(kept):
        if target != source:
            pixels[target] = pixels[source]
    return pixels[: len(kept)]


def _check_left(read: dict[str, _Read], classes: tuple[str, ...]) -> None:
    """Refuse a dataset that unreadable images leave without a class or a split."""
    found = {sample.label for sample in read["train"].samples}
    if lost := [name for label, name in enumerate(classes) if label not in found]:
        bad = sum(len(images.left_out) for images in read.values())
        raise DataError(
            f"no image to train on is left of {len(lost)} classes ({name_some(lost)}): {bad} images cannot be "
            "read; repair them, or raise max_train if it is set"
        )
    for split, images in read.items():
        if not images.samples:
            first = images.left_out[0]
            raise DataError(f"no image to {split} on can be read; the first is {first.path}: {first.reason}")
