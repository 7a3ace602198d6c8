"""First Betti numbers of Vietoris-Rips filtrations: counted from the distances, without simplices."""

import math

import numpy as np
import torch
from torch import Tensor

from adabet.errors import ActivationError, OptionError
from adabet.extras import require
from adabet.topology.ties import count_with_ties

# torch runs elementwise operations below 32768 elements on the calling thread. At this size more threads
# gain nothing, and where other processes hold the cores each hand-over between them costs milliseconds.
_CPU_ELEMENTS_PER_OPERATION = (1 << 15) - 1
# Elsewhere an operation has to be long enough to hide its launch.
_ACCELERATOR_ELEMENTS_PER_OPERATION = 1 << 20

# Blocks of whole cache lines of float32 numbers keep vector loads from straddling two.
_CLOUDS_PER_CACHE_LINE = 16

# From this many clouds on it is faster to run the vector units along the batch than along the points.
_CLOUDS_WORTH_INTERLEAVING = 32

# The shortest cycle that no triangle fills has four edges.
_FEWEST_POINTS = 4


def betti_one(distances: Tensor, *, min_persistence: float | None = None) -> Tensor:
    """First Betti numbers of Vietoris-Rips filtrations, summed over all scales.

    Counts the H1 bars of positive length, exactly: edges with an empty lune (those of the relative
    neighbourhood graph) minus the ``n - 1`` edges of a spanning tree, with lengths that tie with a
    triangle's corrected by ranks over GF(2). No triangle inequality is needed. Above 25 points `torch.cdist` gives a
    zero diagonal only with ``compute_mode="donot_use_mm_for_euclid_dist"``.

    Args:
        distances: pairwise distances, ``(..., n, n)``, symmetric, zero diagonal, any unit; float16 and
            bfloat16 are counted as the float32 numbers that they are.
        min_persistence: count only bars with death - birth > this, in the unit of the distances; divide
            those by their maximum for a threshold relative to each cloud's diameter. Bar lengths
            come from ripser, in float32, one cloud at a time on the CPU. The default counts all bars.

    Returns:
        Counts, ``(...)``, int64, on the device of the distances.

    Raises:
        ActivationError: if a distance is NaN, infinite or negative, or a matrix is not symmetric with a
            zero diagonal; names the first cloud at fault.
        OptionError: if ``min_persistence`` is negative or NaN.
        MissingExtraError: if ``min_persistence`` is given and ripser is not installed.

    Source: Tenison et al. 2026 (arXiv 2510.03101), section 3.1; the counting identity follows Koyama et al.
    (arXiv 2307.16333).

    Examples:
        >>> square = torch.tensor([[0., 0.], [0., 1.], [1., 1.], [1., 0.]])
        >>> betti_one(torch.cdist(square, square))
        tensor(1)
        >>> betti_one(torch.cdist(square, square), min_persistence=0.5)
        tensor(0)
    """
    if min_persistence is not None and not min_persistence >= 0:
        raise OptionError(f"min_persistence must be a length >= 0, got {min_persistence}")
    clouds = _clouds(distances)
    counts = torch.zeros(len(clouds), dtype=torch.int64, device=clouds.device)
    if len(clouds) > 0 and clouds.shape[-1] >= _FEWEST_POINTS:
        if min_persistence is None:
            _count_bars(clouds, out=counts)
        else:
            _count_long_bars(clouds, min_persistence, out=counts)
    return counts.reshape(distances.shape[:-2])


def _clouds(distances: Tensor) -> Tensor:
    """Check the distances and lay them out as ``(clouds, n, n)``, float32 or float64."""
    if distances.ndim < 2 or distances.shape[-1] != distances.shape[-2]:
        raise ActivationError(f"distances must have shape (..., n, n), got {tuple(distances.shape)}")
    if not distances.is_floating_point():
        raise ActivationError(f"distances must be floating-point numbers, got {distances.dtype}")
    batch, n = distances.shape[:-2], distances.shape[-1]
    clouds = distances.detach().reshape(math.prod(batch), n, n)
    if clouds.dtype not in (torch.float32, torch.float64):
        clouds = clouds.float()
    if clouds.numel() == 0:
        return clouds

    checked = 0
    for piece in _pieces(clouds):
        if not _is_sound(piece):
            at_fault = next(index for index, cloud in enumerate(piece) if not _is_sound(cloud))
            where = ", ".join(map(str, np.unravel_index(checked + at_fault, batch)))
            name = f"cloud {where} of {tuple(batch)}" if batch else "the cloud"
            raise ActivationError(f"{name} {_complaint(piece[at_fault])}")
        checked += len(piece)
    return clouds


def _is_sound(clouds: Tensor) -> bool:
    """Tell whether distances are finite, not negative, symmetric, and zero on the diagonal."""
    # A NaN fails both comparisons.
    in_range = bool(clouds.amin() >= 0) and bool(clouds.amax() < torch.inf)
    return in_range and not clouds.diagonal(dim1=-2, dim2=-1).any() and torch.equal(clouds, clouds.mT)


