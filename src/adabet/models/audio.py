"""One-dimensional convolutional nets for sound, on log-mel spectrograms or on the raw wave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adabet.errors import ModelError, OptionError
from adabet.models.names import unknown_model
from adabet.models.weights import fit_weights, one_line, read_weights

PREFIX = "audio/"
NETS = ("mel-cnn", "raw-cnn")

WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.01
"""Of the frames of a log-mel spectrogram."""

WIDTH = 24
MELS = 40
CLASSES = 10

BLOCKS = ((1, 1), (1, 2), (2, 1), (2, 1), (2, 2), (4, 1), (4, 1))
"""Of each block behind the first its channels, in widths, and the stride of its pooling."""

RAW_KERNEL, RAW_STRIDE = 80, 4
"""The first convolution on a raw wave spans about one period of a low voice, as a filter bank would."""


@dataclass(frozen=True)
class AudioConfig:
    """What a model expects its sound to look like.

    Attributes:
        sample_rate: samples a second, in Hz.
        seconds: length of a recording; longer ones are cut to their middle, shorter ones get silence around.
        mels: bands of the log-mel spectrogram; None feeds the wave itself.

    Raises:
        OptionError: if a value makes no sense.
    """

    sample_rate: int = 16000
    seconds: float = 1.0
    mels: int | None = MELS

    def __post_init__(self) -> None:
        if self.sample_rate < 1000:
            raise OptionError(f"expected a sample_rate of at least 1000 Hz, got {self.sample_rate}")
        if not 0.05 <= self.seconds <= 3600:
            raise OptionError(f"expected seconds from 0.05 to 3600, got {self.seconds}")
        if self.mels is not None and self.mels < 1:
            raise OptionError(f"expected mels of at least 1, or None for the raw wave, got {self.mels}")

    @property
    def input_size(self) -> tuple[int, int]:
        """Channels and length of one input: bands and frames, or 1 and samples."""
        if self.mels is None:
            return 1, self.length
        window, hop = (round(seconds * self.sample_rate) for seconds in (WINDOW_SECONDS, HOP_SECONDS))
        return self.mels, 1 + (self.length - window) // hop

    def __str__(self) -> str:
        kind = "raw wave" if self.mels is None else f"{self.mels} mel bands"
        return f"{self.seconds:g} s of sound at {self.sample_rate} Hz, {kind}"

    @property
    def length(self) -> int:
        """Samples of one recording."""
        return round(self.seconds * self.sample_rate)


class AudioCnn(nn.Module):
    """A plain 1-d convolutional net: eight blocks of convolution, batch-norm and ReLU, a mean over time, a classifier.

    Takes ``(batch, in_channels, time)``: mel bands over frames, or one channel of samples.

    Args:
        in_channels: mel bands, or 1.
        num_classes: outputs.
        width: channels of the first blocks; the last have four times as many.
        kernel: of the first convolution.
        stride: of the first convolution.

    Examples:
        >>> import torch
        >>> AudioCnn(40, num_classes=10)(torch.zeros(2, 40, 98)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, width: int = WIDTH, kernel: int = 5, stride: int = 1
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_block(in_channels, width, kernel, stride)]
        before = width
        for widths, pool in BLOCKS:
            blocks.append(_block(before, widths * width, 3, 1))
            if pool > 1:
                blocks.append(nn.MaxPool1d(pool))
            before = widths * width
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the classes, ``(batch, num_classes)``."""
        scores: Tensor = self.classifier(self.pool(self.features(inputs)).flatten(1))
        return scores


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


def known_names() -> list[str]:
    """All names, as in ``"audio/mel-cnn"``."""
    return [PREFIX + name for name in NETS]


def build(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    arguments: dict[str, Any],
) -> tuple[nn.Module, AudioConfig, tuple[str, ...]]:
    """Build a net for sound and put weights onto it.

    Args:
        name: ``"mel-cnn"`` or ``"raw-cnn"``.
        num_classes: outputs of the classifier; None keeps what the weights have, or 10.
        weights: a safetensors file, or None. It does not say its sample rate and length: give those it was trained
            with.
        pretrained: refused: there is no place to fetch weights from.
        image_size: refused.
        arguments: ``sample_rate`` (Hz), ``seconds``, ``mels`` (of ``"mel-cnn"``) and ``width``.

    Returns:
        The model, what its sound looks like, and notes in words.

    Raises:
        UnknownNameError: if there is no such net.
        ModelError: if the weights do not fit, or an argument is unknown.
        OptionError: if an option makes no sense.
    """
    if name not in NETS:
        raise unknown_model(PREFIX + name, known_names())
    if pretrained:
        raise OptionError(f"{PREFIX}{name} has no weights to fetch: give weights=FILE")
    if image_size is not None:
        raise OptionError(f"{PREFIX}{name} reads sound: it takes no image_size")
    raw = name == "raw-cnn"
    given = dict(arguments)
    width = given.pop("width", WIDTH)
    try:
        config = AudioConfig(**{**({"mels": None} if raw else {}), **given})
        if raw != (config.mels is None):
            raise ModelError(f"{PREFIX}{name} takes {'no mels' if raw else 'a number of mels'}, got {config.mels}")
        first = {"kernel": RAW_KERNEL, "stride": RAW_STRIDE} if raw else {}
        model = AudioCnn(config.mels or 1, num_classes or CLASSES, width=width, **first)
    except (TypeError, RuntimeError) as error:
        raise ModelError(f"{PREFIX}{name} cannot be built: {one_line(error)}") from error
    notes: tuple[str, ...] = ()
    if weights is not None:
        notes = fit_weights(
            model, read_weights(weights), name=PREFIX + name, source=str(weights), keep_head=num_classes is not None
        )
    return model, config, notes
