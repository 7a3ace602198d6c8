"""AdaBet's scores against ripser on distances of activations that were simply kept."""

import math

import numpy as np
import pytest
import torch
from ripser import ripser
from torch import nn

from adabet.errors import ActivationError, DataError, LayerError, OptionError
from adabet.layers import find_layers
from adabet.methods import rank, select
from adabet.ranking import Ranking
from adabet.topology import Prober, betti_one
from adabet.topology.pool import SLICE
from adabet.topology.stability import DRAWS
from tests.cases.models import SMALL, small_images, small_net
from tests.topology.test_probe import direct_distances, kept_activations

BATCHES = small_images(40, size=8).split(8)


def bars_of_ripser(distances):
    births, deaths = ripser(distances.float().numpy(), maxdim=1, distance_matrix=True)["dgms"][1].T
    return int(np.sum(deaths > births))


def scores(ranking):
    return {ranked.layer.name: ranked.score for ranked in ranking.layers}


class TestScores:
    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"slice_size": 3}])
    def test_equal_ripser_on_kept_activations(self, options):
        model = small_net()
        ranking = rank(model, BATCHES, **options)
        _, kept = kept_activations(model, BATCHES)
        expected = {name: bars_of_ripser(direct_distances(calls)) for name, calls in kept.items()}
        assert scores(ranking) == expected
        assert sum(expected.values()) > 50

    def test_are_divided_by_the_number_of_activations(self):
        for ranked in rank(small_net(), BATCHES).layers:
            assert ranked.cost == ranked.layer.output_size
            assert ranked.priority == ranked.score / ranked.layer.output_size

    @pytest.mark.parametrize(
        ("normalize", "cost"), [("parameters", lambda layer: layer.parameter_count), ("none", lambda layer: 1)]
    )
    def test_are_divided_by_what_is_asked(self, normalize, cost):
        plain, other = rank(small_net(), BATCHES), rank(small_net(), BATCHES, normalize=normalize)
        assert scores(plain) == scores(other)
        assert [ranked.cost for ranked in other.layers] == [cost(ranked.layer) for ranked in other.layers]

    def test_come_from_the_samples_asked_for(self):
        ranking = rank(small_net(), BATCHES, samples=24)
        assert ranking.samples == 24
        assert scores(ranking) == scores(rank(small_net(), BATCHES[:3], samples=24))
        assert scores(ranking) != scores(rank(small_net(), BATCHES))

    def test_count_only_what_persists(self):
        model = small_net()
        plain, long = rank(model, BATCHES), rank(model, BATCHES, min_persistence=0.3)
        _, kept = kept_activations(model, BATCHES)
        for name, calls in kept.items():
            births, deaths = ripser(direct_distances(calls).float().numpy(), distance_matrix=True)["dgms"][1].T
            assert scores(long)[name] == pytest.approx(int(np.sum(deaths - births > 0.3)), abs=1)
        assert sum(scores(long).values()) < sum(scores(plain).values())

    def test_of_the_same_input_are_the_same(self):
        assert rank(small_net(), BATCHES, seed=1) == rank(small_net(), BATCHES, seed=1)

    def test_do_not_use_labels(self):
        labelled = [(batch, torch.full((8,), torch.nan)) for batch in BATCHES]
        assert rank(small_net(), labelled) == rank(small_net(), BATCHES)

    def test_of_a_sketch_say_so(self):
        ranking = rank(small_net(), BATCHES, sketch=256)
        assert any("estimates from random projections" in note for note in ranking.notes)
        # every layer but the convolutions' and their norms' has fewer features than that, and is exact
        assert scores(ranking)["hidden"] == scores(rank(small_net(), BATCHES))["hidden"]

    @pytest.mark.parametrize("case", SMALL, ids=str)
    def test_every_library(self, case):
        model = case.build()
        ranking = rank(model, [case.batch(24)])
        assert len(ranking.layers) == len(find_layers(model, case.batch(1)))
        assert max(scores(ranking).values()) > 0
        ranking.select(layer_ratio=0.1).check(model)


