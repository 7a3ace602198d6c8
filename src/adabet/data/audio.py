"""Recordings, the tensors that models take of them, and a dataset of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from adabet.data.folders import FileKind
from adabet.data.images import FileDataset, Sample
from adabet.data.log_mel import log_mel
from adabet.errors import DataError
from adabet.extras import require
from adabet.models.audio import WINDOW_SECONDS, AudioConfig

SOUND = FileKind("recording", "recordings", frozenset({".wav", ".wave", ".flac"}))
"""Lossless files; libsndfile, which reads them, knows every usual encoding."""

SHIFT_SHARE = 0.1
"""Training moves a recording in time by up to this share of its length, either way."""

SMALLEST_DEVIATION = 1e-5


def read_sound(path: Path, *, sample_rate: int) -> Tensor:
    """Samples of a recording, its channels averaged.

    Args:
        path: a WAV or FLAC file; PCM of any width, or floating-point.
        sample_rate: that it must have, in Hz; nothing is resampled.

    Returns:
        ``(time,)``, float32, in [-1, 1].

    Raises:
        DataError: if it cannot be read, is empty, of another rate, not finite, or shorter than 25 ms.
        MissingExtraError: if soundfile is not installed.
    """
    soundfile = require("soundfile", "reading sound")
    try:
        if not path.stat().st_size:
            raise DataError(f"{path} cannot be read as sound: the file is empty")
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a suffix that stands for raw samples
        reason = getattr(error, "error_string", None) or " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as sound: {reason}") from error
    if rate != sample_rate:
        raise RateError(f"{path}: expected {sample_rate} Hz, got {rate} Hz", rate)
    wave = torch.from_numpy(samples).mean(1)
    shortest = round(WINDOW_SECONDS * sample_rate)
    if len(wave) < shortest:
        raise DataError(f"{path}: expected at least {1000 * WINDOW_SECONDS:g} ms, got {1000 * len(wave) / rate:.1f} ms")
    if not bool(wave.isfinite().all()):
        raise DataError(f"{path}: expected finite samples, some are NaN or infinite")
    return wave


class RateError(DataError):
    """A recording has another rate than the others: one file's fault is rarely one file's."""

    def __init__(self, message: str, rate: int) -> None:
        super().__init__(message)
        self.rate = rate


@dataclass(frozen=True)
class AudioTransform:
    """Turns a recording into what a model takes: ``(mels, frames)``, or ``(1, time)`` for the raw wave.

    Each recording is brought to mean 0 and standard deviation 1 at the end, so that loudness does not count.

    Attributes:
        config: what the model expects.
        train: whether recordings are moved in time at random, by up to a tenth of their length.
    """

    config: AudioConfig
    train: bool

    def __call__(self, wave: Tensor) -> Tensor:
        """Prepare and finish one recording."""
        return self.finish(self.prepare(wave))

    def read(self, path: Path) -> Tensor:
        """The samples of a file, see `read_sound`."""
        return read_sound(path, sample_rate=self.config.sample_rate)

    def prepare(self, wave: Tensor) -> Tensor:
        """The middle of a recording, or a short one with as much silence before as behind it, ``(length,)``."""
        missing = self.config.length - len(wave)
        # a negative pad cuts; floor division puts the odd sample on the same side either way
        return pad(wave, (missing // 2, missing - missing // 2))

    def finish(self, wave: Tensor) -> Tensor:
        """From ``(length,)`` samples to the tensor; draws from torch's generator when training."""
        if self.train:
            most = int(SHIFT_SHARE * len(wave))
            shift = int(torch.randint(-most, most + 1, ()))
            wave = pad(wave, (shift, -shift))
        config = self.config
        values = wave[None] if config.mels is None else log_mel(wave, sample_rate=config.sample_rate, mels=config.mels)
        return (values - values.mean()) / values.std().clamp_min(SMALLEST_DEVIATION)


def audio_transforms(config: AudioConfig, *, train: bool) -> AudioTransform:
    """The recordings that a model expects; for training also moved in time at random.

    Args:
        config: a loaded model's `data_config`.
        train: whether to move them.

    Raises:
        OptionError: if the mel bands are too many for the sample rate.

    Examples:
        >>> transform = audio_transforms(AudioConfig(sample_rate=8000, seconds=0.5), train=False)
        >>> transform(torch.randn(3000)).shape
        torch.Size([40, 48])
    """
    if config.mels is not None:  # too many bands are told now, not at the first recording
        log_mel(torch.zeros(config.length), sample_rate=config.sample_rate, mels=config.mels)
    return AudioTransform(config, train)


class AudioDataset(FileDataset):
    """Recordings with labels, as tensors ``(channels, time)``.

    Args:
        samples: the recordings.
        transform: what is done to each.
        waves: prepared samples of every recording, ``(recordings, length)``, in place of the files.
    """

    def __init__(self, samples: Sequence[Sample], *, transform: AudioTransform, waves: Tensor | None = None) -> None:
        super().__init__(samples)
        self.transform = transform
        self.waves = waves

    @property
    def in_memory(self) -> bool:
        """Whether prepared samples are kept."""
        return self.waves is not None

    def with_transform(self, transform: AudioTransform) -> "AudioDataset":
        """The same recordings under another transform; samples in memory are shared if they serve it too."""
        same = (self.transform.config.sample_rate, self.transform.config.length)
        shared = same == (transform.config.sample_rate, transform.config.length)
        return AudioDataset(self.samples, transform=transform, waves=self.waves if shared else None)

    def _load(self, index: int) -> Tensor:
        if self.waves is not None:
            return self.transform.finish(self.waves[index])
        return self.transform(self.transform.read(self.samples[index].path))
