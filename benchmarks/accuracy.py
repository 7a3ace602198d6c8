"""Accuracy, memory and time of methods on one model and one folder of images, each at its own best learning rate.

Every method trains with the same epochs. Its learning rate is the one with the best validation accuracy with the first
seed, searched uphill from a usual one among the given; then it trains with every seed, and is tested. Methods with a
knob get the same memory: the peak of a step with AdaBet's share of the layers; those that rank layers take as many as
fit into it, those that keep to a budget are told it. Finished runs are kept in a file of JSON lines, so that an
interrupted comparison goes on where it stopped.

    python benchmarks/accuracy.py timm/mobilenetv2_100 "$ADABET_DATA/images/clothing" \
        --weights "$ADABET_DATA/weights/mobilenetv2_100.safetensors" --model-arg pad_type=same \
        --mean 0.5 --std 0.5 --image-size 160 --max-train 800 --epochs 5 --results clothing.jsonl

Training peaks are allocations of the first selection's step, weights included; selection peaks are the rise of
resident memory in a process of its own that gives freed memory back. Times are of the processor, so that what else runs
counts little; those of steps are medians, data loading included. Run it on one thread (OMP_NUM_THREADS=1).
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import ttest_rel

import adabet
from adabet.cli.setup import model_arguments
from adabet.data import DataSplits, load_data, transforms
from adabet.experiments.statistics import holm
from adabet.memory.high_water import RESIDENT
from adabet.methods import find_method
from adabet.models import LoadedModel, load_model, new_head
from adabet.sizes import format_size
from adabet.tables import table


@dataclass(frozen=True)
class Contender:
    """A method as it is compared.

    Attributes:
        method: its name.
        options: its own.
        fit: what else `adabet.fit` is told, such as the paper's optimizer.
        equal: whether it gets the same memory as the others that have a knob.
        lr: where the search for its learning rate begins.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    equal: bool = True
    lr: float = 0.001

    @property
    def ranks(self) -> bool:
        """Whether the method says what layers are worth, once; otherwise it selects by itself."""
        return find_method(self.method).kind == "ranks layers" and "every" not in self.options


PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
"""Of TraDy and MeDyate: without momentum, a step is a tenth as long in the end."""

OWN_BUDGETS = {"units", "scheme", "parameters"}
"""Options that set a method's budget in its paper's units."""

