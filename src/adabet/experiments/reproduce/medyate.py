"""MeDyate's table at its smallest budget: methods that draw channels, MobileNetV2-w0.35."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adabet.experiments.reproduce.accuracy import how, lines_of, problems, result_of, run_pairs
from adabet.experiments.reproduce.local import LOCAL, Place, described, find_place
from adabet.experiments.reproduce.medyate_published import (
    ACCURACIES,
    ALL_UNITS,
    AVERAGES,
    DATA,
    SCHEME,
    UNITS,
)
from adabet.experiments.reproduce.picture import new_figure, quiet, save
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share
from adabet.layers import find_layers
from adabet.methods.sparse_scheme import Sites
from adabet.methods.units import channel_costs
from adabet.models import LoadedModel, load_model
from adabet.report.memory_plot import FAINT, INK, QUIET

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "method": "who chooses, as the papers call them",
    "units": "the budget: scalars of weights and activations of one sample; empty for everything (Baseline)",
    "seeds": "how many runs there are",
    "learning_rate": "the best on validation",
    "accuracy": "on test, mean over the seeds, in %",
    "std": "its standard deviation over the seeds, in points; empty for one seed",
    "published": "the papers' number on these data, in %; empty for other data",
    "published_std": "its standard deviation over three seeds",
    "published_average": "the papers' mean over their seven data sets, in %",
    "problem": "why there is no result, or empty",
}
NET = "mbv2-w0.35"
KNOWN_DATA = (
    DataSpec("cub", label="CUB"),
    DataSpec("flowers", label="Flowers"),
    DataSpec("pets", label="Pets"),
)
"""Of the papers' seven, those that are known by name here."""

LONG, SHORT = 200, 50
"""Epochs: of CUB, Pets and Flowers, and of the papers' larger data."""

SETTINGS = Settings(epochs=SHORT, batch_size=32, optimizer="sgd", weight_decay=0.0, momentum=0.0)
"""The papers state neither batch nor image size: these are of the predecessor's code."""

SEEDS = (0, 42, 100)
QUICK = ("SU", "TRaDy", "LaRa MeDyate", "Baseline")


def make(task: Task) -> Found:
    """Train with every method at the same budget of memory units."""
    place = find_place(task, models=_own_model(), data=KNOWN_DATA)
    rows: list[Row] = []
    notes = [*place.notes]
    for model in place.models:
        units, methods, note = methods_for(model, quick=task.quick)
        notes += note
        for data in place.data:
            epochs = LONG if data.label in ("CUB", "Flowers", "Pets") else SHORT
            settings = replace(SETTINGS, epochs=epochs)
            here = Place((model,), (data,), place.published, place.notes)
            # the ratio serves no method here but those that the units do not bind: they take it for none
            shares = (Share(layer_ratio=1.0),)
            found = run_pairs(task, here, methods, settings, shares=shares, rates={}, seeds=SEEDS, quick_rate=0.05)
            rows += [_row(model, data, line, units) for model, data, line in lines_of(found)]
            notes += [how(task, settings, SEEDS, found), *problems(found)]
    if any(model.name == f"mcu/{NET}" for model in place.models):
        notes.append(
            "the papers train float ImageNet weights with one more 1x1 convolution; these are de-quantised int8"
        )
    budgets = sorted({row["units"] for row in rows if row["units"] is not None})
    title = f"Test accuracy at {' and '.join(f'{units:,}' for units in budgets)} memory units, %"
    return Found(tuple(rows), lambda path: draw(rows, title, described(place), path), tuple(dict.fromkeys(notes)))


def _own_model() -> tuple[ModelSpec, ...]:
    """The papers' network, if its weights are there: there is no place to fetch them from."""
    weights = Path(os.environ.get(LOCAL, ""), "weights", f"{NET}.safetensors")
    if LOCAL not in os.environ or not weights.is_file():
        return ()
    return (ModelSpec(f"mcu/{NET}", label="MbV2-w0.35", weights=str(weights)),)


