"""Methods on sound: a 1-d convolutional net that knows five speakers' digits is adapted to a sixth speaker.

The net is trained on all recordings of five speakers of the Free Spoken Digit Dataset and keeps its head, for the
digits stay the same. Of the sixth speaker takes 10 to 14 of each digit train (50 recordings), takes 5 to 9 and 15 to 19
choose the learning rate and the epoch (100), and takes 0 to 4, the dataset's usual test, and 20 to 49 test (350). Every
speaker is the sixth in turn, unless some are named. Conventions are those of ``accuracy.py``, which this builds on: the
learning rate is the one with the best validation accuracy with the first seed (where that ties, as it does near 1, with
the lowest validation loss), found uphill; methods with a knob get the memory of a step with AdaBet's share of the
layers; finished runs are kept in a file of JSON lines, so that an interrupted comparison goes on where it stopped.

    python benchmarks/audio.py "$ADABET_DATA/audio/fsdd" --results fsdd.jsonl

Run it on one thread (OMP_NUM_THREADS=1); all six speakers take about half an hour of one core.
"""

import argparse
import copy
import json
import math
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import adabet
from accuracy import CONTENDERS, Comparison, climb
from adabet.data import DataSplits, load_audio
from adabet.models import LoadedModel, load_model
from adabet.sizes import format_size
from adabet.tables import table

PATTERN = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SAMPLE_RATE = 8000
SECONDS = 0.8
"""Nearly all recordings are shorter."""

TRAIN_TAKES, VAL_TAKES = range(10, 15), (*range(5, 10), *range(15, 20))
SOURCE_VAL_TAKES = range(5)

METHODS = (
    "head",
    "adabet",
    "adabet-b1",
    "last-k",
    "random",
    "size",
    "bn-bias",
    "lora",
    "full",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--net", default="mel-cnn", choices=("mel-cnn", "raw-cnn"))
    parser.add_argument("--speakers", nargs="+", choices=SPEAKERS, default=list(SPEAKERS))
    parser.add_argument("--methods", nargs="+", choices=list(CONTENDERS), default=list(METHODS))
    parser.add_argument("--source-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--layer-ratio", type=float, default=0.2)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--head-lr-factor", type=float, default=1.0, help="each has its own results file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("audio.jsonl"))
    return parser.parse_args()


def source_split(match: re.Match[str], sixth: str) -> str | None:
    """The five other speakers: a few takes stop the training, the rest are trained on."""
    if match["speaker"] == sixth:
        return None
    return "val" if int(match["take"]) in SOURCE_VAL_TAKES else "train"


def target_split(match: re.Match[str], sixth: str) -> str | None:
    """The sixth speaker's recordings."""
    if match["speaker"] != sixth:
        return None
    take = int(match["take"])
    return "train" if take in TRAIN_TAKES else "val" if take in VAL_TAKES else "test"


class Adaptation(Comparison):
    """One net, one speaker to adapt it to, and what has been run on them."""

    def __init__(self, options: argparse.Namespace, sixth: str) -> None:
        self.options = options
        self.contenders = dict(CONTENDERS)
        self.sixth = sixth
        self.loaded = self.pretrained()
        self.splits = self.recordings(target_split)
        self.done: dict[Any, Any] = {}
        if options.results.exists():
            for line in options.results.read_text().splitlines():
                record = json.loads(line)
                if record["speaker"] == sixth and record["net"] == options.net:
                    self.done[record["name"], record["lr"], record["seed"]] = record
        self.memory = self.budget()

    def net(self, weights: Path | None = None) -> LoadedModel:
        return load_model(f"audio/{self.options.net}", weights=weights, sample_rate=SAMPLE_RATE, seconds=SECONDS)

    def recordings(self, split: Any) -> DataSplits:
        return load_audio(
            self.options.data,
            self.net().audio_config,
            pattern=PATTERN,
            split_of=lambda match: split(match, self.sixth),
            cache=True,
        )

    def pretrained(self) -> LoadedModel:
        """The net that knows the five others; trained once and kept beside the results."""
        weights = self.options.results.with_suffix(f".{self.options.net}-without-{self.sixth}.safetensors")
        if not weights.exists():
            torch.manual_seed(0)
            loaded = self.net()
            loaders = self.recordings(source_split).loaders(batch_size=32, seed=0)
            with tempfile.TemporaryDirectory() as folder:
                result = adabet.fit(
                    loaded.model,
                    loaders.train,
                    loaders.val,
                    method="full",
                    optimizer="adamw",
                    lr=0.002,
                    epochs=self.options.source_epochs,
                    batch_norm="train",
                    run_dir=Path(folder) / "run",
                )
            print(f"without {self.sixth}: val {result.best.val_metrics['accuracy']:.3f}", flush=True)
            save_file(loaded.model.state_dict(), weights)
        return self.net(weights)

    def model(self, seed: int) -> torch.nn.Module:
        """The pre-trained net with its head; the seed decides what is drawn later."""
        torch.manual_seed(seed)
        return copy.deepcopy(self.loaded.model)

    def keep(self, record: dict[str, Any]) -> None:
        super().keep(record | {"speaker": self.sixth, "net": self.options.net})

    def unadapted(self) -> float:
        loaders = self.splits.loaders(batch_size=50)
        return adabet.evaluate(self.model(0), loaders.test)["accuracy"]

    def records(self, name: str) -> list[dict[str, Any]]:
        """The method's runs with its best learning rate."""
        rates = sorted(self.options.lr)
        start = min(range(len(rates)), key=lambda index: abs(rates[index] - 0.001))

        def score(lr: float) -> tuple[float, float]:
            record = self.cell(name, lr, self.options.seeds[0])
            return record["val"], -record.get("val_loss", math.inf)

        best = climb(rates, start, score)
        return [self.cell(name, best, seed) for seed in self.options.seeds]


def row(name: str, by_speaker: list[list[dict[str, Any]]]) -> tuple[str, ...]:
    """A line of the table: the mean over speakers and seeds, and how far seeds scatter the mean over speakers."""
    every = [record for records in by_speaker for record in records]
    by_seed = [statistics.mean(record["test"] for record in records) for records in zip(*by_speaker, strict=True)]

    def middle(key: str) -> float:
        return statistics.median(record.get(key, 0) for record in every)

    return (
        name,
        "/".join(sorted({f"{records[0]['lr']:g}" for records in by_speaker}, key=float)),
        f"{statistics.mean(by_seed):.3f}",
        f"{statistics.stdev(by_seed):.3f}" if len(by_seed) > 1 else "",
        f"{min(statistics.mean(record['test'] for record in records) for records in by_speaker):.3f}",
        f"{middle('parameters') / 1000:,.1f} k",
        format_size(middle("peak")),
        f"{middle('select_seconds'):.2f} s",
        f"{1000 * middle('step_seconds'):.0f} ms",
    )


def main() -> None:
    options = parse()
    adaptations = [Adaptation(options, sixth) for sixth in options.speakers]
    for adaptation in adaptations:
        print(
            f"{adaptation.sixth}: {adaptation.unadapted():.3f} without adaptation, "
            f"budget {format_size(adaptation.memory)}",
            flush=True,
        )
    print(f"mean without adaptation {statistics.mean(item.unadapted() for item in adaptations):.3f}", flush=True)
    rows = [row(name, [adaptation.records(name) for adaptation in adaptations]) for name in options.methods]
    headings = ("method", "lr", "test", "std of seeds", "worst speaker", "trains", "peak", "selection", "step")
    print(table(headings, rows))


if __name__ == "__main__":
    main()