class TestChannels:
    @pytest.mark.parametrize("axis", ["out", "in"])
    def test_scores_are_those_of_each_channels_cloud(self, axis):
        model = small_net()
        ranking = rank(model, BATCHES, channels=1.0, axis=axis)
        _, kept = kept_activations(model, BATCHES, axis=axis)
        assert ranking.channel_axis == axis
        for ranked in ranking.layers:
            layer = ranked.layer
            assert len(ranked.channel_scores) == (layer.out_channels if axis == "out" else layer.in_channels)
            # clouds of the linear layers' channels are points on a line, which have no loop
            if layer.name in ("hidden", "norm3"):
                assert not any(ranked.channel_scores)
                continue
            for channel in (0, 1, len(ranked.channel_scores) - 1):
                own = [[call.select(layer.channel_axis, channel) for call in sample] for sample in kept[layer.name]]
                assert ranked.channel_scores[channel] == bars_of_ripser(direct_distances(own))

    def test_only_of_the_best_layers(self):
        ranking = rank(small_net(), BATCHES, channels=0.34)
        scored = {ranked.layer.name for ranked in ranking.layers if ranked.channel_scores is not None}
        assert scored == {ranked.layer.name for ranked in ranking.order[:2]}

    @pytest.mark.parametrize("axis", ["out", "in"])
    def test_are_selected_in_one_go(self, axis):
        chosen = select("adabet", small_net(), BATCHES, layer_ratio=1, channel_ratio=0.5, axis=axis)
        by_name = {choice.layer: choice for choice in chosen.choices}
        assert {choice.axis for choice in chosen.choices if not choice.head} == {axis}
        assert len(by_name["conv2"].channels) == 6
        assert len(by_name["conv1"].channels) == (6 if axis == "out" else 1)
        assert by_name["head"].channels is None

    @pytest.mark.parametrize("axis", ["out", "in"])
    def test_of_a_sketch_are_counted_from_it(self, axis):
        """Channels of no more places than the sketch keeps are exact; those of more are estimates."""
        exact, large, small = (
            rank(small_net(), BATCHES, channels=1.0, axis=axis, sketch=sketch) for sketch in (None, 64, 16)
        )
        for one, other in zip(exact.layers, large.layers, strict=True):
            assert one.channel_scores == other.channel_scores
        assert [len(item.channel_scores) for item in small.layers] == [
            len(item.channel_scores) for item in exact.layers
        ]
        assert [item.channel_scores for item in small.layers] != [item.channel_scores for item in exact.layers]

    def test_attention_trains_whole(self):
        case = next(case for case in SMALL if case.name == "timm-vit")
        chosen = select("adabet", case.build(), [case.batch(12)], layer_ratio=1, channel_ratio=0.25)
        whole = {choice.kind for choice in chosen.choices if choice.channels is None and not choice.head}
        assert whole == {"attention"}

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_of_no_share(self, share):
        with pytest.raises(OptionError, match="channels, a share of the layers, from 0 to 1"):
            rank(small_net(), BATCHES, channels=share)


