"""The probe against activations that were simply kept."""

import weakref
from collections import defaultdict

import pytest
import torch
from torch import nn

from adabet.errors import ActivationError, OptionError
from adabet.layers import find_layers, forward_call, inputs_of, take_samples
from adabet.layers.batches import tensors_of
from adabet.memory import measure_peak
from adabet.topology import Prober
from adabet.topology.sketch import BUCKETS, TABLE
from tests.cases.models import SMALL, SmallNet, small_images, small_net, state_of

CASES = {case.name: case for case in SMALL}


def batches_of(case, count, size=8):
    inputs = inputs_of(case.batch(count))
    return [take_samples(inputs, start, min(start + size, count)) for start in range(0, count, size)]


def kept_activations(model, batches, *, axis="out"):
    """Activations of every layer, one sample after the other through the model: ``{layer: [sample, ...]}``."""
    model.eval()
    samples = [take_samples(batch, i, i + 1) for batch in batches for i in range(len(tensors_of(batch)[0]))]
    layers = find_layers(model, samples[0])
    kept = defaultdict(list)
    handles = [
        model.get_submodule(layer.output_module).register_forward_hook(
            lambda _, arguments, output, name=layer.name: kept[name][-1].append(
                next(t for t in tensors_of(output if axis == "out" else arguments) if t.is_floating_point()).double()
            )
        )
        for layer in layers
    ]
    with torch.no_grad():
        for sample in samples:
            for layer in layers:
                kept[layer.name].append([])
            forward_call(model, sample)
    for handle in handles:
        handle.remove()
    return layers, kept


def direct_distances(calls):
    points = torch.stack([torch.cat([tensor.flatten() for tensor in sample]) for sample in calls])
    return torch.stack([(points - point).square().sum(1).sqrt() for point in points])


def assert_close(found, expected, message=""):
    # a sample alone and the same sample in a batch may differ by rounding in the model itself
    assert torch.allclose(found, expected, rtol=2e-4, atol=1e-5 * float(expected.max())), message


def assert_same_distances(probe, other, *, rtol=1e-4):
    assert probe.distances.keys() == other.distances.keys()
    for name, found in probe.distances.items():
        assert torch.allclose(found, other.distances[name], rtol=rtol, atol=1e-6 * float(found.max())), name


