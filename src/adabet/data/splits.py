"""Training, validation and test files, ready to be loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adabet.data.images import FileDataset
from adabet.data.sampling import EpochSampler
from adabet.errors import OptionError
from adabet.sizes import format_size

NAMED_IN_TEXT = 5
WORKERS_FOR_GPU = 2


@dataclass(frozen=True)
class LeftOut:
    """An image that cannot be read.

    Attributes:
        path: the file.
        reason: why, in words.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class DataReport:
    """What is in a dataset, and what was left out of it.

    Attributes:
        name: what the dataset was asked for by.
        counts: images by split.
        classes: how many.
        left_out: images that cannot be read.
        ignored: files that are no images.
        notes: what else the user should know, in words.
        cached: bytes of prepared pixels (or sound) that are kept in memory.
        what: what the files are, in the plural.
    """

    name: str
    counts: dict[str, int]
    classes: int
    left_out: tuple[LeftOut, ...] = ()
    ignored: int = 0
    notes: tuple[str, ...] = ()
    cached: int = 0
    what: str = "images"

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        lines = [f"{self.name}: {self.classes} classes; {counts} {self.what}"]
        if self.left_out:
            lines.append(f"{len(self.left_out)} {self.what} cannot be read and were left out:")
            lines += [f"  {image.path}: {image.reason}" for image in self.left_out[:NAMED_IN_TEXT]]
            if len(self.left_out) > NAMED_IN_TEXT:
                lines.append(f"  and {len(self.left_out) - NAMED_IN_TEXT} more")
        if self.ignored:
            lines.append(f"{self.ignored} files are no {self.what} and were ignored")
        lines += self.notes
        if self.cached:
            lines.append(f"{format_size(self.cached)} of prepared {self.what} are kept in memory")
        return "\n  ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "name": self.name,
            "counts": dict(self.counts),
            "classes": self.classes,
            "left_out": [{"path": str(image.path), "reason": image.reason} for image in self.left_out],
            "ignored": self.ignored,
            "notes": list(self.notes),
            "cached": self.cached,
        }


class Loaders(NamedTuple):
    """Batches of ``(images, labels)`` for each split."""

    train: "DataLoader[tuple[Tensor, int]]"
    val: "DataLoader[tuple[Tensor, int]]"
    test: "DataLoader[tuple[Tensor, int]]"


@dataclass(frozen=True)
class DataSplits:
    """A dataset in its three splits.

    Attributes:
        train: images to train on, under the training transform.
        val: images to validate on, under the evaluation transform.
        test: images to test on, under the evaluation transform.
        classes: names, in the order of the labels.
        report: what is in it, and what was left out.
        transform_eval: the evaluation transform.
    """

    train: FileDataset
    val: FileDataset
    test: FileDataset
    classes: tuple[str, ...]
    report: DataReport
    transform_eval: Callable[..., Tensor] = field(repr=False)

    def loaders(self, *, batch_size: int = 8, seed: int = 0, workers: int | None = None) -> Loaders:
        """Loaders of the three splits; the training one is shuffled anew in every epoch.

        What they give depends on `seed` and the epoch alone, not on `workers` or on torch's global state.

        Args:
            batch_size: images a batch; the last batch may be smaller. The default is the paper's.
            seed: of the order and of the random changes of the training images.
            workers: processes that read images. None: 2 to feed a GPU from files, otherwise none: on a CPU they
                take from training what they give, and each takes memory of its own.

        Raises:
            OptionError: if an option makes no sense.
        """
        if batch_size < 1:
            raise OptionError(f"expected batch_size of at least 1, got {batch_size}")
        if workers is not None and workers < 0:
            raise OptionError(f"expected workers of at least 0, got {workers}")
        on_files = not self.train.in_memory and torch.cuda.is_available()
        count = (WORKERS_FOR_GPU if on_files else 0) if workers is None else workers

        def load(dataset: FileDataset, sampler: EpochSampler | None) -> "DataLoader[tuple[Tensor, int]]":
            return DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=sampler,
                num_workers=count,
                persistent_workers=count > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(seed),
            )

        return Loaders(
            load(self.train, EpochSampler(len(self.train), seed=seed)),
            load(self.val, None),
            load(self.test, None),
        )

    def unlabelled(self, *, samples: int = 40, batch_size: int = 8, seed: int = 0) -> list[Tensor]:
        """Batches of randomly chosen training images, without labels, under the evaluation transform.

        Args:
            samples: how many images; the default, with `batch_size`, is the paper's 5 batches of 8.
            batch_size: images a batch; the last batch may be smaller.
            seed: of the choice.

        Returns:
            Tensors ``(batch, channels, height, width)``, of sound as its transform gives it.

        Raises:
            OptionError: if there are fewer training images than asked for.
        """
        if not 1 <= samples <= len(self.train) or batch_size < 1:
            raise OptionError(
                f"expected samples from 1 to {len(self.train)} (the training images) and batch_size of at "
                f"least 1, got samples={samples} and batch_size={batch_size}"
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train), generator=generator)[:samples].tolist()
        images = self.train.with_transform(self.transform_eval)
        return [
            torch.stack([images[index][0] for index in chosen[start : start + batch_size]])
            for start in range(0, samples, batch_size)
        ]
