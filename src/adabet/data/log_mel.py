"""Log-mel spectrograms: how much sound there is in each band of pitch, frame by frame."""

import math
from functools import cache

import torch
from torch import Tensor

from adabet.errors import OptionError
from adabet.models.audio import HOP_SECONDS, WINDOW_SECONDS

FLOOR = 1e-6
"""Power of a band below which all is silence; sound is in [-1, 1]."""


def log_mel(waves: Tensor, *, sample_rate: int, mels: int) -> Tensor:
    """Natural logarithm of the power in mel bands, over frames of 25 ms every 10 ms.

    Each frame is weighted with a periodic Hann window and transformed at the next power of two; triangular filters,
    equally wide in mel (2595 log10(1 + f / 700 Hz)) from 0 to half the sample rate, with peaks of 1, add up its power.
    Only whole frames count.

    Args:
        waves: samples in [-1, 1], ``(..., time)``, at least one window long.
        sample_rate: samples a second, in Hz.
        mels: bands.

    Returns:
        ``(..., mels, frames)``, float32.

    Raises:
        OptionError: if the bands are so many that one of them holds no frequency of the transform.

    Examples:
        >>> log_mel(torch.zeros(8000), sample_rate=8000, mels=40).shape
        torch.Size([40, 98])
    """
    window, hop = (round(seconds * sample_rate) for seconds in (WINDOW_SECONDS, HOP_SECONDS))
    length = 2 ** math.ceil(math.log2(window))
    frames = waves.float().unfold(-1, window, hop) * torch.hann_window(window, device=waves.device)
    power = torch.fft.rfft(frames, n=length).abs().square()
    bands = power @ mel_filters(sample_rate, length, mels).to(waves.device)
    logarithm: Tensor = bands.clamp_min(FLOOR).log()
    return logarithm.mT


@cache
def mel_filters(sample_rate: int, length: int, mels: int) -> Tensor:
    """Weights of the frequencies of a Fourier transform in each mel band, ``(length // 2 + 1, mels)``.

    Args:
        sample_rate: samples a second, in Hz.
        length: samples that are transformed together.
        mels: bands.

    Raises:
        OptionError: if a band holds no frequency.
    """
    frequencies = torch.linspace(0, sample_rate / 2, length // 2 + 1, dtype=torch.float64)
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0)
    if empty := int((weights.sum(0) == 0).sum()):
        raise OptionError(f"expected fewer mels than {mels} at {sample_rate} Hz: {empty} bands hold no frequency")
    return weights.float()
