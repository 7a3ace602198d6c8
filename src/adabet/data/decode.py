"""Reading image files of every usual kind, and finding those that cannot be read."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adabet.errors import DataError
from adabet.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
"""Files with other suffixes are not taken for images."""

MOST_THREADS = 8
"""Images that are decoded at once, at most: each is in memory in full size."""

Progress = Callable[[int, int], None]
"""Told how much is done, of how much: ``progress(done, total)``."""


def read_image(path: Path, *, channels: int = 3) -> "Image":
    """Decode an image as a viewer shows it, in RGB or gray.

    Applies the camera's orientation, puts transparency on white, and brings gray, 16-bit, palette and CMYK
    images to 8 bits a channel. Of an animation the first frame.

    Args:
        path: an image file.
        channels: 3 for RGB, 1 for gray.

    Raises:
        DataError: if the file cannot be decoded to its end; names it and says why.
    """
    pillow = require("PIL.Image", "reading images")
    turn = require("PIL.ImageOps", "reading images").exif_transpose
    try:
        with pillow.open(path) as file:
            file.load()
            image: Image = _flattened(pillow, turn(file)).convert("L" if channels == 1 else "RGB")
            return image
    except MemoryError:
        raise
    except Exception as error:  # a decoder of broken bytes may raise anything
        raise DataError(f"{path} cannot be read as an image: {why_unreadable(error)}") from error


def _flattened(pillow: Any, image: Any) -> Any:
    """An image without transparency, of 8 bits a channel."""
    if image.mode.startswith("I"):
        return pillow.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, "white")
        return pillow.alpha_composite(white, image)
    return image


def why_unreadable(error: BaseException) -> str:
    """Why an image could not be read, in words and without its path.

    Args:
        error: what `read_image` raised, or what the decoder did.
    """
    decoder = error.__cause__ if isinstance(error, DataError) and error.__cause__ else error
    if type(decoder).__name__ == "UnidentifiedImageError":
        return "no known image format"
    return " ".join(str(decoder).split()) or type(decoder).__name__


def find_unreadable(
    paths: Iterable[Path], read: Callable[[int, Path], None], *, progress: Progress | None = None
) -> dict[int, str]:
    """Read every file, in threads, and tell which cannot be read.

    Args:
        paths: the files.
        read: called with each file's position and path, from several threads at once; raises DataError if the
            file is of no use.
        progress: told how many are done.

    Returns:
        Why, by position, for the files that cannot be read.
    """
    files = list(paths)

    def attempt(position: int) -> str | None:
        try:
            read(position, files[position])
        except DataError as error:
            return why_unreadable(error)
        return None

    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        try:
            for position, reason in enumerate(threads.map(attempt, range(len(files)))):
                if reason is not None:
                    unreadable[position] = reason
                if progress is not None:
                    progress(position + 1, len(files))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return unreadable
