import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ripser import ripser

from adabet.errors import ActivationError, MissingExtraError, OptionError
from adabet.topology.betti import betti_one
from tests.cases.clouds import FAMILIES, clouds, distances, symmetric


def bars_of_ripser(matrix, longer_than=0.0):
    births, deaths = ripser(matrix, maxdim=1, distance_matrix=True)["dgms"][1].T
    return int(np.sum(deaths - births > longer_than))


def bars_by_reduction(matrix):
    """The textbook: reduce the boundary matrix of the whole filtration, column by column, over GF(2)."""
    simplices = [s for size in (1, 2, 3) for s in combinations(range(len(matrix)), size)]
    diameter = {s: max((matrix[pair] for pair in combinations(s, 2)), default=0.0) for s in simplices}
    simplices.sort(key=lambda s: (diameter[s], len(s), s))
    position = {s: index for index, s in enumerate(simplices)}
    column_of_pivot, bars = {}, 0
    for simplex in simplices:
        faces = combinations(simplex, len(simplex) - 1) if len(simplex) > 1 else ()
        column = {position[face] for face in faces}
        while column and max(column) in column_of_pivot:
            column ^= column_of_pivot[max(column)]
        if column:
            column_of_pivot[max(column)] = column
            born = simplices[max(column)]
            bars += len(born) == 2 and diameter[simplex] > diameter[born]
    return bars


def count(matrix):
    return betti_one(torch.from_numpy(matrix)).item()


@st.composite
def tied_matrices(draw, most_points=7):
    n = draw(st.integers(0, most_points))
    highest = draw(st.integers(1, 6))
    return symmetric(draw(arrays.arrays(np.int64, (n, n), elements=st.integers(0, highest))))


class TestAgainstReferences:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_equals_ripser(self, family):
        for matrix in clouds(family, 160):
            assert count(matrix) == bars_of_ripser(matrix)

    @settings(deadline=None)
    @given(tied_matrices())
    def test_equals_plain_reduction(self, matrix):
        assert count(matrix) == bars_by_reduction(matrix)

    @settings(deadline=None)
    @given(tied_matrices(most_points=14))
    def test_equals_ripser_on_small_integers(self, matrix):
        assert count(matrix) == (bars_of_ripser(matrix) if len(matrix) else 0)

    def test_equals_ripser_on_a_large_cloud(self):
        (matrix,) = clouds("gaussian", 1, points=200)
        assert count(matrix) == bars_of_ripser(matrix) > 0

    def test_float64_lengths_are_not_rounded(self):
        matrix = symmetric(np.ones((5, 5))).astype(np.float64)
        matrix[[0, 1, 2, 3], [1, 2, 3, 0]] = matrix[[1, 2, 3, 0], [0, 1, 2, 3]] = 1 - 1e-12
        assert bars_by_reduction(matrix) == count(matrix) == 1
        assert count(matrix.astype(np.float32)) == 0


class TestShapesWithKnownHomology:
    @pytest.mark.parametrize("corners", [4, 5, 8, 33])
    def test_polygon_has_one_cycle(self, corners):
        turns = 2 * np.pi * np.arange(corners) / corners
        assert count(distances(np.stack([np.cos(turns), np.sin(turns)], axis=1))) == 1

    def test_octahedron_has_none(self):
        assert count(distances(np.concatenate([np.eye(3), -np.eye(3)]))) == 0

    def test_squares_far_apart_have_one_each(self):
        square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
        assert count(distances(np.concatenate([square, square + 50, square - 90]))) == 3

    def test_four_cycle_of_zero_lengths_is_born_at_zero(self):
        matrix = np.zeros((4, 4), np.float32)
        matrix[[0, 1, 2, 3], [2, 3, 0, 1]] = 1
        assert count(matrix) == 1

    @pytest.mark.parametrize("n", [0, 1, 2, 3])
    def test_fewer_than_four_points_have_none(self, n):
        assert count(symmetric(np.arange(n * n).reshape(n, n))) == 0


def mixed_clouds(points, each):
    return torch.from_numpy(np.stack([m for f in FAMILIES for m in clouds(f, each, points=points, seed=1)]))


