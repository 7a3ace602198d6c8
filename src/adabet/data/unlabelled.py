"""Images or sound to look at, without labels: any folder will do."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from adabet.data.audio import SOUND, AudioTransform
from adabet.data.decode import read_image, why_unreadable
from adabet.data.folders import IMAGES
from adabet.data.splits import LeftOut
from adabet.errors import DataError, OptionError
from adabet.layers import join_samples


def unlabelled_batches(
    folder: Path,
    transform: Callable[[Any], Tensor],
    *,
    samples: int = 40,
    batch_size: int = 8,
    channels: int = 3,
    seed: int = 0,
) -> tuple[list[Tensor], list[LeftOut]]:
    """Randomly chosen images (or recordings) from a folder, whatever folders are inside; only those chosen are read.

    Args:
        folder: of images; if it has a folder ``train``, only that is looked at.
        transform: from an image to a tensor ``(channels, height, width)``; an `AudioTransform` asks for recordings.
        samples: how many; fewer if there are no more.
        batch_size: images a batch; the last one may be smaller.
        channels: 3 for RGB, 1 for gray.
        seed: of the choice.

    Returns:
        Batches ``(batch, channels, height, width)``, and the images that could not be read on the way.

    Raises:
        ActivationError: if the transform leaves images of unequal shapes.
        DataError: if there is no image that can be read.
        OptionError: if no image is asked for.
    """
    if samples < 1 or batch_size < 1:
        raise OptionError(f"expected samples and batch_size of at least 1, got {samples} and {batch_size}")
    place = folder / "train" if (folder / "train").is_dir() else folder
    kind = IMAGES
    read: Callable[[Path], Any] = partial(read_image, channels=channels)
    if isinstance(transform, AudioTransform):
        kind, read = SOUND, transform.read
    paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in kind.suffixes and path.is_file())
    random.Random(seed).shuffle(paths)
    images: list[Tensor] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if len(images) == samples:
            break
        try:
            images.append(transform(read(path))[None])
        except DataError as error:
            left_out.append(LeftOut(path, why_unreadable(error)))
    if not images:
        raise DataError(
            f"expected {kind.many} in {place}, found {len(paths)} files that look like some and none to read"
        )
    batches = [join_samples(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    return batches, left_out
