"""What a ranking costs beside the forward passes that it needs, and what counting costs beside ripser.

    python benchmarks/selection.py --models timm/resnet50 timm/mobilenetv2_100

In one process, contenders alternating, medians of several rounds:

- exact: all 40 samples at once, five batches of 8 side by side; beside it the same samples as one batch of 40 (what a
  plain forward pass needs to have all 40 at once) and as five batches of 8;
- sketch: one batch of 8 after the other; beside it the same five batches.

Memory is the rise of a process's resident memory, since the batches of an exact ranking run in threads that torch's
allocation events do not see; in a process of its own for each contender, whose C library gives back at once what is
freed (MALLOC_MMAP_THRESHOLD_), so that resident is what is in use. Counting and its growth with the number of points:
benchmarks/betti.py, which runs last.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import adabet
from adabet.memory.high_water import RESIDENT
from adabet.models import load_model
from adabet.sizes import format_size
from adabet.tables import table

Work = Callable[[], object]


def contenders(model: torch.nn.Module, images: torch.Tensor) -> dict[str, Work]:
    batches = list(images.split(8))

    def forward(parts: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for part in parts:
                model(part)

    return {
        "plain, batches of 8": lambda: forward(batches),
        "plain, batch of 40": lambda: forward([images]),
        "rank, exact": lambda: adabet.rank(model, batches),
        "rank, sketch": lambda: adabet.rank(model, batches, sketch=256),
        "rank, exact, 16 in memory": lambda: adabet.rank(model, batches, samples_in_memory=16),
    }


def rise(work: Work) -> int:
    """Bytes by which resident memory rises while the work runs."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with RESIDENT.watch() as watched:
        work()
    return watched.bytes or 0


def build(name: str, size: int) -> dict[str, Work]:
    torch.manual_seed(0)
    return contenders(load_model(name).model.eval(), torch.randn(40, 3, size, size))


def measured_times(works: dict[str, Work], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measured_rise(name: str, size: int, work: str) -> int:
    command = [sys.executable, __file__, "--models", name, "--size", str(size), "--rise", work]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["timm/mobilenetv2_100", "timm/resnet50"])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rise", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rise:
        work = build(options.models[0], options.size)[options.rise]
        work()
        print(rise(work))
        return
    for name in options.models:
        seconds_of = measured_times(build(name, options.size), options.rounds)
        found = {work: (seconds, measured_rise(name, options.size, work)) for work, seconds in seconds_of.items()}
        weights = sum(parameter.nbytes for parameter in load_model(name).model.parameters())
        small, large = found["plain, batches of 8"], found["plain, batch of 40"]
        rows = [
            (
                work,
                f"{seconds:.2f}",
                f"{seconds / small[0]:.2f}",
                f"{seconds / large[0]:.2f}",
                format_size(peak),
                f"{(peak + weights) / (small[1] + weights):.2f}",
                f"{(peak + weights) / (large[1] + weights):.2f}",
            )
            for work, (seconds, peak) in found.items()
        ]
        headings = ("40 samples", "seconds", "x 5 of 8", "x 1 of 40", "rise", "x 5 of 8", "x 1 of 40")
        print(f"{name}, {options.size} px; memory ratios with the weights ({format_size(weights)})")
        print(table(headings, rows), flush=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name("betti.py"))], check=True)


if __name__ == "__main__":
    main()
