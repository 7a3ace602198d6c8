"""The demo's data: real handwritten digits, split by the form they were written on, and a user's conditions.

scikit-learn's 1797 digits are the test part of the UCI set "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak 1998), written by 13 of its 43 writers. The file does not say who wrote what, but the
order of the labels says where a form begins: everybody copied the same sequence of some 130 digits, and it
occurs 14 times, so somebody filled two. The network is pre-trained on the first seven forms; all else happens
on the last seven. No digit is in both, and at most one writer is.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.errors import UnknownNameError
from adabet.extras import require

CLASSES = 10
IMAGE_SIZE = 24
"""Height and width in pixels that the 8x8 digits are enlarged to."""

Part = Literal["pretraining", "unlabelled", "labelled", "test"]

PRETRAINING_END = 906
"""End of the seventh form."""

ADAPTATION_START = 915
"""By here the eighth form has surely begun: the nine digits before could belong to either."""

UNLABELLED_COUNT, LABELLED_COUNT = 40, 400

TILT_DEGREES = 40.0

THINNING = 0.45
"""Ink fainter than this is lost, which wears away the edges of strokes."""

FADING = 0.5
"""Share of the ink that is missing in the lower right corner; none in the upper left."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images ``(n, 1, 24, 24)``, float32, 0 for paper to 1 for ink, and their labels ``(n,)``, int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "Digits":
        return Digits(images=self.images[indices], labels=self.labels[indices])


def split() -> dict[Part, Tensor]:
    """Indices of each part's samples in scikit-learn's order: no form serves both pre-training and the rest.

    Pre-training has the first seven forms, in order. The 882 digits of the last seven are shuffled, always in
    the same way, and dealt out: 40 unlabelled ones to choose layers by, 400 labelled ones to train and validate
    on, and 442 to test.

    Examples:
        >>> {part: len(indices) for part, indices in split().items()}
        {'pretraining': 906, 'unlabelled': 40, 'labelled': 400, 'test': 442}
    """
    total = 1797
    # RandomState, because numpy promises that its stream never changes.
    adaptation = ADAPTATION_START + np.random.RandomState(0).permutation(total - ADAPTATION_START)
    cuts = [UNLABELLED_COUNT, UNLABELLED_COUNT + LABELLED_COUNT]
    unlabelled, labelled, test = (torch.from_numpy(part) for part in np.split(adaptation, cuts))
    return {
        "pretraining": torch.arange(PRETRAINING_END),
        "unlabelled": unlabelled,
        "labelled": labelled,
        "test": test,
    }


def load_part(part: Part) -> Digits:
    """One part's digits, clean, enlarged to 24x24.

    Raises:
        UnknownNameError: if there is no such part.
        MissingExtraError: if scikit-learn, which brings the digits, is not installed.
    """
    if part not in get_args(Part):
        raise UnknownNameError("part of the digits", part, get_args(Part))
    return _all_digits()[split()[part]]


@cache
def _all_digits() -> Digits:
    bunch = require("sklearn.datasets", "the demo's digits").load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    enlarged = F.interpolate(images, size=IMAGE_SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
    return Digits(images=enlarged, labels=torch.from_numpy(bunch.target).long())


def user_conditions(images: Tensor) -> Tensor:
    """The same digits as one user's device sees them: page tilted by 40 degrees, thin pen, ink that fades.

    Args:
        images: ``(n, 1, height, width)``, 0 for paper to 1 for ink.

    Returns:
        The same shape and range; nothing is random, so a sample always looks the same.

    Examples:
        >>> user_conditions(torch.zeros(2, 1, 24, 24)).abs().max()
        tensor(0.)
    """
    tilted = warp(images, degrees=torch.full((len(images),), TILT_DEGREES))
    thin = ((tilted - THINNING) / (1 - THINNING)).clamp(0, 1)
    across, down = (torch.linspace(0, 1, size) for size in (images.shape[3], images.shape[2]))
    return thin * (1 - FADING * (across[None, :] + down[:, None]) / 2)


def warp(images: Tensor, *, degrees: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Turn, resize and move each image about its centre; what comes in from outside is paper.

    Args:
        images: ``(n, 1, height, width)``.
        degrees: angles ``(n,)``, counter-clockwise.
        scale: factors ``(n,)`` that digits are made smaller by.
        shift: ``(n, 2)``, to the left and up, in half widths of the image.

    Returns:
        Images of the same shape, sampled bilinearly.
    """
    scale = torch.ones(len(images)) if scale is None else scale
    shift = torch.zeros(len(images), 2) if shift is None else shift
    radians = degrees * (math.pi / 180)
    cosine, sine = radians.cos() * scale, radians.sin() * scale
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
