"""Image classifiers of torchvision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adabet.errors import ModelError
from adabet.extras import require
from adabet.models.config import DataConfig
from adabet.models.heads import new_head
from adabet.models.names import unknown_model
from adabet.models.weights import fit_weights, one_line, read_weights

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Second classifiers that are left out unless the user asks for them: they answer only while training."""


def known_names() -> list[str]:
    """All names of torchvision's classifiers, as in ``"torchvision/resnet50"``."""
    models = require("torchvision.models", "a torchvision model")
    return [f"torchvision/{name}" for name in models.list_models(module=models)]


def build(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    arguments: dict[str, Any],
) -> tuple[nn.Module, DataConfig, tuple[str, ...]]:
    """Build a torchvision classifier and put weights onto it.

    Args:
        name: torchvision's name.
        num_classes: outputs of the head; None keeps the 1000 of ImageNet.
        weights: a safetensors file, or None.
        pretrained: fetch torchvision's default weights: a file with a checksum, read as tensors only.
        image_size: pixels; told to vision transformers, which are built for one size.
        arguments: for the constructor.

    Returns:
        The model, what its images look like, and notes in words.

    Raises:
        UnknownNameError: if torchvision has no such classifier.
        ModelError: if the model cannot be built, or the weights do not fit or cannot be fetched.
    """
    models = require("torchvision.models", "a torchvision model")
    if f"torchvision/{name}" not in (known := known_names()):
        raise unknown_model(f"torchvision/{name}", known)
    arguments = {**_defaults(name), **arguments}
    if image_size is not None and name.startswith("vit_"):
        arguments.setdefault("image_size", image_size)
    if num_classes is not None and not pretrained:
        arguments.setdefault("num_classes", num_classes)
    published = models.get_model_weights(name).DEFAULT
    try:
        model: nn.Module = models.get_model(
            name, weights=published if pretrained else None, **_quiet(pretrained), **arguments
        )
    except Exception as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ModelError(
            f"torchvision/{name} cannot be built{f' with {given}' if given else ''}: {one_line(error)}"
        ) from error
    notes: tuple[str, ...] = ()
    if pretrained and num_classes not in (None, len(published.meta["categories"])):
        new_head(model, num_classes or 0)
    elif weights is not None:
        tensors = _for_model(name, model, read_weights(weights))
        full_name = f"torchvision/{name}"
        notes = fit_weights(model, tensors, name=full_name, source=weights.name, keep_head=bool(num_classes))
    return model, _data_config(published.transforms(), arguments), notes


def _defaults(name: str) -> dict[str, Any]:
    return {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}


def _quiet(pretrained: bool) -> dict[str, bool]:
    return {"progress": False} if pretrained else {}


def _for_model(name: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without second classifiers that the model lacks, with positions of its image size."""
    own = model.state_dict()
    fitting = {
        key: tensor for key, tensor in tensors.items() if key in own or not key.startswith(AUXILIARY.get(name, ("\0",)))
    }
    positions = "encoder.pos_embedding"
    if positions in own and positions in fitting and fitting[positions].shape != own[positions].shape:
        transformer = require("torchvision.models.vision_transformer", "a torchvision model")
        fitting = dict(transformer.interpolate_embeddings(model.image_size, model.patch_size, fitting))
    return fitting


def _data_config(preset: Any, arguments: dict[str, Any]) -> DataConfig:
    """The configuration that gives the same images as torchvision's own preset for the weights."""
    side = preset.crop_size[0]
    return DataConfig(
        input_size=(3, side, side),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=side / preset.resize_size[0],
    ).replaced(image_size=arguments.get("image_size"))
