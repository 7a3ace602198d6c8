"""How far AdaBet's ranking depends on the samples that it looks at."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import LINES, MARKS, add_legend, name_panel, new_figure, quiet, save
from adabet.experiments.reproduce.published import BATCH_SIZE, LAYER_RATIO, SAMPLES
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.site import Site
from adabet.report.memory_plot import INK, QUIET
from adabet.topology import Prober, betti_one
from adabet.topology.stability import spearman

COLUMNS = {
    "model": "what is ranked",
    "data": "whose samples it is ranked with",
    "other": "whose samples it is compared with: the same data, or others",
    "samples": "in each of the two clouds; no sample is in both",
    "draw": "number of the random draw, from 0",
    "spearman": "rank correlation of the layers' b1 / activations, by which the paper ranks, in [-1, 1]",
    "spearman_b1": "rank correlation of b1 alone",
    "overlap": "share of the chosen tenth of the layers that both clouds choose, in [0, 1]",
}
COUNTS, QUICK_COUNTS = (8, 16, 24, 32, 40, 60, 80), (8, 16, 24, 32, 40)
DRAWS, QUICK_DRAWS = 16, 8

MEASURES = {
    "spearman": "rank correlation of b1 / activations",
    "spearman_b1": "rank correlation of b1 alone",
    "overlap": "share of the chosen tenth that is the same",
}


def make(task: Task) -> Found:
    """Look once at many samples of each data; then rank by parts of them, again and again."""
    place = find_place(task)
    counts, draws = (QUICK_COUNTS, QUICK_DRAWS) if task.quick else (COUNTS, DRAWS)
    pairs = [(model, data) for model in place.models for data in place.data]
    rows: list[Row] = []
    looked: dict[str, dict[str, Mapping[str, Any]]] = {}
    for number, (model, data) in enumerate(pairs):
        task.progress(number, len(pairs))
        clouds, sizes = look(Site.of(model, data), samples=2 * counts[-1], seed=task.seed)
        labels = {"model": model.label, "data": data.label, "other": data.label}
        rows += within(labels, clouds, sizes, counts, draws, task.seed)
        whole = clouds[:, :SAMPLES, :SAMPLES]
        looked.setdefault(model.label, {})[data.label] = {"b1": betti_one(whole), "sizes": sizes}
    for label, found in looked.items():
        for data_label, other in itertools.combinations(found, 2):
            pair = compare(found[data_label]["b1"], found[other]["b1"], found[other]["sizes"])
            rows.append({"model": label, "data": data_label, "other": other, "samples": SAMPLES, "draw": 0, **pair})
    task.progress(len(pairs), len(pairs))
    notes = (
        *place.notes,
        f"each draw compares two clouds without a common sample; the paper looks at {SAMPLES} samples",
        "b1 / activations orders layers mostly by their number of activations, which no sample changes: its rank "
        "correlation is high for that reason alone; b1 alone shows what the samples say",
    )
    title = "How far the ranking depends on the samples"
    return Found(tuple(rows), lambda path: draw(rows, title, described(place), path), notes)


def look(site: Site, *, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Distances between samples at every layer ``(layers, n, n)``, and the layers' sizes ``(layers,)``."""
    wanted = min(samples, len(site.splits.train))
    batches = site.splits.unlabelled(samples=wanted, batch_size=BATCH_SIZE, seed=seed)
    prober = Prober(site.model(seed), batches, samples=wanted, samples_in_memory=SAMPLES, seed=seed)
    probe = prober.probe()
    clouds = torch.stack([probe.distances[layer.name].cpu() for layer in probe.layers])
    return clouds, torch.tensor([layer.output_size for layer in probe.layers], dtype=torch.float64)


def within(
    labels: Mapping[str, str], clouds: Tensor, sizes: Tensor, counts: Sequence[int], draws: int, seed: int
) -> list[Row]:
    """Rankings by two clouds of the same data that have no sample in common; for every count that there is room for."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for count in counts:
        if 2 * count > clouds.shape[-1]:
            break
        for number in range(draws):
            order = torch.randperm(clouds.shape[-1], generator=generator)
            first, second = (
                betti_one(clouds[:, part[:, None], part]) for part in (order[:count], order[count : 2 * count])
            )
            rows.append({**labels, "samples": count, "draw": number, **compare(first, second, sizes)})
    return rows


def compare(first: Tensor, second: Tensor, sizes: Tensor) -> dict[str, float | None]:
    """How alike two rankings are, from their layers' b1 ``(layers,)`` and sizes ``(layers,)``."""
    priorities = first / sizes, second / sizes
    chosen = [set(torch.argsort(-values, stable=True)[: _tenth(len(sizes))].tolist()) for values in priorities]
    return {
        "spearman": _number(spearman(*priorities)),
        "spearman_b1": _number(spearman(first, second)),
        "overlap": len(chosen[0] & chosen[1]) / len(chosen[0]),
    }


def _tenth(layers: int) -> int:
    return max(1, int(LAYER_RATIO * layers + 1e-9))


def _number(value: Tensor) -> float | None:
    """None where all values of one side are equal."""
    return None if bool(torch.isnan(value)) else float(value)


def draw(rows: Sequence[Row], title: str, setting: str, path: Path) -> None:
    """A panel for each model: mean over draws and data, and the middle half of them, by the number of samples."""
    same = [row for row in rows if row["data"] == row["other"]]
    models = list(dict.fromkeys(row["model"] for row in same))
    across = min(2, len(models))
    deep = -(-len(models) // across)
    height = 1.4 + 2.75 * deep
    figure = new_figure(title, f"{setting}; mean, and the middle half of all draws", height=height)
    grid = figure.add_gridspec(
        deep, across, left=0.07, right=0.97, top=1 - 1.3 / height, bottom=0.55 / height, hspace=0.4
    )
    handles: list[Any] = []
    for number, model in enumerate(models):
        axes = figure.add_subplot(grid[number // across, number % across])
        handles = _draw_lines(axes, [row for row in same if row["model"] == model])
        name_panel(axes, model)
    add_legend(figure, handles)
    save(figure, path)


def _draw_lines(axes: Any, rows: Sequence[Row]) -> list[Any]:
    counts = sorted({row["samples"] for row in rows})
    handles = []
    for measure, colour, mark in zip(MEASURES, LINES, MARKS, strict=False):
        values = [[row[measure] for row in rows if row["samples"] == count] for count in counts]
        known = [
            (count, [value for value in found if value is not None])
            for count, found in zip(counts, values, strict=True)
        ]
        known = [(count, found) for count, found in known if found]
        at = [count for count, _ in known]
        low, high = zip(*(_middle_half(found) for _, found in known), strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        means = [sum(found) / len(found) for _, found in known]
        handles += axes.plot(at, means, color=colour, marker=mark, markersize=5, linewidth=1.6, label=MEASURES[measure])
    axes.axvline(SAMPLES, color=QUIET, linewidth=0.8, linestyle=":")
    axes.annotate("the paper's", (SAMPLES, 0), (-4, 3), textcoords="offset points", ha="right", fontsize=8, color=QUIET)
    axes.set_xticks(counts)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.03)
    axes.set_xlabel("samples in a cloud", fontsize=9, color=INK)
    quiet(axes, grid="y")
    return handles


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles on both sides."""
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    return float(low), float(high)