def _complaint(cloud: Tensor) -> str:
    if cloud.isnan().any():
        return "holds a NaN; distances must be finite numbers"
    if cloud.isinf().any():
        return "holds an infinite distance; distances must be finite numbers"
    if (cloud < 0).any():
        return "holds a negative distance; distances must be >= 0"
    if cloud.diagonal().any():
        return (
            "has a non-zero diagonal; the distance of a point to itself must be 0 (torch.cdist needs "
            "compute_mode='donot_use_mm_for_euclid_dist' for that)"
        )
    return "is not exactly symmetric; average it with its transpose"


def _elements_per_operation(device: torch.device) -> int:
    return _CPU_ELEMENTS_PER_OPERATION if device.type == "cpu" else _ACCELERATOR_ELEMENTS_PER_OPERATION


def _pieces(clouds: Tensor) -> tuple[Tensor, ...]:
    """Split clouds into pieces, each of which one operation may pass over."""
    n = clouds.shape[-1]
    return torch.split(clouds, max(1, _elements_per_operation(clouds.device) // n**2))


def _count_long_bars(clouds: Tensor, min_persistence: float, *, out: Tensor) -> None:
    """Count the bars longer than ``min_persistence`` with ripser."""
    ripser = require("ripser", "counting bars by their persistence").ripser
    for index, cloud in enumerate(clouds.cpu().numpy()):
        births, deaths = ripser(cloud, maxdim=1, distance_matrix=True)["dgms"][1].T
        out[index] = int(np.count_nonzero(deaths - births > min_persistence))


def _count_bars(clouds: Tensor, *, out: Tensor) -> None:
    """Count all bars, in blocks of clouds that fit in a cache."""
    n = clouds.shape[-1]
    budget = _elements_per_operation(clouds.device)
    size = min(budget // n, 16 * budget // n**2)
    size = max(1, size - size % _CLOUDS_PER_CACHE_LINE)
    for block, counts in zip(torch.split(clouds, size), torch.split(out, size), strict=True):
        distinct = torch.cat([_distinct_points(piece) for piece in _pieces(block)])
        untouched, tied = _untouched_edges(_edge_lengths(block, distinct), budget)
        torch.sub(untouched, distinct.sum(1) - 1, out=counts)
        for index in tied.nonzero().flatten().tolist():
            kept = distinct[index]
            counts[index] = count_with_ties(block[index, kept][:, kept].cpu().numpy())


def _distinct_points(clouds: Tensor) -> Tensor:
    """Mark the first of each set of points with identical distances, ``(clouds, n)``.

    A duplicate changes no count, but ties all of its edges.
    """
    count, n, _ = clouds.shape
    if torch.count_nonzero(clouds) == count * n * (n - 1):
        return torch.ones(count, n, dtype=torch.bool, device=clouds.device)
    first_twin = (clouds == 0).byte().argmax(-1)
    twin_rows = clouds.gather(1, first_twin[:, :, None].expand(-1, -1, n))
    is_first = first_twin == torch.arange(n, device=clouds.device)
    return is_first | (twin_rows != clouds).any(-1)


def _edge_lengths(block: Tensor, distinct: Tensor) -> Tensor:
    """Lengths as ``(n, n, clouds)``, infinite on the diagonal and at points that are left out."""
    order = torch.contiguous_format if len(block) >= _CLOUDS_WORTH_INTERLEAVING else torch.preserve_format
    lengths = torch.empty_like(block.permute(1, 2, 0), memory_format=order)
    pieces = _pieces(block)
    for piece, part in zip(pieces, torch.split(lengths, len(pieces[0]), dim=2), strict=True):
        part.copy_(piece.permute(1, 2, 0))
    lengths.diagonal().fill_(torch.inf)
    left_out = ~distinct.T
    if left_out.any():
        lengths.masked_fill_(left_out[:, None] | left_out, torch.inf)
    return lengths


def _untouched_edges(lengths: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Compare each edge with the best triangle over it, ``min_k max(d_ik, d_jk)``.

    Args:
        lengths: ``(n, n, clouds)``, infinite diagonal.
        budget: elements that one operation may write.

    Returns:
        How many edges are shorter than every triangle over them, ``(clouds,)``, and whether some edge is
        exactly as long as the best triangle over it, ``(clouds,)``.
    """
    n, _, clouds = lengths.shape
    untouched = torch.zeros(clouds, dtype=torch.int64, device=lengths.device)
    tied = torch.zeros(clouds, dtype=torch.bool, device=lengths.device)
    start = 0
    while start < n:
        # By symmetry a strip of rows needs only the columns from its own first row on.
        rows = slice(start, start + max(1, budget // ((n - start) * clouds)))
        strip = lengths[rows, start:]
        best = torch.full_like(strip, torch.inf)
        for near, far in zip(lengths[:, rows, None].unbind(), lengths[:, None, start:].unbind(), strict=True):
            # min(max(near, far), best) in one pass: clamp yields its upper bound where the bounds cross.
            torch.clamp(near, far, best, out=best)
        empty = best > strip
        untouched += empty.sum((0, 1)) - empty[:, : len(strip)].sum((0, 1)) // 2
        tied |= ((best == strip) & strip.isfinite()).flatten(0, 1).any(0)
        start = rows.stop
    return untouched, tied
