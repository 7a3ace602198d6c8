"""A random projection of a layer's activations that keeps their distances, roughly, in little memory."""

from functools import cache

import torch
from torch import Tensor

from adabet.errors import OptionError

BUCKETS = 2**13
"""Features that are added up side by side: long enough that a call costs little beside its work, short enough that the
sums of small layers, as long as that, do not cost more than their features."""

TABLE = 2**16
"""Length of the table of random signs that all features draw from."""


class Sketcher:
    """Projects rows of any length to ``size`` numbers with random signs (a count sketch).

    The squared distance of two sketches is an unbiased estimate of the rows' own. Its standard error, relative to
    the squared distance, is at most about ``sqrt(2 / size)``: 9 % at the default size. Rows no longer than
    ``size`` are kept as they are.

    Args:
        size: numbers kept of each row; a power of two up to 8192.
        seed: of the random signs; equal seeds give equal sketches.

    Source: Charikar, Chen, Farach-Colton 2002 (count sketch); the error bound as in Weinberger et al. 2009
    (arXiv 0902.2206).

    Examples:
        >>> rows = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
        >>> near = torch.dist(*Sketcher(size=4096)(rows)) / torch.dist(*rows)
        >>> bool(abs(near - 1) < 0.1)
        True
    """

    def __init__(self, *, size: int = 256, seed: int = 0) -> None:
        if not 1 <= size <= BUCKETS or size & (size - 1):
            raise OptionError(f"expected a sketch size that is a power of two up to {BUCKETS}, got {size}")
        self.size = size
        self._seed = seed
        draw = torch.randint(0, 2, (TABLE + BUCKETS,), generator=torch.Generator().manual_seed(seed))
        self._signs = 2.0 * draw - 1
        self._draws_for = cache(self._draw)

    def __call__(self, rows: Tensor) -> Tensor:
        """Sketch ``(n, ...)`` rows.

        Returns:
            ``(n, size)``, or ``(n, features)`` if a row has no more features than that; float32.
        """
        rows = rows.reshape(rows.shape[0], -1)
        features = rows.shape[1]
        if features <= self.size:
            return rows.float()
        signs = self._signs.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
        width = min(BUCKETS, self.size * (features // self.size))
        order, parts = self._draws_for(width, -(-features // width))
        sums = torch.zeros((rows.shape[0], width), device=rows.device, dtype=signs.dtype)
        for index, (offset, turn) in enumerate(parts):
            part = rows[:, index * width : (index + 1) * width]
            for piece, start in ((part[:, : width - turn], turn), (part[:, width - turn :], 0)):
                length = piece.shape[1]
                sums[:, start : start + length].addcmul_(piece, signs[offset : offset + length])
                offset += length
        mixed = (sums * signs[:width])[:, order.to(rows.device)]
        return mixed.view(rows.shape[0], -1, self.size).sum(1).float()

    def _draw(self, width: int, parts: int) -> tuple[Tensor, list[tuple[int, int]]]:
        """What scatters features at random, though they come with a period: the same for every batch.

        Returns:
            The order in which the sums go to the entries of the sketch; and for each part where in the table its
            signs start (never at 0, where those of the sums do) and by how much it is turned.
        """
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(width, generator=generator)
        offsets = 1 + torch.randperm(TABLE, generator=generator)[torch.arange(parts) % TABLE]
        turns = torch.randint(0, width, (parts,), generator=generator)
        return order, list(zip(offsets.tolist(), turns.tolist(), strict=True))
