"""How often `adabet.Monitor` raises an alarm while photos drift, and whether selecting again pays then.

MobileNetV2 with ImageNet weights (de-quantised int8) looks at photos of clothes. Some drift: they get darker, they
blur, or one class takes over. For each of several references the bounds are learned as the monitor does, and windows of
photos that the reference does not hold are compared with them: fresh ones, whose alarms are false, and drifted ones.
Each photo runs once per condition; what is kept is the sketch that the monitor keeps, in a folder from which an
interrupted run goes on. One window also goes through `adabet.Monitor` itself, which must say the same.

Then a head is trained on clean photos, the photos drift, and the network is adapted to them once with the selection
made for the clean photos and once with that of the drifted window, with the raw Betti numbers as priorities
(``--normalize``) and otherwise alike.

    python benchmarks/drift.py "$ADABET_DATA/images/clothing" --results drift \
        --weights "$ADABET_DATA/weights/mobilenetv2_100.safetensors"

Run it on one thread (OMP_NUM_THREADS=1); it takes about a quarter of an hour of one core.
"""

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageEnhance, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import adabet
from adabet.data import transforms
from adabet.data.decode import read_image
from adabet.data.folders import list_folder
from adabet.data.images import Sample
from adabet.layers import find_layers
from adabet.models import load_model, new_head
from adabet.tables import table
from adabet.topology import Sketcher
from adabet.topology.drift import learn_reference, mean_counts
from adabet.topology.layer_sketches import sketch_distances, sketch_layers

WINDOW, POINTS, DRAWS, SKETCH, FALSE_ALARMS = 120, 40, 100, 256, 0.05
"""The monitor's defaults."""

CLEAN, ADAPTING, DRIFTED = 1400, 1000, 600
"""Photos that references and fresh windows are drawn from, others to train on, and others that drift."""


def darker(factor: float) -> Callable[[Any], Any]:
    return lambda photo: ImageEnhance.Brightness(photo).enhance(factor)


def blurred(radius: float) -> Callable[[Any], Any]:
    return lambda photo: photo.filter(ImageFilter.GaussianBlur(radius))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda photo: photo,
    "brightness 75 %": darker(0.75),
    "brightness 50 %": darker(0.5),
    "brightness 25 %": darker(0.25),
    "blur 1 px": blurred(1),
    "blur 2 px": blurred(2),
    "blur 4 px": blurred(4),
}
SHARES = (0.5, 0.75, 1.0)
"""Of one class in a window whose mix has drifted; the other photos are as ever."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--references", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=20, help="fresh windows for each reference")
    parser.add_argument("--windows", type=int, default=5, help="drifted windows for each reference")
    parser.add_argument("--normalize", default="none")
    parser.add_argument("--adapt-photos", type=int, default=240)
    parser.add_argument("--test-photos", type=int, default=372)
    parser.add_argument("--adapted", nargs="+", choices=list(CHANGES), default=["none", "brightness 25 %", "blur 4 px"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=("alarms", "gain"))
    parser.add_argument("--results", type=Path, default=Path("drift"), help="folder")
    return parser.parse_args()


@dataclass(frozen=True)
class Windows:
    """Distances between photos of one condition, from which windows are drawn."""

    distances: Tensor
    generator: torch.Generator

    def drawn(self, photos: Tensor, count: int) -> Tensor:
        """So many of the photos at random."""
        return photos[torch.randperm(len(photos), generator=self.generator)[:count]]

    def scores(self, photos: Tensor) -> Tensor:
        """Each layer's score in a window of these photos."""
        part = self.distances[:, photos[:, None], photos]
        return mean_counts(part, points=POINTS, generator=self.generator).mean(0)


