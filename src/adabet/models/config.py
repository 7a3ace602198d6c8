"""What a model expects its images to look like."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adabet.errors import OptionError

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class DataConfig:
    """How images are prepared for a model, in timm's words.

    Attributes:
        input_size: channels, height and width of one image, in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        interpolation: of the resize.
        crop_pct: side of the crop over the side that the image is resized to, in (0, 1].
        crop_mode: ``"center"`` resizes the shorter side and crops the middle; ``"squash"`` resizes both
            sides; ``"border"`` resizes the longer side and pads.

    Raises:
        OptionError: if a value makes no sense.

    Examples:
        >>> DataConfig(input_size=(3, 224, 224)).replaced(image_size=160, mean=0.5, std=0.5)
        DataConfig(input_size=(3, 160, 160), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), ...)
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels, *sides = self.input_size
        if channels not in (1, 3):
            raise OptionError(f"expected images of 1 (gray) or 3 (RGB) channels, got {channels}")
        if min(sides) < 1:
            raise OptionError(f"expected image_size of at least 1 pixel, got {min(sides)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise OptionError(f"expected {name} of {channels} channels, got {len(values)} values")
        if min(self.std) <= 0:
            raise OptionError(f"expected std above zero, got {min(self.std)}")
        if not 0 < self.crop_pct <= 1:
            raise OptionError(f"expected crop_pct in (0, 1], got {self.crop_pct}")
        if self.crop_mode not in CROP_MODES:
            raise OptionError(f"expected crop_mode {', '.join(CROP_MODES)}, got {self.crop_mode!r}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise OptionError(f"expected interpolation {known}, got {self.interpolation!r}")

    def replaced(
        self,
        *,
        image_size: int | None = None,
        channels: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
    ) -> "DataConfig":
        """The same configuration with some values replaced; None keeps what is there.

        Args:
            image_size: height and width, pixels.
            channels: 1 or 3; where neither mean nor std is given, their averages take the old ones' place.
            mean: one value for all channels, or one a channel.
            std: one value for all channels, or one a channel.
            interpolation: one of `INTERPOLATIONS`.
            crop_pct: in (0, 1].

        Raises:
            OptionError: if a value makes no sense.
        """
        count = channels or self.input_size[0]
        sides = (image_size, image_size) if image_size is not None else self.input_size[1:]
        changes: dict[str, Any] = {
            "input_size": (count, *sides),
            "mean": _for_channels(self.mean if mean is None else mean, count, average=mean is None),
            "std": _for_channels(self.std if std is None else std, count, average=std is None),
            "interpolation": interpolation or self.interpolation,
            "crop_pct": self.crop_pct if crop_pct is None else crop_pct,
        }
        return replace(self, **changes)


def _for_channels(values: float | Sequence[float], channels: int, *, average: bool) -> tuple[float, ...]:
    """One value a channel: a single number is repeated, a pretrained model's own values may be averaged."""
    if isinstance(values, int | float):
        return (float(values),) * channels
    if len(values) == 1 or (average and len(values) != channels):
        return (sum(values) / len(values),) * channels
    return tuple(float(value) for value in values)
