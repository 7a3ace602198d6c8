"""Seeded, stratified choices, and the order in which training sees its images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from adabet.errors import OptionError

Draw = tuple[int, int]
"""Which image, and the seed of its random changes."""


def allocate(capacities: Sequence[int], total: int) -> list[int]:
    """Share out a number of images over classes in proportion to what each has.

    The largest remainders are rounded up. Every class that has images gets at least one if `total` allows it.

    Args:
        capacities: images that each class has to give.
        total: images to take, at most the sum of `capacities`.

    Returns:
        Images of each class; they sum to `total`.

    Examples:
        >>> allocate([80, 15, 5], 10), allocate([800, 1, 1], 10)
        ([8, 1, 1], [8, 1, 1])
    """
    available = sum(capacities)
    if not 0 <= total <= available:
        raise OptionError(f"expected to take from 0 to {available} images, got {total}")
    exact = [capacity * total / max(available, 1) for capacity in capacities]
    non_empty = sum(capacity > 0 for capacity in capacities)
    shares = [max(int(share), int(share > 0 and total >= non_empty)) for share in exact]
    while (missing := total - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i in range(len(shares)) if (shares[i] < capacities[i] if step > 0 else shares[i] > 1)]
        chosen = max(movable, key=lambda i: step * (exact[i] - shares[i]))
        shares[chosen] += step
    return shares


def choose(labels: Sequence[int], total: int, *, seed: int, keep: int = 0) -> list[int]:
    """Positions of a stratified random choice of images, ascending.

    Args:
        labels: class of every image.
        total: images to choose.
        seed: of the choice.
        keep: images of every class that are never chosen.

    Examples:
        >>> choose([0, 0, 0, 0, 1, 1], 3, seed=0)
        [0, 2, 5]
    """
    classes = sorted(set(labels))
    members = [[position for position, label in enumerate(labels) if label == wanted] for wanted in classes]
    shares = allocate([max(len(positions) - keep, 0) for positions in members], total)
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(positions)[:share] for positions, share in zip(members, shares, strict=True)]
    return sorted(int(position) for positions in chosen for position in positions)


class EpochSampler(Sampler[Draw]):
    """A seeded order of all images for each epoch, with a seed for each image's random changes.

    What an epoch shows depends on `seed` and the epoch's number alone: not on the number of workers, on what
    ran before, or on whether the run was interrupted. Every pass moves on to the next epoch; a training loop
    that resumes calls `set_epoch` first, as `accelerate` and distributed samplers expect.

    Examples:
        >>> sampler = EpochSampler(4, seed=0)
        >>> first, second = list(sampler), list(sampler)
        >>> sampler.set_epoch(0)
        >>> list(sampler) == first != second
        True
    """

    def __init__(self, length: int, *, seed: int = 0) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of this epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        self.epoch += 1
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**63 - 1, (self.length,), generator=generator).tolist()
        return iter(list(zip(order, seeds, strict=True)))
