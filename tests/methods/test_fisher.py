"""Fisher information against plain autograd on activations that were simply kept."""

import pytest
import torch
from torch import nn

import adabet
from adabet.errors import ActivationError, DataError, OptionError
from adabet.memory import measure_peak
from adabet.methods import rank, select
from tests.cases.models import SMALL, SmallNet, small_images, small_net, state_of
from tests.methods.slow_fisher import kept_products, slow_channel_sum, slow_elementwise
from tests.training.nets import make_loaders, make_net

CASES = {case.name: case for case in SMALL}
SLOW = {"elementwise-mean": slow_elementwise, "channel-sum": slow_channel_sum}
IMAGES = small_images(12, size=8)
LABELS = torch.arange(12) % 5


def loader(size=12):
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


def scores(ranking):
    return {ranked.layer.name: ranked.score for ranked in ranking.layers}


def assert_equals_slow(model, images, labels, mode, **options):
    ranking = rank(model, [(images, labels)], method="fisher", mode=mode, **options)
    layers, products = kept_products(model, images, labels)
    assert [ranked.layer for ranked in ranking.layers] == list(layers)
    for ranked in ranking.layers:
        score, channels = SLOW[mode](ranked.layer, products[ranked.layer.name])
        assert ranked.score == pytest.approx(score, rel=2e-3), ranked.layer.name
        assert score > 0
        if ranked.channel_scores is not None:
            assert ranked.channel_scores == pytest.approx(channels, rel=5e-3, abs=1e-3 * max(channels))
    return ranking


