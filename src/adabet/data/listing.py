"""Which images there are, before any is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from adabet.data.images import Sample


@dataclass(frozen=True)
class Listing:
    """The images of a dataset by split, as its source has them.

    Attributes:
        classes: names, in the order of the labels.
        train: images to train on, before any is set aside.
        val: images to validate on; None where the source has no such split.
        test: images to test on; None where the source has no such split.
        ignored: files that are not images.
        notes: what the user should know, in words.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] | None = None
    test: tuple[Sample, ...] | None = None
    ignored: int = 0
    notes: tuple[str, ...] = ()


def name_some(names: Sequence[str], *, at_most: int = 3) -> str:
    """The first few names, and how many more there are.

    Examples:
        >>> name_some(["hat", "shoe"]), name_some(["a", "b", "c", "d", "e"])
        ('hat, shoe', 'a, b, c and 2 more')
    """
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
