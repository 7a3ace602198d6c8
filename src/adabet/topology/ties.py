"""Counting where edges tie with the triangles that fill them: ranks over GF(2), one length at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.floating]
Numbers = NDArray[np.int64]

# Edges are compared with all points in blocks of about this many pairs, which bounds the memory.
_PAIRS_AT_ONCE = 1 << 16

_WORD_BITS = 64


def count_with_ties(distances: Lengths) -> int:
    """First Betti number of one Vietoris-Rips filtration, summed over all scales, whatever its ties.

    At a length ``v`` as many bars of positive length are born as there are edges of that length, less the
    rank over GF(2) of the triangles of diameter ``v`` restricted to those edges, less the edges that a
    minimum spanning tree takes at ``v``. What an edge gives to the rank depends on the best third point
    ``k``, where ``max(d_ik, d_jk)`` is least. Above ``v``, no triangle of that diameter touches the edge: it
    gives nothing. Below, two shorter edges close a triangle with it: it gives one. Equal to ``v``, the edge
    is *tied*, and only over the tied edges of one length is there a rank to compute.

    Args:
        distances: pairwise distances, ``(n, n)``, symmetric, finite, zero diagonal; need not be a metric.

    Returns:
        The number of H1 bars with death > birth.

    Examples:
        >>> steps = np.abs(np.subtract.outer(range(6), range(6)))
        >>> hexagon = np.minimum(steps, 6 - steps).astype(np.float32)
        >>> count_with_ties(hexagon)
        1
    """
    lengths = distances.copy()
    np.fill_diagonal(lengths, np.inf)
    best = np.full_like(lengths, np.inf)
    for row in lengths:
        np.minimum(best, np.maximum(row[:, None], row), out=best)
    untouched = int(np.count_nonzero(best > lengths)) // 2
    return untouched + _tied_cycles(lengths, best == lengths) - (len(lengths) - 1)


def _tied_cycles(lengths: Lengths, tied: NDArray[np.bool_]) -> int:
    """Count the tied edges, less the rank of the triangles over them, summed over all lengths.

    An edge that is the highest of some triangle is the sum of the triangle's other two, so that all edges
    of one length are sums of a few free ones. Every further triangle is then a relation between free edges,
    nearly always 0 = 0, which leaves little to eliminate.
    """
    first, second = np.nonzero(np.triu(tied, 1))
    if len(first) == 0:
        return 0
    by_length = np.argsort(lengths[first, second], kind="stable")
    edges = np.stack([first[by_length], second[by_length]])
    number = np.zeros(lengths.shape, dtype=np.int64)
    number[edges[0], edges[1]] = number[edges[1], edges[0]] = np.arange(1, len(first) + 1)
    _, problem = np.unique(lengths[edges[0], edges[1]], return_inverse=True)

    blocks = _triangles(lengths, number, edges)
    defining = np.concatenate([block[np.unique(block[:, 0], return_index=True)[1]] for block in blocks])
    free = np.setdiff1d(number[edges[0], edges[1]], defining[:, 0], assume_unique=True)
    sums = _sums_of_free_edges(defining, free, problem)
    relations = []
    for block in _triangles(lengths, number, edges):
        vectors = sums[block[:, 0]] ^ sums[block[:, 1]] ^ sums[block[:, 2]]
        telling = vectors.any(axis=1)
        problems = problem[block[telling, 0] - 1].astype(np.uint64)
        relations.append(np.unique(np.column_stack([problems, vectors[telling]]), axis=0))
    return len(free) - _rank(np.concatenate(relations))


def _triangles(lengths: Lengths, number: Numbers, edges: Numbers) -> Iterator[Numbers]:
    """Yield each triangle that has a tied edge as long as its diameter, in blocks ``(triangles, 3)``.

    A row holds the number of the highest tied edge and those of the other two, 0 for edges that count as
    zero at this length: shorter ones, and those that two shorter edges fill. Highest edges ascend.
    """
    step = max(1, _PAIRS_AT_ONCE // len(lengths))
    for start in range(0, edges.shape[1], step):
        i, j = edges[:, start : start + step]
        length, highest = lengths[i, j, None], number[i, j, None]
        as_long = np.maximum(lengths[i], lengths[j]) == length
        row, k = np.nonzero(as_long & (np.maximum(number[i], number[j]) < highest))
        length, i, j = length[row, 0], i[row], j[row]
        sides = [np.where(lengths[end, k] == length, number[end, k], 0) for end in (i, j)]
        yield np.stack([number[i, j], *sides], axis=1)


def _sums_of_free_edges(defining: Numbers, free: Numbers, problem: Numbers) -> NDArray[np.uint64]:
    """Write each tied edge as a bit vector over the free edges of its own length.

    Args:
        defining: one triangle for each edge that is not free, highest edges ascending, ``(edges, 3)``.
        free: numbers of the free edges, ascending.
        problem: index of the length of each tied edge, ``(tied,)``, ascending.

    Returns:
        Vectors, ``(tied + 1, words)``; that of number 0 is zero.
    """
    of_free = problem[free - 1]
    bits = np.arange(len(free)) - np.searchsorted(of_free, of_free)
    sums = [0] * (len(problem) + 1)
    for edge, bit in zip(free.tolist(), bits.tolist(), strict=True):
        sums[edge] = 1 << bit
    for edge, one, other in defining.tolist():
        sums[edge] = sums[one] ^ sums[other]
    words = 1 + max(bits, default=0) // _WORD_BITS
    data = b"".join(vector.to_bytes(words * _WORD_BITS // 8, "little") for vector in sums)
    return np.frombuffer(data, dtype="<u8").reshape(len(sums), words)


def _rank(relations: NDArray[np.uint64]) -> int:
    """Rank over GF(2) of rows ``(problem, *words)``, summed over the problems."""
    pivots: dict[tuple[int, int], int] = {}
    for problem, *words in np.unique(relations, axis=0).tolist():
        vector = sum(word << (_WORD_BITS * position) for position, word in enumerate(words))
        while vector:
            pivot = (problem, vector.bit_length())
            if pivot not in pivots:
                pivots[pivot] = vector
                break
            vector ^= pivots[pivot]
    return len(pivots)
