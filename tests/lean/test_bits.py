import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabet.lean.bits import (
    CPU_SLICE_ELEMENTS,
    Layout,
    as_vector,
    is_dense,
    map_slices,
    memory_format_of,
    pack,
    room_for_bits,
    unpack,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(bits: list[bool]) -> None:
    x = torch.tensor(bits, dtype=torch.float32)
    packed = room_for_bits(x)
    pack(x, lambda part: part > 0, packed)
    assert packed.numel() == -(-len(bits) // 8)
    assert unpack(packed, len(bits)).tolist() == [int(bit) for bit in bits]
    assert unpack(packed, 8 * packed.numel())[len(bits) :].sum() == 0


@pytest.mark.parametrize("beyond", [-1, 0, 1, 8])
def test_bits_come_back_across_slices(beyond: int) -> None:
    x = torch.randn(2 * CPU_SLICE_ELEMENTS + beyond)
    packed = room_for_bits(x)
    pack(x, lambda part: part > 0, packed)
    assert torch.equal(unpack(packed, len(x)).bool(), x > 0)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    order=st.randoms(use_true_random=False),
    other=st.randoms(use_true_random=False),
    overwrite=st.booleans(),
)
def test_bits_meet_their_elements_in_any_order_of_memory(shape, order, other, overwrite) -> None:
    dims = list(range(len(shape)))
    order.shuffle(dims)
    x = torch.randn(shape).permute(dims)
    other.shuffle(dims)
    gradient = torch.randn(x.permute(dims).shape).permute([dims.index(each) for each in range(len(dims))])
    assert gradient.shape == x.shape
    packed, layout = room_for_bits(x), Layout.of(x)
    pack(x, lambda part: part > 0, packed)
    expected = gradient * (x > 0)
    result = map_slices(torch.mul, gradient, packed, layout, overwrite=overwrite)
    assert torch.equal(result, expected)
    assert layout.fits(result)


def test_a_gradient_is_overwritten_only_on_demand() -> None:
    x, gradient = torch.ones(9), torch.randn(9)
    packed = room_for_bits(x)
    pack(x, lambda part: part < 0, packed)
    before = gradient.clone()
    map_slices(torch.mul, gradient, packed, Layout.of(x), overwrite=False)
    assert torch.equal(gradient, before)
    assert map_slices(torch.mul, gradient, packed, Layout.of(x), overwrite=True) is gradient
    assert gradient.eq(0).all()


@pytest.mark.parametrize(
    ("x", "dense"),
    [
        (torch.empty(2, 3), True),
        (torch.empty(2, 3).t(), True),
        (torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.empty(4, 6)[1:3], True),
        (torch.empty(4, 6)[:, 1:3], False),
        (torch.empty(1).expand(3), False),
        (torch.empty(0, 3)[:, ::2], True),
        (torch.empty(()), True),
        (torch.empty(3, 1).expand(3, 2), False),
    ],
)
def test_density(x, dense: bool) -> None:
    assert is_dense(x) == dense


def test_the_layout_of_what_is_not_dense_is_that_of_its_copy() -> None:
    x = torch.randn(4, 6)[:, ::2]
    layout = Layout.of(x)
    assert not layout.fits(x)
    assert torch.equal(layout.arrange(x), x)
    assert torch.equal(as_vector(layout.arrange(x)), x.flatten())


def test_memory_formats() -> None:
    assert memory_format_of(torch.empty(2, 3, 4, 5)) is torch.contiguous_format
    for shape, layout in (((2, 3, 4, 5), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d)):
        assert memory_format_of(torch.empty(shape, memory_format=layout)) is layout
    assert memory_format_of(torch.empty(2, 3, 1, 1, memory_format=torch.channels_last)) is torch.contiguous_format
