"""Figure 6 of the AdaBet paper: where in the network each method trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import name_panel, new_figure, save
from adabet.experiments.reproduce.published import BATCH_SIZE, LAYER_RATIO, METHODS, SAMPLES
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.site import Site
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec
from adabet.extras import require
from adabet.layers import Layers, find_layers
from adabet.methods import rank, select
from adabet.ranking import Ranking
from adabet.report.memory_plot import INK, QUIET
from adabet.selection import Selection

COLUMNS = {
    "model": "what is adapted",
    "data": "what to",
    "method": "who chooses",
    "position": "of the layer in a forward pass, from 0; the head is the last",
    "depth": "position as a share of the network: 0 at the input, 1 at the head",
    "layer": "its path in the model",
    "kind": "such as convolution, norm, attention",
    "trains": "1 if it trains (of methods that choose again: at first), else 0",
    "trained_share": "of its parameters, how many train, in [0, 1]",
    "place": "in the method's ranking, the best being 1; empty where it ranks no layers",
    "score": "what the method measured; empty where it ranks no layers",
}

SHADES = ("#eef1f4", "#0072b2")
"""Of a layer that never trains, and of one that trains on all data."""


def make(task: Task) -> Found:
    """Let every method choose once on every model and data; nothing is trained."""
    place = find_place(task)
    pairs = [(model, data) for model in place.models for data in place.data]
    rows: list[Row] = []
    for number, (model, data) in enumerate(pairs):
        task.progress(number, len(pairs))
        site = Site.of(model, data)
        for method in METHODS:
            rows += _rows(model, data, method, site, task.seed)
    task.progress(len(pairs), len(pairs))
    notes = (
        *place.notes,
        f"a tenth of the layers from {SAMPLES} samples (rho = {LAYER_RATIO:g}); the head trains with all methods",
        "ElasticTrainer chooses again while it trains: shown is its first choice",
    )
    title = "Where in the network each method trains"
    return Found(tuple(rows), lambda path: draw(rows, title, described(place), path), notes)


def _rows(model: ModelSpec, data: DataSpec, method: MethodSpec, site: Site, seed: int) -> list[Row]:
    """A row for each layer, the head included."""
    fresh = site.model(seed)
    layers = find_layers(fresh, site.batch(BATCH_SIZE, seed))
    ranking, selection = choose(method, fresh, site, seed)
    places = {} if ranking is None else {item.layer.name: index + 1 for index, item in enumerate(ranking.order)}
    scores = {} if ranking is None else {item.layer.name: item.score for item in ranking.layers}
    trained = _trained(selection, layers)
    everything = [*layers.candidates, *layers.head]
    rows: list[Row] = []
    for position, layer in enumerate(everything):
        rows.append(
            {
                "model": model.label,
                "data": data.label,
                "method": method.label,
                "position": position,
                "depth": position / max(1, len(everything) - 1),
                "layer": layer.name,
                "kind": layer.kind,
                "trains": int(trained[layer.name] > 0),
                "trained_share": trained[layer.name],
                "place": places.get(layer.name),
                "score": scores.get(layer.name),
            }
        )
    return rows


def choose(method: MethodSpec, model: Any, site: Site, seed: int) -> tuple[Ranking | None, Selection]:
    """What a method chooses first, and its ranking if it makes one."""
    loaders = site.splits.loaders(batch_size=BATCH_SIZE, seed=seed)
    if not method.ranks:
        options = {"layer_ratio": LAYER_RATIO, "val_batches": loaders.val, **method.options}
        return None, select(method.method, model, loaders.train, seed=seed, **options)
    samples = min(SAMPLES, len(site.splits.train))
    unlabelled = site.splits.unlabelled(samples=samples, batch_size=BATCH_SIZE, seed=seed)
    batches = loaders.train if method.entry.labelled else unlabelled
    ranking = rank(model, batches, method=method.method, seed=seed, **method.options)
    return ranking, ranking.select(layer_ratio=LAYER_RATIO)


def _trained(selection: Selection, layers: Layers) -> dict[str, float]:
    """Of each layer the share of its parameters that train."""
    everything = [*layers.candidates, *layers.head]
    chosen = dict.fromkeys([layer.name for layer in everything], 0)
    for choice in selection.choices:
        if choice.layer in chosen:
            chosen[choice.layer] += choice.parameter_count
    return {layer.name: min(1.0, chosen[layer.name] / max(1, layer.parameter_count)) for layer in everything}


def draw(rows: Sequence[Row], title: str, setting: str, path: Path) -> None:
    """A strip for each method, from input to head; a panel for each model, its data together."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    inches = 0.3 * len(methods)
    height = 0.95 + len(models) * (inches + 0.75)
    figure = new_figure(title, f"{setting}; the darker, the more data a layer trains on", height=height)
    shades = require("matplotlib.colors", "a picture").LinearSegmentedColormap.from_list("share", SHADES)
    for number, model in enumerate(models):
        top = height - 1.05 - number * (inches + 0.75)
        axes = figure.add_axes((0.16, (top - inches) / height, 0.81, inches / height))
        shown = [row for row in rows if row["model"] == model]
        axes.imshow(_shares(shown, methods), aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        _finish(axes, methods, 1 + max(row["position"] for row in shown))
        name_panel(axes, model)
    save(figure, path)


def _shares(rows: Sequence[Row], methods: Sequence[str]) -> list[list[float]]:
    """By method and layer, the share of the data sets on which the layer trains."""
    width = 1 + max(row["position"] for row in rows)
    sets = len({row["data"] for row in rows})
    shares = {method: [0.0] * width for method in methods}
    for row in rows:
        shares[row["method"]][row["position"]] += row["trains"] / sets
    return [shares[method] for method in methods]


def _finish(axes: Any, methods: Sequence[str], layers: int) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xticks([-0.5, layers - 0.5], ["input", f"head ({layers} layers)"])
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set(ha=side, color=QUIET)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    # white gaps between methods, and between layers where there is room
    axes.set_yticks([row - 0.5 for row in range(1, len(methods))], minor=True)
    axes.set_xticks([place - 0.5 for place in range(1, layers)], minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=3)
    axes.grid(which="minor", axis="x", color="white", linewidth=1.0 if layers <= 60 else 0.4)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
