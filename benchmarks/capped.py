"""The hard proof: train where the operating system gives no more memory than the budget.

    python benchmarks/capped.py timm/resnet50 "$ADABET_DATA/images/clothing" --memory 300MB

On a few photos of the folder, in child processes whose data (RLIMIT_DATA) may grow, once python and the libraries are
loaded, by no more than the budget and a small allowance: `adabet tune` with stock PyTorch and every layer training,
which dies; and `adabet tune --memory`, which loads the model, plans, trains, tests and saves. Its weights are then
compared, bit by bit, with those of the same command without a limit.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from safetensors.torch import load_file

import adabet
import adabet.models
from adabet.sizes import format_size, parse_size

ALLOWANCE = 96_000_000
"""For what torch's allocator does not give out: kernels as they are compiled and their buffers (some 45 MB for
MobileNetV2, 80 MB for ResNet50), modules that are loaded late, Python's objects, torn pages. Stock gets it too."""

STACK = 2**20
"""Bytes of a thread's stack: the limit counts it whole, however little of it is used."""

PHOTOS = {"train": 2, "val": 1, "test": 1}
"""Of each class."""


def held() -> int:
    """Bytes of data that this process has mapped, as RLIMIT_DATA counts them."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(field[1]) * 1024 for field in fields if field[0] == "VmData:")


def warm_up(folder: Path) -> None:
    """Load what training loads, once: libraries and thread pools are not what the budget is about."""
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 2))
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    adabet.plan(tiny, [batch] * 2, memory="10MB", head="2")
    adabet.fit(tiny, [batch], [batch], method="full", epochs=1, schedule="constant", run_dir=folder / "warm")
    adabet.models.load_model("timm/test_resnet")


def child(budget: int, arguments: list[str]) -> None:
    """Run the command line, under the limit if there is a budget."""
    import resource

    from adabet.cli import app

    torch.set_num_threads(1)
    threading.stack_size(STACK)
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder))
    if budget:
        limit = held() + budget + ALLOWANCE
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    app(arguments)


def run(arguments: list[str], budget: int) -> tuple[bool, str]:
    """Whether a child finished, and its last words."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(budget), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    words = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, words[-1] if words else f"exit {done.returncode}"


def few_photos(source: Path, folder: Path) -> Path:
    """A copy of the data with a few photos of each class."""
    for split, count in PHOTOS.items():
        for kind in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            target = folder / "photos" / split / kind.name
            target.mkdir(parents=True)
            for photo in sorted(kind.iterdir())[:count]:
                shutil.copy(photo, target)
    return folder / "photos"


def digest(run_dir: Path) -> str:
    """Of all trained weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(run_dir / "last.safetensors").items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--memory", default="300MB")
    options = parser.parse_args()
    budget = parse_size(options.memory)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = few_photos(options.data, folder)
        planned, everything = ["--memory", options.memory], ["--method", "full", "--no-lean"]
        for name, more, cap in (
            ("stock", everything, budget),
            ("adabet", planned, budget),
            ("adabet, no limit", planned, 0),
        ):
            run_dir = folder / name
            arguments = ["tune", options.model, str(data), "--epochs", "1", "--lr", "1e-4", "--run-dir", str(run_dir)]
            finished, words = run([*arguments, *more], cap)
            limit = f"under {format_size(cap)}" if cap else "without a limit"
            weights = f"; weights {digest(run_dir)}" if finished else ""
            print(f"{name} {limit}: {'finished' if finished else 'died'}: {words}{weights}", flush=True)


if __name__ == "__main__":
    main()