class TestDistances:
    @pytest.mark.parametrize("name", CASES)
    def test_are_those_of_kept_activations(self, name):
        case, count = CASES[name], 11
        model, batches = case.build(), batches_of(CASES[name], count, size=4)
        layers, kept = kept_activations(model, batches)
        probe = Prober(model, batches, samples=40).probe()
        assert (probe.samples, probe.exact) == (count, True)
        assert tuple(probe.layers) == tuple(layers)
        assert list(probe.distances) == [layer.name for layer in layers]
        for layer, found in probe.distances.items():
            assert found.shape == (count, count)
            assert found.dtype == torch.float64
            assert_close(found, direct_distances(kept[layer]), layer)

    @pytest.mark.parametrize("name", ["timm-mobilenetv2", "timm-swin", "hf-bert"])
    @pytest.mark.parametrize("in_memory", [16, 20, 32, 40])
    def test_do_not_depend_on_how_many_are_in_memory(self, name, in_memory):
        model, batches = CASES[name].build(), batches_of(CASES[name], 40)
        everything = Prober(model, batches).probe()
        assert_same_distances(Prober(model, batches, samples_in_memory=in_memory).probe(), everything)

    @pytest.mark.parametrize("size", [1, 3, 7, 40])
    @pytest.mark.parametrize("name", ["timm-resnet", "timm-swin", "torchvision-vit", "hf-llama"])
    def test_do_not_depend_on_the_batches(self, name, size):
        model = CASES[name].build()
        expected = Prober(model, batches_of(CASES[name], 15)).probe()
        assert_same_distances(Prober(model, batches_of(CASES[name], 15, size=size), slice_size=5).probe(), expected)

    def test_of_half_precision_layers(self):
        model = small_net().bfloat16()
        batches = small_images(16, size=8).bfloat16().split(8)
        _, kept = kept_activations(model, batches)
        for name, found in Prober(model, batches).probe().distances.items():
            assert torch.allclose(found, direct_distances(kept[name]), rtol=0.05)

    def test_under_autocast_are_those_of_its_activations(self):
        model, batches = small_net(), small_images(16, size=8).split(8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, kept = kept_activations(model, batches)
            probe = Prober(model, batches).probe()
        for name in ("conv1", "norm1"):
            assert torch.allclose(probe.distances[name], direct_distances(kept[name]), rtol=1e-3), name
        plain = Prober(model, batches).probe()
        assert not torch.allclose(probe.distances["conv1"], plain.distances["conv1"], rtol=1e-4)

    @pytest.mark.parametrize("sketch", [None, 4096])
    def test_a_layer_that_runs_twice_counts_both_outputs(self, sketch):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.turn, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

            def forward(self, x):
                return self.head(self.turn(self.turn(x).relu()))

        model, x = Twice(), torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
        first = model.turn(x)
        both = torch.cat([first, model.turn(first.relu())], 1).double()
        found = Prober(model, [x[:4], x[4:]], sketch=sketch).probe().distances["turn"]
        assert torch.allclose(found, torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist"), rtol=1e-4)

    @pytest.mark.parametrize("sketch", [None, 256])
    def test_duplicates_are_at_zero(self, sketch):
        images = small_images(8, size=8)[torch.tensor([0, 1, 2, 3, 4, 5, 6, 2])]
        for distances in Prober(small_net(), [images], sketch=sketch).probe().distances.values():
            assert distances[2, 7] == 0
            assert distances[2, 6] > 0


class TestLayouts:
    """The samples are not always along the first axis of what a layer gives."""

    @pytest.mark.parametrize("sizes", [[8, 8], [8, 7, 1], [1] * 16, [3] * 5 + [1]])
    def test_sequence_first(self, sizes):
        class SequenceFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.TransformerEncoderLayer(12, 3, 20)
                self.lstm = nn.LSTM(12, 5)
                self.head = nn.Linear(5, 2)

            def forward(self, x):
                return self.head(self.lstm(self.block(x.transpose(0, 1)))[0][-1])

        torch.manual_seed(0)
        model, x = SequenceFirst(), torch.randn(16, 7, 12)
        batches = list(x.split(sizes))
        layers, kept = kept_activations(model, batches)
        assert {"block.self_attn", "lstm"} <= {layer.name for layer in layers}
        for sketch in (None, 4096):
            for name, found in Prober(model, batches, sketch=sketch).probe().distances.items():
                assert_close(found, direct_distances(kept[name]), name)

    @pytest.mark.parametrize("sizes", [[8, 8], [5, 5, 6], [8, 7, 1]])
    def test_a_model_that_squeezes_its_only_sample_away(self, sizes):
        class Squeezing(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.hidden, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.hidden(self.conv(x).mean((2, 3)).squeeze()))

        model, batches = Squeezing(), list(small_images(16, size=8).split(sizes))
        _, kept = kept_activations(model, batches)
        for name, found in Prober(model, batches).probe().distances.items():
            assert_close(found, direct_distances(kept[name]), name)

    def test_what_is_the_same_for_all_samples_is_at_zero(self):
        case = CASES["hf-bert"]
        probe = Prober(case.build(), batches_of(case, 10)).probe()
        assert (probe.distances["bert.embeddings.position_embeddings"] == 0).all()
        assert (probe.distances["bert.embeddings.word_embeddings"] > 0).sum() == 90

    def test_samples_that_cannot_be_told_apart_are_an_error(self):
        class Mixing(nn.Module):
            def __init__(self):
                super().__init__()
                self.lines, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

            def forward(self, x):
                padded = torch.cat([x, torch.zeros(3, 5)])
                return self.head(self.lines(padded)[: len(x)])

        with pytest.raises(ActivationError, match=r"layer 'lines' gave \(4, 5\) for one sample and \(7, 5\) for 4"):
            Prober(Mixing(), [torch.randn(8, 5)]).probe()


class TestChannelDistances:
    @pytest.mark.parametrize("axis", ["out", "in"])
    @pytest.mark.parametrize("name", ["timm-mobilenetv2", "timm-vit", "timm-swin", "timm-convnext"])
    def test_are_those_of_each_channel(self, name, axis):
        model, batches = CASES[name].build(), batches_of(CASES[name], 9, size=4)
        layers, kept = kept_activations(model, batches, axis=axis)
        chosen = [layer for layer in layers if layer.kind in ("convolution", "linear", "norm") and layer.channel_axis]
        found = list(Prober(model, batches).channel_distances(chosen[::5], axis=axis))
        assert [layer.name for layer, _ in found] == [layer.name for layer in chosen[::5]]
        for layer, distances in found:
            channels = layer.out_channels if axis == "out" else layer.in_channels
            assert distances.shape == (channels, 9, 9)
            for channel in {0, channels // 2, channels - 1}:
                own = [[call.select(layer.channel_axis, channel) for call in sample] for sample in kept[layer.name]]
                expected = direct_distances(own)
                assert torch.allclose(
                    distances[channel].double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max())
                )

    def test_many_channels_take_more_rounds_with_the_same_result(self, monkeypatch):
        model, batches = small_net(), small_images(16, size=8).split(8)
        prober = Prober(model, batches)
        once = list(prober.channel_distances(prober.layers.candidates))
        monkeypatch.setattr("adabet.topology.probe.CHANNEL_BYTES", 1)
        one_by_one = list(prober.channel_distances(prober.layers.candidates))
        assert [layer for layer, _ in once] == [layer for layer, _ in one_by_one] == list(prober.layers)
        assert all(torch.equal(left, right) for (_, left), (_, right) in zip(once, one_by_one, strict=True))


class TestChannelSketches:
    @pytest.mark.parametrize("axis", ["out", "in"])
    def test_that_keep_all_places_are_exact(self, axis):
        model, batches = CASES["timm-mobilenetv2"].build(), batches_of(CASES["timm-mobilenetv2"], 9, size=4)
        prober = Prober(model, batches)
        chosen = [layer for layer in prober.layers if layer.channel_axis][::7]
        exact = dict((layer.name, found) for layer, found in prober.channel_distances(chosen, axis=axis))  # noqa: C402
        sketched = Prober(model, batches, sketch=1024).channel_distances(chosen, axis=axis)
        for layer, found in sketched:
            assert torch.allclose(found, exact[layer.name], rtol=1e-4, atol=1e-5 * float(exact[layer.name].max()))

    def test_estimate_the_exact_distances(self):
        model, batches = small_net(), small_images(12, size=32).split(4)
        layers = Prober(model, batches).layers.candidates[:2]
        exact = dict(Prober(model, batches).channel_distances(layers))
        off = ~torch.eye(12, dtype=torch.bool)
        ratios = []
        for seed in range(20):
            for layer, found in Prober(model, batches, sketch=64, seed=seed).channel_distances(layers):
                ratios.append((found / exact[layer])[:, off].square())
        ratio = torch.stack(ratios)
        assert abs(float(ratio.mean()) - 1) < 0.03
        assert ratio.std(0).mean() < 1.3 * (2 / 64) ** 0.5

    def test_take_the_memory_of_one_slice(self):
        model, batches = Deep(depth=2), torch.randn(40, 8, 48, 48).split(8)
        activation = 8 * 8 * 48 * 48 * 4
        prober = Prober(model, batches, sketch=64)
        took = measure_peak(lambda: list(prober.channel_distances(prober.layers.candidates)))
        # a layer's input and output, and the sketch's sums, signed and put in order; of five slices twice as much alone
        assert took < 6 * activation


class TestSketches:
    def test_estimate_the_exact_distances(self):
        case = CASES["timm-mobilenetv2"]
        model, batches = case.build(), batches_of(case, 24)
        exact = Prober(model, batches).probe()
        estimates = [Prober(model, batches, sketch=256, seed=seed).probe() for seed in range(12)]
        off = ~torch.eye(24, dtype=torch.bool)
        for name, true in exact.distances.items():
            ratio = torch.stack([(probe.distances[name][off] / true[off]).square() for probe in estimates])
            assert abs(ratio.mean() - 1) < 0.06, name
            assert ratio.std(0).mean() < 1.3 * (2 / 256) ** 0.5, name
        assert not any(probe.exact for probe in estimates)

    def test_follow_the_seed(self):
        model, batches = small_net(), small_images(16, size=16).split(8)
        first, again, other = (Prober(model, batches, sketch=64, seed=seed).probe() for seed in (1, 1, 2))
        assert all(torch.equal(first.distances[name], again.distances[name]) for name in first.distances)
        assert not torch.equal(first.distances["conv1"], other.distances["conv1"])

    @pytest.mark.parametrize("size", [0, 3, -1])
    def test_of_no_size(self, size):
        with pytest.raises(OptionError, match="sketch size"):
            Prober(small_net(), [small_images(8, size=8)], sketch=size)


@pytest.fixture(scope="module")
def plain():
    return Prober(small_net(), small_images(24, size=8).split(8)).probe()


class TestBatches:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: (x, torch.full((len(x),), torch.nan)),
            lambda x: [x, ["cat"] * len(x)],
            lambda x: (x, None),
            lambda x: {"pictures": x, "labels": object()},
            lambda x: ({"pictures": x, "target": "garbage"}, torch.zeros(3)),
        ],
    )
    def test_labels_are_ignored(self, wrap, plain):
        wrapped = [wrap(batch) for batch in small_images(24, size=8).split(8)]
        probe = Prober(small_net(), iter(wrapped)).probe()
        assert all(torch.equal(probe.distances[name], plain.distances[name]) for name in plain.distances)

    def test_only_the_first_samples_count(self, plain):
        images = torch.cat([small_images(24, size=8), torch.full((8, 3, 8, 8), torch.nan)])
        probe = Prober(small_net(), images.split(8), samples=24).probe()
        assert all(torch.equal(probe.distances[name], plain.distances[name]) for name in plain.distances)

    def test_fewer_than_asked(self):
        assert Prober(small_net(), small_images(10, size=8).split(4), samples=40).probe().samples == 10

    @pytest.mark.parametrize("batches", [[], [small_images(1, size=8)], [small_images(3, size=8)]])
    def test_too_few(self, batches):
        with pytest.raises(ActivationError, match="at least 4 samples"):
            Prober(small_net(), batches)

    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"sketch": 64}])
    def test_unequal_shapes(self, options):
        batches = [small_images(8, size=8), small_images(8, size=8), small_images(8, size=12)]
        with pytest.raises(ActivationError, match=r"layer 'conv1' gave \(12, 8, 8\) and \(12, 12, 12\); resize"):
            Prober(small_net(), batches, **options).probe()

    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"sketch": 64}])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite_names_the_layer(self, options, value):
        model = small_net()
        model.norm2.weight.data[3] = value
        with pytest.raises(ActivationError, match="layer 'norm2' gave activations that are not finite"):
            Prober(model, small_images(24, size=8).split(8), **options).probe()
        images = small_images(24, size=8)
        images[20, 1, 2, 3] = value
        with pytest.raises(ActivationError, match="layer 'conv1' gave activations that are not finite"):
            Prober(small_net(), images.split(8), **options).probe()

    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 8}, {"sketch": 16}])
    def test_a_path_that_depends_on_the_samples(self, options):
        class Fickle(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.maybe, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

            def forward(self, x):
                x = self.first(x)
                return self.head(self.maybe(x) if x.sum() > -1e9 and not bool((x > 1e3).any()) else x)

        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        model = Fickle()
        with torch.no_grad():
            model.first.weight.abs_()
        batches = [x[:4], x[4:] + 1e6]
        with pytest.raises(ActivationError, match=r"layer '(maybe|first)' .*(alike|not for all)"):
            Prober(model, batches, **options).probe()


class TestNothingIsChanged:
    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"sketch": 64}])
    @pytest.mark.parametrize("name", ["timm-swin", "hf-bert", "torchvision-vit", "timm-mobilenetv2"])
    def test_in_the_model(self, name, options):
        model = CASES[name].build().train()
        next(model.children()).eval()
        next(model.parameters()).requires_grad_(False)
        trainable = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        trainable.grad = torch.ones_like(trainable)
        before = state_of(model)
        prober = Prober(model, batches_of(CASES[name], 24), **options)
        prober.probe()
        list(prober.channel_distances([layer for layer in prober.layers if layer.kind == "linear"][:2]))
        assert state_of(model) == before

    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"sketch": 64}])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_when_a_layer_raises(self, options, error):
        class Failing(SmallNet):
            def forward(self, pictures):
                if bool((pictures == 7).all()):
                    self.norm1(self.conv1(pictures))
                    torch.rand(5)
                    raise error("in the model")
                return super().forward(pictures)

        model = Failing().train()
        batches = [*small_images(16, size=8).split(8), torch.full((8, 3, 8, 8), 7.0)]
        before = state_of(model)
        with pytest.raises(error, match="in the model"):
            Prober(model, batches, **options).probe()
        assert state_of(model) == before

    def test_in_the_batches(self):
        images = small_images(24, size=8)
        before = images.clone()
        Prober(small_net(), images.split(8)).probe()
        Prober(small_net(), images.split(8), sketch=64).probe()
        assert torch.equal(images, before)


