import math
import random

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import adabet
from adabet.errors import ActivationError, CheckpointError, OptionError, SelectionError
from adabet.topology import betti_one
from adabet.topology.drift import learn_reference, mean_counts, relative_shift

WINDOW, POINTS = 40, 20
OPTIONS = {"window": WINDOW, "points": POINTS, "draws": 20, "head": "head", "sketch": 64}


class Net(nn.Module):
    """Layers of very different width, so that their Betti numbers differ, with what eval mode and seeds matter to."""

    def __init__(self, widths=3 * (3, 30, 2, 12, 5, 40, 4, 24), seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(map(nn.Linear, (6, *widths[:-1]), widths))
        self.norm, self.dropout, self.head = nn.BatchNorm1d(widths[-1]), nn.Dropout(0.5), nn.Linear(widths[-1], 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(2 * layer(x))
        return self.head(self.dropout(self.norm(x)))


class Often(nn.Module):
    """Runs its middle as often as it is told."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.head, self.times = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2), 1

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.times):
            x = torch.relu(self.middle(x))
        return self.head(x)


def samples(count, *, seed, collapsed=False):
    """Points in 6 dimensions; collapsed ones lie close to a line."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 6, generator=draw)
    if collapsed:
        along = torch.randn(count, 1, generator=draw)
        points = 3 * along * torch.tensor([1.0, -1, 1, 0, 0, 1]) + 0.05 * points
    return points


@pytest.fixture(scope="module")
def net():
    return Net()


def watch(net, **options):
    return adabet.Monitor(net, samples(2 * WINDOW, seed=0).split(8), **{**OPTIONS, **options})


def feed(monitor, data, batch=8):
    for part in data.split(batch):
        report = monitor.update(part)
    return report


class TestStatistics:
    def test_mean_counts_are_those_of_disjoint_clouds(self):
        points = torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(0))
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        found = mean_counts(distances, points=10, generator=torch.Generator().manual_seed(1), rounds=1)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        expected = [[int(betti_one(distances[layer][rows][:, rows])) for layer in range(3)] for rows in order.split(10)]
        assert found.tolist() == expected

    def test_one_cloud_is_counted_as_it_is(self):
        distances = torch.cdist(*[samples(12, seed=3)] * 2, compute_mode="donot_use_mm_for_euclid_dist")[None]
        found = mean_counts(distances, points=12, generator=torch.Generator())
        assert found.tolist() == [[int(betti_one(distances[0]))]]

    def test_a_shift_that_all_layers_share_does_not_count(self):
        deviations = torch.tensor([1.0, 2.0, 4.0])
        assert relative_shift(5 * deviations, deviations) == 0
        assert relative_shift(torch.tensor([1.0, -2.0, 0.0]), deviations) == pytest.approx(np.var([1, -1, 0]))

    def test_bounds_are_quantiles_of_splits_of_the_reference(self):
        points = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(0))
        points *= torch.tensor([0.01, 1])[torch.arange(6) % 2, None, None] + torch.eye(3)[torch.arange(6) % 3][:, None]
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        loose, strict = (
            learn_reference(distances, window=20, points=10, false_alarms=share, draws=50, seed=0)
            for share in (0.01, 0.5)
        )
        assert torch.equal(loose.scores, strict.scores)
        assert loose.correlation_bound < strict.correlation_bound
        assert loose.shift_bound > strict.shift_bound
        assert loose.shift(loose.scores) == 0
        assert loose.correlation(loose.scores) == pytest.approx(1)


class TestAlarms:
    def test_false_ones_are_at_most_one_in_twenty(self, net):
        """200 windows of fresh samples against 10 references."""
        alarms = 0
        for seed in range(10):
            monitor = adabet.Monitor(net, [samples(2 * WINDOW, seed=seed)], **OPTIONS | {"draws": 40})
            alarms += sum(monitor.update(samples(WINDOW, seed=1000 + 20 * seed + draw)).alarm for draw in range(20))
        assert alarms <= 10

    @staticmethod
    def of_80_samples(net):
        return adabet.Monitor(net, [samples(160, seed=0)], **OPTIONS | {"window": 80, "points": 40})

    def test_data_that_has_collapsed_raises_one(self, net):
        monitor = self.of_80_samples(net)
        assert not feed(monitor, samples(80, seed=5)).alarm
        report = feed(monitor, samples(80, seed=6, collapsed=True))
        assert report.alarm
        assert report.shift > report.shift_bound
        assert report.correlation < report.bound
        assert "training on the new data may pay" in str(report)

    def test_restarting_with_the_drifted_data_ends_it(self, net):
        monitor = self.of_80_samples(net)
        assert monitor.update(samples(80, seed=6, collapsed=True)).alarm
        monitor.restart([samples(160, seed=7, collapsed=True)])
        assert monitor.report.samples == 0
        assert not monitor.update(samples(80, seed=8, collapsed=True)).alarm

    def test_weights_that_have_moved_raise_one(self):
        net = Net()
        monitor = watch(net)
        with torch.no_grad():
            for layer in net.layers:
                layer.weight[1:] = 0.02 * layer.weight[1:]
        assert feed(monitor, samples(WINDOW, seed=5)).alarm


