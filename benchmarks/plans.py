"""Do plans keep their budgets, use them, and stay within them while planning?

    python benchmarks/plans.py --models resnet50 mobilenetv2

For each model six budgets between the smallest that works and what training everything takes. Each plan's whole step is
then measured anew. Where less than 80 % of the budget is used, plans that are one step larger are measured: one more
sample at once, and one more layer, of those that stay frozen the smallest whole or an eighth of its channels.
"""

import argparse
import time
from dataclasses import replace

import torch
from torch.nn import functional as F

import adabet
from adabet.errors import BudgetError
from adabet.memory import measure_memory
from adabet.planning.trials import Trials
from adabet.selection import Choice
from adabet.sizes import format_size, parse_size
from adabet.step import logits_of
from adabet.tables import table
from memory import BATCH, CLASSES, TIMM, build

USED = 0.8
"""Share of the budget below which larger plans are looked for."""

NEIGHBOURS = 3
"""Frozen layers that are tried in addition to a plan's."""

SHARES = (0.0, 0.1, 0.25, 0.45, 0.7, 0.95)


def loss(outputs: object, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of whatever the model returns."""
    return F.cross_entropy(logits_of(outputs), labels)


def labelled(inputs: object) -> object:
    labels = torch.arange(BATCH) % CLASSES
    return {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)


def smallest(model: torch.nn.Module, batches: list) -> int:
    """The budget that the error of an impossible one names, in bytes."""
    try:
        adabet.plan(model, batches, memory=1)
    except BudgetError as error:
        return parse_size(str(error).partition("takes ")[2].partition(" with")[0])
    raise RuntimeError("a budget of one byte was accepted")


def larger(model: torch.nn.Module, batches: list, found: adabet.Plan) -> str:
    """The first plan one step larger that also fits, in words; else by how much the smallest of them does not."""
    way = {"recompute": found.recompute, "inference": False}
    tries = []
    if found.micro_batch < found.batch_size:
        tries.append((f"{found.micro_batch + 1} at once", found.selection, found.micro_batch + 1))
    taken = set(found.selection.layers)
    rest = [layer for layer in adabet.find_layers(model, batches[0]) if layer.name not in taken]
    for layer in sorted(rest, key=lambda layer: layer.parameter_count + layer.input_size)[:NEIGHBOURS]:
        choices = [Choice.of(layer)]
        if layer.kind in ("convolution", "linear") and layer.out_channels:
            choices.append(Choice.of(layer, tuple(range(max(1, layer.out_channels // 8)))))
        for choice in choices:
            more = replace(found.selection, choices=(choice, *found.selection.choices))
            tries.append((f"{layer.name} too", more, found.micro_batch))
    over = []
    for words, selection, size in tries:
        took = measure_memory(model, batches[0], selection, micro_batch=size, **way).training.total
        if took <= found.budget:
            return f"YES: {words}"
        over.append(took)
    return f"no: {min(over) / found.budget:.0%}" if over else "no: all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*TIMM, "bert"], default=[*TIMM, "bert"])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    options = parser.parse_args()
    run = Trials.run
    trials: list[int] = []

    def watched(self: Trials, *arguments: object, **keywords: object) -> object:
        report = run(self, *arguments, **keywords)
        trials.append(report.training.total)
        return report

    Trials.run = watched
    for name in options.models:
        model, inputs = build(name)
        batches = [labelled(part) for part in inputs]
        low = smallest(model, batches)
        full = measure_memory(model, batches[0], adabet.select("full", model, batches), inference=False).training.total
        rows = []
        for share in options.shares:
            budget = round(low + share * (full - low))
            trials.clear()
            start = time.perf_counter()
            found = adabet.plan(model, batches, memory=budget)
            seconds = time.perf_counter() - start
            chosen = found.selection.choices
            way = {"micro_batch": found.micro_batch, "recompute": found.recompute, "inference": False}
            measured = measure_memory(model, batches[0], found.selection, **way).training.total
            rows.append(
                (
                    format_size(budget),
                    format_size(measured),
                    f"{measured / budget:.0%}",
                    "yes" if measured <= budget else "NO",
                    f"{max(trials) / budget:.1%}" + ("" if max(trials) <= budget else " OVER"),
                    "" if measured >= USED * budget else larger(model, batches, found),
                    f"{len(found.selection.layers)}/{found.selection.candidates}",
                    str(sum(choice.channels is not None for choice in chosen)),
                    str(found.micro_batch),
                    "yes" if found.recompute else "no",
                    f"{seconds:.0f}",
                )
            )
            print(rows[-1], flush=True)
        print(f"\n{name}: smallest {format_size(low)}, everything under lean {format_size(full)}")
        plan = ("layers", "sliced", "at once", "recompute", "s")
        print(table(("budget", "measured", "used", "fits", "planning", "larger fits", *plan), rows), flush=True)


if __name__ == "__main__":
    main()