CONTENDERS = {
    "full": Contender("full", equal=False),
    "head": Contender("head", equal=False),
    "last-k": Contender("last-k"),
    "random": Contender("random"),
    "size": Contender("size"),
    "adabet": Contender("adabet"),
    "adabet-b1": Contender("adabet", {"normalize": "none"}),
    "adabet-again": Contender("adabet", {"every": 2}, equal=False),
    "fisher": Contender("fisher"),
    "tinytrain": Contender("tinytrain"),
    "bn-bias": Contender("bn-bias", equal=False),
    "tinytl-bias": Contender("tinytl-bias", equal=False),
    "lp-ft": Contender("lp-ft", equal=False),
    "gradual-unfreeze": Contender("gradual-unfreeze", equal=False),
    "elastic-trainer": Contender("elastic-trainer", {"interval": 2, "speedup": 0.7}, equal=False),
    "prune-train": Contender("prune-train", {"interval": 2}, {"keep": "last"}, equal=False),
    "prune-train-l1": Contender("prune-train-l1", equal=False),
    "sparse-update": Contender("sparse-update"),
    "velocity": Contender("velocity"),
    "velocity-paper": Contender("velocity", {"parameters": 0.088}, equal=False),
    "trady": Contender("trady", fit=PLAIN_SGD, lr=0.01),
    "medyate": Contender("medyate", fit=PLAIN_SGD, lr=0.01),
    "auto-rgn": Contender("auto-rgn", equal=False),
    "auto-snr": Contender("auto-snr", equal=False),
    "auto-freeze": Contender("auto-freeze", equal=False),
    "lisa": Contender("lisa", equal=False),
    "lora": Contender("lora", equal=False),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights")
    parser.add_argument("--model-arg", action="append")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--mean", type=float)
    parser.add_argument("--std", type=float)
    parser.add_argument("--max-train", type=int)
    parser.add_argument("--max-val", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--head-lr-factor", type=float, default=1.0)
    parser.add_argument("--layer-ratio", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--option", action="append", default=[], metavar="METHOD:NAME=VALUE")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--reference", choices=list(CONTENDERS), default="random", help="whom the others are paired with"
    )
    parser.add_argument("--results", type=Path, default=Path("accuracy.jsonl"))
    parser.add_argument("--select-only", metavar="METHOD", help="only say what choosing takes at its peak, in bytes")
    return parser.parse_args()


def with_options(texts: list[str]) -> dict[str, Contender]:
    """The contenders, with options of methods from the command line; ``memory`` of a method sets it apart."""
    contenders = dict(CONTENDERS)
    for text in texts:
        name, _, pair = text.partition(":")
        former = contenders[name]
        options = former.options | model_arguments([pair])
        contenders[name] = replace(former, options=options, equal=former.equal and not OWN_BUDGETS & options.keys())
    return contenders


def prepare(options: argparse.Namespace) -> tuple[DataSplits, LoadedModel]:
    """The data, and the model that everything starts from."""
    loaded = load_model(
        options.model,
        weights=options.weights,
        image_size=options.image_size,
        mean=options.mean,
        std=options.std,
        **model_arguments(options.model_arg),
    )
    train, evaluation = (transforms(loaded.data_config, train=train) for train in (True, False))
    splits = load_data(
        options.data,
        transform_train=train,
        transform_eval=evaluation,
        max_train=options.max_train,
        max_val=options.max_val,
        cache=True,
    )
    print(splits.report, flush=True)
    return splits, loaded


class StepTimes:
    """Progress that notes when each step was done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None: ...

    def step(self, *, epoch: int, step: int, loss: float) -> None:  # noqa: ARG002 - what fit calls
        now = time.process_time()
        if self._last is not None and step > 1:
            self.seconds.append(now - self._last)
        self._last = now

    def epoch(self, record: object) -> None: ...

    def stop(self) -> None: ...


class Comparison:
    """One model, one dataset, and what has been run on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.contenders = with_options(options.option)
        self.splits, self.loaded = prepare(options)
        self.done = {}
        if options.results.exists():
            for line in options.results.read_text().splitlines():
                record = json.loads(line)
                self.done[record["name"], record["lr"], record["seed"]] = record
        self.memory = self.budget()
        self.tests: dict[str, list[float]] = {}

    def model(self, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = copy.deepcopy(self.loaded.model)
        new_head(model, len(self.splits.classes))
        return model

    def budget(self) -> int:
        """Peak of a step with AdaBet's share of the layers."""
        model = self.model(0)
        ratio = self.options.layer_ratio
        selection = adabet.select("adabet", model, self.splits.unlabelled(seed=0), layer_ratio=ratio)
        batch = next(iter(self.splits.loaders(batch_size=8, seed=0).train))
        return adabet.measure_memory(model, batch, selection).training.total

    def within(self, ranking: adabet.Ranking, model: torch.nn.Module, batch: Any) -> adabet.Selection:
        """As many of the best layers as fit into the budget, found by halving."""
        low, high = 1, len(ranking.layers)
        while low < high:
            middle = (low + high + 1) // 2
            selection = ranking.select(layer_ratio=middle / len(ranking.layers))
            if adabet.measure_memory(model, batch, selection, inference=False).training.total <= self.memory:
                low = middle
            else:
                high = middle - 1
        return ranking.select(layer_ratio=low / len(ranking.layers))

    def look(self, contender: Contender, model: torch.nn.Module, seed: int) -> adabet.Ranking | None:
        """Choose, once; a ranking if the method gives one."""
        loaders = self.splits.loaders(batch_size=8, seed=seed)
        if contender.ranks:
            labelled = find_method(contender.method).labelled
            looked = loaders.train if labelled else self.splits.unlabelled(seed=seed)
            return adabet.rank(model, looked, method=contender.method, seed=seed, **contender.options)
        shared = {"memory": self.memory if contender.equal else None, "val_batches": loaders.val}
        adabet.select(contender.method, model, loaders.train, seed=seed, **shared, **contender.options)
        return None

    def chosen(self, contender: Contender, model: torch.nn.Module, seed: int) -> tuple[dict[str, Any], float]:
        """What `fit` is told, and the seconds that choosing took."""
        scratch = copy.deepcopy(model)
        start = time.process_time()
        ranking = self.look(contender, scratch, seed)
        seconds = time.process_time() - start
        if ranking is None:
            share = {"memory": self.memory} if contender.equal else {"layer_ratio": self.options.layer_ratio}
            return {"method": contender.method, "method_options": contender.options, **share}, seconds
        if contender.equal:
            batch = next(iter(self.splits.loaders(batch_size=8, seed=seed).train))
            return {"selection": self.within(ranking, model, batch)}, seconds
        return {"selection": ranking.select(layer_ratio=self.options.layer_ratio)}, seconds

    def run(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """Select, train and test once; the seed decides head, samples, selection and order."""
        contender = self.contenders[name]
        model = self.model(seed)
        record = {"name": name, "lr": lr, "seed": seed}
        told, seconds = self.chosen(contender, model, seed)
        loaders = self.splits.loaders(batch_size=8, seed=seed)
        times = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = adabet.fit(
                    model,
                    loaders.train,
                    loaders.val,
                    lr=lr,
                    head_lr_factor=self.options.head_lr_factor,
                    epochs=self.options.epochs,
                    seed=seed,
                    run_dir=Path(folder) / "run",
                    progress=times,
                    **contender.fit,
                    **told,
                )
            except adabet.errors.TrainingError as error:
                return {**record, "val": 0.0, "test": 0.0, "diverged": str(error)}
            memory = adabet.MemoryReport.from_json((Path(folder) / "run" / "memory.json").read_text())
        return {
            **record,
            "val": result.best.val_metrics["accuracy"],
            "val_loss": result.best.val_loss,
            "test": adabet.evaluate(model, loaders.test)["accuracy"],
            "peak": memory.training.total,
            "select_seconds": seconds,
            "step_seconds": statistics.median(times.seconds),
            "layers": len(result.layers),
            "parameters": result.trained_parameters,
        }

    def selection_peak(self, name: str) -> int:
        """By how many bytes choosing lets resident memory rise; in a process of its own, and kept as runs are."""
        key = (name, "selection", self.options.seeds[0])
        if key not in self.done:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--select-only", name],
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            self.keep({"name": name, "lr": "selection", "seed": key[2], "peak": int(done.stdout.split()[-1])})
        return int(self.done[key]["peak"])

    def watched(self, name: str) -> int:
        """The same in this process, with all images prepared."""
        model, seed = self.model(self.options.seeds[0]), self.options.seeds[0]
        loaders = self.splits.loaders(batch_size=8, seed=seed)
        for loader in (loaders.train, loaders.val):
            for _ in loader:
                pass
        with RESIDENT.watch() as peak:
            self.look(self.contenders[name], model, seed)
        return peak.bytes or 0

    def keep(self, record: dict[str, Any]) -> None:
        """Add a record to the file."""
        with self.options.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.done[record["name"], record["lr"], record["seed"]] = record

    def cell(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """A run, or what it gave before."""
        if (name, lr, seed) not in self.done:
            record = self.run(name, lr, seed)
            self.keep(record)
            print(f"{name} lr {lr} seed {seed}: val {record['val']:.3f} test {record['test']:.3f}", flush=True)
        return self.done[name, lr, seed]

    def row(self, name: str) -> tuple[str, ...]:
        """A line of the table."""
        seeds = self.options.seeds
        rates = sorted(self.options.lr)
        start = min(range(len(rates)), key=lambda index: abs(math.log(rates[index] / self.contenders[name].lr)))
        best = climb(rates, start, lambda lr: self.cell(name, lr, seeds[0])["val"])
        records = [self.cell(name, best, seed) for seed in seeds]
        self.tests[name] = tests = [record["test"] for record in records]

        def middle(key: str) -> float:
            return statistics.median(record.get(key, 0) for record in records)

        return (
            name,
            f"{best:g}",
            f"{statistics.mean(tests):.3f}",
            f"{statistics.stdev(tests):.3f}" if len(tests) > 1 else "",
            f"{middle('parameters') / 1000:,.0f} k",
            format_size(self.selection_peak(name)),
            format_size(middle("peak")),
            f"{middle('select_seconds'):.1f} s",
            f"{1000 * middle('step_seconds'):.0f} ms",
        )

    def pairs(self) -> str:
        """Each method's accuracy minus the reference's by seed: mean, 95 % interval, p corrected by Holm."""
        reference = self.tests[self.options.reference]
        others = [name for name in self.tests if name != self.options.reference]
        results = [ttest_rel(self.tests[name], reference) for name in others]
        corrected = holm([1.0 if math.isnan(result.pvalue) else float(result.pvalue) for result in results])
        rows = []
        for name, result, p in zip(others, results, corrected, strict=True):
            interval = result.confidence_interval(0.95)
            mean = statistics.mean(self.tests[name]) - statistics.mean(reference)
            rows.append((name, f"{mean:+.3f}", f"{interval.low:+.3f} to {interval.high:+.3f}", f"{p:.3f}"))
        return table((f"minus {self.options.reference}", "mean", "95 %", "p (Holm)"), rows)


def climb(rates: list[float], place: int, score: Callable[[float], Any]) -> float:
    """The rate with the best score, found by going uphill from one of them."""
    while True:
        near = [index for index in (place - 1, place, place + 1) if 0 <= index < len(rates)]
        best = max(near, key=lambda index: score(rates[index]))
        if best == place:
            return rates[place]
        place = best


def main() -> None:
    options = parse()
    comparison = Comparison(options)
    if options.select_only:
        print(comparison.watched(options.select_only))
        return
    print(f"budget of those with a knob: {format_size(comparison.memory)} at the peak of a step", flush=True)
    rows = []
    for name in options.methods:
        try:
            rows.append(comparison.row(name))
        except adabet.errors.AdabetError as error:
            rows.append((name, str(error), *[""] * 7))
            print(f"{name}: {error}", flush=True)
    headings = ("method", "lr", "test", "std", "trains", "selection peak", "training peak", "selection", "step")
    print(table(headings, rows))
    if len(options.seeds) > 1 and {options.reference} < comparison.tests.keys():
        print(f"\n{comparison.pairs()}")


if __name__ == "__main__":
    main()
