"""One bit an element: packing a yes or no about each element of a tensor, and reading it back, slice by slice.

Both work in slices, so that their scratch memory stays small beside the tensor (1.5 MB on a CPU), and in the order of
the memory, so that channels-last tensors are neither copied nor reordered.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 8
CPU_SLICE_ELEMENTS = 2**18
DEVICE_SLICE_ELEMENTS = 2**24

# Eight bytes of 0 or 1, read as one 64-bit number and multiplied by this, have their bits side by side in the top byte.
GATHER = 0x0102040810204080
TOP_BYTE = 56


@dataclass(frozen=True)
class Layout:
    """Where the elements of a dense tensor lie in memory.

    Attributes:
        shape: of the tensor.
        strides: of the tensor, in elements.
    """

    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """The tensor's own layout if it is dense, else that of a dense copy."""
        return cls(tensor.shape, (tensor if is_dense(tensor) else torch.empty_like(tensor, device="meta")).stride())

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor's elements lie in this order."""
        return tensor.shape == self.shape and all(
            mine == its or size == 1 for mine, its, size in zip(self.strides, tensor.stride(), self.shape, strict=True)
        )

    def arrange(self, tensor: Tensor) -> Tensor:
        """The tensor itself if its elements lie in this order, else a copy in which they do."""
        if self.fits(tensor):
            return tensor
        arranged = torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype, device=tensor.device)
        return arranged.copy_(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one piece of memory, each once, in whatever order."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != filled:
            return tensor.numel() == 0
        filled *= size
    return True


def as_vector(x: Tensor) -> Tensor:
    """A dense tensor's elements in the order of the memory, without a copy."""
    return x.as_strided((x.numel(),), (1,))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last where the tensor is dense in that layout only, else contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def slice_elements(device: torch.device) -> int:
    """How many elements to work on at a time."""
    return CPU_SLICE_ELEMENTS if device.type == "cpu" else DEVICE_SLICE_ELEMENTS


def room_for_bits(x: Tensor) -> Tensor:
    """Memory for one bit for each element of a tensor: ``ceil(n / 8)`` bytes, uint8."""
    return torch.empty(-(-x.numel() // BITS), dtype=torch.uint8, device=x.device)


def pack(x: Tensor, test: Callable[[Tensor], Tensor], packed: Tensor) -> None:
    """Write one bit for each element of a dense tensor, in the order of its memory.

    Args:
        x: any shape, dense.
        test: gets slices of ``x`` as vectors and answers with booleans of the same length, newly made.
        packed: where to, from `room_for_bits`. Bits past the last element become 0.

    Examples:
        >>> numbers = torch.tensor([3.0, -1.0, 2.0])
        >>> packed = room_for_bits(numbers)
        >>> pack(numbers, lambda part: part > 0, packed)
        >>> unpack(packed, 3)
        tensor([1, 0, 1], dtype=torch.uint8)
    """
    for part, place in _slices(x, packed):
        answers = test(part)
        if ragged := -len(answers) % BITS:
            answers = torch.nn.functional.pad(answers, (0, ragged))
        place.copy_(_gather(answers))


def unpack(packed: Tensor, length: int) -> Tensor:
    """The first ``length`` bits as a vector of bytes, 0 or 1, uint8."""
    return _table(packed.device).index_select(0, packed.int()).view(torch.uint8)[:length]


def map_slices(
    function: Callable[..., object], gradient: Tensor, packed: Tensor, layout: Layout, *, overwrite: bool
) -> Tensor:
    """A gradient put elementwise through a function of itself and packed bits.

    Args:
        function: ``function(gradient, bits, out=...)`` on vectors, with ``bits`` 0 or 1, uint8.
        gradient: of ``layout``'s shape, in any order of memory.
        packed: what `pack` wrote for a tensor of ``layout``.
        layout: the order in which the bits are.
        overwrite: the result may take the gradient's own memory.

    Returns:
        A tensor of ``layout``, with the gradient's type.
    """
    arranged = layout.arrange(gradient)
    result = arranged if overwrite or arranged is not gradient else torch.empty_like(gradient)
    for (part, place), (out, _) in zip(_slices(arranged, packed), _slices(result, packed), strict=True):
        function(part, unpack(place, len(part)), out=out)
    return result


def compare(comparison: Callable[..., Tensor], x: Tensor, bound: float) -> Tensor:
    """A comparison of a tensor with a number, such as ``torch.gt``, as new booleans, in the device's fast way.

    On a CPU a comparison that writes numbers of the input's own type is vectorized, one that writes booleans is
    not: the detour takes a third of the time.
    """
    if x.device.type == "cpu":
        return comparison(x, bound, out=torch.empty_like(x)).bool()
    return comparison(x, bound)


def _slices(x: Tensor, packed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors of a dense tensor's elements, each with the bytes for their bits."""
    length = slice_elements(x.device)
    return zip(as_vector(x).split(length), packed.split(length // BITS), strict=True)


def _gather(answers: Tensor) -> Tensor:
    """Eight booleans a byte, as 64-bit numbers of which the lowest byte counts. Uses up the booleans' memory."""
    return answers.view(torch.int64).mul_(GATHER).bitwise_right_shift_(TOP_BYTE)


@functools.cache
def _table(device: torch.device) -> Tensor:
    """Row ``b``: the eight booleans that `_gather` packs into byte ``b``, as one 64-bit number."""
    rows = ((torch.arange(256).unsqueeze(1) >> torch.arange(BITS)) & 1).to(torch.uint8)
    codes = _gather(rows.flatten().bool()).to(torch.uint8).long()
    table = torch.empty_like(rows)
    table[codes] = rows
    return table.to(device).view(torch.int64).squeeze(1)
