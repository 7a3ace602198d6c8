"""Table 3 of the AdaBet paper: memory of training, as published, by two counts, and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adabet.experiments.reproduce.picture import add_legend, name_panel, new_figure, quiet, save
from adabet.experiments.reproduce.published import BATCH_SIZE, LAYER_RATIO, SAMPLES, TABLE_3
from adabet.experiments.reproduce.task import Found, Row, Task
from adabet.experiments.specs import ModelSpec
from adabet.extras import require
from adabet.freezing import apply
from adabet.memory import Peak, estimate_memory, keras_network, measure_memory
from adabet.methods import rank, select
from adabet.models import load_model
from adabet.report.memory_plot import FAINT, INK
from adabet.selection import Selection

MB = 1e6
IMAGE = (3, 224, 224)
PETS, DOGS = 37, 120
"""Classes of the head that fit the published numbers: all but VGG16's rows of full training and of AdaBet fit 37."""

NETWORKS = {"resnet50": "ResNet50", "mobilenet_v2": "MobileNetV2", "vgg16": "VGG16", "vit_b16": "ViT-B16"}
TRAINS = {"inference": "Inference", "head": "Transfer learning", "adabet": "AdaBet", "full": "Full training"}

COLUMNS = {
    "model": "the network; the paper's as Keras builds them",
    "trains": "what trains: nothing (inference), the head, AdaBet's tenth of the layers and the head, everything",
    "classes": "outputs of the head",
    "published_mb": "the paper's table 3, MB of 1e6 bytes",
    "formula_mb": "by the rule that the paper's reference code follows; it counts the batch of an output twice",
    "once_mb": "by the same rule with the batch counted once",
    "stock_mb": "measured: peak of a step in stock autograd, weights and momentum included; for inference of a pass",
    "lean_mb": "measured: the same in adabet's lean mode",
}
MEASURES = {
    "published_mb": ("published", INK, "o"),
    "formula_mb": ("the paper's formula", "#e69f00", "x"),
    "once_mb": ("batch counted once", "#009e73", "D"),
    "stock_mb": ("measured, stock autograd", "#8c8c8c", "s"),
    "lean_mb": ("measured, lean", "#0072b2", "s"),
}
"""Columns that the picture shows: what they are called, colour and mark."""


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        key: by which its published numbers are found; empty if there are none.
        label: what the table calls it.
        real: makes it, ready to run, for a number of classes.
        counted: the same as the formula is to see it; need not hold memory.
        image: ``(channels, height, width)`` of its input.
    """

    key: str
    label: str
    real: Callable[[int], nn.Module]
    counted: Callable[[int], nn.Module]
    image: tuple[int, int, int] = IMAGE

    def head(self, model: nn.Module) -> str:
        """Where the head is: of the paper's networks, which are built anew, the last linear layer."""
        return _last_linear(model) if self.key else "auto"

    def classes(self, trains: str) -> int:
        """Outputs of the head that fit the published number."""
        return DOGS if self.key == "vgg16" and trains in ("full", "adabet") else PETS


def make(task: Task) -> Found:
    """Count and measure every network's rows; quickly, only the smallest of the paper's is measured."""
    networks = [_of_spec(spec) for spec in task.models] or _of_paper()
    measured = [net for net in networks if not task.quick or task.models or net.key == "mobilenet_v2"]
    rows: list[Row] = []
    for number, network in enumerate(networks):
        task.progress(number, len(networks))
        rows += _rows(network, task, measured=network in measured)
    task.progress(len(networks), len(networks))
    notes = [
        "the formula counts neither gradients nor the optimizer's state nor what a framework keeps; measured peaks do",
        "measured at batch 8 with SGD and momentum; memory does not depend on the values of weights and images",
    ]
    if not task.models:
        notes.append("AdaBet's tenth is that of random weights and noise: other weights choose other layers")
        notes.append("published for AdaBet is only VGG16; 932.45 MB is what the rule gives if the head alone trains")
    if len(measured) < len(networks):
        notes.append("quick: only MobileNetV2 is measured")
    return Found(tuple(rows), lambda path: draw(rows, path), tuple(notes))


def _of_paper() -> list[Network]:
    def real(key: str) -> Callable[[int], nn.Module]:
        return lambda classes: _with_memory(key, classes)

    def counted(key: str) -> Callable[[int], nn.Module]:
        return lambda classes: keras_network(key, classes=classes)

    return [Network(key, label, real(key), counted(key)) for key, label in NETWORKS.items()]


def _with_memory(key: str, classes: int) -> nn.Module:
    """A network of the paper with random weights."""
    torch.manual_seed(0)
    if key == "vit_b16":
        # for the formula its blocks are single layers that compute nothing
        model: nn.Module = require("timm", "the paper's networks").create_model(
            "vit_base_patch16_224", num_classes=classes
        )
        return model
    model = keras_network(key, classes=classes).to_empty(device="cpu")
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model


def _of_spec(spec: ModelSpec) -> Network:
    """A network that was named, by its library's architecture; weights play no role."""
    plain = replace(spec, weights=None, pretrained=False)

    def build(classes: int) -> nn.Module:
        size = None if spec.name == "demo" else classes
        return load_model(plain.name, image_size=plain.image_size, num_classes=size, **plain.arguments).model

    config = load_model(plain.name, image_size=plain.image_size, **plain.arguments).data_config
    return Network("", spec.label, build, build, IMAGE if config is None else config.input_size)


