"""Figure 2 of the AdaBet paper: clouds of activations in the plane (UMAP), and the clusters in them (DBSCAN)."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adabet.experiments.reproduce.local import described, find_place
from adabet.experiments.reproduce.picture import LINES, name_panel, new_figure, save
from adabet.experiments.reproduce.published import BATCH_SIZE, SAMPLES
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.site import Site
from adabet.experiments.specs import DataSpec, ModelSpec
from adabet.extras import require
from adabet.layers import Layer
from adabet.report.memory_plot import FAINT
from adabet.topology import Prober, betti_one

COLUMNS = {
    "model": "whose activations",
    "data": "of what",
    "layer": "its path in the model",
    "position": "of the layer in a forward pass, from 0",
    "b1": f"first Betti number of the first {SAMPLES} samples' activations, by which AdaBet scores",
    "sample": "number of the sample, from 0; the same in all layers",
    "x": "place in the plane by UMAP, no unit",
    "y": "likewise",
    "cluster": "number of the cluster by DBSCAN in that plane, from 0; -1 for noise",
}
CLOUD, QUICK_CLOUD = 400, 120
"""Samples; the paper's number is not known here."""

PANELS = 6
"""Layers that are shown, evenly from the first to the last."""

NEIGHBOURS, LEAST_DISTANCE = 15, 0.1
"""UMAP's own defaults."""

REACH, FEWEST = 0.5, 5
"""DBSCAN's own defaults: the distance in which a point has to have so many neighbours, itself included."""


COLOURS = tuple(colour for colour in LINES if colour != "#8c8c8c")
"""Of clusters; grey is noise."""


def make(task: Task) -> Found:
    """Project the activations of a few layers, and find clusters."""
    require("umap", "figure 2")
    place = find_place(task)
    model, data = place.models[0], place.data[0]
    site = Site.of(model, data)
    wanted = min(QUICK_CLOUD if task.quick else CLOUD, len(site.splits.train))
    batches = site.splits.unlabelled(samples=wanted, batch_size=BATCH_SIZE, seed=task.seed)
    prober = Prober(site.model(task.seed), batches, samples=wanted, samples_in_memory=SAMPLES, seed=task.seed)
    probe = prober.probe()
    layers = list(probe.layers)
    shown = spread_evenly(len(layers), PANELS)
    rows: list[Row] = []
    for number, position in enumerate(shown):
        task.progress(number, len(shown))
        rows += _rows(model, data, layers[position], position, probe.distances[layers[position].name].cpu(), task.seed)
    task.progress(len(shown), len(shown))
    notes = (
        *place.notes,
        f"{wanted} samples; UMAP from exact distances ({NEIGHBOURS} neighbours), DBSCAN in its plane (eps {REACH:g}, "
        f"at least {FEWEST}): both libraries' defaults, as the paper's values are not known here",
        *(["only the first model and data are shown; name others with --models and --data"] if _more(place) else []),
    )
    setting = f"{described(place)}, {wanted} samples; colours are clusters, grey is noise"
    return Found(tuple(rows), lambda path: draw(rows, setting, path), notes)


def _more(place: Any) -> bool:
    return len(place.models) > 1 or len(place.data) > 1


def spread_evenly(count: int, shown: int) -> list[int]:
    """So many places of a row, evenly, the first and the last among them.

    Examples:
        >>> spread_evenly(25, 6), spread_evenly(3, 6)
        ([0, 5, 10, 14, 19, 24], [0, 1, 2])
    """
    if count <= shown:
        return list(range(count))
    return [round(number * (count - 1) / (shown - 1)) for number in range(shown)]


def _rows(model: ModelSpec, data: DataSpec, layer: Layer, position: int, distances: Tensor, seed: int) -> list[Row]:
    places = project(distances, seed)
    clusters = find_clusters(places)
    number = int(betti_one(distances[:SAMPLES, :SAMPLES]))
    common = {"model": model.label, "data": data.label, "layer": layer.name, "position": position, "b1": number}
    return [
        {**common, "sample": sample, "x": x, "y": y, "cluster": cluster}
        for sample, ((x, y), cluster) in enumerate(zip(places.tolist(), clusters, strict=True))
    ]


def project(distances: Tensor, seed: int) -> Tensor:
    """Places in the plane by UMAP.

    Args:
        distances: between n samples, ``(n, n)``.
        seed: of the start and of the descent.

    Returns:
        Places ``(n, 2)``, float32.

    Raises:
        MissingExtraError: if umap-learn is not installed.

    Source: McInnes, Healy, Melville 2018 (arXiv 1802.03426).
    """
    umap = require("umap", "figure 2")
    with warnings.catch_warnings():
        # with given distances there is no way back, and with a seed one thread: both are told as warnings
        warnings.simplefilter("ignore")
        mapping = umap.UMAP(
            n_neighbors=min(NEIGHBOURS, len(distances) - 1), min_dist=LEAST_DISTANCE, metric="precomputed",
            random_state=seed, n_jobs=1,
        )  # fmt: skip
        return torch.from_numpy(mapping.fit_transform(distances.numpy()))


def find_clusters(places: Tensor) -> list[int]:
    """The cluster of each place by DBSCAN, -1 for noise.

    Source: Ester, Kriegel, Sander, Xu 1996.

    Examples:
        >>> points = torch.tensor([[0.0, 0.0]] * 5 + [[9.0, 9.0]] * 5 + [[4.0, 0.0]])
        >>> find_clusters(points)
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, -1]
    """
    cluster = require("sklearn.cluster", "figure 2")
    labels: list[int] = cluster.DBSCAN(eps=REACH, min_samples=FEWEST).fit_predict(places.numpy()).tolist()
    return labels


def draw(rows: Sequence[Row], setting: str, path: Path) -> None:
    """A panel for each layer."""
    layers = list(dict.fromkeys((row["position"], row["layer"], row["b1"]) for row in rows))
    across = 3
    deep = -(-len(layers) // across)
    height = 1.05 + 3.1 * deep
    figure = new_figure("Activations layer by layer, in the plane by UMAP", setting, height=height)
    grid = figure.add_gridspec(
        deep, across, left=0.02, right=0.98, top=1 - 1.15 / height, bottom=0.15 / height, hspace=0.22, wspace=0.08
    )
    for number, (position, layer, loops) in enumerate(layers):
        axes = figure.add_subplot(grid[number // across, number % across])
        shown = [row for row in rows if row["position"] == position]
        colours = [FAINT if row["cluster"] < 0 else COLOURS[row["cluster"] % len(COLOURS)] for row in shown]
        axes.scatter([row["x"] for row in shown], [row["y"] for row in shown], s=12, c=colours, linewidths=0)
        clusters = len({row["cluster"] for row in shown} - {-1})
        name_panel(axes, f"{layer}: b1 {loops}, {clusters} cluster{'s' * (clusters != 1)}")
        axes.set(xticks=[], yticks=[])
        axes.margins(0.06)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    save(figure, path)
