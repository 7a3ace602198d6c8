"""Models of timm, by name or from a folder that timm wrote."""

import sys
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import ModelError
from adabet.extras import require
from adabet.models.config import DataConfig
from adabet.models.names import unknown_model
from adabet.models.weights import fit_weights, one_line, read_weights

WEIGHTS_NAME = "model.safetensors"
FOLDER = "local-dir:"


def known_names() -> list[str]:
    """All names of timm's architectures and pre-trained weights, as in ``"timm/resnet50.a1_in1k"``."""
    timm = require("timm", "a timm model")
    return [f"timm/{name}" for name in {*timm.list_models(), *timm.list_models(pretrained=True)}]


def build(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    arguments: dict[str, Any],
) -> tuple[nn.Module, DataConfig, tuple[str, ...]]:
    """Build a timm model and put weights onto it.

    Args:
        name: timm's name, or ``"local-dir:FOLDER"`` for a folder with timm's config.json; its weights are loaded.
        num_classes: outputs of the head; None keeps what the architecture has.
        weights: a safetensors file, or None.
        pretrained: fetch the weights that timm has for this name.
        image_size: pixels; told to architectures that are built for one size.
        arguments: for the constructor.

    Returns:
        The model, what its images look like, and notes in words.

    Raises:
        UnknownNameError: if timm has no such model.
        ModelError: if the model cannot be built, or the weights do not fit or cannot be fetched.
    """
    timm = require("timm", "a timm model")
    if name.startswith(FOLDER):
        weights = weights or Path(name.removeprefix(FOLDER), WEIGHTS_NAME)
    elif f"timm/{name}" not in (known := known_names()):
        raise unknown_model(f"timm/{name}", known)
    arguments = dict(arguments)
    if image_size is not None and _fixed_size(name):
        arguments.setdefault("img_size", image_size)
    overlay = {"file": _fetch(name), "custom_load": False} if pretrained else None
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=num_classes, **arguments
        )
    except Exception as error:
        raise ModelError(f"timm/{name} cannot be built{_with(arguments)}: {one_line(error)}") from error
    notes: tuple[str, ...] = ()
    if weights is not None:
        tensors = _renamed(model, read_weights(weights))
        notes = fit_weights(model, tensors, name=f"timm/{name}", source=weights.name, keep_head=bool(num_classes))
    return model, _data_config(timm, model, arguments), notes


def _with(arguments: dict[str, Any]) -> str:
    return f" with {', '.join(f'{key}={value}' for key, value in arguments.items())}" if arguments else ""


def _fixed_size(name: str) -> bool:
    """Whether the architecture is built for one image size, as vision transformers are."""
    if name.startswith(FOLDER):
        return False
    config: Any = require("timm.models", "a timm model").get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def _fetch(name: str) -> str:
    """Path of the hub's safetensors file with timm's weights, fetched unless it is in the hub's cache.

    timm itself would fall back to a pickle; this does not.
    """
    config: Any = require("timm.models", "a timm model").get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ModelError(f"timm has no pre-trained weights for {name!r}: give weights=FILE.safetensors")
    hub = require("huggingface_hub", "fetching weights")
    try:
        path: str = hub.hf_hub_download(config.hf_hub_id, WEIGHTS_NAME)
    except Exception as error:
        raise ModelError(
            f"the weights of timm/{name} cannot be fetched from the hub ({one_line(error)}): "
            "check the network, or give weights=FILE.safetensors"
        ) from error
    return path


def _renamed(model: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Weights in timm's names and sizes, by the filter that timm has for an architecture's foreign files."""
    filter_weights: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_weights is None:
        return tensors
    try:
        renamed: dict[str, Any] = filter_weights(dict(tensors), model)
    except Exception:  # a filter meets what it was not written for: the misfit is told in our own words
        return tensors
    return renamed


def _data_config(timm: Any, model: nn.Module, arguments: dict[str, Any]) -> DataConfig:
    config = DataConfig(**timm.data.resolve_model_data_config(model))
    return config.replaced(image_size=arguments.get("img_size"), channels=arguments.get("in_chans"))