def _rows(network: Network, task: Task, *, measured: bool) -> list[Row]:
    rows: list[Row] = []
    for trains in TRAINS:
        classes = network.classes(trains)
        model = network.real(classes) if measured else None
        selection = None if model is None or trains == "inference" else _select(trains, model, network, task.seed)
        counts = _count(network, trains, selection)
        peaks = {} if model is None else _measure(model, selection, network)
        rows.append(
            {
                "model": network.label,
                "trains": TRAINS[trains],
                "classes": classes,
                "published_mb": TABLE_3.get((network.key, trains)),
                **{name: counts.get(name) for name in ("formula_mb", "once_mb")},
                **{name: peaks.get(name) for name in ("stock_mb", "lean_mb")},
            }
        )
    return rows


def _select(trains: str, model: nn.Module, network: Network, seed: int) -> Selection:
    """What trains in a row, chosen by noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SAMPLES, *network.image, generator=generator).split(BATCH_SIZE)
    if trains == "adabet":
        return rank(model, noise, method="adabet", head=network.head(model), seed=seed).select(layer_ratio=LAYER_RATIO)
    return select(trains, model, noise[:1], head=network.head(model), seed=seed)


def _count(network: Network, trains: str, selection: Selection | None) -> dict[str, float]:
    """Megabytes by the paper's rule, and by the same with the batch counted once; nothing for a choice not known."""
    if trains == "adabet" and selection is None:
        return {}
    model = network.counted(network.classes(trains))
    chosen = _head_names(model) if trains == "head" else set()
    if trains == "adabet" and selection is not None:
        chosen = _counted_names(network, selection)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains == "full" or name in chosen)
    batch = torch.zeros(1, *network.image)
    twice = estimate_memory(model, batch, convention="adabet_table3", batch_size=BATCH_SIZE)
    single = estimate_memory(model, batch, convention="adabet_table3", batch_size=1)
    return {
        "formula_mb": twice.total / MB,
        "once_mb": (single.parameters + BATCH_SIZE * single.activations) / MB,
    }


def _counted_names(network: Network, selection: Selection) -> set[str]:
    """A selection's parameters as the network that is counted calls them."""
    if network.key != "vit_b16":
        return set(selection.parameters)
    # blocks.0.mlp.fc1.weight stands there as blocks.0.mlp_fc1_weight
    parts = [name.split(".", 2) for name in selection.parameters]
    return {
        ".".join((*part[:2], part[2].replace(".", "_"))) if part[0] == "blocks" else ".".join(part) for part in parts
    }


def _head_names(model: nn.Module) -> set[str]:
    """Parameters of the last linear layer."""
    return {f"{_last_linear(model)}.{name}" for name in ("weight", "bias")}


def _last_linear(model: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def _measure(model: nn.Module, selection: Selection | None, network: Network) -> dict[str, float]:
    """Measured peaks in megabytes: of a forward pass, or of a step in stock autograd and in the lean mode."""
    batch: tuple[Tensor, Tensor] = torch.randn(BATCH_SIZE, *network.image), torch.zeros(BATCH_SIZE, dtype=torch.long)
    if selection is None:
        return {"stock_mb": _inference(model, batch, network).total / MB}
    peaks = {}
    for name, lean in (("stock_mb", False), ("lean_mb", True)):
        peaks[name] = measure_memory(model, batch, selection, lean=lean, inference=False).training.total / MB
    return peaks


def _inference(model: nn.Module, batch: Any, network: Network) -> Peak:
    """Of a forward pass over the batch, without gradients."""
    with apply(model, select("head", model, [batch], head=network.head(model))):
        peak = measure_memory(model, batch).inference
    if peak is None:
        raise RuntimeError("a measurement with inference=True lacks its inference")
    return peak


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each network, a line for each row of the table, a mark for each number."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    deep = (len(models) + 1) // 2
    height = 1.35 + 1.75 * deep
    setting = f"batch {BATCH_SIZE}, MB of 1e6 bytes; the formula knows no gradients and no optimizer, measuring does"
    figure = new_figure("What training takes, by count and measured", setting, height=height)
    width = 1 if len(models) == 1 else 2
    grid = figure.add_gridspec(
        deep, width, left=0.15, right=0.97, top=1 - 1.3 / height, bottom=0.4 / height, hspace=0.5, wspace=0.4
    )
    for number, model in enumerate(models):
        axes = figure.add_subplot(grid[number // width, number % width])
        _draw_panel(axes, [row for row in rows if row["model"] == model], shown)
        name_panel(axes, model)
    handles = [_mark(axes, [], [], name) for name in shown]
    add_legend(figure, handles)
    save(figure, path)


def _draw_panel(axes: Any, rows: Sequence[Row], shown: Sequence[str]) -> None:
    for name in shown:
        places = [(row[name], place) for place, row in enumerate(rows) if row[name] is not None]
        _mark(axes, [value for value, _ in places], [place for _, place in places], name)
    axes.set_yticks(range(len(rows)), [row["trains"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.hlines(range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color=FAINT, linewidth=0.6, zorder=0)
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    quiet(axes)


def _mark(axes: Any, across: Sequence[float], down: Sequence[float], name: str) -> Any:
    label, colour, mark = MEASURES[name]
    hollow = name == "published_mb"
    return axes.plot(
        across, down, linestyle="none", marker=mark, markersize=9 if hollow else 6, label=label, color=colour,
        markerfacecolor="none" if hollow else colour, markeredgewidth=1.4 if hollow or mark == "x" else 0.8,
        markeredgecolor=colour if hollow or mark == "x" else "white", clip_on=False, zorder=3,
    )[0]  # fmt: skip