class TestReference:
    """The published code's arithmetic, written out again."""

    def published(self, model, batches):
        """For each layer the sum over 4 batches of bars / (batch * features), over the number of layers."""
        priorities = {}
        layers, _ = kept_activations(model, batches[:1])
        for batch in batches[:4]:
            for name, calls in kept_activations(model, [batch])[1].items():
                features = sum(call.numel() for call in calls[0])
                found = bars_of_ripser(direct_distances(calls)) / (len(batch) * features)
                priorities[name] = priorities.get(name, 0) + found / len(layers)
        return priorities

    @pytest.mark.parametrize("sizes", [[8] * 5, [16, 12, 8], [20], [4, 11, 15, 6, 4]])
    def test_priorities_are_the_published_ones(self, sizes):
        batches = list(small_images(40, size=8)[: sum(sizes)].split(sizes))
        ranking = rank(small_net(), batches, reference=True)
        expected = self.published(small_net(), batches)
        assert {ranked.layer.name: ranked.priority for ranked in ranking.layers} == pytest.approx(expected)
        assert ranking.samples == sum(sizes[:4])
        assert max(expected.values()) > 0
        assert [ranked.layer.name for ranked in ranking.order] == sorted(expected, key=lambda name: -expected[name])

    def test_batches_are_not_pooled(self):
        batches = small_images(40, size=8).split(10)
        model = small_net()
        loops = {name: score * 10 for name, score in scores(rank(model, batches, reference=True)).items()}
        pooled = scores(rank(model, batches))
        assert loops != pytest.approx(pooled)
        apart = [scores(rank(model, [batch], samples=10)) for batch in batches]
        assert loops == pytest.approx({name: sum(found[name] for found in apart) for name in loops})

    def test_ties_go_to_the_earlier_layer(self):
        """Of three points nothing loops, of eight on a line neither: all layers tie."""
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2))
        ranking = rank(model, torch.linspace(0, 1, 40)[:, None].split(8), head="3", reference=True)
        assert [ranked.layer.name for ranked in ranking.order] == ["0", "1", "2"]
        assert any("3 of 3 layers have no loop in any batch and tie" in note for note in ranking.notes)

    def test_with_the_head_as_a_candidate(self):
        ranking = rank(small_net(), BATCHES, reference=True, head_as_candidate=True)
        assert [ranked.layer.name for ranked in ranking.layers][-1] == "head"
        assert ranking.head == ()

    def test_is_said_and_comes_back_from_json(self):
        ranking = rank(small_net(), BATCHES, reference=True, sketch=256)
        assert ranking.options["reference"] is True
        assert "4 batches by themselves" in ranking.notes[0]
        assert "random projections" in ranking.notes[-1]
        restored = Ranking.from_json(ranking.to_json())
        assert (restored.layers, restored.notes) == (ranking.layers, ranking.notes)

    def test_progress_goes_up(self):
        told = []
        rank(small_net(), BATCHES, reference=True, progress=lambda *both: told.append(both))
        assert told[-1][0] == told[-1][1]
        assert [done for done, _ in told] == list(range(1, told[-1][0] + 1))

    def test_refuses_what_the_code_does_not_do(self):
        with pytest.raises(OptionError, match="no channels with reference=True"):
            rank(small_net(), BATCHES, reference=True, channels=0.5)
        with pytest.raises(ActivationError, match="at least 4 samples"):
            rank(small_net(), [small_images(3, size=8)], reference=True)
        with pytest.raises(DataError, match="loader is empty"):
            rank(small_net(), [], reference=True)


class TestCertainty:
    def test_spread_is_over_halves_of_the_samples(self):
        model = small_net()
        ranking = rank(model, BATCHES, seed=5)
        distances = Prober(model, BATCHES).probe().distances["conv1"]
        generator, counts = torch.Generator().manual_seed(5), []
        for _ in range(DRAWS):
            order = torch.randperm(40, generator=generator)
            counts += [betti_one(distances[rows][:, rows]).item() for rows in (order[:20], order[20:])]
        assert ranking.layers[0].spread == pytest.approx(np.std(counts, ddof=1))
        assert ranking.layers[0].spread > 0

    def test_takes_no_further_forward_pass(self):
        model, calls = small_net(), []
        model.conv1.register_forward_hook(lambda *_: calls.append(1))
        rank(model, BATCHES)
        assert len(calls) == 1 + 40 // SLICE

    def test_agreement_is_a_correlation(self):
        ranking = rank(small_net(), BATCHES)
        assert -1 <= ranking.score_agreement <= 1
        assert -1 <= ranking.agreement <= 1
        assert rank(small_net(), BATCHES, normalize="none").agreement == ranking.score_agreement

    def test_few_samples_are_said(self):
        (note,) = [note for note in rank(small_net(), BATCHES[:2]).notes if "16 of 40" in note]
        assert "give more batches" in note

    def test_a_flat_ranking_is_said(self):
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2))
        line = torch.linspace(0, 1, 40)[:, None].split(8)
        ranking = rank(model, line, head="2")
        assert scores(ranking) == {"0": 0, "1": 0}
        assert any(note.startswith("flat: no layer has a single loop") for note in ranking.notes)
        assert math.isnan(ranking.agreement)
        assert [ranked.layer.name for ranked in ranking.order] == ["0", "1"]

    def test_a_ranking_that_is_mostly_flat_is_said(self):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2))
        generator = torch.Generator().manual_seed(0)
        ranking = rank(model, torch.randn(5, 8, 6, generator=generator), head="4")
        assert any(note.startswith("3 of 4 layers have no loop") for note in ranking.notes)

    def test_an_unstable_ranking_is_said(self):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(30, 30) for _ in range(8)), nn.Linear(30, 2))
        ranking = rank(model, torch.randn(5, 8, 30), head="8")
        assert ranking.agreement < 0.5
        assert any(note.startswith("unstable: halves of the samples agree") for note in ranking.notes)

    def test_too_few_to_tell_is_said(self):
        ranking = rank(small_net(), [small_images(6, size=8)], samples=6)
        assert math.isnan(ranking.agreement)
        assert any("how sure the order is cannot be told" in note for note in ranking.notes) or not any(
            scores(ranking).values()
        )

    def test_a_sure_ranking_says_nothing(self):
        torch.manual_seed(0)

        class Widths(nn.Module):
            """Two dimensions make many loops, hundreds make few, and one makes none."""

            def __init__(self):
                super().__init__()
                self.plane, self.line, self.head = nn.Linear(300, 2), nn.Linear(2, 1), nn.Linear(1, 2)
                self.wide = nn.Linear(300, 300)

            def forward(self, x):
                return self.head(self.line(self.plane(self.wide(x))))

        ranking = rank(Widths(), torch.randn(5, 8, 300), normalize="none")
        assert ranking.agreement > 0.8
        assert ranking.notes == ()


