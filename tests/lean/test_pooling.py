import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import compare, kept_bytes

# What is pooled, with what, and the bytes that lean keeps for each output element.
MAXIMA = {
    "half": ((2, 3, 8, 6), lambda x: F.max_pool2d(x, 2), 1),
    "torch.max_pool2d": ((2, 3, 8, 6), lambda x: torch.max_pool2d(x, 2), 1),
    "overlapping": ((2, 3, 9, 7), lambda x: F.max_pool2d(x, 3, 2, 1), 1),
    "dilated": ((2, 3, 9, 11), lambda x: F.max_pool2d(x, 3, 2, 1, 2), 1),
    "rounded up": ((2, 3, 9, 8), lambda x: F.max_pool2d(x, 3, stride=2, ceil_mode=True), 1),
    "oblong": ((2, 3, 9, 8), lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0)), 1),
    "wider than the plane": ((2, 3, 4, 1), lambda x: F.max_pool2d(x, 3, 1, 1), 1),
    "more than a byte": ((1, 2, 20, 20), lambda x: F.max_pool2d(x, 17, 2), 4),
    "without a batch": ((3, 8, 6), lambda x: F.max_pool2d(x, 2, padding=1), 1),
    "no samples": ((0, 3, 8, 6), lambda x: F.max_pool2d(x, 2), 1),
    "several slices": ((3, 64, 80, 80), lambda x: F.max_pool2d(x, 3, 2, 1), 1),
    "sequences": ((2, 3, 9), lambda x: F.max_pool1d(x, 3, 2, 1), 1),
    "torch.max_pool1d": ((2, 3, 9), lambda x: torch.max_pool1d(x, 3, stride=1), 1),
    "a sequence": ((3, 9), lambda x: F.max_pool1d(x, 2, dilation=3), 1),
    "volumes": ((2, 3, 4, 6, 5), lambda x: F.max_pool3d(x, 2), 1),
    "torch.max_pool3d": ((2, 3, 4, 6, 5), lambda x: torch.max_pool3d(x, 3, 2, 1), 1),
    "a volume": ((3, 4, 6, 5), lambda x: F.max_pool3d(x, (1, 2, 3), padding=(0, 1, 1)), 1),
    "adaptive": ((2, 3, 8, 7), lambda x: F.adaptive_max_pool2d(x, (3, 2)), 4),
    "adaptive, of an image": ((3, 8, 7), lambda x: F.adaptive_max_pool2d(x, 2), 4),
    "adaptive, one side kept": ((2, 3, 8, 7), lambda x: F.adaptive_max_pool2d(x, (None, 1)), 4),
    "adaptive, volumes": ((2, 3, 4, 6, 5), lambda x: F.adaptive_max_pool3d(x, 2), 4),
}
AVERAGES = {
    "half": ((2, 3, 8, 6), lambda x: F.avg_pool2d(x, 2)),
    "overlapping": ((2, 3, 9, 7), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "padding not counted": ((2, 3, 9, 7), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "rounded up": ((2, 3, 9, 8), lambda x: F.avg_pool2d(x, (3, 2), stride=2, ceil_mode=True)),
    "own divisor": ((2, 3, 9, 8), lambda x: F.avg_pool2d(x, 3, divisor_override=2)),
    "without a batch": ((3, 8, 6), lambda x: F.avg_pool2d(x, 2)),
    "no samples": ((0, 3, 8, 6), lambda x: F.avg_pool2d(x, 2)),
    "sequences": ((2, 3, 9), lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "a sequence": ((3, 9), lambda x: F.avg_pool1d(x, 2)),
    "volumes": ((2, 3, 4, 6, 5), lambda x: F.avg_pool3d(x, 2)),
    "adaptive": ((2, 3, 8, 7), lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    "adaptive, to one": ((2, 3, 8, 7), lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive, one side kept": ((2, 3, 8, 7), lambda x: F.adaptive_avg_pool2d(x, (None, 1))),
    "adaptive, of an image": ((3, 8, 7), lambda x: F.adaptive_avg_pool2d(x, [2, 2])),
    "adaptive, sequences": ((2, 3, 9), lambda x: F.adaptive_avg_pool1d(x, 4)),
    "adaptive, a sequence to one": ((3, 9), lambda x: F.adaptive_avg_pool1d(x, (1,))),
    "adaptive, volumes": ((2, 3, 4, 6, 5), lambda x: F.adaptive_avg_pool3d(x, 2)),
    "adaptive, volumes to one": ((2, 3, 4, 6, 5), lambda x: F.adaptive_avg_pool3d(x, (1, 1, 1))),
    "Tensor.mean": ((2, 3, 8, 7), lambda x: x.mean((2, 3))),
    "torch.mean": ((2, 3, 8, 7), lambda x: torch.mean(x, (2, 3), keepdim=True)),
}
POOLS = {f"max {name}": case[:2] for name, case in MAXIMA.items()} | AVERAGES
# What stock takes as a mean, and lean leaves to it.
MEANS = {
    "adaptive, to one",
    "adaptive, a sequence to one",
    "adaptive, volumes to one",
    "Tensor.mean",
    "torch.mean",
}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def image(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    torch.manual_seed(8)
    x = torch.randn(shape, dtype=dtype)
    if channels_last and shape[0] == 2:
        x = x.contiguous(memory_format=LAYOUTS.get(x.dim(), torch.contiguous_format))
    return x.requires_grad_()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MAXIMA)
def test_a_maximum_keeps_its_place_in_the_window(name: str, channels_last: bool) -> None:
    shape, pool, size = MAXIMA[name]
    x = image(shape, channels_last=channels_last)
    stock, thin = compare(pool, x)
    outputs = pool(x).numel()
    assert thin == outputs * size
    assert stock == x.numel() * 4 + outputs * 8


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_keeps_nothing(name: str, channels_last: bool) -> None:
    shape, pool = AVERAGES[name]
    stock, thin = compare(pool, image(shape, channels_last=channels_last))
    assert thin == 0 <= stock


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", POOLS)
def test_types(name: str, dtype: torch.dtype) -> None:
    if name in ("volumes",) and dtype is torch.bfloat16:
        pytest.skip("stock averages no volumes in bfloat16")
    shape, pool = POOLS[name]
    compare(pool, image(shape, dtype=dtype))


@pytest.mark.parametrize("name", ["max half", "max overlapping", "half", "overlapping", "adaptive"])
def test_gradients_keep_channels_last(name: str) -> None:
    shape, pool = POOLS[name]
    x = image(shape, channels_last=True)
    with lean():
        y = pool(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", POOLS)
def test_slices_of_images(name: str) -> None:
    shape, pool = POOLS[name]
    compare(lambda x: pool(x[:, ::2] if x.dim() > 2 else x[::2]), image((*shape[:1], 2 * shape[1], *shape[2:])))


@pytest.mark.parametrize("name", POOLS)
def test_autocast(name: str) -> None:
    shape, pool = POOLS[name]

    def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return pool(x @ weight)

    compare(in_bfloat16, image(shape), torch.randn(shape[-1], shape[-1]))


@pytest.mark.parametrize("pool", [lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.adaptive_max_pool2d(x, 3)])
def test_ties_infinities_and_nan(pool) -> None:
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, math.inf, math.inf, -math.inf, math.nan, 2.0])
    x = x[torch.randint(0, 9, (2, 2, 6, 6), generator=torch.Generator().manual_seed(0))]
    compare(pool, x.requires_grad_())
    compare(pool, torch.full((1, 1, 5, 5), -math.inf, requires_grad=True))


def test_indices_for_the_user_are_left_to_stock() -> None:
    x = image((2, 3, 8, 6))
    with lean():
        for pool in (F.max_pool2d, F.adaptive_max_pool2d):
            y, indices = pool(x, 2, return_indices=True)
            expected, their_indices = pool(x, 2, return_indices=True)
            assert torch.equal(y, expected)
            assert torch.equal(indices, their_indices)
        y, indices = F.max_pool2d_with_indices(x, 2)
        assert torch.equal(F.max_unpool2d(y, indices, 2).amax((2, 3)), x.amax((2, 3)))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2, padding=2),
        lambda x: F.max_pool2d(x, (2, 2, 2)),
        lambda x: F.max_pool2d(x[0, 0], 2),
        lambda x: F.max_pool2d(x, 9),
        lambda x: F.avg_pool2d(x, 0),
        lambda x: F.avg_pool2d(x[0, 0], 2),
        lambda x: F.avg_pool1d(x[0, 0, 0], 2),
        lambda x: F.adaptive_avg_pool2d(x, (2, 2, 2)),
        lambda x: F.adaptive_max_pool2d(x, (2, 2, 2)),
        lambda x: F.adaptive_avg_pool2d(x[0, 0], 2),
    ],
)
def test_stock_refuses_what_it_refuses(pool) -> None:
    x = image((2, 3, 8, 6))
    with pytest.raises((RuntimeError, ValueError, IndexError)) as stock:
        pool(x)
    with lean(), pytest.raises(stock.type):
        pool(x)


@pytest.mark.parametrize("name", sorted(POOLS.keys() - MEANS))
def test_double_backward_is_refused(name: str) -> None:
    shape, pool = POOLS[name]
    x = image(shape)
    with lean():
        y = pool(x)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("name", POOLS)
def test_nothing_is_kept_without_gradients(name: str) -> None:
    shape, pool = POOLS[name]
    with lean():
        assert kept_bytes(lambda: pool(torch.randn(shape)))[1] == 0


@pytest.mark.parametrize("name", POOLS)
def test_backward_twice_gives_the_same(name: str) -> None:
    shape, pool = POOLS[name]
    x = image(shape)
    with lean():
        y = pool(x)
    gradient = torch.randn_like(y)
    first = torch.autograd.grad(y, x, gradient, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x, gradient)[0])


