"""Distance matrices of many kinds, seeded: generic and tied, metric and not, with and without duplicates."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import pdist, squareform

Matrix = NDArray[np.floating]

LARGEST_CLOUD = 90
LARGEST_DIMENSION = 500


def distances(points: NDArray[np.generic]) -> NDArray[np.float32]:
    """Euclidean distances, exactly symmetric, zero between equal points."""
    return squareform(pdist(points.astype(np.float64))).astype(np.float32)


def symmetric(values: Matrix) -> NDArray[np.float32]:
    """The upper triangle mirrored, with a zero diagonal."""
    upper = np.triu(values, 1)
    return (upper + upper.T).astype(np.float32)


def gaussian(rng: Generator, n: int, dimension: int) -> Matrix:
    return distances(rng.standard_normal((n, dimension)))


def rectified(rng: Generator, n: int, dimension: int) -> Matrix:
    threshold = rng.uniform(-0.5, 2.0)
    return distances(np.maximum(rng.standard_normal((n, dimension)) - threshold, 0))


def rounded(rng: Generator, n: int, dimension: int) -> Matrix:
    return distances(np.round(rng.standard_normal((n, dimension)) * rng.uniform(0.5, 4)))


def binary(rng: Generator, n: int, dimension: int) -> Matrix:
    return distances(rng.random((n, dimension)) < rng.uniform(0.05, 0.95))


def duplicated(rng: Generator, n: int, dimension: int) -> Matrix:
    points = rng.standard_normal((int(rng.integers(1, n + 1)), dimension))
    return distances(points[rng.integers(0, len(points), n)])


def all_equal(rng: Generator, n: int, dimension: int) -> Matrix:
    return distances(np.tile(rng.standard_normal(dimension), (n, 1)))


def equidistant(rng: Generator, n: int, _dimension: int) -> Matrix:
    return symmetric(np.full((n, n), rng.uniform(0.1, 10)))


def circle(rng: Generator, n: int, _dimension: int) -> Matrix:
    steps = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    order = rng.permutation(n)
    return np.minimum(steps, n - steps)[order][:, order].astype(np.float32)


def grid(rng: Generator, n: int, dimension: int) -> Matrix:
    axes = min(dimension, 4)
    return distances(rng.integers(0, rng.integers(2, 8), (n, axes)))


def graph(rng: Generator, n: int, _dimension: int) -> Matrix:
    edges = np.triu(rng.random((n, n)) < rng.uniform(1.5, 4) / n, 1)
    path_keeps_it_connected = np.eye(n, k=1, dtype=bool)
    return shortest_path(edges | path_keeps_it_connected, directed=False, unweighted=True).astype(np.float32)


def dissimilarity(rng: Generator, n: int, _dimension: int) -> Matrix:
    return symmetric(rng.random((n, n)))


def tied_dissimilarity(rng: Generator, n: int, _dimension: int) -> Matrix:
    return symmetric(rng.integers(1, rng.integers(3, 40), (n, n)))


def dissimilarity_with_zeros(rng: Generator, n: int, _dimension: int) -> Matrix:
    return symmetric(rng.integers(0, rng.integers(2, 20), (n, n)))


FAMILIES: dict[str, Callable[[Generator, int, int], Matrix]] = {
    family.__name__: family
    for family in (
        gaussian,
        rectified,
        rounded,
        binary,
        duplicated,
        all_equal,
        equidistant,
        circle,
        grid,
        graph,
        dissimilarity,
        tied_dissimilarity,
        dissimilarity_with_zeros,
    )
}


def clouds(family: str, count: int, *, points: int | None = None, seed: int = 0) -> Iterator[Matrix]:
    """Yield ``count`` distance matrices of a family, float32.

    Args:
        family: a key of ``FAMILIES``.
        count: how many.
        points: size of each cloud; drawn from 3 to 90 if not given, as is the dimension from 1 to 500.
        seed: another seed, other clouds.
    """
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    for _ in range(count):
        n = points or int(rng.integers(3, LARGEST_CLOUD + 1))
        dimension = int(np.exp(rng.uniform(0, np.log(LARGEST_DIMENSION + 1))))
        yield FAMILIES[family](rng, n, dimension)