class TestBadInput:
    def test_one_sample(self):
        with pytest.raises(ActivationError, match=r"at least 4 samples .* got 1; 40 were asked for"):
            rank(small_net(), [small_images(1, size=8)])

    def test_empty(self):
        with pytest.raises(ActivationError, match=r"at least 4 samples .* got 0"):
            rank(small_net(), [])

    def test_unequal_shapes(self):
        with pytest.raises(ActivationError, match="resize, crop or pad"):
            rank(small_net(), [small_images(8, size=8), small_images(8, size=9)])

    def test_not_finite(self):
        model = small_net()
        model.hidden.weight.data[2, 3] = torch.nan
        with pytest.raises(ActivationError, match="layer 'hidden' gave activations that are not finite"):
            rank(model, BATCHES)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"normalize": "size"}, "normalize to be one of activations, parameters, none, got 'size'"),
            ({"axis": "up"}, "axis of 'out' or 'in', got 'up'"),
            ({"samples": 3}, "samples of at least 4"),
            ({"samples_in_memory": 4}, "samples_in_memory of at least 8"),
            ({"sketch": 100}, "power of two"),
            ({"sketch": 0}, "power of two"),
            ({"slice_size": 0}, "slice_size of at least 1"),
            ({"min_persistence": -1}, "min_persistence"),
        ],
    )
    def test_options(self, options, complaint):
        with pytest.raises(OptionError, match=complaint):
            rank(small_net(), BATCHES, **options)

    def test_blocks_that_match_nothing(self):
        with pytest.raises(LayerError, match="matches no module"):
            rank(small_net(), BATCHES, blocks=["nothing.*"])


@pytest.mark.slow
@pytest.mark.data
def test_mobilenet_on_photos_equals_ripser_layer_by_layer(shared_data):
    from adabet.data import transforms, unlabelled_batches
    from adabet.models import load_model

    loaded = load_model(
        "timm/mobilenetv2_100",
        weights=shared_data / "weights" / "mobilenetv2_100.safetensors",
        pad_type="same",
        image_size=96,
        mean=0.5,
        std=0.5,
    )
    batches, left_out = unlabelled_batches(
        shared_data / "images" / "clothing", transforms(loaded.data_config, train=False), samples=40
    )
    assert not left_out
    ranking = rank(loaded.model, batches)
    distances = Prober(loaded.model, batches).probe().distances
    assert len(ranking.layers) == 104
    assert scores(ranking) == {name: bars_of_ripser(matrix) for name, matrix in distances.items()}
    assert sum(scores(ranking).values()) > 500
    _, kept = kept_activations(loaded.model, batches)
    for name, calls in kept.items():
        points = torch.stack([torch.cat([tensor.flatten() for tensor in sample]) for sample in calls])
        direct = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        off = ~torch.eye(40, dtype=torch.bool)
        assert ((distances[name] - direct).abs() / direct)[off].max() < 1e-5, name
        assert scores(ranking)[name] == bars_of_ripser(direct), name
