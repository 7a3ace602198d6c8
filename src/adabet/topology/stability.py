"""How sure a ranking is: the same question to parts of the same samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from adabet.topology.betti import betti_one

DRAWS = 16
"""Random halves of the samples; with their complements twice as many sub-clouds."""


def half_counts(distances: Mapping[str, Tensor], *, draws: int = DRAWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Betti numbers of random halves of every cloud, and of the other halves. No forward pass.

    Args:
        distances: for each layer the distances between n samples, ``(n, n)``; the same samples in all.
        draws: number of random splits into two halves of ``n // 2`` samples.
        seed: of the splits.

    Returns:
        Two tensors ``(draws, layers)``, int64: the counts of the one half and of the other.
    """
    clouds = torch.stack([cloud.cpu() for cloud in distances.values()])
    half = clouds.shape[-1] // 2
    generator = torch.Generator().manual_seed(seed)
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(draws):
        order = torch.randperm(clouds.shape[-1], generator=generator)
        for side, rows in zip(halves, (order[:half], order[half : 2 * half]), strict=True):
            side.append(betti_one(clouds[:, rows[:, None], rows]))
    return torch.stack(halves[0]), torch.stack(halves[1])


def spearman(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's rank correlation along the last axis, tied values sharing their mean rank.

    Args:
        left: values, ``(..., n)``.
        right: values, ``(..., n)``.

    Returns:
        Correlations, ``(...)``, float64; NaN where all values of one side are equal.

    Examples:
        >>> spearman(torch.tensor([1, 2, 3]), torch.tensor([10, 20, 30]))
        tensor(1., dtype=torch.float64)
    """
    ranks = [mean_ranks(values) for values in (left, right)]
    centred = [rank - rank.mean(-1, keepdim=True) for rank in ranks]
    return (centred[0] * centred[1]).sum(-1) / (centred[0].square().sum(-1) * centred[1].square().sum(-1)).sqrt()


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis from 0, tied values sharing their mean rank, float64."""
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(-1)
    return below.double() + (equal.double() - 1) / 2
