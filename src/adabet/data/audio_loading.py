"""Folders of recordings: ``load_audio("recordings", ...)``, as `load_data` does for images."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adabet.data.audio import SOUND, AudioDataset, AudioTransform, RateError, audio_transforms
from adabet.data.decode import Progress, find_unreadable
from adabet.data.folders import list_folder
from adabet.data.images import Sample
from adabet.data.listing import Listing, name_some
from adabet.data.loading import CACHE_BYTES, CACHE_SHARE, check_shares, divide, free_memory, limited
from adabet.data.splits import DataReport, DataSplits, LeftOut
from adabet.errors import DataError, OptionError
from adabet.models.audio import AudioConfig

SplitOf = Callable[[re.Match[str]], str | None]
"""Tells of a file's name to which split it belongs, or None to leave it out."""


def list_names(folder: Path, pattern: str, split_of: SplitOf | None = None) -> Listing:
    """List the recordings of a folder by their names.

    Args:
        folder: of files; folders inside are not entered.
        pattern: a regular expression that a whole name without suffix matches, with a group ``label``.
        split_of: from the match to ``"train"``, ``"val"``, ``"test"``, or None to leave the file out; by default all
            are there to train on, and the other splits are set aside from them.

    Raises:
        DataError: if the folder is missing, or no name matches, or fewer than two classes are there to train on, or
            another split has a class that train lacks.
        OptionError: if the pattern is none, lacks the group, or a split is unknown.
    """
    if not folder.is_dir():
        raise DataError(f"expected a folder of recordings; {folder} is {'a file' if folder.exists() else 'missing'}")
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"expected a regular expression, got {pattern!r}: {error}") from error
    if "label" not in form.groupindex:
        raise OptionError(f"expected a pattern with a group (?P<label>...), got {pattern!r}")
    found: dict[str, list[tuple[Path, str]]] = {"train": [], "val": [], "test": []}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    matches = [(path, form.fullmatch(path.stem)) for path in files if SOUND.owns(path)]
    for path, match in matches:
        split = None if match is None else "train" if split_of is None else split_of(match)
        if match is None or split is None:
            continue
        if split not in found:
            raise OptionError(f"expected split_of to give train, val, test or None, got {split!r} for {path.name}")
        found[split].append((path, match["label"]))
    classes = tuple(sorted({label for _, label in found["train"]}))
    if len(classes) < 2:
        raise DataError(
            f"expected recordings of at least two classes to train on, {folder} has {len(matches)} recordings, of "
            f"which {len(found['train'])} match {pattern!r} and are there to train on"
        )
    for split in ("val", "test"):
        if strange := sorted({label for _, label in found[split]} - set(classes)):
            raise DataError(f"{split} has classes that train lacks ({name_some(strange)})")
    samples = {
        split: tuple(Sample(path, classes.index(label)) for path, label in pairs) for split, pairs in found.items()
    }
    return Listing(
        classes=classes,
        train=samples["train"],
        val=samples["val"] or None,
        test=samples["test"] or None,
        ignored=len(files) - sum(map(len, samples.values())),
    )


