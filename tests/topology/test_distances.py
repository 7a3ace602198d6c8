"""Streamed distances, against torch.cdist and plain subtraction in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabet.topology import channel_squared_distances, squared_distances
from adabet.topology.distances import CHUNK_ELEMENTS


def reference(*parts):
    points = torch.cat([part.double() for part in parts])
    points = points.reshape(len(points), -1)
    return torch.stack([(points - point).square().sum(1) for point in points])


def relative_error(found, expected):
    assert found.shape == expected.shape
    off = ~torch.eye(len(expected), dtype=torch.bool)
    return float(((found - expected).abs() / expected.clamp(min=1e-300))[off].max())


def draw(*shape, seed=0, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(40, 7), (8, 3, 5, 5), (5, 1), (6, 4, 1, 1), (4, 2, 3, 4, 5), (3, 70_001), (12, 300, 33, 9), (2, 1, 700, 800)]


class TestSquaredDistances:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equal_cdist(self, shape):
        points = draw(*shape)
        found = squared_distances(points)
        assert relative_error(found, reference(points)) < 3e-5
        cdist = torch.cdist(
            points.double().flatten(1), points.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert relative_error(found, cdist.square()) < 3e-5

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_are_a_metric_square(self, shape):
        found = squared_distances(draw(*shape))
        assert found.dtype == torch.float64
        assert torch.equal(found, found.T)
        assert (found.diagonal() == 0).all()
        assert (found >= 0).all()

    @pytest.mark.parametrize("cut", [(1, 7), (4, 4), (2, 3, 2, 1)])
    @pytest.mark.parametrize("shape", [(4, 6, 6), (50,), (70_000,)], ids=str)
    def test_several_parts_are_as_one(self, cut, shape):
        points = draw(8, *shape)
        assert torch.equal(squared_distances(*points.split(cut)), squared_distances(points))

    @pytest.mark.parametrize("shape", [(40,), (3, 20, 20), (70_000,)], ids=str)
    def test_duplicates_are_at_zero_whatever_the_origin(self, shape):
        points = draw(12, *shape, shift=30.0)[torch.tensor([0, 1, 2, 1, 0, 3, 3, 4, 5, 6, 7, 7])]
        found = squared_distances(points)
        assert torch.equal(found == 0, reference(points) == 0)

    @pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
    def test_close_pairs_are_as_exact_as_the_rest(self, gap):
        points = draw(10, 2000)
        points[1] = points[7] + gap * draw(2000, seed=1)
        points[2] = points[7] + gap * draw(2000, seed=2)
        assert relative_error(squared_distances(points), reference(points)) < 2e-4

    def test_a_cloud_far_from_the_origin(self):
        points = draw(30, 500, shift=1000.0)
        assert relative_error(squared_distances(points), reference(points)) < 1e-4

    def test_a_cloud_whose_first_point_lies_far_from_the_others(self):
        points = draw(30, 500)
        points[0] += 1000
        assert relative_error(squared_distances(points), reference(points)) < 1e-4

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_scale_does_not_matter(self, scale):
        points = draw(20, 300, scale=scale)
        assert relative_error(squared_distances(points), reference(points)) < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_measure_the_numbers_that_they_hold(self, dtype):
        points = draw(10, 6, 40, 40, shift=3.0).to(dtype)
        assert relative_error(squared_distances(points), reference(points)) < 3e-5

    def test_half_precision_does_not_overflow(self):
        points = draw(10, 40_000, scale=2e4).clamp(-6e4, 6e4).half()
        assert relative_error(squared_distances(points), reference(points)) < 1e-5

    def test_float64_is_not_rounded(self):
        points = draw(10, 40).double() + 1e-9 * draw(10, 40, seed=1).double()
        assert relative_error(squared_distances(points), reference(points)) < 1e-12

    @pytest.mark.parametrize(
        "view",
        [
            lambda points: points.to(memory_format=torch.channels_last),
            lambda points: points.mT,
            lambda points: points[:, ::2, 1:, ::3],
            lambda points: points.movedim(2, 0),
            lambda points: points[:1].expand(9, -1, -1, -1),
        ],
    )
    def test_layout_does_not_matter(self, view):
        points = view(draw(6, 8, 12, 10))
        assert torch.equal(squared_distances(points), squared_distances(points.contiguous()))

    def test_input_is_left_as_it_was(self):
        for shape in SHAPES:
            points = draw(*shape)
            before = points.clone()
            squared_distances(points)
            channel_squared_distances(points, channel_axis=-1)
            assert torch.equal(points, before)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_does_not_round_them(self, dtype):
        points = draw(10, 6, 20, 20)
        with torch.autocast("cpu", dtype=dtype):
            inside = squared_distances(points), channel_squared_distances(points, channel_axis=-3)
        assert torch.equal(inside[0], squared_distances(points))
        assert torch.equal(inside[1], channel_squared_distances(points, channel_axis=-3))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
    @pytest.mark.parametrize("where", [0, 5])
    def test_what_is_not_finite_shows(self, value, where):
        points = draw(8, 3, 50)
        points[where, 1, 7] = value
        found = squared_distances(points)
        others = [index for index in range(8) if index != where]
        assert not found[where, others].isfinite().any()

    def test_one_sample(self):
        assert squared_distances(draw(1, 4, 4)).tolist() == [[0.0]]

    @given(st.integers(2, 9), st.integers(1, 30), st.integers(0, 2**20))
    @settings(max_examples=60)
    def test_integers_are_exact(self, count, features, seed):
        points = torch.randint(-3, 4, (count, features), generator=torch.Generator().manual_seed(seed)).float()
        assert torch.equal(squared_distances(points), reference(points))


class TestChannels:
    @pytest.mark.parametrize(
        ("shape", "axis"),
        [((6, 5, 4, 3), -3), ((6, 5, 4, 3), -1), ((6, 9, 4), -1), ((6, 9), -1), ((3, 70, 90, 90), -3)],
    )
    def test_equal_each_channel_by_itself(self, shape, axis):
        points = draw(*shape)
        found = channel_squared_distances(points, channel_axis=axis)
        channels = points.movedim(axis, 0)
        assert found.shape == (shape[axis], shape[0], shape[0])
        for own, channel in zip(found, channels, strict=True):
            assert relative_error(own, reference(channel)) < 1e-4

    def test_add_up_to_the_whole(self):
        points = draw(9, 7, 6, 6)
        assert torch.allclose(
            channel_squared_distances(points, channel_axis=-3).double().sum(0), squared_distances(points)
        )

    def test_several_parts_are_as_one(self):
        points = draw(10, 300, 15, 15)
        parts = channel_squared_distances(*points.split([3, 3, 3, 1]), channel_axis=-3)
        assert torch.equal(parts, channel_squared_distances(points, channel_axis=-3))
        assert points.numel() > CHUNK_ELEMENTS

    def test_dead_channels_and_duplicates_are_at_zero(self):
        points = draw(8, 4, 30)
        points[:, 2] = 7.0
        points[5] = points[3]
        found = channel_squared_distances(points, channel_axis=-2)
        assert (found[2] == 0).all()
        assert (found[:, 3, 5] == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_precision(self, dtype):
        points = draw(6, 5, 40).to(dtype)
        found = channel_squared_distances(points, channel_axis=-2)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert relative_error(found[4], reference(points[:, 4]).to(found.dtype)) < 1e-5
