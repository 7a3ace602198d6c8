import pytest
import torch

from adabet.errors import OptionError
from adabet.topology import Sketcher
from adabet.topology.sketch import BUCKETS, TABLE


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse(features):
    rows = torch.zeros(2, features)
    rows[0, ::97] = 1.0
    return rows


CLOUDS = {
    "gaussian": lambda features: draw(2, features),
    "constant": lambda features: torch.stack([torch.ones(features), torch.zeros(features)]),
    "sparse": sparse,
    "rectified": lambda features: draw(2, features).clamp(min=0),
    # what a few channels of a token sequence, or a few columns of an image, that differ from the rest look like
    "periodic": lambda features: (torch.arange(features) % 256 < 3).float() * torch.tensor([[1.0], [-1.0]]),
}


def ratios(rows, size, seeds):
    """Estimated over true squared distance, for many seeds."""
    true = (rows[0].double() - rows[1].double()).square().sum()
    sketches = (Sketcher(size=size, seed=seed)(rows).double() for seed in range(seeds))
    return torch.stack([(left - right).square().sum() / true for left, right in sketches])


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("size", "features"), [(64, 1000), (256, 30_000), (256, 8192), (1024, 100_000), (4096, 5000)])
def test_is_unbiased_with_the_stated_error(cloud, size, features):
    seeds = 150
    found = ratios(CLOUDS[cloud](features), size, seeds)
    stated = (2 / size) ** 0.5
    assert abs(found.mean() - 1) < 4 * stated / seeds**0.5
    assert found.std() < 1.3 * stated


def test_no_part_shares_the_signs_of_the_sums():
    offsets = [offset for seed in range(20) for offset, _ in Sketcher(seed=seed)._draws_for(BUCKETS, TABLE)[1]]
    assert min(offsets) == 1
    assert max(offsets) == TABLE


def test_same_seed_same_sketch():
    rows = draw(3, 5000)
    assert torch.equal(Sketcher(size=64, seed=7)(rows), Sketcher(size=64, seed=7)(rows))
    assert not torch.equal(Sketcher(size=64, seed=7)(rows), Sketcher(size=64, seed=8)(rows))


def test_the_same_for_every_batch_and_in_any_order():
    sketcher, rows = Sketcher(size=64), draw(9, 5000)
    sketcher(draw(2, 777))
    assert torch.equal(torch.cat([sketcher(rows[:4]), sketcher(rows[4:])]), sketcher(rows))


def test_is_linear():
    sketcher = Sketcher(size=128)
    left, right = draw(2, 20_000), draw(2, 20_000, seed=1)
    assert torch.allclose(sketcher(2 * left - right), 2 * sketcher(left) - sketcher(right), atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 64), (5, 4, 4, 4), (5, 1)])
def test_short_rows_are_kept(shape):
    rows = draw(*shape)
    assert torch.equal(Sketcher(size=64)(rows), rows.flatten(1))


@pytest.mark.parametrize("features", [65, 127, 128, 129, 8191, 8193, 16_384, 50_001])
def test_no_feature_is_lost(features):
    """The sketch of one feature alone has one entry, of its size."""
    sketcher = Sketcher(size=64)
    for feature in {0, features // 2, features - 1}:
        row = torch.zeros(1, features)
        row[0, feature] = 3.0
        assert sorted(sketcher(row).abs().flatten().tolist())[-2:] == [0.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype):
    rows = draw(2, 30_000).to(dtype)
    found = Sketcher()(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, Sketcher()(rows.float()))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(Sketcher()(rows), found)


def test_layout_does_not_matter():
    rows = draw(4, 8, 30, 30)
    expected = Sketcher()(rows)
    assert torch.equal(Sketcher()(rows.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(Sketcher()(rows.transpose(0, 1).contiguous().transpose(0, 1)), expected)


@pytest.mark.parametrize("size", [0, -4, 3, 100, 2 * BUCKETS])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(OptionError, match=f"power of two up to {BUCKETS}, got {size}"):
        Sketcher(size=size)