@settings(deadline=None, max_examples=80)
@given(
    plane=st.lists(st.integers(3, 12), min_size=1, max_size=3),
    size=st.integers(1, 3),
    stride=st.one_of(st.none(), st.integers(1, 4)),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_maximum(plane, size, stride, padding, dilation, ceil_mode, channels_last) -> None:
    padding = min(padding, size // 2)
    if any(length + 2 * padding < dilation * (size - 1) + 1 for length in plane):
        return
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(plane) - 1]
    x = image((2, 3, *plane), channels_last=channels_last)
    compare(lambda x: pool(x, size, stride, padding, dilation, ceil_mode), x)


@settings(deadline=None, max_examples=80)
@given(
    plane=st.lists(st.integers(3, 9), min_size=1, max_size=3),
    size=st.integers(1, 3),
    stride=st.one_of(st.none(), st.integers(1, 4)),
    padding=st.integers(0, 1),
    flags=st.tuples(st.booleans(), st.booleans()),
    adaptive=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_average(plane, size, stride, padding, flags, adaptive, channels_last) -> None:
    dims = len(plane)
    x = image((2, 3, *plane), channels_last=channels_last)
    if adaptive:
        pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
        compare(lambda x: pool(x, size), x)
    else:
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
        compare(lambda x: pool(x, size, stride, min(padding, size // 2), *flags), x)
