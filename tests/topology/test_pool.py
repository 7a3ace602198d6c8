from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import ActivationError, AdabetError, OptionError
from adabet.topology.pool import Pool, collect, passes

SAMPLES = torch.arange(200.0).reshape(100, 2)


def all_of(pool):
    return torch.cat(pool.slices)


class TestCollect:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(4, 60), st.integers(1, 12))
    def test_takes_the_first_samples_in_order(self, sizes, samples, slice_size):
        taken = min(sum(sizes), samples, 100)
        batches = SAMPLES[: sum(sizes)].split(sizes if sum(sizes) <= 100 else 7)
        if taken < 4:
            with pytest.raises(ActivationError):
                collect(batches, samples=samples, slice_size=slice_size)
            return
        pool = collect(batches, samples=samples, slice_size=slice_size)
        assert torch.equal(all_of(pool), SAMPLES[:taken])
        assert pool.sizes == tuple(map(len, pool.slices))
        assert max(pool.sizes) <= slice_size
        assert pool.samples == taken
        assert [float(part[0, 0]) for part in pool.slices] == [float(SAMPLES[start, 0]) for start in pool.starts]

    def test_reads_no_further_than_it_needs(self):
        def batches():
            yield SAMPLES[:8]
            yield SAMPLES[8:16]
            pytest.fail("one batch too many")

        assert collect(batches(), samples=16).samples == 16

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda batch: (batch, torch.zeros(len(batch))),
            lambda batch: {"x": batch, "labels": torch.zeros(len(batch))},
            lambda batch: [{"x": batch}],
        ],
    )
    def test_labels_are_dropped(self, wrap):
        pool = collect([wrap(batch) for batch in SAMPLES.split(8)], samples=12)
        tensors = [part if isinstance(part, torch.Tensor) else part.pop("x") for part in pool.slices]
        assert torch.equal(torch.cat(tensors), SAMPLES[:12])
        assert not any(part for part in pool.slices if isinstance(part, dict))

    @pytest.mark.parametrize("batches", [[], [SAMPLES[:1]], [SAMPLES[:1]] * 3, iter([]), [SAMPLES[:0]]])
    def test_too_few(self, batches):
        with pytest.raises(ActivationError, match=r"at least 4 samples .* got [0-3]; 40 were asked for"):
            collect(batches, samples=40)

    @pytest.mark.parametrize("samples", [3, 0, -1])
    def test_too_few_asked_for(self, samples):
        with pytest.raises(OptionError, match=f"at least 4 .* got {samples}"):
            collect(SAMPLES.split(8), samples=samples)

    @pytest.mark.parametrize("slice_size", [0, -1])
    def test_slices_without_samples(self, slice_size):
        with pytest.raises(OptionError, match="slice_size"):
            collect(SAMPLES.split(8), samples=8, slice_size=slice_size)

    @pytest.mark.parametrize("batch", ["text", 3, None, torch.tensor(1.0)])
    def test_what_is_no_batch(self, batch):
        with pytest.raises(AdabetError, match="expected"):
            collect([batch], samples=8)


def pool_of(sizes):
    return Pool(tuple(sizes), tuple(sizes))


class TestPasses:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 120))
    def test_every_two_slices_meet_and_memory_is_kept(self, sizes, room):
        pool = pool_of(sizes)
        if room < pool.samples and room < 2 * max(sizes):
            with pytest.raises(OptionError, match=f"at least {2 * max(sizes)}"):
                list(passes(pool, room))
            return
        rounds = list(passes(pool, room))
        met = {pair for chosen in rounds for pair in combinations(chosen, 2)}
        assert met == set(combinations(range(len(sizes)), 2))
        assert {index for chosen in rounds for index in chosen} == set(range(len(sizes)))
        for chosen in rounds:
            assert sum(sizes[index] for index in chosen) <= room
            assert list(chosen) == sorted(set(chosen))

    @pytest.mark.parametrize("room", [None, 40, 1000])
    def test_one_round_where_there_is_room(self, room):
        assert list(passes(pool_of([8] * 5), room)) == [(0, 1, 2, 3, 4)]

    @pytest.mark.parametrize(("room", "rounds"), [(16, 10), (31, 10), (32, 3), (39, 3)])
    def test_number_of_rounds(self, room, rounds):
        assert len(list(passes(pool_of([8] * 5), room))) == rounds

    @pytest.mark.parametrize("room", [0, -8, 15])
    def test_too_little_room(self, room):
        with pytest.raises(OptionError, match=r"samples_in_memory of at least 16, .*; or use a sketch"):
            list(passes(pool_of([8] * 5), room))