class Photos:
    """The network, the photos, and the sketches of each condition."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.results.mkdir(parents=True, exist_ok=True)
        self.loaded = load_model(
            "timm/mobilenetv2_100", weights=options.weights, image_size=160, mean=0.5, std=0.5, pad_type="same"
        )
        self.transform = transforms(self.loaded.data_config, train=False)
        listing = list_folder(Path(options.data))
        order = np.random.default_rng(0).permutation(len(listing.train))
        samples = [listing.train[index] for index in order[: CLEAN + ADAPTING + DRIFTED]]
        self.classes = listing.classes
        self.clean, self.drifting = samples[:CLEAN], samples[-DRIFTED:]
        self.rest, self.test = samples[CLEAN:-DRIFTED], list(listing.test or ())

    def batch(self, samples: list[Sample], change: Callable[[Any], Any]) -> Tensor:
        return torch.stack([self.transform(change(read_image(sample.path))) for sample in samples])

    def sketches(self, name: str, samples: list[Sample]) -> list[Tensor]:
        """Of every layer for these photos; kept in the folder."""
        path = self.options.results / f"{name.replace(' ', '-').replace('%', 'percent')}-{len(samples)}.safetensors"
        if not path.exists():
            layers = find_layers(self.loaded.model, self.batch(samples[:1], CHANGES[name])).candidates
            shapes: dict[tuple[str, int], torch.Size] = {}
            look = {"sketcher": Sketcher(size=SKETCH, seed=0), "shapes": shapes}
            parts = [
                sketch_layers(self.loaded.model, self.batch(samples[at : at + 4], CHANGES[name]), layers, **look)
                for at in range(0, len(samples), 4)
            ]
            rows = {str(index): torch.cat(pieces) for index, pieces in enumerate(zip(*parts, strict=True))}
            save_file(rows, path)
            print(f"{name}: {len(samples)} photos", flush=True)
        rows = load_file(path)
        return [rows[str(index)] for index in range(len(rows))]

    def tensors(self, samples: list[Sample], name: str) -> TensorDataset:
        return TensorDataset(self.batch(samples, CHANGES[name]), torch.tensor([sample.label for sample in samples]))


class Alarms:
    """How often each statistic is beyond its bound, by condition."""

    def __init__(self, photos: Photos) -> None:
        self.photos, self.options = photos, photos.options
        generator = torch.Generator().manual_seed(1)
        clean = photos.sketches("none", photos.clean)
        self.clean = Windows(sketch_distances(clean), generator)
        drifted = {name: photos.sketches(name, photos.drifting) for name in CHANGES}
        self.drifted = {name: Windows(sketch_distances(rows), generator) for name, rows in drifted.items()}
        self.labels = torch.tensor([sample.label for sample in photos.clean])
        self.found: dict[str, list[tuple[float, float, bool, bool]]] = {}

    def run(self) -> None:
        for seed in range(self.options.references):
            photos = self.clean.drawn(torch.arange(CLEAN), CLEAN)
            chosen, others = photos[: 2 * WINDOW], photos[2 * WINDOW :]
            part = self.clean.distances[:, chosen[:, None], chosen]
            reference = learn_reference(
                part, window=WINDOW, points=POINTS, false_alarms=FALSE_ALARMS, draws=DRAWS, seed=seed
            )

            def note(name: str, scores: Tensor, reference: Any = reference) -> None:
                correlation, shift = reference.correlation(scores), reference.shift(scores)
                beyond = (correlation < reference.correlation_bound, shift > reference.shift_bound)
                self.found.setdefault(name, []).append((correlation, shift, *beyond))

            for _ in range(self.options.fresh):
                note("fresh", self.clean.scores(self.clean.drawn(others, WINDOW)))
            for _ in range(self.options.windows):
                for name, windows in self.drifted.items():
                    note(name, windows.scores(windows.drawn(torch.arange(DRIFTED), WINDOW)))
                for share in SHARES:
                    note(f"{share:.0%} one class", self.clean.scores(self.mixed(others, share)))
            print(f"reference {seed + 1} of {self.options.references}", flush=True)

    def mixed(self, others: Tensor, share: float) -> Tensor:
        """A window in which the largest class has this share."""
        largest = self.labels.mode().values
        of_class = others[self.labels[others] == largest]
        some = self.clean.drawn(of_class, round(share * WINDOW))
        rest = others[~torch.isin(others, some)]
        return torch.cat([some, self.clean.drawn(rest, WINDOW - len(some))])

    def show(self) -> str:
        rows = []
        for name, values in self.found.items():
            correlations, shifts, low, high = zip(*values, strict=True)
            either = [one or other for one, other in zip(low, high, strict=True)]
            rows.append(
                (
                    name,
                    str(len(values)),
                    f"{statistics.mean(either):.1%}",
                    f"{statistics.mean(low):.1%}",
                    f"{statistics.mean(high):.1%}",
                    f"{statistics.median(correlations):.2f}",
                    f"{statistics.median(shifts):.2f}",
                )
            )
        return table(("condition", "windows", "alarms", "by correlation", "by shift", "correlation", "shift"), rows)


class Gain:
    """What selecting again gains after a drift."""

    def __init__(self, photos: Photos) -> None:
        self.photos, self.options = photos, photos.options
        self.results = photos.options.results / "gain.jsonl"
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        self.done = {tuple(record["key"]): record for record in map(json.loads, lines)}
        drawn = torch.randperm(len(photos.test), generator=torch.Generator().manual_seed(0))[: self.options.test_photos]
        self.tested = [photos.test[index] for index in drawn.tolist()]
        self.deployed = self.with_head()
        batches = [photos.batch(photos.clean[at : at + 8], CHANGES["none"]) for at in range(0, 2 * WINDOW, 8)]
        self.monitor = adabet.Monitor(self.deployed, batches, normalize=self.options.normalize)

    def with_head(self) -> torch.nn.Module:
        """The network with a head for clothes, trained alone: the layers stay those that the alarms are about."""
        path = self.options.results / "head.safetensors"
        model = copy.deepcopy(self.photos.loaded.model)
        torch.manual_seed(0)
        new_head(model, len(self.photos.classes))
        if not path.exists():
            self.fit(
                model, adabet.select("head", model, [torch.zeros(4, 3, 160, 160)]), self.photos.rest[:400], "none", 0
            )
            save_file(model.state_dict(), path)
        model.load_state_dict(load_file(path))
        return model

    def fit(
        self, model: torch.nn.Module, selection: adabet.Selection, samples: list[Sample], name: str, seed: int
    ) -> None:
        data = self.photos.tensors(samples, name)
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed))
        with tempfile.TemporaryDirectory() as folder:
            adabet.fit(
                model,
                loader,
                None,
                selection,
                lr=self.options.lr,
                epochs=self.options.epochs,
                seed=seed,
                run_dir=Path(folder) / "run",
                keep="last",
            )

    def accuracy(self, model: torch.nn.Module, test: TensorDataset) -> float:
        return float(adabet.evaluate(model, DataLoader(test, batch_size=8))["accuracy"])

    def cell(self, name: str, which: str, seed: int, selection: adabet.Selection, test: TensorDataset) -> float:
        """Accuracy on drifted photos after adapting to others; runs once for equal selections."""
        key = (name, seed, *sorted(choice.layer for choice in selection.choices))
        if key not in self.done:
            model = copy.deepcopy(self.deployed)
            self.fit(model, selection, self.photos.rest[400 : 400 + self.options.adapt_photos], name, seed)
            record = {"key": key, "which": which, "accuracy": self.accuracy(model, test)}
            with self.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.done[key] = record
            print(f"{name}, {which} selection, seed {seed}: {record['accuracy']:.3f}", flush=True)
        return float(self.done[key]["accuracy"])

    def row(self, name: str) -> tuple[str, ...]:
        for at in range(0, WINDOW, 8):
            report = self.monitor.update(self.photos.batch(self.photos.drifting[at : at + 8], CHANGES[name]))
        print(report, flush=True)
        test = self.photos.tensors(self.tested, name)
        old, new = self.monitor.reference.select(), report.ranking.select()
        means = [
            [self.cell(name, which, seed, selection, test) for seed in self.options.seeds]
            for which, selection in (("old", old), ("new", new))
        ]
        gains = [new - old for old, new in zip(*means, strict=True)]
        return (
            name,
            "yes" if report.alarm else "no",
            f"{report.kept:.0%}",
            f"{self.accuracy(self.deployed, test):.3f}",
            *(f"{statistics.mean(values):.3f}" for values in means),
            f"{statistics.mean(gains):+.3f} (from {min(gains):+.3f} to {max(gains):+.3f})",
        )


def check_against_monitor(photos: Photos) -> None:
    """The monitor itself, from batches, says what the cached sketches say."""
    few, window = photos.clean[:48], 24
    monitor = adabet.Monitor(
        photos.loaded.model,
        [photos.batch(few[at : at + 8], CHANGES["none"]) for at in range(0, 48, 8)],
        window=window,
        points=window,
        draws=20,
    )
    report = monitor.update(photos.batch(photos.drifting[:window], CHANGES["blur 4 px"]))
    clean = sketch_distances([rows[:48] for rows in photos.sketches("none", photos.clean)])
    blurry = sketch_distances([rows[:window] for rows in photos.sketches("blur 4 px", photos.drifting)])
    reference = learn_reference(clean, window=window, points=window, false_alarms=FALSE_ALARMS, draws=20, seed=0)
    scores = mean_counts(blurry, points=window, generator=torch.Generator()).mean(0)
    found, expected = (report.correlation, report.shift), (reference.correlation(scores), reference.shift(scores))
    print(f"the monitor and the cached sketches: {found} and {expected}", flush=True)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def main() -> None:
    options = parse()
    photos = Photos(options)
    if options.part != "gain":
        alarms = Alarms(photos)
        check_against_monitor(photos)
        alarms.run()
        print(alarms.show(), flush=True)
    if options.part != "alarms":
        gain = Gain(photos)
        rows = [gain.row(name) for name in options.adapted]
        print(table(("drift", "alarm", "kept", "before", "old selection", "new selection", "gain"), rows))


if __name__ == "__main__":
    main()
