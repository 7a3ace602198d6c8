"""The samples that a probe looks at, in slices that fit into memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adabet.errors import ActivationError, OptionError
from adabet.layers.batches import inputs_of, sample_count, take_samples

SLICE = 4
"""Samples that run through the model in one call: small, so that little is in memory; a batch may be larger."""

FEWEST = 4
"""A loop needs four points."""


@dataclass(frozen=True)
class Pool:
    """Inputs of some samples, cut into slices, each at most as large as the batch that it came from.

    Attributes:
        slices: inputs as the model takes them.
        sizes: number of samples in each.
    """

    slices: tuple[Any, ...]
    sizes: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first sample of each slice."""
        return tuple(sum(self.sizes[:index]) for index in range(len(self.sizes)))


def collect(batches: Iterable[Any], *, samples: int, slice_size: int = SLICE) -> Pool:
    """Take the first samples from an iterable of batches; labels are dropped.

    Args:
        batches: tensors, tuples that start with one, or mappings.
        samples: how many to take; fewer if there are no more.
        slice_size: most samples in one slice.

    Raises:
        ActivationError: if there are fewer than four samples.
        OptionError: if fewer than four are asked for, or a slice holds none.
    """
    if samples < FEWEST:
        raise OptionError(f"expected samples of at least {FEWEST} (a loop needs four points), got {samples}")
    if slice_size < 1:
        raise OptionError(f"expected a slice_size of at least 1, got {slice_size}")
    slices: list[Any] = []
    sizes: list[int] = []
    for batch in batches:
        inputs = inputs_of(batch)
        wanted = min(sample_count(inputs), samples - sum(sizes))
        for start in range(0, wanted, slice_size):
            stop = min(start + slice_size, wanted)
            slices.append(take_samples(inputs, start, stop))
            sizes.append(stop - start)
        if sum(sizes) == samples:
            break
    if sum(sizes) < FEWEST:
        raise ActivationError(
            f"expected at least {FEWEST} samples to look at (a loop needs four points), got {sum(sizes)}; "
            f"{samples} were asked for"
        )
    return Pool(tuple(slices), tuple(sizes))


def passes(pool: Pool, samples_in_memory: int | None) -> Iterator[tuple[int, ...]]:
    """Which slices to run side by side, so that every two slices meet at least once.

    Args:
        pool: the samples.
        samples_in_memory: most samples at once, None for all.

    Raises:
        OptionError: if two slices do not fit.
    """
    count = len(pool.slices)
    if samples_in_memory is None or samples_in_memory >= pool.samples:
        yield tuple(range(count))
        return
    largest = max(pool.sizes)
    group = samples_in_memory // (2 * largest)
    if group < 1:
        raise OptionError(
            f"expected samples_in_memory of at least {2 * largest}, twice the slice that runs at once, "
            f"got {samples_in_memory}; or use a sketch"
        )
    groups = [tuple(range(start, min(start + group, count))) for start in range(0, count, group)]
    for first in range(len(groups)):
        for second in range(first + 1, len(groups)):
            yield groups[first] + groups[second]
