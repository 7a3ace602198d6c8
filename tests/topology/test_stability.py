import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from adabet.topology import betti_one
from adabet.topology.stability import half_counts, mean_ranks, spearman
from tests.cases.clouds import clouds

VALUES = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


@given(VALUES)
def test_ranks_equal_scipy(values):
    assert mean_ranks(torch.tensor(values)).tolist() == (rankdata(values) - 1).tolist()


@given(st.integers(0, 2**20), st.integers(3, 20))
def test_spearman_equals_scipy(seed, count):
    left, right = np.random.default_rng(seed).integers(0, 6, (2, count))
    found = spearman(torch.from_numpy(left), torch.from_numpy(right))
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert found.isnan()
    else:
        assert found.item() == pytest.approx(spearmanr(left, right).statistic)


def test_spearman_of_many_at_once():
    left, right = torch.rand(2, 5, 3, 9, generator=torch.Generator().manual_seed(0))
    found = spearman(left, right)
    assert found.shape == (5, 3)
    assert found[4, 2] == spearman(left[4, 2], right[4, 2])


class TestHalves:
    @pytest.fixture
    def distances(self):
        return {str(n): torch.from_numpy(matrix) for n, matrix in enumerate(clouds("gaussian", 3, points=21))}

    def test_are_disjoint_halves_of_the_same_samples_in_all_layers(self, distances, monkeypatch):
        seen = []
        place = torch.arange(21.0)
        marks = dict.fromkeys(distances, place[:, None] * 100 + place)
        monkeypatch.setattr(
            "adabet.topology.stability.betti_one",
            lambda clouds: seen.append(clouds) or torch.zeros(len(clouds), dtype=torch.int64),
        )
        half_counts(marks, draws=6)
        assert len(seen) == 12
        for left, right in zip(seen[::2], seen[1::2], strict=True):
            assert left.shape == right.shape == (3, 10, 10)
            assert torch.equal(left[0], left[2])
            rows = [set((part[0].diagonal() % 100).tolist()) for part in (left, right)]
            assert len(rows[0]) == len(rows[1]) == 10
            assert not rows[0] & rows[1]

    def test_are_counted(self, distances):
        left, right = half_counts(distances, draws=5, seed=3)
        assert left.shape == right.shape == (5, 3)
        assert left.dtype == torch.int64
        order = torch.randperm(21, generator=torch.Generator().manual_seed(3))[:10]
        assert left[0].tolist() == [betti_one(cloud[order][:, order]).item() for cloud in distances.values()]

    def test_follow_the_seed_alone(self, distances):
        torch.manual_seed(1)
        first = half_counts(distances, draws=4, seed=1)
        torch.manual_seed(2)
        assert torch.equal(torch.stack(first), torch.stack(half_counts(distances, draws=4, seed=1)))
        assert not torch.equal(torch.stack(first), torch.stack(half_counts(distances, draws=4, seed=2)))