def methods_for(model: ModelSpec, *, quick: bool) -> tuple[int, tuple[MethodSpec, ...], list[str]]:
    """The budget in units, the methods with it, and what there is to know.

    A network other than the papers' gets the same share of its units, and no scheme of Sparse Update.
    """
    loaded = load_model(model.name, weights=model.weights, pretrained=model.pretrained, **dict(model.arguments))
    total, weights = _count(loaded)
    units = UNITS if weights is not None else max(1, round(total * UNITS / ALL_UNITS))
    draws = {"TRaDy": "trady", "D-Full Random": "d-full-random", "D-Det RGN": "d-det-rgn"}
    remembers = {
        "Prev MeDyate": "prev-medyate",
        "LaRa TraDy": "lara-trady",
        "LaRa Det Raw": "lara-det-raw",
        "LaRa Prob Raw": "lara-prob-raw",
        "LaRa MeDyate": "lara-medyate",
    }
    found = {
        "SU": MethodSpec("sparse-update", "SU", {"scheme": SCHEME}),
        "Velocity": MethodSpec("velocity", "Velocity", {"parameters": weights or UNITS / ALL_UNITS}),
        **{label: MethodSpec("trady", label, {"units": units, "variant": name}) for label, name in draws.items()},
        **{label: MethodSpec("medyate", label, {"units": units, "variant": name}) for label, name in remembers.items()},
        "Baseline": MethodSpec("full", "Baseline"),
    }
    notes = []
    if weights is None:
        del found["SU"]
        notes.append(
            f"{model.label}: {units:,} units, the same share of all as in the papers; it has no published scheme"
        )
    chosen = [label for label in ACCURACIES if label in found and (label in QUICK or not quick)]
    return units, tuple(found[label] for label in chosen), notes


def _count(loaded: LoadedModel) -> tuple[int, int | None]:
    """Units of all layers, and the weights that the published scheme trains; None if this is another network."""
    size = (3, 224, 224) if loaded.data_config is None else loaded.data_config.input_size
    layers = find_layers(loaded.model, torch.zeros(1, *size))
    sites = Sites.of(loaded.model, layers)
    total = sum(cost.total for cost in channel_costs(loaded.model, layers).values())
    scheme = sites.published.get(SCHEME)
    if scheme is None or len(sites.items) != 51:
        return total, None
    return total, sum(
        sites.items[index].kept(ratio) * sites.items[index].cost.weight for index, ratio in scheme.ratios.items()
    )


def _row(model: ModelSpec, data: DataSpec, line: Any, units: int) -> Row:
    method = line.entry.method.label
    on_their_data = model.label == "MbV2-w0.35" and data.label in DATA
    mean, std = ACCURACIES[method][DATA.index(data.label)] if on_their_data else (None, None)
    return {
        "model": model.label,
        "data": data.label,
        "method": method,
        "units": None if method == "Baseline" else units,
        **result_of(line),
        "published": mean,
        "published_std": std,
        "published_average": AVERAGES[method],
    }


def draw(rows: Sequence[Row], title: str, setting: str, path: Path) -> None:
    """Left ours, a mark for each data set and a bar at their mean; right the papers' average; a row for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    height = 1.15 + 0.36 * len(methods) + 0.45
    figure = new_figure(title, setting, height=height)
    tall = 0.36 * len(methods) / height
    ours = figure.add_axes((0.14, 0.45 / height, 0.44, tall))
    theirs = figure.add_axes((0.63, 0.45 / height, 0.34, tall), sharey=ours)
    means = []
    for method in methods:
        values = [row["accuracy"] for row in rows if row["method"] == method and row["accuracy"] is not None]
        means.append(sum(values) / len(values) if values else None)
        ours.plot(values, [methods.index(method)] * len(values), "o", color="#0072b2", alpha=0.45, markersize=5)
    _draw_means(ours, means, INK)
    _draw_means(theirs, [AVERAGES[method] for method in methods], QUIET)
    ours.set_yticks(range(len(methods)), methods)
    ours.set_ylim(len(methods) - 0.5, -0.5)
    for axes, name in ((ours, "ours, on these data"), (theirs, "published, mean over seven data sets")):
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
        quiet(axes)
        axes.hlines(range(len(methods)), 0, 1, transform=axes.get_yaxis_transform(), color=FAINT, lw=0.6, zorder=0)
    theirs.tick_params(labelleft=False)
    save(figure, path)


NARROWEST = 4
"""Points of accuracy that an axis spans at least, so that noise does not look like a finding."""


def _draw_means(axes: Any, values: Sequence[float | None], colour: str) -> None:
    """A bar for each row that has a number, and the number at the right edge."""
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    axes.plot([value for value, _ in known], [place for _, place in known], "|", color=colour, markersize=13, mew=2)
    for value, place in known:
        axes.text(
            0.995, place - 0.08, f"{value:.1f}", transform=axes.get_yaxis_transform(), ha="right", va="bottom",
            fontsize=9, color=colour,
        )  # fmt: skip
    low, high = axes.get_xlim()
    room = max(NARROWEST, 1.3 * (high - low)) / 2
    axes.set_xlim((low + high) / 2 - room, (low + high) / 2 + room)