@pytest.mark.parametrize("mode", SLOW)
class TestScores:
    @pytest.mark.parametrize("options", [{}, {"micro_batch": 5}, {"micro_batch": 1}])
    def test_equal_kept_activations(self, mode, options):
        ranking = assert_equals_slow(small_net(), IMAGES, LABELS, mode, **options)
        assert ranking.samples == 12

    # in-place ReLUs and residual sums, windows, attention
    @pytest.mark.parametrize("name", ["timm-resnet", "timm-mobilenetv2", "timm-vit", "timm-swin"])
    def test_equal_kept_activations_of_every_kind_of_model(self, mode, name):
        case = CASES[name]
        assert_equals_slow(case.build(), case.batch(4), torch.arange(4) % 5, mode, micro_batch=3)

    def test_equal_kept_activations_that_are_overwritten(self, mode):
        class Overwriting(SmallNet):
            def forward(self, pictures):
                features = self.norm1(self.conv1(pictures)).relu_()
                identity = features
                features = self.norm2(self.conv2(features))
                features += identity
                hidden = self.hidden(features.mean((2, 3)))
                hidden *= 2
                return self.head(self.norm3(hidden).relu_())

        torch.manual_seed(0)
        assert_equals_slow(Overwriting(), IMAGES, LABELS, mode)

    def test_equal_kept_activations_of_tuples_and_of_a_sequence_first(self, mode):
        class SequenceFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.TransformerEncoderLayer(12, 3, 20)
                self.lstm = nn.LSTM(12, 5)
                self.head = nn.Linear(5, 5)

            def forward(self, x):
                return self.head(self.lstm(self.block(x.transpose(0, 1)))[0][-1])

        torch.manual_seed(0)
        ranking = assert_equals_slow(SequenceFirst(), torch.randn(6, 7, 12), LABELS[:6], mode, micro_batch=4)
        assert {"block.self_attn", "lstm"} <= set(scores(ranking))

    def test_equal_kept_activations_of_a_layer_that_runs_twice(self, mode):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.turn, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

            def forward(self, x):
                return self.head(self.turn(self.turn(x).relu()))

        torch.manual_seed(0)
        assert_equals_slow(Twice(), torch.randn(12, 6), LABELS, mode)

    def test_do_not_depend_on_how_samples_are_batched(self, mode):
        whole = scores(rank(small_net(), loader(), method="fisher", mode=mode))
        for size in (6, 4, 1):
            parts = rank(small_net(), loader(size), method="fisher", mode=mode, gradient_batches=12 // size)
            assert parts.samples == 12
            assert scores(parts) == pytest.approx(whole, rel=1e-3)
        summed = rank(small_net(), loader(), method="fisher", mode=mode, loss=nn.CrossEntropyLoss(reduction="sum"))
        assert scores(summed) == pytest.approx(whole, rel=1e-3)

    def test_take_the_batches_asked_for(self, mode):
        first = rank(small_net(), loader(4), method="fisher", mode=mode)
        assert first.samples == 4
        assert scores(first) == scores(rank(small_net(), loader(4)[:1], method="fisher", mode=mode))
        assert scores(first) != scores(rank(small_net(), loader(4)[1:], method="fisher", mode=mode))

    def test_follow_the_labels_and_the_loss(self, mode):
        plain = scores(rank(small_net(), loader(), method="fisher", mode=mode))
        assert plain != scores(rank(small_net(), [(IMAGES, LABELS.flip(0))], method="fisher", mode=mode))

        def doubled(outputs, labels):
            return 2 * nn.functional.cross_entropy(outputs, labels)

        twice = scores(rank(small_net(), loader(), method="fisher", mode=mode, loss=doubled))
        assert twice == pytest.approx({name: 4 * score for name, score in plain.items()})

    def test_use_the_given_forward(self, mode):
        batches = [({"pictures": IMAGES}, LABELS)]
        found = rank(
            small_net(), batches, method="fisher", mode=mode, forward=lambda model, inputs: model(inputs["pictures"])
        )
        assert scores(found) == scores(rank(small_net(), loader(), method="fisher", mode=mode))


class TestWithoutGradient:
    def test_a_layer_scores_zero(self):
        class Aside(SmallNet):
            def forward(self, pictures):
                with torch.no_grad():
                    features = torch.relu(self.norm1(self.conv1(pictures)))
                self.norm2(self.conv2(features))
                return self.head(self.norm3(self.hidden(features.mean((2, 3)))))

        for mode in SLOW:
            found = rank(Aside(), loader(), method="fisher", mode=mode)
            assert {name for name, score in scores(found).items() if score} == {"hidden", "norm3"}
            found.select(layer_ratio=1, channel_ratio=0.5)

    def test_a_head_of_zeros_is_said(self):
        model = small_net()
        nn.init.zeros_(model.head.weight)
        ranking = rank(model, loader(), method="fisher")
        assert not any(scores(ranking).values())
        assert any(note.startswith("flat: the loss has no gradient") for note in ranking.notes)
        assert rank(small_net(), loader(), method="fisher").notes == ()


class TestNothingIsChanged:
    @pytest.mark.parametrize("name", ["timm-mobilenetv2", "timm-swin", "torchvision-vit", "hf-bert"])
    def test_in_the_model(self, name):
        case = CASES[name]
        model, batch, labels = case.build().train(), case.batch(4), torch.arange(4) % 2
        first = next(model.parameters())
        first.requires_grad_(False)
        other = list(model.parameters())[3]
        other.grad = torch.ones_like(other)
        before = state_of(model)
        batches = [{**batch, "labels": labels} if isinstance(batch, dict) else (batch, labels)]
        for mode in SLOW:
            rank(model, batches, method="fisher", mode=mode)
        assert state_of(model) == before

    def test_when_the_backward_pass_raises(self):
        def broken(outputs, labels):
            outputs.register_hook(lambda _: 1 / 0)
            return outputs.sum()

        model = small_net().train()
        before = state_of(model)
        with pytest.raises(ZeroDivisionError):
            rank(model, loader(), method="fisher", loss=broken)
        assert state_of(model) == before


class TestMemory:
    def test_no_gradient_of_a_weight_is_computed(self):
        model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)), nn.Linear(512, 4))
        batches = [(torch.randn(8, 512), torch.arange(8) % 4)]
        assert measure_peak(lambda: rank(model, batches, method="fisher", head="4")) < 512 * 512 * 4

    def test_each_activation_goes_when_its_gradient_has_come(self):
        depth, activation = 8, 8 * 8 * 32 * 32 * 4
        convolutions = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth))
        model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        batches = [(torch.randn(8, 8, 32, 32), torch.arange(8) % 4)]

        def run(**options):
            return measure_peak(lambda: rank(model, batches, method="fisher", head=str(depth + 2), **options))

        # all outputs, and the gradient on its way with the product and a kernel's scratch
        assert depth * activation <= run() < (depth + 5) * activation
        assert run(micro_batch=1) < run() / 4


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"mode": "sum"}, "mode to be one of elementwise-mean, channel-sum, got 'sum'"),
            ({"gradient_batches": 0}, "gradient_batches of at least 1, got 0"),
            ({"micro_batch": 0}, "micro_batch of at least 1"),
        ],
    )
    def test_options(self, options, complaint):
        with pytest.raises(OptionError, match=complaint):
            rank(small_net(), loader(), method="fisher", **options)

    def test_no_labels(self):
        with pytest.raises(OptionError, match="expected a batch with labels"):
            rank(small_net(), [IMAGES], method="fisher")

    def test_no_batch(self):
        with pytest.raises(DataError, match="loader is empty"):
            rank(small_net(), [], method="fisher")

    def test_not_finite(self):
        model = small_net()
        model.hidden.weight.data[2, 3] = torch.nan
        for mode in SLOW:
            with pytest.raises(ActivationError, match="layer 'conv1' has activations or gradients that are not"):
                rank(model, loader(), method="fisher", mode=mode)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", SLOW)
def test_on_cuda_equals_the_cpu(mode):
    expected = scores(rank(small_net(), loader(), method="fisher", mode=mode))
    found = scores(rank(small_net().cuda(), loader(), method="fisher", mode=mode, micro_batch=5))
    assert found == pytest.approx(expected, rel=1e-2)


def test_channels_are_selected_by_their_scores():
    chosen = select("fisher", small_net(), loader(), layer_ratio=1, channel_ratio=0.25)
    ranking = rank(small_net(), loader(), method="fisher")
    for choice, ranked in zip(chosen.choices, ranking.layers, strict=False):
        best = sorted(range(len(ranked.channel_scores)), key=lambda channel: -ranked.channel_scores[channel])
        assert set(choice.channels) == set(best[: len(best) // 4])


def test_progress_goes_up_to_all():
    told = []
    rank(small_net(), loader(4), method="fisher", gradient_batches=3, progress=lambda *both: told.append(both))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_fit_trains_the_share_and_the_head():
    net = make_net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    adabet.fit(net, *make_loaders(), method="fisher", layer_ratio=0.5, epochs=1, seed=0)
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert "head" in {name.partition(".")[0] for name in changed}
    assert len({name.partition(".")[0] for name in changed}) == 3
