"""Sparse Update's three nets, with weights and the bounds of their activations from files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import ModelError
from adabet.models.config import DataConfig
from adabet.models.mcu import CLASSES, CLIP, NETS, McuNet
from adabet.models.names import unknown_model
from adabet.models.weights import fit_weights, one_line, read_weights

PREFIX = "mcu/"
IMAGE_SIDE, RESIZED_SIDE = 128, 147
"""Pixels of the images, and of their shorter side before the crop."""

DATA_CONFIG = DataConfig(
    (3, IMAGE_SIDE, IMAGE_SIDE),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    crop_pct=IMAGE_SIDE / RESIZED_SIDE,
)


@dataclass(frozen=True)
class _Part:
    """A convolution with the activation behind it, if there is one, and where the json has it."""

    path: tuple[str | int, ...]
    convolution: nn.Conv2d
    clip: nn.Hardtanh | None


def known_names() -> list[str]:
    """All names, as in ``"mcu/mbv2-w0.35"``."""
    return [PREFIX + name for name in NETS]


def build(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,  # noqa: ARG001 (they read any size)
    arguments: dict[str, Any],
) -> tuple[nn.Module, DataConfig, tuple[str, ...]]:
    """Build one of the nets and put weights onto it.

    The bounds of its activations belong to the weights, but are no tensors: they come from the json file that lies
    beside them under the same name. Without that file they are those of ReLU6.

    Args:
        name: one of `NETS`.
        num_classes: outputs of the classifier; None keeps what the weights have, or the 1000 of ImageNet.
        weights: a safetensors file, or None.
        pretrained: refused: there is no place to fetch the weights from.
        image_size: pixels.
        arguments: none are taken.

    Returns:
        The model, what its images look like, and notes in words.

    Raises:
        UnknownNameError: if there is no such net.
        ModelError: if weights or their json do not fit, or there are arguments.
    """
    full_name = PREFIX + name
    if name not in NETS:
        raise unknown_model(full_name, known_names())
    if pretrained:
        raise ModelError(f"{full_name} has no weights to fetch: give weights=FILE.safetensors")
    if arguments:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ModelError(f"{full_name} cannot be built with {given}: it takes no arguments")
    model = McuNet(NETS[name], num_classes or CLASSES)
    notes: tuple[str, ...] = ()
    if weights is not None:
        tensors = read_weights(weights)
        # the files keep the classifier as a 1x1 convolution
        tensors |= {key: tensors[key].flatten(1) for key in ("classifier.weight",) if key in tensors}
        notes = fit_weights(model, tensors, name=full_name, source=weights.name, keep_head=bool(num_classes))
        notes += _settle_clips(model, weights.with_suffix(".json"), full_name)
    return model, DATA_CONFIG, notes


def _settle_clips(model: McuNet, path: Path, name: str) -> tuple[str, ...]:
    """Take the bounds of the activations from the json beside the weights; a note where there is none."""
    if not path.is_file():
        return (f"no {path.name} beside the weights: the activations are clipped at {CLIP:g}, the default of ReLU6",)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as json: {one_line(error)}") from error
    _check_count(model, description, path, name)
    for part in _parts(model):
        found = _look_up(description, part.path)
        _check_convolution(part, found, path, name)
        if part.clip is not None:
            part.clip.max_val = _bound(part, found, path)
    return ()


def _parts(model: McuNet) -> list[_Part]:
    """All convolutions in the order of a forward pass."""
    parts = [_Part(("first_conv",), model.first_conv, model.clip)]
    for index, block in enumerate(model.blocks):
        for name, clip in (("pointwise1", "clip1"), ("depthwise", "clip2"), ("pointwise2", "")):
            if hasattr(block, name):
                parts.append(_Part(("blocks", index, name), getattr(block, name), getattr(block, clip, None)))
    return parts


def _look_up(description: Any, path: tuple[str | int, ...]) -> Mapping[str, Any]:
    """What the json says of a convolution; empty where it lacks it."""
    for step in path:
        try:
            description = description[step]
        except (LookupError, TypeError):
            return {}
    return description if isinstance(description, Mapping) else {}


def _check_count(model: McuNet, description: Any, path: Path, name: str) -> None:
    blocks = description.get("blocks") if isinstance(description, Mapping) else None
    found = len(blocks) if isinstance(blocks, list) else "none"
    if found != len(model.blocks):
        raise ModelError(f"{path} describes another net than {name}: expected {len(model.blocks)} blocks, got {found}")
    residual = [isinstance(block, Mapping) and bool(block.get("residual")) for block in blocks or ()]
    for index, (block, adds) in enumerate(zip(model.blocks, residual, strict=True)):
        if block.residual != adds:
            raise ModelError(
                f"{path} describes another net than {name}: expected residual {block.residual} of block {index}, "
                f"got {adds}"
            )


def _check_convolution(part: _Part, found: Mapping[str, Any], path: Path, name: str) -> None:
    convolution = part.convolution
    expected = {
        "in_channels": convolution.in_channels,
        "out_channels": convolution.out_channels,
        "kernel_size": convolution.kernel_size[0],
        "stride": convolution.stride[0],
        "padding": convolution.padding[0],
        "groups": convolution.groups,
    }
    for key, value in expected.items():
        if found.get(key) != value:
            where = ".".join(map(str, part.path))
            raise ModelError(
                f"{path} describes another net than {name}: expected {key} {value} of {where}, got {found.get(key)}"
            )


def _bound(part: _Part, found: Mapping[str, Any], path: Path) -> float:
    clip = found.get("clip")
    numbers = isinstance(clip, list) and len(clip) == 2 and all(isinstance(value, int | float) for value in clip)
    if clip is None or not numbers or clip[0] != 0 or not 0 < clip[1] <= CLIP:
        where = ".".join(map(str, part.path))
        raise ModelError(f"expected clip [0, up to {CLIP:g}] of {where} in {path}, got {clip}")
    return float(clip[1])
