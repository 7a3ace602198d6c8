"""From an image to what a model takes, in a deterministic half and a random half."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adabet.errors import OptionError
from adabet.extras import require
from adabet.models import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image

CROPS = ("center", "random")


@dataclass(frozen=True)
class ImageTransform:
    """Turns an image into a normalized tensor ``(channels, height, width)``.

    Attributes:
        config: what the model expects.
        train: whether images are flipped (and cropped) at random.
        crop: ``"center"`` or ``"random"``; evaluation always crops the center.
        prepare: the deterministic half, from an image to pixels ``(channels, height, width)``, uint8. Where
            the crop is central, its result has one size and may be kept in memory.
        finish: the other half, from pixels to the tensor; draws from torch's generator when training.
    """

    config: DataConfig
    train: bool
    crop: str
    prepare: Callable[["Image"], Tensor]
    finish: Callable[[Tensor], Tensor]

    def __call__(self, image: "Image") -> Tensor:
        """Prepare and finish one image."""
        return self.finish(self.prepare(image))

    def prepares_like(self, other: object) -> bool:
        """Whether both prepare every image to the same pixels, of one size."""
        return isinstance(other, ImageTransform) and self.config == other.config and self.crop == other.crop == "center"


def transforms(config: DataConfig, *, train: bool, crop: str = "center") -> ImageTransform:
    """The images that a model expects; for training also flipped at random.

    For evaluation: resize, crop the center, normalize; to the pixel what timm and torchvision do for the same
    configuration. For training, as in the paper ("centering and random flipping"), the same and a horizontal
    flip of every second image; ``crop="random"`` moves the crop over the resized image.

    Args:
        config: a loaded model's `data_config`.
        train: whether to flip (and to crop at random, if asked).
        crop: ``"center"`` or ``"random"``; of no effect for evaluation.

    Raises:
        OptionError: if `crop` is neither.
        MissingExtraError: if torchvision is not installed.

    Source: Tenison et al. 2026 (arXiv 2510.03101).
    """
    if crop not in CROPS:
        raise OptionError(f"expected crop {' or '.join(CROPS)}, got {crop!r}")
    crop = crop if train else "center"
    steps = require("torchvision.transforms", "preparing images")
    pixels = _geometry(steps, config) if crop == "center" else [_resize(steps, config), steps.PILToTensor()]
    random: list[Any] = [steps.RandomCrop(config.input_size[1:], pad_if_needed=True)] if crop == "random" else []
    if train:
        random.append(steps.RandomHorizontalFlip())
    dtype = require("torch", "preparing images").float32
    normalize = [steps.ConvertImageDtype(dtype), steps.Normalize(config.mean, config.std)]
    return ImageTransform(config, train, crop, steps.Compose(pixels), steps.Compose([*random, *normalize]))


def _geometry(steps: Any, config: DataConfig) -> list[Any]:
    """Resize and central crop, to uint8 pixels."""
    _, height, width = config.input_size
    if config.crop_mode == "border" or height != width:
        timm_data = require("timm.data", "preparing images")
        timm_steps: list[Any] = timm_data.create_transform(
            input_size=config.input_size,
            interpolation=config.interpolation,
            crop_pct=config.crop_pct,
            crop_mode=config.crop_mode,
            mean=config.mean,
            normalize=False,
        ).transforms
        return timm_steps
    return [_resize(steps, config), steps.CenterCrop((height, width)), steps.PILToTensor()]


def _resize(steps: Any, config: DataConfig) -> Any:
    """Resize so that the crop is `crop_pct` of the side, rounded down as timm does."""
    height, width = (math.floor(side / config.crop_pct) for side in config.input_size[1:])
    interpolation = steps.InterpolationMode(config.interpolation)
    size = (height, width) if config.crop_mode == "squash" else min(height, width)
    return steps.Resize(size, interpolation=interpolation, antialias=True)