class TestReports:
    def test_come_before_the_window_is_full(self, net):
        report = watch(net).update(samples(8, seed=1))
        assert (report.samples, report.alarm, report.ranking) == (8, False, None)
        assert math.isnan(report.correlation)
        assert "8 of the 40 samples" in str(report)

    def test_agree_with_scipy_and_the_ranking_they_carry(self, net):
        monitor = watch(net, layer_ratio=0.4, normalize="none")
        report = feed(monitor, samples(WINDOW, seed=5))
        now, before = ([item.score for item in ranking.layers] for ranking in (report.ranking, monitor.reference))
        assert report.correlation == pytest.approx(scipy.stats.spearmanr(now, before).statistic)
        first, second = (
            {choice.layer for choice in ranking.select(layer_ratio=0.4).choices} - {"head"}
            for ranking in (report.ranking, monitor.reference)
        )
        assert report.kept == len(first & second) / len(second)

    def test_scores_of_a_single_cloud_are_those_of_rank(self, net):
        """Sketches keep narrow layers as they are, so that both count the same clouds."""
        monitor = watch(net, points=WINDOW)
        data = samples(WINDOW, seed=5)
        report = feed(monitor, data)
        ranking = adabet.rank(net, data.split(8), samples=WINDOW, head="head")
        assert [item.score for item in report.ranking.layers] == [item.score for item in ranking.layers]

    def test_only_the_latest_window_counts_however_it_comes(self, net):
        data = samples(WINDOW, seed=5)
        alone, after_others, at_once = watch(net, points=WINDOW), watch(net, points=WINDOW), watch(net, points=WINDOW)
        feed(after_others, samples(24, seed=9, collapsed=True))
        reports = [feed(alone, data), feed(after_others, data, batch=5)]
        reports.append(at_once.update(torch.cat([samples(24, seed=9, collapsed=True), data])))
        assert len({(report.correlation, report.shift) for report in reports}) == 1
        assert [report.samples for report in reports] == [40, 64, 64]

    def test_every_other_batch_may_be_passed_over(self, net):
        monitor = watch(net, every=2)
        counts = [monitor.update(part).samples for part in samples(32, seed=5).split(8)]
        assert counts == [8, 8, 16, 16]

    def test_go_through_json(self, net):
        monitor = watch(net)
        for report in (monitor.update(samples(8, seed=1)), feed(monitor, samples(WINDOW, seed=5))):
            again = adabet.DriftReport.from_json(report.to_json())
            assert again.to_json() == report.to_json()
            assert str(again) == str(report)
            assert again.ranking == report.ranking

    @pytest.mark.parametrize("text", ["{}", "no json", '{"kind": "adabet/drift", "version": 1, "samples": 3}'])
    def test_of_something_else_are_refused(self, text):
        with pytest.raises(CheckpointError):
            adabet.DriftReport.from_json(text)


class TestState:
    def test_goes_on_as_if_never_interrupted(self, net, tmp_path):
        first, second = watch(net), adabet.Monitor(net, samples(2 * WINDOW, seed=99).split(8), **OPTIONS)
        feed(first, samples(24, seed=5))
        torch.save(first.state_dict(), tmp_path / "monitor.pt")
        second.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
        assert second.report.to_json() == first.report.to_json()
        rest = samples(WINDOW, seed=6)
        assert feed(first, rest).to_json() == feed(second, rest).to_json()

    def test_is_not_changed_by_what_comes_after(self, net):
        monitor = watch(net)
        state = monitor.state_dict()
        feed(monitor, samples(WINDOW, seed=5))
        monitor.load_state_dict(state)
        assert monitor.report.samples == 0

    def test_of_another_model_is_refused_and_nothing_lost(self, net):
        monitor = watch(net)
        report = feed(monitor, samples(WINDOW, seed=5))
        other = watch(Net(widths=3 * (3, 30, 2, 12, 5, 40, 4, 25)))
        with pytest.raises(SelectionError, match="of another fingerprint"):
            monitor.load_state_dict(other.state_dict())
        assert monitor.report is report

    def test_of_other_options_is_refused(self, net):
        with pytest.raises(SelectionError, match="of another options"):
            watch(net).load_state_dict(watch(net, points=10).state_dict())

    @pytest.mark.parametrize(
        "spoil", [dict.clear, lambda state: state.pop("scores"), lambda state: state.update(monitor=3)]
    )
    def test_that_is_damaged_is_refused(self, net, spoil):
        monitor = watch(net)
        state = monitor.state_dict()
        spoil(state)
        with pytest.raises(CheckpointError):
            monitor.load_state_dict(state)