class Deep(nn.Module):
    """Many equal layers on one path, whose activations outweigh all else."""

    def __init__(self, depth=12):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth)))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


class TestMemory:
    def test_a_sketch_takes_that_of_one_slice(self):
        model, batches = Deep(), torch.randn(40, 8, 48, 48).split(8)

        def forward():
            with torch.no_grad():
                model(batches[0])

        one_slice = measure_peak(forward)
        activation = 8 * 8 * 48 * 48 * 4
        assert one_slice > 2 * activation
        prober = Prober(model, batches, sketch=256)
        sketches = 12 * 40 * 256 * 4
        distances = 12 * 40 * 40 * 8
        sums_and_signs = 3 * 8 * BUCKETS * 4 + 2 * TABLE * 4
        assert measure_peak(prober.probe) < one_slice + sketches + distances + sums_and_signs

    @pytest.mark.parametrize(("options", "slices"), [({}, 10), ({"samples_in_memory": 16}, 4), ({"sketch": 64}, 1)])
    def test_no_more_than_one_layer_of_all_slices_is_alive(self, options, slices):
        model, batches = Deep(), torch.randn(40, 8, 12, 12).split(8)
        alive, most = [], 0

        def watch(module, arguments, output):
            nonlocal most
            alive.append(weakref.ref(output))
            most = max(most, sum(reference() is not None for reference in alive))

        prober = Prober(model, batches, **options)
        for layer in model.layers:
            layer.register_forward_hook(watch, prepend=True)
        prober.probe()
        assert len(alive) >= 12 * 10
        # while a slice waits at a layer, it holds what went in and what came out, as a pass over the batch would
        assert most <= 2 * slices
        assert not [reference for reference in alive if reference() is not None]