def load_audio(
    folder: str | Path,
    config: AudioConfig,
    *,
    pattern: str | None = None,
    split_of: SplitOf | None = None,
    seed: int = 0,
    val_share: float = 0.1,
    test_share: float = 0.2,
    max_train: int | None = None,
    max_val: int | None = None,
    max_test: int | None = None,
    cache: bool | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Find a folder's recordings, split them, read each once, and leave out those that cannot be read.

    The folder holds a folder for each class, or folders ``train``, ``val`` and ``test`` of such; or, with a pattern,
    files that say their class by their names. Splits that are missing are set aside from the training recordings.

    Args:
        folder: with WAV or FLAC files.
        config: what the model expects; the recordings must have its sample rate.
        pattern: see `list_names`; None for class folders.
        split_of: see `list_names`; only with a pattern.
        seed: of the splits and subsets.
        val_share: of the training recordings that validate, in (0, 1), where there is no validation set.
        test_share: of all recordings that test, in (0, 1), where there is no test set.
        max_train: train on so many recordings at most, chosen in proportion to the classes.
        max_val: likewise for validation.
        max_test: likewise for the test.
        cache: keep the samples in memory, so that no epoch reads a file. None: if they take at most 500 MB, and a
            quarter of the memory that is free.
        progress: told ``(done, total)`` in recordings read.

    Raises:
        DataError: if the layout or a class is not as expected, or recordings have another sample rate.
        OptionError: if an option makes no sense.
        MissingExtraError: if soundfile is not installed.
    """
    limits = {"train": max_train, "val": max_val, "test": max_test}
    check_shares(val_share, test_share, limits)
    if split_of is not None and pattern is None:
        raise OptionError("expected a pattern beside split_of: it tells the split from the pattern's match")
    place = Path(folder).expanduser()
    transforms = {train: audio_transforms(config, train=train) for train in (True, False)}
    listing = list_folder(place, SOUND) if pattern is None else list_names(place, pattern, split_of)
    divided, notes = divide(listing, seed=seed, val_share=val_share, test_share=test_share, kind=SOUND)
    splits = {split: limited(samples, limits[split], seed=seed) for split, samples in divided.items()}
    kept = _keeps(config, sum(map(len, splits.values())), cache)
    read = {split: _read(samples, transforms[False], keep=kept, progress=progress) for split, samples in splits.items()}
    datasets = {
        split: AudioDataset(samples, transform=transforms[split == "train"], waves=waves)
        for split, (samples, waves, _) in read.items()
    }
    left_out = tuple(item for *_, items in read.values() for item in items)
    _check_left(datasets, listing.classes, left_out)
    report = DataReport(
        name=str(folder),
        counts={split: len(dataset) for split, dataset in datasets.items()},
        classes=len(listing.classes),
        left_out=left_out,
        ignored=listing.ignored,
        notes=(*listing.notes, *notes),
        cached=sum(waves.nbytes for _, waves, _ in read.values() if waves is not None),
        what=SOUND.many,
    )
    return DataSplits(**datasets, classes=listing.classes, report=report, transform_eval=transforms[False])


def _keeps(config: AudioConfig, recordings: int, cache: bool | None) -> bool:
    """Whether the samples are kept in memory."""
    needed, free = 4 * recordings * config.length, free_memory()
    fits = needed <= CACHE_BYTES and free is not None and needed <= free // CACHE_SHARE
    return fits if cache is None else cache


def _read(
    samples: Sequence[Sample], transform: AudioTransform, *, keep: bool, progress: Progress | None
) -> tuple[tuple[Sample, ...], Tensor | None, list[LeftOut]]:
    """Read every recording once: those that can be read, their samples if they are kept, and the others."""
    waves = torch.empty(len(samples), transform.config.length) if keep else None
    other_rates: dict[int, RateError] = {}

    def read(index: int, path: Path) -> None:
        try:
            wave = transform.read(path)
        except RateError as error:
            other_rates[index] = error
            return
        if waves is not None:
            waves[index] = transform.prepare(wave)

    unreadable = find_unreadable([sample.path for sample in samples], read, progress=progress)
    if other_rates:
        rates = ", ".join(f"{rate} Hz" for rate in sorted({error.rate for error in other_rates.values()}))
        raise DataError(
            f"expected recordings of {transform.config.sample_rate} Hz, {len(other_rates)} of {len(samples)} have "
            f"{rates} (such as {samples[min(other_rates)].path}): resample them first, or set sample_rate if all agree"
        )
    good = [index for index in range(len(samples)) if index not in unreadable]
    left_out = [LeftOut(samples[index].path, reason) for index, reason in unreadable.items()]
    return tuple(samples[index] for index in good), None if waves is None else waves[good], left_out


def _check_left(datasets: dict[str, AudioDataset], classes: tuple[str, ...], left_out: Sequence[LeftOut]) -> None:
    """Refuse a dataset that unreadable recordings leave without a class or a split."""
    found = set(datasets["train"].labels)
    lost = [name for label, name in enumerate(classes) if label not in found]
    empty = [split for split, dataset in datasets.items() if not len(dataset)]
    if lost or empty:
        first = f"; the first is {left_out[0].path}: {left_out[0].reason}" if left_out else "; raise max_train"
        what = f"of {len(lost)} classes ({name_some(lost)})" if lost else f"for {name_some(empty)}"
        raise DataError(f"no recording is left {what}: {len(left_out)} cannot be read{first}")
