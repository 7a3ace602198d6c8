"""The hard proof: train where the operating system gives no more memory than the budget.

    python benchmarks/capped.py --model resnet50

A child process loads the model, then lowers its limit on data (RLIMIT_DATA) to what it holds by then plus the budget
beyond the weights and a small allowance, and takes the same training steps: with stock PyTorch, which dies; and as
adabet planned for it, which finishes. The plan's weights are then compared with those of a child without a limit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import adabet
from adabet.planning import Plan
from adabet.sizes import format_size, parse_size
from memory import BATCH, build
from plans import labelled

STEPS = 2
ALLOWANCE = 24_000_000
"""For what torch's allocator does not give out: compiled kernels, Python's objects, torn pages. Stock gets it too."""


def held() -> int:
    """Bytes of data that this process has mapped, as RLIMIT_DATA counts them."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(field[1]) * 1024 for field in fields if field[0] == "VmData:")


def warm_up() -> None:
    """Load what training loads, once: libraries and thread pools are not what the budget is about."""
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 2))
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    adabet.fit(tiny, [batch], None, adabet.select("full", tiny, [batch]), epochs=1, schedule="constant")


def child(way: str, model_name: str, plan_file: str, budget: int) -> None:
    """Train a few steps, under the limit if there is a budget; print a digest of the weights."""
    import resource

    torch.set_num_threads(1)
    model, inputs = build(model_name)
    batch = labelled(inputs[0])
    del inputs
    plan = Plan.from_json(Path(plan_file).read_text())
    selection = plan.selection if way == "plan" else adabet.select("full", model, [batch])
    options = {"micro_batch": plan.micro_batch, "recompute": plan.recompute} if way == "plan" else {"lean": False}
    warm_up()
    if budget:
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        limit = held() + budget - weights + ALLOWANCE
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    loader = [batch] * STEPS
    adabet.fit(model, loader, None, selection, epochs=1, lr=1e-4, schedule="constant", **options)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    print(json.dumps(digest.hexdigest()))


def run(way: str, model: str, plan_file: Path, budget: int) -> tuple[bool, str]:
    """Whether a child finished, and its digest or its last words."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, model, str(plan_file), str(budget)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    words = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, words[-1] if words else f"exit {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--memory", default="400MB")
    parser.add_argument("--plan", type=Path, default=Path("capped-plan.json"), help="where the plan is kept")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, name, plan_file, budget = options.child
        child(way, name, plan_file, int(budget))
        return
    budget = parse_size(options.memory)
    model, inputs = build(options.model)
    found = adabet.plan(model, [labelled(part) for part in inputs], memory=budget)
    options.plan.write_text(found.to_json())
    print(found)
    for way, cap in (("stock", budget), ("plan", budget), ("plan", 0)):
        finished, words = run(way, options.model, options.plan, cap)
        limit = f"under {format_size(cap)}" if cap else "without a limit"
        print(f"{way} {limit}: {'finished' if finished else 'died'}: {words}", flush=True)
    print(f"batch {BATCH}, {STEPS} steps; equal digests are equal weights, bit by bit")


if __name__ == "__main__":
    main()
