"""How a cell's method chooses: by ratio, within a budget, or by itself while training."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import adabet
from adabet.errors import BudgetError
from adabet.experiments.cells import Cell
from adabet.experiments.site import Site
from adabet.ranking import RankedLayer, Ranking
from adabet.selection import Selection
from adabet.sizes import format_size
from adabet.training.optimizer import OptimizerFactory, optimizer_factory

SAMPLES = 40
"""Unlabelled samples that methods look at unless they are told otherwise, as in the paper."""

MEASURED_AS = frozenset({"micro_batch", "lean", "recompute", "batch_norm"})
"""Options of a run that change what a step takes."""


@dataclass(frozen=True)
class Chosen:
    """What `adabet.fit` is told about what trains.

    Attributes:
        told: its arguments.
        ranking: of the layers, if the method gives one.
        seconds: processor time that choosing took; None for methods that choose while training.
        wall_seconds: the same by the clock.
    """

    told: Mapping[str, Any]
    ranking: Ranking | None = field(default=None, repr=False)
    seconds: float | None = None
    wall_seconds: float | None = None


class Stopwatch:
    """Processor and wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Processor time."""
        return time.process_time() - self._cpu

    @property
    def wall_seconds(self) -> float:
        """Time by the clock."""
        return time.perf_counter() - self._wall


def fit_options(cell: Cell) -> dict[str, Any]:
    """How the cell trains: the grid's settings, and before them what its method wants."""
    settings = cell.settings
    names = ("optimizer", "weight_decay", "momentum", "head_lr_factor")
    return {name: getattr(settings, name) for name in names} | dict(cell.method.fit)


def look(cell: Cell, model: nn.Module, site: Site, budget: int | None) -> Ranking | Selection | None:
    """Let the method look at the model, once.

    Returns:
        A ranking or a selection; None of a method that goes on choosing in the run, which was asked what it would
        begin with.
    """
    entry, options = cell.method.entry, _own_options(cell)
    loaders = site.splits.loaders(batch_size=cell.settings.batch_size, seed=cell.seed)
    if cell.method.ranks:
        samples = min(options.get("samples", SAMPLES), len(site.splits.train))
        unlabelled = site.splits.unlabelled(samples=samples, batch_size=cell.settings.batch_size, seed=cell.seed)
        return adabet.rank(
            model, loaders.train if entry.labelled else unlabelled, method=entry.name, seed=cell.seed, **options
        )
    run: dict[str, Any] = {
        "val_batches": loaders.val,
        "optimizer": _optimizer(cell),
        "micro_batch": cell.method.fit.get("micro_batch"),
    }
    if cell.share is not None and cell.share.layer_ratio is not None:
        run["layer_ratio"] = cell.share.layer_ratio
    selection = adabet.select(
        entry.name, model, loaders.train, seed=cell.seed, memory=budget, **run, **_channels(cell), **options
    )
    return selection if entry.kind == "selects" else None


def choose(cell: Cell, model: nn.Module, site: Site, budget: int | None) -> Chosen:
    """Choose what trains.

    Args:
        cell: a training cell.
        model: fresh; left as it was.
        site: its data.
        budget: bytes that a step may take at its peak, everything counted, or None.

    Raises:
        BudgetError: if not even the head and one layer fit.
    """
    if (not cell.method.ranks and cell.method.entry.kind == "selects again") or cell.method.options.get("every"):
        ratio = None if cell.share is None else cell.share.layer_ratio
        shares = {
            "layer_ratio": ratio,
            "memory": budget,
            "channel_ratio": cell.method.options.get("channel_ratio", 1.0),
        }
        return Chosen({"method": cell.method.method, "method_options": _own_options(cell), **shares})
    watch = Stopwatch()
    found = look(cell, model, site, budget)
    seconds: dict[str, Any] = {"seconds": watch.seconds, "wall_seconds": watch.wall_seconds}
    if not isinstance(found, Ranking):
        return Chosen({"selection": found}, **seconds)
    if budget is not None:
        return Chosen({"selection": within(found, cell, model, site, budget)}, found, **seconds)
    ratio = 0.1 if cell.share is None or cell.share.layer_ratio is None else cell.share.layer_ratio
    return Chosen({"selection": found.select(layer_ratio=ratio, **_channels(cell))}, found, **seconds)


def within(ranking: Ranking, cell: Cell, model: nn.Module, site: Site, budget: int) -> Selection:
    """As many of the best layers as fit into a budget, found by halving with real steps.

    Layers at the top that do not fit even by themselves are passed over.

    Raises:
        BudgetError: if no layer fits; names what the least would take.
    """
    batch = site.batch(cell.settings.batch_size, cell.seed)

    def select(layers: Sequence[RankedLayer], count: int) -> Selection:
        return replace(ranking, layers=tuple(layers)).select(layer_ratio=count / len(layers), **_channels(cell))

    def peak(layers: Sequence[RankedLayer], count: int) -> int:
        return step_peak(cell, model, batch, select(layers, count))

    alone: list[int] = []
    for best in ranking.order:
        alone.append(peak([best], 1))
        if alone[-1] <= budget:
            break
    else:
        raise BudgetError(
            f"{format_size(budget)} is too little: the head and the cheapest layer take {format_size(min(alone))}; "
            "give at least that"
        )
    passed_over = {ranked.layer.name for ranked in ranking.order[: len(alone) - 1]}
    left = [ranked for ranked in ranking.layers if ranked.layer.name not in passed_over]
    low, high = 1, len(left)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(left, middle) <= budget else (low, middle - 1)
    return replace(select(left, low), candidates=len(ranking.layers))


def step_peak(cell: Cell, model: nn.Module, batch: Any, selection: Selection) -> int:
    """Bytes of a step at its peak, as the cell trains."""
    how = {name: value for name, value in cell.method.fit.items() if name in MEASURED_AS}
    report = adabet.measure_memory(model, batch, selection, optimizer=_optimizer(cell), inference=False, **how)
    return report.training.total


def _optimizer(cell: Cell) -> OptimizerFactory:
    options = fit_options(cell)
    names = ("weight_decay", "momentum")
    rate = cell.learning_rate or 1e-3
    return optimizer_factory(options["optimizer"], lr=rate, **{name: options[name] for name in names})


def _own_options(cell: Cell) -> dict[str, Any]:
    """What the method itself is told."""
    options = {name: value for name, value in cell.method.options.items() if name not in ("channel_ratio", "axis")}
    ratio = cell.method.options.get("channel_ratio", 1.0)
    if cell.method.ranks and ratio < 1 and "channels" in cell.method.entry.options:
        share = 1.0 if cell.share is None or cell.share.layer_ratio is None else cell.share.layer_ratio
        return {"channels": share, "axis": cell.method.options.get("axis", "out"), **options}
    return options


def _channels(cell: Cell) -> dict[str, Any]:
    return {name: cell.method.options[name] for name in ("channel_ratio", "axis") if name in cell.method.options}
