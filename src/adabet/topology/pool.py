"""The samples that a probe looks at, in slices that fit into memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adabet.errors import ActivationError, OptionError
from adabet.layers.batches import inputs_of, sample_count, take_samples
from adabet.topology.padding import MASK, lengths_of, without_padding

SLICE = 4
"""Samples that run through the model in one call: small, so that little is in memory; a batch may be larger."""

FEWEST = 4
"""A loop needs four points."""


@dataclass(frozen=True)
class Pool:
    """Inputs of some samples, cut into slices, each at most as large as the batch that it came from.

    Attributes:
        slices: inputs as the model takes them, without padding where their mask tells of it.
        sizes: number of samples in each.
        lengths: tokens of each slice's sequences, all of one length; empty for samples that are no sequences with a
            mask.
    """

    slices: tuple[Any, ...]
    sizes: tuple[int, ...]
    lengths: tuple[int, ...] = ()

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first sample of each slice."""
        return tuple(sum(self.sizes[:index]) for index in range(len(self.sizes)))

    @property
    def median(self) -> int:
        """Index of the slice whose sequences are of median length; of the first where there are no lengths."""
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        return order[len(order) // 2] if order else 0

    @property
    def farthest(self) -> int:
        """Index of the slice whose sequences differ most in length from those of the median one."""
        own = self.lengths[self.median] if self.lengths else 0
        return max(range(len(self.lengths)), key=lambda index: abs(self.lengths[index] - own), default=0)

    @property
    def varied(self) -> bool:
        """Whether there are sequences of different lengths."""
        return len(set(self.lengths)) > 1


def collect(batches: Iterable[Any], *, samples: int, slice_size: int = SLICE) -> Pool:
    """Take the first samples from an iterable of batches; labels are dropped, and so is padding.

    Padding is what an ``attention_mask`` of zeros and ones says, on whatever side. Sequences of different lengths
    become slices of their own, so that no model ever sees padding.

    Args:
        batches: tensors, tuples that start with one, or mappings.
        samples: how many to take; fewer if there are no more.
        slice_size: most samples in one slice.

    Raises:
        ActivationError: if there are fewer than four samples, a sequence has no token, or only some batches have masks.
        OptionError: if fewer than four are asked for, or a slice holds none.
    """
    if samples < FEWEST:
        raise OptionError(f"expected samples of at least {FEWEST} (a loop needs four points), got {samples}")
    if slice_size < 1:
        raise OptionError(f"expected a slice_size of at least 1, got {slice_size}")
    held: list[tuple[Any, int]] = []
    count = 0
    for batch in batches:
        inputs = inputs_of(batch)
        wanted = min(sample_count(inputs), samples - count)
        held.append((inputs, wanted))
        count += wanted
        if count == samples:
            break
    if count < FEWEST:
        raise ActivationError(
            f"expected at least {FEWEST} samples to look at (a loop needs four points), got {count}; "
            f"{samples} were asked for"
        )
    return _cut(held, slice_size)


def _cut(held: Sequence[tuple[Any, int]], slice_size: int) -> Pool:
    """Batches, of each the first so many samples, in slices; sequences of different lengths one by one."""
    lengths = [lengths_of(take_samples(inputs, 0, count)) for inputs, count in held]
    known = [length for found in lengths for length in found or ()]
    if known and None in lengths:
        raise ActivationError(
            f"expected batches that all have an {MASK} of zeros and ones, or none; only some have one"
        )
    size = 1 if len(set(known)) > 1 else slice_size
    slices, sizes = [], []
    for inputs, count in held:
        for start in range(0, count, size):
            stop = min(start + size, count)
            part = take_samples(inputs, start, stop)
            slices.append(without_padding(part) if known else part)
            sizes.append(stop - start)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return Pool(tuple(slices), tuple(sizes), tuple(known[start] for start in starts) if known else ())


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
