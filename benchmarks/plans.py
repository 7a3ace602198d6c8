"""Do plans keep their budgets, use them, and stay within them while planning?

    python benchmarks/plans.py --models resnet50 mobilenetv2

For each model six budgets between the smallest that works and what training everything takes. Each plan's whole step is
then measured anew.
"""

import argparse

import torch
from torch.nn import functional as F

import adabet
from adabet.errors import BudgetError
from adabet.memory import measure_memory
from adabet.planning.trials import Trials
from adabet.sizes import format_size, parse_size
from adabet.step import logits_of
from adabet.tables import table
from memory import BATCH, CLASSES, TIMM, build

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
            found = adabet.plan(model, batches, memory=budget)
            way = {"micro_batch": found.micro_batch, "recompute": found.recompute, "inference": False}
            measured = measure_memory(model, batches[0], found.selection, **way).training.total
            rows.append(
                (
                    format_size(budget),
                    format_size(measured),
                    f"{measured / budget:.0%}",
                    "yes" if measured <= budget else "NO",
                    f"{max(trials) / budget:.0%}",
                    f"{len(found.selection.layers)}/{found.selection.candidates}",
                    str(found.micro_batch),
                    "yes" if found.recompute else "no",
                )
            )
        print(f"\n{name}: smallest {format_size(low)}, everything under lean {format_size(full)}")
        headings = ("budget", "measured", "used", "fits", "planning", "layers", "at once", "recompute")
        print(table(headings, rows), flush=True)


if __name__ == "__main__":
    main()
