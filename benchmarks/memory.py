"""What a training step takes at its peak, and how long: stock PyTorch and lean, by model and selection.

    python benchmarks/memory.py --models resnet50 mobilenetv2 --selections random adabet

Batch 8, 224 px (128 tokens), SGD with momentum, batch-norms in eval mode throughout. Every cell runs in a process of
its own, in which stock freezing alternates with the contender; times are medians, and every figure is shown as a ratio
to stock's. Peaks are bytes of allocations over the weights over two steps (the second with the optimizer's state),
saved bytes the most that autograd kept.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext

import timm
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import adabet
from adabet.layers import forward_call
from adabet.lean.recompute import recomputing, repeated_blocks
from adabet.memory import measure_memory, measure_peak
from adabet.sizes import format_size
from adabet.step import logits_of
from adabet.tables import table

BATCH, CLASSES = 8, 37
TIMM = {
    "resnet50": "resnet50",
    "mobilenetv2": "mobilenetv2_100",
    "vgg16": "vgg16",
    "vit": "vit_base_patch16_224",
}
CONTENDERS = {
    "stock": {},
    "compile": {"compiled": True},
    "stock, checkpoint": {"recompute": True},
    "lean": {"lean": True},
    "lean, recompute": {"lean": True, "recompute": True},
    "lean, 2 at once": {"lean": True, "micro_batch": 2},
    "lean, 1 at once": {"lean": True, "micro_batch": 1},
    "lean, recompute, 1 at once": {"lean": True, "recompute": True, "micro_batch": 1},
}


def build(name: str) -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    if name == "bert":
        config = transformers.BertConfig(num_hidden_layers=6, num_labels=CLASSES)
        model = transformers.BertForSequenceClassification(config)
        tokens = torch.randint(0, config.vocab_size, (40, 128))
        inputs = [{"input_ids": part} for part in tokens.split(BATCH)]
    else:
        model = timm.create_model(TIMM[name], num_classes=CLASSES)
        inputs = list(torch.randn(40, 3, 224, 224).split(BATCH))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, inputs


def choose(model: nn.Module, inputs: list, name: str) -> adabet.Selection:
    seed = {"seed": 1} if name == "random" else {}
    return adabet.select(name, model, inputs, layer_ratio=0.1, **seed)


class Step:
    """A training step of one contender on a model that a selection is applied to."""

    def __init__(
        self, model: nn.Module, inputs: object, *, compiled=False, lean=False, recompute=False, micro_batch=None
    ):
        self.model = model
        self.inputs = inputs
        self.labels = torch.arange(BATCH) % CLASSES
        self.call = torch.compile(model) if compiled else model
        self.lean, self.recompute, self.size = lean, recompute, micro_batch or BATCH
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = self.fresh()

    def fresh(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters, lr=1e-6, momentum=0.9)

    def __call__(self) -> None:
        for start in range(0, BATCH, self.size):
            part = adabet.layers.take_samples(self.inputs, start, start + self.size)
            again = recomputing(self.model, lean_mode=self.lean) if self.recompute else nullcontext()
            with adabet.lean(into_grad=self.size < BATCH) if self.lean else nullcontext(), again:
                outputs = forward_call(self.call, part)
                loss = F.cross_entropy(logits_of(outputs), self.labels[start : start + self.size]) * self.size / BATCH
            loss.backward()
            del loss, outputs
        self.optimizer.step()
        self.optimizer.zero_grad()

    def twice(self) -> None:
        self.optimizer = self.fresh()
        self()
        self()


def cell(name: str, selection: str, contender: str, rounds: int) -> dict:
    """Measure one contender beside stock."""
    model, inputs = build(name)
    chosen = choose(model, inputs, selection)
    options = CONTENDERS[contender]
    if options.get("recompute") and not repeated_blocks(model):
        return {}
    batch = inputs[0], torch.arange(BATCH) % CLASSES
    with torch.no_grad():
        inference = measure_peak(lambda: forward_call(model.eval(), inputs[0]))
    found = {"inference": inference}
    if not options.get("compiled"):
        flags = {key: options.get(key, default) for key, default in (("lean", False), ("recompute", False))}
        loss = lambda outputs, labels: F.cross_entropy(logits_of(outputs), labels)  # noqa: E731
        found["saved"] = measure_memory(
            model, batch, chosen, loss=loss, micro_batch=options.get("micro_batch"), inference=False, **flags
        ).saved
    with adabet.apply(model, chosen):
        model.train()
        stock, step = Step(model, inputs[0]), Step(model, inputs[0], **options)
        step()
        found["peak"] = measure_peak(step.twice)
        times: dict[str, list[float]] = {"stock": [], "own": []}
        for _ in range(rounds):
            for label, work in (("stock", stock), ("own", step)):
                begin = time.process_time()
                work()
                times[label].append(time.process_time() - begin)
    return found | {label: statistics.median(values) for label, values in times.items() if values}


def run_cell(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, __file__, "--cell", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*TIMM, "bert"], default=[*TIMM, "bert"])
    parser.add_argument("--selections", nargs="+", default=["random", "adabet", "full", "head"])
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0 measures memory alone")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        warnings.simplefilter("ignore")
        print(json.dumps(cell(*options.cell, options.rounds)))
        return
    for name in options.models:
        for selection in options.selections:
            stock = None
            rows = []
            for contender in dict.fromkeys(["stock", *options.contenders]):
                found = run_cell(name, selection, contender, "--rounds", str(options.rounds))
                stock = stock or found
                if not found or "error" in found:
                    rows.append((contender, found.get("error", "no repeated blocks"), "", "", "", "", ""))
                    continue
                rows.append(
                    (
                        contender,
                        format_size(found["peak"]),
                        f"{found['peak'] / stock['peak']:.3f}",
                        f"{found['peak'] / found['inference']:.2f}",
                        format_size(found["saved"]) if "saved" in found else "",
                        f"{found['saved'] / max(1, stock['saved']):.3f}" if "saved" in found else "",
                        f"{found['own'] / found['stock']:.2f}" if "own" in found else "",
                    )
                )
            print(f"\n{name}, {selection}: inference peaks at {format_size(stock['inference'])} over the weights")
            headings = ("contender", "peak", "x stock", "x inference", "saved", "x stock", "time x stock")
            print(table(headings, rows), flush=True)


if __name__ == "__main__":
    main()