class TestInvariance:
    @pytest.mark.parametrize(("points", "each"), [(4, 3), (12, 2), (40, 30)])
    def test_batch_equals_one_by_one(self, points, each):
        batch = mixed_clouds(points, each)
        assert betti_one(batch).tolist() == [betti_one(cloud).item() for cloud in batch]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_order_of_the_points_does_not_matter(self, family):
        rng = np.random.default_rng(0)
        for matrix in clouds(family, 10, seed=2):
            order = rng.permutation(len(matrix))
            assert count(matrix) == count(np.ascontiguousarray(matrix[order][:, order]))

    @pytest.mark.parametrize("exponent", [-40, -1, 7, 60])
    def test_unit_does_not_matter(self, exponent):
        batch = mixed_clouds(20, 2)
        assert torch.equal(betti_one(batch * 2.0**exponent), betti_one(batch))

    def test_duplicates_do_not_matter(self):
        (matrix,) = clouds("gaussian", 1, points=30)
        again = np.random.default_rng(0).permutation(np.r_[0:30, 0:30, 0:10])
        assert count(np.ascontiguousarray(matrix[again][:, again])) == count(matrix) > 0

    def test_strides_do_not_matter(self):
        batch = mixed_clouds(11, 2)
        wide = torch.full((len(batch), 22, 33), torch.nan)
        wide[:, ::2, ::3] = batch
        points_first = batch.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        expected = betti_one(batch)
        assert torch.equal(betti_one(wide[:, ::2, ::3]), expected)
        assert torch.equal(betti_one(points_first), expected)
        assert betti_one(batch[0].expand(2, 3, 11, 11)).tolist() == [[expected[0].item()] * 3] * 2

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_count_the_numbers_that_they_hold(self, dtype):
        batch = mixed_clouds(16, 2).to(dtype)
        assert torch.equal(betti_one(batch), betti_one(batch.float()))

    def test_input_is_left_as_it_was(self):
        batch = mixed_clouds(16, 3).requires_grad_()
        before = batch.detach().clone()
        counts = betti_one(batch)
        assert counts.dtype == torch.int64
        assert not counts.requires_grad
        assert torch.equal(batch.detach(), before)

    @pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 3, 3), (2, 0, 0), (0, 0, 0)])
    def test_nothing_to_count(self, shape):
        assert torch.equal(betti_one(torch.zeros(shape)), torch.zeros(shape[:-2], dtype=torch.int64))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_equal_on_cuda(self):
        batch = mixed_clouds(24, 4)
        counts = betti_one(batch.cuda())
        assert counts.is_cuda
        assert torch.equal(counts.cpu(), betti_one(batch))


class TestMinPersistence:
    @pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 4.0])
    def test_equals_ripser(self, threshold):
        batch = mixed_clouds(20, 2)
        expected = [bars_of_ripser(matrix, threshold) for matrix in batch.numpy()]
        assert betti_one(batch, min_persistence=threshold).tolist() == expected

    def test_zero_is_the_default(self):
        batch = mixed_clouds(20, 2).reshape(13, 2, 20, 20)
        assert torch.equal(betti_one(batch, min_persistence=0), betti_one(batch))

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_few_points(self, n):
        assert betti_one(torch.zeros(2, n, n), min_persistence=0.1).tolist() == [0, 0]

    @pytest.mark.parametrize("threshold", [-0.1, float("nan")])
    def test_refused(self, threshold):
        with pytest.raises(OptionError, match="min_persistence"):
            betti_one(torch.zeros(5, 5), min_persistence=threshold)

    def test_missing_ripser_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ripser", None)
        with pytest.raises(MissingExtraError, match="adabet\\[topology\\]"):
            betti_one(torch.zeros(5, 5), min_persistence=0.1)


class TestRefusals:
    @pytest.mark.parametrize("points", [2, 5])
    @pytest.mark.parametrize(("value", "complaint"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-1.0, "negative")])
    def test_unusable_distance_names_the_first_cloud(self, points, value, complaint):
        batch = torch.ones(60, 40, points, points) - torch.eye(points)
        for cloud in (batch[41, 2], batch[53, 0]):
            cloud[0, 1] = cloud[1, 0] = value
        with pytest.raises(ActivationError, match=f"^cloud 41, 2 of \\(60, 40\\) .*{complaint}"):
            betti_one(batch)
        with pytest.raises(ActivationError, match=f"^the cloud .*{complaint}"):
            betti_one(batch[41, 2])

    def test_asymmetry(self):
        batch = torch.ones(6, 5, 5) - torch.eye(5)
        batch[4, 1, 2] = 1.5
        with pytest.raises(ActivationError, match=r"cloud 4 of .*symmetric"):
            betti_one(batch)

    def test_diagonal(self):
        batch = torch.ones(6, 5, 5) - torch.eye(5)
        batch[3, 2, 2] = 1e-6
        with pytest.raises(ActivationError, match=r"cloud 3 of .*diagonal"):
            betti_one(batch)

    @pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 4, 3)])
    def test_shape(self, shape):
        with pytest.raises(ActivationError, match="shape"):
            betti_one(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_type(self, dtype):
        with pytest.raises(ActivationError, match="floating-point"):
            betti_one(torch.zeros(4, 4, dtype=dtype))