@pytest.mark.parametrize(
    ("options", "steps"),
    # six layers; all slices at once, ten pairs of slices, or ten slices one after the other
    [({}, 6), ({"samples_in_memory": 16}, 10 * 6), ({"sketch": 64}, 10)],
)
def test_progress_goes_up_to_all(options, steps):
    told = []
    batches = small_images(40, size=8).split(8)
    Prober(small_net(), batches, progress=lambda *both: told.append(both), **options).probe()
    assert told == [(done, steps) for done in range(1, steps + 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    @pytest.mark.parametrize("options", [{}, {"samples_in_memory": 16}, {"sketch": 256}])
    def test_equals_the_cpu(self, options):
        batches = small_images(40, size=8).split(8)
        expected = Prober(small_net(), batches, **options).probe()
        found = Prober(small_net().cuda(), batches, **options).probe()
        for name, distances in found.distances.items():
            assert distances.is_cuda
            assert torch.allclose(distances.cpu(), expected.distances[name], rtol=1e-3)

    def test_random_state_is_restored(self):
        class Random(SmallNet):
            def forward(self, pictures):
                return super().forward(pictures + 1e-6 * torch.randn_like(pictures))

        model = Random().cuda()
        before = torch.cuda.get_rng_state()
        Prober(model, small_images(16, size=8).split(8)).probe()
        assert torch.equal(torch.cuda.get_rng_state(), before)
