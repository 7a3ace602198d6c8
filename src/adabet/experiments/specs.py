"""The axes of a grid: a model, data, a method, how much may train, and how everything trains."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from adabet.errors import OptionError, UnknownNameError
from adabet.methods import Method, Request, find_method
from adabet.sizes import parse_size
from adabet.training.optimizer import check_head_lr_factor

FIT_OPTIONS = frozenset(
    {
        *("optimizer", "momentum", "weight_decay", "schedule", "batch_norm", "early_stop", "keep", "micro_batch"),
        *("lean", "recompute", "mixed_precision", "head_lr_factor"),
    }
)
"""What a method may tell `adabet.fit` beside its own options."""

NO_KNOB = frozenset({"full", "head"})
"""Rankings that always take the same layers."""

OWN_RATIO = frozenset({"tinytrain", "sparse-update", "lora"})
"""Methods that take a share of the layers without ranking them."""

NOT_OPTIONS = frozenset({"layer_ratio", "memory", "seed", "progress", "val_batches", "loss", "optimizer", "forward"})
"""Options of methods that the grid itself, or the run, decides."""


@dataclass(frozen=True)
class ModelSpec:
    """A model and its weights, as `adabet.models.load_model` takes them.

    Attributes:
        name: such as ``"timm/mobilenetv2_100"``.
        label: what the table calls it; by default the last part of the name.
        weights: a safetensors file; environment variables in it are replaced.
        pretrained: fetch the library's own weights.
        image_size: pixels, None for the model's own.
        mean: of pixels in [0, 1], None for the model's own.
        std: likewise.
        arguments: of the model's constructor.
    """

    name: str
    label: str = ""
    weights: str | None = None
    pretrained: bool = False
    image_size: int | None = None
    mean: float | None = None
    std: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _set(self, "name", _text("name of a model", self.name))
        _set(self, "label", self.label or PurePath(self.name).name)
        if self.weights is not None:
            _set(self, "weights", _text("weights", str(self.weights)))


@dataclass(frozen=True)
class DataSpec:
    """A dataset, as `adabet.data.load_data` takes it; its splits are the same for all seeds.

    Attributes:
        name: of a published dataset, or a folder; environment variables in it are replaced.
        label: what the table calls it; by default the last part of the name.
        max_train: train on so many images at most.
        max_val: validate on so many.
        max_test: test on so many.
    """

    name: str
    label: str = ""
    max_train: int | None = None
    max_val: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        _set(self, "name", _text("name of data", self.name))
        _set(self, "label", self.label or PurePath(self.name).name)
        for name in ("max_train", "max_val", "max_test"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise OptionError(f"expected {name} of at least 1, got {limit}")


@dataclass(frozen=True)
class Share:
    """How much may train: a share of the layers, or a budget of memory.

    Attributes:
        layer_ratio: in [0, 1], or None.
        memory: bytes of a step's peak, everything counted: text such as ``"200MB"``, or ``"adabet:0.1"`` for what a
            step takes with AdaBet's tenth of the layers. Methods that rank layers take as many of the best as fit.

    Raises:
        OptionError: unless there is exactly one of the two.
    """

    layer_ratio: float | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if (self.layer_ratio is None) == (self.memory is None):
            raise OptionError("expected a share to be a layer_ratio or a memory, one of the two")
        if self.layer_ratio is not None:
            _set(self, "layer_ratio", _ratio(self.layer_ratio))
        elif self.reference is None:
            parse_size(self.memory or "")

    @property
    def reference(self) -> tuple[str, float] | None:
        """The method and its ratio whose step the budget is the peak of, or None.

        Raises:
            OptionError: if that method has no ratio.
        """
        method, colon, ratio = (self.memory or "").partition(":")
        if not colon:
            return None
        if not ranks_by_ratio(find_method(method)):
            raise OptionError(
                f"expected a budget like a method that ranks layers, such as 'adabet:0.1'; {method!r} not"
            )
        return method, _ratio(ratio)

    @property
    def bytes(self) -> int | None:
        """The budget, or None where it is a ratio or has to be measured."""
        return None if self.memory is None or self.reference is not None else parse_size(self.memory)

    def __str__(self) -> str:
        return f"{self.layer_ratio:g}" if self.layer_ratio is not None else str(self.memory)


@dataclass(frozen=True)
class MethodSpec:
    """A method as it is compared.

    Attributes:
        method: its name.
        label: what the table calls it; by default its name.
        options: its own, such as ``{"normalize": "none"}``.
        fit: what else `adabet.fit` is told, such as the optimizer of its paper.

    Raises:
        UnknownNameError: if there is no such method, or it takes no such option.
    """

    method: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    fit: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        shared = Request.__dataclass_fields__.keys() - {"model", "batches"} - NOT_OPTIONS
        known = shared | set(self.entry.options) | {"channel_ratio", "axis"}
        _set(self, "label", self.label or self.method)
        for name in self.options:
            if name not in known:
                raise UnknownNameError(f"option of method {self.method!r}", name, known)
        for name in self.fit:
            if name not in FIT_OPTIONS:
                raise UnknownNameError("option of fit", name, FIT_OPTIONS)

    @property
    def entry(self) -> Method:
        """The registered method."""
        return find_method(self.method)

    @property
    def ranks(self) -> bool:
        """Whether it says what layers are worth, once; otherwise it selects by itself."""
        return self.entry.kind == "ranks layers" and self.options.get("every") is None

    def takes(self, share: Share) -> bool:
        """Whether such a share makes a difference to it."""
        if share.layer_ratio is not None:
            return ranks_by_ratio(self.entry) or self.method in OWN_RATIO
        own = "units" in self.options  # a budget of its own, in the papers' unit
        return (self.entry.budget and not own) or (self.ranks and self.method not in NO_KNOB)


@dataclass(frozen=True)
class Settings:
    """How everything trains; a method's own ``fit`` goes before.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: see `adabet.fit`.
        weight_decay: see `adabet.fit`.
        momentum: see `adabet.fit`.
        head_lr_factor: see `adabet.fit`.
    """

    epochs: int = 5
    batch_size: int = 8
    optimizer: str = "sgdw"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    head_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise OptionError(f"expected {name} of at least 1, got {getattr(self, name)!r}")
        check_head_lr_factor(self.head_lr_factor)


def ranks_by_ratio(method: Method) -> bool:
    """Whether a method takes a share of the layers that it ranks, once or every few epochs."""
    return method.kind == "ranks layers" and method.name not in NO_KNOB


def _ratio(value: str | float) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1
    if not 0 <= ratio <= 1:
        raise OptionError(f"expected a layer_ratio from 0 to 1, got {value!r}")
    return ratio


def _text(what: str, value: str) -> str:
    if not isinstance(value, str) or not value:
        raise OptionError(f"expected the {what} as text, got {value!r}")
    return os.path.expandvars(value)


def _set(spec: Any, name: str, value: Any) -> None:
    object.__setattr__(spec, name, value)
