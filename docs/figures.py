"""Draws the pictures of the explanations, for light and dark pages: ``python docs/figures.py``."""

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon
from torch import Tensor

import adabet

PICTURES = Path(__file__).parent / "pictures"
INK = {"light": "#37474f", "dark": "#cfd8dc"}
FAINT = {"light": "#b0bec5", "dark": "#546e7a"}
LOOP = {"light": "#d84315", "dark": "#ff8a65"}

Edges = list[tuple[int, int]]


def main() -> None:
    """Draw every picture in both schemes."""
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "adabet", "font.family": "sans-serif", "font.size": 11}
    )
    PICTURES.mkdir(exist_ok=True)
    for scheme in INK:
        draw_scales(scheme)
        draw_counts(scheme)


def distances_of(points: Tensor) -> Tensor:
    """Distances between points, ``(n, n)``; exact, so that the diagonal is zero."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def ring(count: int, *, noise: float, seed: int) -> Tensor:
    """Points about the unit circle, ``(count, 2)``."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.arange(count) * (2 * math.pi / count)
    around = torch.stack([angles.cos(), angles.sin()], 1)
    return around + noise * torch.randn(count, 2, generator=generator)


def spanning_tree(distances: Tensor) -> Edges:
    """Edges of a minimum spanning tree, by Prim."""
    reached, edges = {0}, []
    while len(reached) < len(distances):
        outside = [index for index in range(len(distances)) if index not in reached]
        edge = min(((i, j) for i in reached for j in outside), key=lambda pair: float(distances[pair]))
        edges.append(edge)
        reached.add(edge[1])
    return [(min(edge), max(edge)) for edge in edges]


def relative_neighbours(distances: Tensor) -> Edges:
    """Pairs of points to which no third is closer than they are to each other."""
    count = len(distances)
    return [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if not any(max(distances[i, k], distances[j, k]) < distances[i, j] for k in range(count) if k not in (i, j))
    ]


def draw_scales(scheme: str) -> None:
    """One cloud at three scales: a loop is born and dies."""
    points = ring(9, noise=0.1, seed=4)
    distances = distances_of(points)
    figure, panels = plt.subplots(1, 3, figsize=(5.8, 2.3))
    for panel, scale, title in zip(
        panels, (0.55, 0.98, 2.0), ("apart: no loop", "a loop is born", "it is filled"), strict=True
    ):
        _prepare(panel, title, scheme, limit=1.6)
        joined = distances <= scale
        for i in range(len(points)):
            panel.add_patch(Circle(points[i].tolist(), scale / 2, color=FAINT[scheme], alpha=0.22, linewidth=0))
            for j in range(i):
                if joined[i, j]:
                    for k in range(j):
                        if joined[i, k] and joined[j, k]:
                            triangle = points[[i, j, k]].tolist()
                            panel.add_patch(Polygon(triangle, color=LOOP[scheme], alpha=0.10, linewidth=0))
                    panel.plot(*points[[i, j]].T.tolist(), color=INK[scheme], linewidth=0.9)
        _dots(panel, points, scheme)
    _save(figure, f"scales-{scheme}.svg")


def draw_counts(scheme: str) -> None:
    """Three clouds with their loops counted: edges of the relative neighbourhood graph beside a spanning tree."""
    along = torch.linspace(-1.3, 1.3, 12)
    line = torch.stack([along, 0.25 * (2.5 * along).sin()], 1)
    scattered = 2.8 * torch.rand(40, 2, generator=torch.Generator().manual_seed(3)) - 1.4
    figure, panels = plt.subplots(1, 3, figsize=(5.8, 2.3))
    for panel, points, name in zip(
        panels,
        (line, ring(12, noise=0.08, seed=1), scattered),
        ("a line", "a ring", "40 points at random"),
        strict=True,
    ):
        distances = distances_of(points)
        tree, graph = spanning_tree(distances), relative_neighbours(distances)
        loops = [edge for edge in graph if edge not in tree]
        assert len(loops) == int(adabet.betti_one(distances))
        _prepare(panel, f"{name}: b1 = {len(loops)}", scheme, limit=1.6)
        for edges, color, width in ((tree, FAINT[scheme], 1.0), (loops, LOOP[scheme], 1.6)):
            for i, j in edges:
                panel.plot(*points[[i, j]].T.tolist(), color=color, linewidth=width, zorder=1)
        _dots(panel, points, scheme)
    _save(figure, f"counts-{scheme}.svg")


def _prepare(panel: Axes, title: str, scheme: str, *, limit: float) -> None:
    panel.set_title(title, color=INK[scheme], fontsize=9.5)
    panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    panel.axis("off")


def _dots(panel: Axes, points: Tensor, scheme: str) -> None:
    panel.scatter(*points.T.tolist(), s=9, color=INK[scheme], zorder=2)


def _save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout(pad=0.3)
    figure.savefig(PICTURES / name, transparent=True, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
