"""Time `betti_one` against ripser.py on the same distance matrices, and its growth with the points.

Both count the H1 bars of positive length; the counts are compared before anything is timed. Contenders
alternate, so that whatever else the machine does hits both alike, and a ratio compares medians of one run.
"""

import argparse
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

import numpy as np
import torch
from ripser import ripser
from torch import Tensor

from adabet.topology.betti import betti_one

# Growth is measured on as many clouds as hold this many points to the third power together.
_WORK_FOR_GROWTH = 100 * 80**3


def gaussian_clouds(count: int, points: int, dimension: int) -> Tensor:
    cloud = torch.randn(count, points, dimension, generator=torch.Generator().manual_seed(0))
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(cloud, cloud, compute_mode=exact)


def binary_clouds(count: int, points: int, dimension: int) -> Tensor:
    cloud = torch.randint(0, 2, (count, points, dimension), generator=torch.Generator().manual_seed(0))
    return (cloud[:, :, None] != cloud[:, None]).sum(-1).float().sqrt()


def count_with_adabet(distances: Tensor) -> list[int]:
    return betti_one(distances).tolist()


def count_with_ripser(distances: Tensor) -> list[int]:
    counts = []
    for matrix in distances.numpy():
        births, deaths = ripser(matrix, maxdim=1, distance_matrix=True)["dgms"][1].T
        counts.append(int(np.count_nonzero(deaths > births)))
    return counts


def seconds(work: Callable[[Tensor], list[int]], distances: Tensor) -> float:
    start = perf_counter()
    work(distances)
    return perf_counter() - start


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    yield "gaussian", gaussian_clouds(options.clouds, options.points, options.dimension)
    yield "binary", binary_clouds(options.clouds, options.points, options.dimension)
    for points in options.growth:
        count = max(1, _WORK_FOR_GROWTH // points**3)
        yield "gaussian", gaussian_clouds(count, points, options.dimension)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clouds", type=int, default=1000, help="clouds in the first two rows")
    parser.add_argument("--points", type=int, default=40, help="points of each of those")
    parser.add_argument("--dimension", type=int, default=50, help="dimension of all clouds")
    parser.add_argument("--growth", type=int, nargs="*", default=[40, 80, 160, 320], help="points of further rows")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each contender")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; ripser has one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"{'clouds':>14} {'points':>6} {'adabet ms/cloud':>16} {'ripser ms/cloud':>16} {'ratio':>6}")
    for kind, distances in measurements(options):
        count, points, _ = distances.shape
        if count_with_adabet(distances) != count_with_ripser(distances):
            raise SystemExit(f"counts differ on {kind} clouds of {points} points")
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(seconds(count_with_adabet, distances))
            theirs.append(seconds(count_with_ripser, distances))
        here, there = (1000 * median(times) / count for times in (ours, theirs))
        print(f"{count:5} {kind:>8} {points:6} {here:16.4f} {there:16.3f} {there / here:6.1f}")


if __name__ == "__main__":
    main()
