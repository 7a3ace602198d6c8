"""Squared distances between samples, added up as activations stream by."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**19
"""Elements that are looked at together (2 MiB of float32), so that they stay in the cache."""

CLOSE = 1e-3
"""Below this share of the squared norms a product loses digits; such pairs are subtracted instead."""


def squared_distances(*parts: Tensor) -> Tensor:
    """Squared Euclidean distances between all samples of one or several batches, without a copy of them.

    Works through the features in chunks: each is moved to the first sample as the origin, multiplied with
    itself, and added up in float64. Pairs so close that the product would lose digits are subtracted directly,
    so that equal samples are at distance zero.

    Args:
        parts: activations, each ``(n_i, ...)`` with the same shape behind the first axis, any floating-point type.

    Returns:
        Squared distances, ``(n, n)`` with n the sum of the ``n_i``, float64, symmetric, zero diagonal, on the
        device of the samples (on the CPU where that device has no float64). Not finite where an activation is not.

    Examples:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]], dtype=torch.float64)
    """
    count = sum(part.shape[0] for part in parts)
    total = torch.zeros((count, count), dtype=torch.float64, device=accumulator_device(parts[0]))
    for points in _feature_chunks(parts):
        total += _distances_within(points).to(device=total.device, dtype=torch.float64)
    return total


def channel_squared_distances(*parts: Tensor, channel_axis: int) -> Tensor:
    """Squared distances between all samples for each channel by itself.

    Args:
        parts: activations, each ``(n_i, ...)``.
        channel_axis: the axis that holds the channels, counted from the end (negative).

    Returns:
        Squared distances, ``(channels, n, n)``, float32 (float64 if the activations are).
    """
    by_channel = [part.movedim(channel_axis, 0).flatten(2) if part.dim() > 2 else part.T[..., None] for part in parts]
    per_channel = sum(part[0].numel() for part in by_channel)
    step = max(1, CHUNK_ELEMENTS // max(1, per_channel))
    channels = by_channel[0].shape[0]
    return torch.cat(
        [
            _distances_within(_widen(torch.cat([part[start : start + step] for part in by_channel], dim=1)))
            for start in range(0, channels, step)
        ]
    )


def accumulator_device(tensor: Tensor) -> torch.device:
    """Where float64 sums of a tensor can live."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def _feature_chunks(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """All samples with a bounded number of their features at a time, ``(n, features)``, freshly allocated."""
    rows = [part.reshape(part.shape[0], -1) if part.dim() < 3 else part for part in parts]
    width = sum(part[:, :1].numel() for part in rows)
    step = max(1, CHUNK_ELEMENTS // max(1, width))
    for start in range(0, rows[0].shape[1], step):
        yield _widen(torch.cat([part[:, start : start + step].flatten(1) for part in rows]))


def _widen(points: Tensor) -> Tensor:
    return points.to(torch.promote_types(points.dtype, torch.float32))


def _distances_within(points: Tensor) -> Tensor:
    """Squared distances of ``(..., n, features)`` points, which are overwritten."""
    points -= points[..., :1, :].clone()
    with torch.autocast(points.device.type, enabled=False):  # it would round the products to half precision
        products = points @ points.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    sums = squares[..., :, None] + squares[..., None, :]
    distances = torch.add(sums, products, alpha=-2)
    close = (distances < CLOSE * sums).triu_(1).nonzero(as_tuple=True)
    if len(close[0]):
        _subtract_pairs(distances, points, close)
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    # a GEMM may round (i, j) and (j, i) differently; one of the two counts
    return distances.triu() + distances.triu(1).mT


def _subtract_pairs(distances: Tensor, points: Tensor, pairs: tuple[Tensor, ...]) -> None:
    """Replace the distances of some pairs ``(..., i, j)`` by those of their differences."""
    at_once = max(1, CHUNK_ELEMENTS // max(1, points.shape[-1]))
    for part in zip(*(index.split(at_once) for index in pairs), strict=True):
        *cloud, left, right = part
        difference = points[(*cloud, left)] - points[(*cloud, right)]
        distances[part] = difference.square().sum(dim=-1)