class TestModel:
    def test_is_left_as_it_was(self, net):
        net.train()
        net.layers[2].eval()
        modes = [module.training for module in net.modules()]
        weights = {name: value.clone() for name, value in net.state_dict().items()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        monitor = watch(net)
        feed(monitor, samples(WINDOW, seed=5))
        assert [module.training for module in net.modules()] == modes
        assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
        assert not any(module._forward_hooks for module in net.modules())

    def test_goes_on_training_a_selection_as_if_nobody_watched(self):
        def train(watched):
            net = Net()
            monitor = watch(net)
            selection = adabet.rank(net, samples(40, seed=0).split(8), head="head", channels=1.0).select(
                layer_ratio=0.4, channel_ratio=0.5
            )
            torch.manual_seed(0)
            with adabet.apply(net, selection):
                optimizer = torch.optim.SGD([value for value in net.parameters() if value.requires_grad], lr=0.1)
                for step in range(4):
                    data = samples(8, seed=step)
                    with adabet.lean():
                        loss = nn.functional.cross_entropy(net.train()(data), torch.arange(8) % 3)
                        if watched:
                            monitor.update(data)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            assert monitor.report.samples == 32 * watched
            return net.state_dict()

        alone, watched = train(False), train(True)
        assert all(torch.equal(value, watched[name]) for name, value in alone.items())

    def test_keeps_sketches_of_a_window_and_no_more(self):
        net = nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 3), nn.ReLU(), nn.Linear(3, 2))
        monitor = adabet.Monitor(net, [samples(2 * WINDOW, seed=0)], **OPTIONS | {"head": "4"})
        assert monitor.state_bytes == 4 * WINDOW * (64 + 3)
        feed(monitor, samples(3 * WINDOW, seed=1))
        kept = [value for name, value in monitor.state_dict().items() if name.startswith("window.")]
        assert sum(value.untyped_storage().nbytes() for value in kept) == monitor.state_bytes


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"points": 3}, "points from 4 to the window of 40, got 3"),
            ({"points": 41}, "points from 4 to the window"),
            ({"every": 0}, "every of at least 1"),
            ({"draws": 5}, "draws of at least 20"),
            ({"false_alarms": 0}, "false_alarms between 0 and 1"),
            ({"layer_ratio": 0}, "layer_ratio"),
            ({"normalize": "size"}, "normalize to be one of"),
            ({"sketch": 100}, "power of two"),
        ],
    )
    def test_senseless_options(self, net, options, message):
        with pytest.raises(OptionError, match=message):
            watch(net, **options)

    def test_too_few_reference_samples(self, net):
        with pytest.raises(ActivationError, match="at least 80 reference samples, twice the window of 40, got 79"):
            adabet.Monitor(net, [samples(79, seed=0)], **OPTIONS)

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            (samples(0, seed=0), "at least one sample, got an empty one"),
            (torch.full((8, 6), math.nan), "'layers.0' gave activations that are not finite"),
            ("text", "expected a batch that is a tensor"),
        ],
    )
    def test_batches_that_are_none_lose_nothing(self, net, batch, message):
        monitor, spared = watch(net), watch(net)
        for one in (monitor, spared):
            feed(one, samples(32, seed=5))
        with pytest.raises(ActivationError, match=message):
            monitor.update(batch)
        last = samples(8, seed=6)
        assert monitor.update(last).to_json() == spared.update(last).to_json()

    def test_a_batch_of_another_shape(self):
        net = nn.Sequential(nn.Conv1d(1, 3, 3), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(12, 2))
        draw = torch.Generator().manual_seed(0)
        monitor = adabet.Monitor(net, [torch.randn(80, 1, 16, generator=draw)], **OPTIONS | {"head": "3"})
        with pytest.raises(ActivationError, match="activations of one size"):
            monitor.update(torch.randn(8, 1, 20))

    @pytest.mark.parametrize("times", [0, 2])
    def test_a_layer_that_runs_more_or_less_often_than_it_did(self, times):
        net = Often()
        monitor = adabet.Monitor(net, [samples(2 * WINDOW, seed=0)], **OPTIONS)
        net.times = times
        with pytest.raises(ActivationError, match="'middle' does not run alike for all batches"):
            monitor.update(samples(8, seed=1))
        net.times = 1
        assert monitor.update(samples(8, seed=1)).samples == 8

    def test_a_model_that_has_lost_a_layer(self):
        net = Net()
        monitor = watch(net)
        net.norm = nn.Identity()
        del net.layers[-1]
        with pytest.raises(SelectionError, match=r"has no module 'layers\.23'"):
            monitor.update(samples(8, seed=1))


def test_padding_that_a_mask_tells_does_not_count():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.mix, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, input_ids, attention_mask):
            return self.head(torch.tanh(self.mix(self.embedding(input_ids))).mean(1))

    def tokens(count, seed, padding):
        ids = torch.randint(1, 50, (count, 5), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        pad = nn.functional.pad
        return {"input_ids": pad(ids, (0, padding), value=0), "attention_mask": pad(mask, (0, padding), value=0)}

    model = Words()
    plain, padded = (adabet.Monitor(model, [tokens(80, 0, padding)], **OPTIONS) for padding in (0, 3))
    left, right = plain.update(tokens(WINDOW, 1, 0)), padded.update(tokens(WINDOW, 1, 7))
    assert left.to_json() == right.to_json()
