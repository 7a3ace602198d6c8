"""What is found in models of every library, against their publishers' figures, hooks and torch's own FLOP counter."""

import warnings
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adabet.errors import ActivationError, AdabetWarning, LayerError
from adabet.layers import find_layers, forward_call, inputs_of, take_samples
from adabet.layers.batches import tensors_of
from tests.cases.models import FULL_SIZE, SMALL, SmallNet, small_images, small_net, state_of


def every_layer(layers):
    return (*layers.candidates, *layers.head, *layers.unranked)


def only(layers, name):
    (layer,) = [layer for layer in every_layer(layers) if layer.name == name]
    return layer


def check_that_every_parameter_is_in_exactly_one(model, layers):
    held = [name for layer in every_layer(layers) for name in layer.parameters]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sorted(held) == sorted(sizes)
    for layer in every_layer(layers):
        assert layer.parameter_count == sum(sizes[name] for name in layer.parameters)
        assert layer.head == (layer in layers.head)


@pytest.mark.parametrize("case", FULL_SIZE, ids=str)
def test_models_as_their_libraries_build_them(case):
    with torch.device("meta"):
        model = case.build()
        layers = find_layers(model, case.batch(2))
    assert Counter(layer.kind for layer in layers) == case.kinds
    assert tuple(layer.name for layer in layers.head) == case.head
    assert tuple(name for layer in layers.unranked for name in layer.parameters) == case.unranked
    assert layers.never_called == ()
    check_that_every_parameter_is_in_exactly_one(model, layers)
    if case.gmacs is not None:
        weighty = [layer.macs for layer in every_layer(layers) if layer.kind not in ("norm", "parameter")]
        assert sum(weighty) / 1e9 == pytest.approx(case.gmacs, rel=0.02)


@pytest.mark.parametrize("case", SMALL, ids=str)
class TestSmallModels:
    def test_attention_is_one_layer_a_block(self, case):
        model = case.build()
        layers = find_layers(model, case.batch(2))
        check_that_every_parameter_is_in_exactly_one(model, layers)
        attention = [layer for layer in layers if layer.kind == "attention"]
        assert len(attention) == case.attention
        for layer in attention:
            inside = [other for other in layers if other.name.startswith(layer.name + ".")]
            assert {other.kind for other in inside} <= {"norm"}

    def test_sizes_and_order_are_those_of_the_outputs(self, case):
        model, batch = case.build().eval(), case.batch(3)
        layers = find_layers(model, batch)
        sizes, order = Counter(), []

        def hook(name):
            def note(module, arguments, output):
                sizes[name] += next(t for t in tensors_of(output) if t.is_floating_point()).numel()
                if name not in order:
                    order.append(name)

            return note

        ranked = (*layers.candidates, *layers.head)
        for layer in ranked:
            model.get_submodule(layer.output_module).register_forward_hook(hook(layer.name))
        forward_call(model, batch)
        same_for_all = {"bert.embeddings.position_embeddings", "distilbert.embeddings.position_embeddings"}
        assert {layer.name: (1 if layer.name in same_for_all else 3) * layer.output_size for layer in ranked} == sizes
        assert [layer.name for layer in layers] == [name for name in order if name not in {h.name for h in layers.head}]

    def test_macs_are_those_that_torch_counts(self, case):
        model, batch = case.build().eval(), case.batch(3)
        layers = find_layers(model, batch)
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                forward_call(model, take_samples(inputs_of(batch), 0, 1))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        elementwise = ("norm", "parameter")
        found = sum(layer.macs for layer in every_layer(layers) if layer.kind not in elementwise)
        assert found == counter.get_total_flops() // 2

    def test_channels_lie_where_the_layer_says(self, case):
        model, batch = case.build(), case.batch(2)
        for layer in find_layers(model, batch):
            if layer.channel_axis is not None:
                assert layer.output_shape[layer.channel_axis] == layer.out_channels
            if layer.kind in ("convolution", "linear"):
                assert {layer.in_channels, layer.out_channels} == {*_weight_channels(model, layer.name)}
                assert layer.channel_axis == (-1 if layer.kind == "linear" else -3)

    def test_nothing_is_changed(self, case):
        model = case.build().train()
        next(model.children()).eval()
        next(model.parameters()).requires_grad_(False)
        before = state_of(model)
        find_layers(model, case.batch(2))
        assert state_of(model) == before


def _weight_channels(model, name):
    weight = model.get_submodule(name).weight
    groups = getattr(model.get_submodule(name), "groups", 1)
    return weight.shape[0], weight.shape[1] * groups


class Doubled(nn.Module):
    """A layer that runs twice, one that never runs, and one whose weight is another's."""

    def __init__(self):
        super().__init__()
        self.once = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.once.weight
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.tied(self.twice(self.twice(self.once(x)))))


class TestOddities:
    def test_calls_add_up_and_the_uncalled_are_named(self):
        with pytest.warns(AdabetWarning, match=r"1 layers? never runs? .*: never$"):
            layers = find_layers(Doubled(), torch.zeros(4, 6), head="out")
        assert [layer.name for layer in layers] == ["once", "twice"]
        assert layers.never_called == ("never",)
        twice = only(layers, "twice")
        assert (twice.calls, twice.output_size, twice.input_size, twice.macs) == (2, 12, 12, 72)
        assert only(layers, "once").calls == 1

    def test_tied_weight_belongs_to_its_first_holder(self):
        with pytest.warns(AdabetWarning):
            layers = find_layers(Doubled(), torch.zeros(4, 6), head="out")
        assert only(layers, "once").parameters == ("once.weight", "once.bias")
        assert "tied" not in [layer.name for layer in layers]

    def test_tied_weight_whose_first_holder_never_runs_is_found_at_the_other(self):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.shared = nn.Embedding(9, 4)
                self.encoder = nn.ModuleDict({"words": nn.Embedding(9, 4)})
                self.encoder["words"].weight = self.shared.weight
                self.out = nn.Linear(4, 2)

            def forward(self, x):
                return self.out(self.encoder["words"](x).mean(1))

        layers = find_layers(Shared(), torch.zeros(3, 5, dtype=torch.long), head="out")
        (embedding,) = layers
        assert embedding.parameters == ("shared.weight",)
        assert (embedding.kind, embedding.output_size, embedding.calls) == ("embedding", 20, 1)
        assert layers.never_called == ()

    @pytest.mark.parametrize("wrap", ["tuple", "dict", "dataclass", "nested"])
    def test_outputs_of_every_kind(self, wrap):
        @dataclass
        class Output:
            mask: torch.Tensor
            features: torch.Tensor

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(6, 5)
                self.weight = nn.Parameter(torch.ones(5))

            def forward(self, x):
                features, mask = self.inner(x) * self.weight, torch.ones(len(x), 7, dtype=torch.bool)
                return {
                    "tuple": (mask, features),
                    "dict": {"mask": mask, "features": features},
                    "dataclass": Output(mask, features),
                    "nested": [(mask, None, {"deep": Output(mask, features)})],
                }[wrap]

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.odd = Odd()
                self.head = nn.Linear(5, 2)

            def forward(self, x):
                self.odd(x)
                return self.head(torch.zeros(len(x), 5))

        layers = find_layers(Net(), torch.zeros(3, 6))
        assert only(layers, "odd").output_size == 5
        assert only(layers, "odd").kind == "parameter"
        assert only(layers, "odd.inner").output_size == 5

    def test_a_layer_without_a_floating_output_is_left_out(self):
        class Quantized(nn.Linear):
            def forward(self, x):
                return super().forward(x).round().long()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = Quantized(4, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.second(self.first(x).float())

        with pytest.warns(AdabetWarning, match="first"):
            assert [layer.name for layer in find_layers(Net(), torch.zeros(2, 4), head=None)] == ["second"]

    def test_order_is_that_of_the_forward_pass(self):
        class Backwards(nn.Module):
            def __init__(self):
                super().__init__()
                self.last, self.middle, self.first = nn.Linear(3, 2), nn.LayerNorm(3), nn.Linear(3, 3)

            def forward(self, x):
                return self.last(self.middle(self.first(x)))

        assert [layer.name for layer in find_layers(Backwards(), torch.zeros(2, 3))] == ["first", "middle", "last"]

    def test_a_model_that_squeezes_its_only_sample_away(self):
        class Squeezing(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.conv(x).mean((2, 3)).squeeze())

        layers = find_layers(Squeezing(), small_images(5))
        assert [layer.output_size for layer in every_layer(layers)] == [4 * 30 * 30, 2]

    @pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.ReLU()), nn.Identity()])
    def test_nothing_trainable(self, model):
        with pytest.raises(LayerError, match="nothing can train"):
            find_layers(model, torch.zeros(2, 3))

    def test_integer_parameters_are_none(self):
        model = nn.Sequential(nn.Flatten())
        model[0].table = nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False)
        with pytest.raises(LayerError, match="nothing can train"):
            find_layers(model, torch.zeros(2, 3))

    def test_no_layer_runs(self):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused = nn.Linear(3, 3)

            def forward(self, x):
                return x

        with pytest.warns(AdabetWarning, match="unused"), pytest.raises(LayerError, match="nothing to choose from"):
            find_layers(Idle(), torch.zeros(2, 3))

    def test_state_comes_back_when_the_model_fails(self):
        class Broken(SmallNet):
            def forward(self, pictures):
                torch.rand(3)
                super().forward(pictures)
                raise RuntimeError("broken")

        model = Broken().train()
        before = state_of(model)
        with pytest.raises(RuntimeError, match="broken"):
            find_layers(model, small_images(2))
        assert state_of(model) == before

    @pytest.mark.parametrize("batch", ["text", 3, None, [], (), {"labels": torch.ones(3)}, torch.tensor(3.0)])
    def test_what_is_no_batch(self, batch):
        with pytest.raises(ActivationError, match="expected"):
            find_layers(SmallNet(), batch)


class TestAttention:
    @pytest.mark.parametrize("batch_first", [True, False])
    def test_of_torch_with_either_layout(self, batch_first):
        encoder = nn.TransformerEncoderLayer(12, 3, 20, batch_first=batch_first)
        model = nn.Sequential(nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), nn.Linear(12, 2))
        shape = (1, 7, 12) if batch_first else (7, 1, 12)
        layers = find_layers(model, torch.zeros(1), head="1", forward=lambda model, _: model(torch.zeros(shape)))
        attention = [layer for layer in layers if layer.kind == "attention"]
        assert [layer.name for layer in attention] == ["0.layers.0.self_attn", "0.layers.1.self_attn"]
        assert {layer.output_shape for layer in attention} == {shape}
        assert {layer.macs for layer in attention} == {7 * 4 * 12 * 12 + 2 * 7 * 7 * 12}

    def test_structure_alone_is_enough(self):
        class Mixer(nn.Module):
            def __init__(self):
                super().__init__()
                self.to_q, self.to_kv, self.to_out = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)
                self.norm = nn.LayerNorm(8)

            def forward(self, x):
                q, (k, v) = self.to_q(self.norm(x)), self.to_kv(x).chunk(2, -1)
                return self.to_out((q @ k.mT).softmax(-1) @ v)

        layers = find_layers(nn.Sequential(Mixer(), nn.Linear(8, 2)), torch.zeros(2, 5, 8), head="1")
        assert [(layer.name, layer.kind) for layer in layers] == [("0.norm", "norm"), ("0", "attention")]
        assert only(layers, "0").output_module == "0.to_out"

    def test_blocks_override(self):
        case = next(case for case in SMALL if case.name == "timm-vit")
        model, batch = case.build(), case.batch(1)
        plain = find_layers(model, batch)
        separate = find_layers(model, batch, blocks=())
        assert {"blocks.0.attn.qkv", "blocks.0.attn.proj"} <= {layer.name for layer in separate}
        assert not [layer for layer in separate if layer.kind == "attention"]
        whole = find_layers(model, batch, blocks=["blocks.*"])
        names = [layer.name for layer in whole]
        assert {"blocks.0", "blocks.1", "blocks.0.norm1"} <= set(names)
        assert not [name for name in names if "attn" in name or "mlp" in name]
        between_tokens = sum(2 * layer.output_size * 17 for layer in plain if layer.kind == "attention")
        assert _macs(whole) == _macs(separate) == _macs(plain) - between_tokens > 0

    def test_blocks_that_match_nothing(self):
        with pytest.raises(LayerError, match="'stage\\*' matches no module"):
            find_layers(SmallNet(), small_images(1), blocks=["stage*"])

    def test_projections_that_torch_uses_without_running_them_are_named(self):
        model = nn.Sequential(nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), nn.Linear(12, 2))
        with pytest.warns(AdabetWarning, match=r": 0\.self_attn\.out_proj$"):
            find_layers(model, torch.zeros(2, 5, 12), head="1", blocks=())


def _macs(layers):
    return sum(layer.macs for layer in layers if layer.kind != "norm")


class TestRecurrent:
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_lstm(self, batch_first, bidirectional):
        class Reader(nn.Module):
            def __init__(self):
                super().__init__()
                self.words = nn.Embedding(20, 6)
                self.lstm = nn.LSTM(6, 5, batch_first=batch_first, bidirectional=bidirectional)
                self.head = nn.Linear(10 if bidirectional else 5, 2)

            def forward(self, ids):
                words = self.words(ids)
                output, _ = self.lstm(words if batch_first else words.transpose(0, 1))
                return self.head(output[:, -1] if batch_first else output[-1])

        layers = find_layers(Reader(), torch.zeros(3, 4, dtype=torch.long))
        lstm, ways = only(layers, "lstm"), 2 if bidirectional else 1
        assert (lstm.kind, lstm.output_size, lstm.calls) == ("recurrent", 4 * 5 * ways, 1)
        assert lstm.macs == 4 * ways * 4 * 5 * (6 + 5)


class TestNorms:
    def test_are_layers_of_their_own(self):
        layers = find_layers(small_net(), small_images(2, size=8))
        assert [layer.name for layer in layers] == ["conv1", "norm1", "conv2", "norm2", "hidden", "norm3"]
        assert {layer.kind for layer in layers if layer.name.startswith("norm")} == {"norm"}

    def test_are_tied_to_what_they_follow(self):
        plain = find_layers(small_net(), small_images(2, size=8))
        tied = find_layers(small_net(), small_images(2, size=8), tie_norm=True)
        assert [layer.name for layer in tied] == ["conv1", "conv2", "hidden"]
        assert only(tied, "conv1").parameters == ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias")
        for total in ("parameter_count", "macs"):
            assert sum(getattr(layer, total) for layer in tied) == sum(getattr(layer, total) for layer in plain)

    def test_are_tied_to_nothing_but_convolutions_and_linear_layers(self):
        case = next(case for case in SMALL if case.name == "timm-vit")
        norms = [layer for layer in find_layers(case.build(), case.batch(1), tie_norm=True) if layer.kind == "norm"]
        assert [layer.name for layer in norms] == ["blocks.0.norm2", "blocks.1.norm2"]  # these follow attention

    def test_are_not_tied_to_a_head(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))
        layers = find_layers(model, torch.zeros(2, 3), head="1", tie_norm=True)
        assert [layer.name for layer in layers] == ["0", "2"]
        assert layers.head_parameters == ("1.weight", "1.bias")

    def test_channels_of_a_norm_over_images_as_wide_as_it_has_channels(self):
        from timm.layers import LayerNorm2d

        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), LayerNorm2d(8), nn.Conv2d(8, 2, 1))
        layers = find_layers(model, torch.zeros(1, 3, 8, 8), head="2")
        assert only(layers, "1").channel_axis == -3


class TestConvolutions:
    @pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 4}, {"stride": 2}, {"dilation": 2}])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_macs(self, options, transposed):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        model, batch = nn.Sequential(kind(4, 8, 3, **options), nn.Conv2d(8, 2, 1)).eval(), torch.zeros(1, 4, 9, 9)
        layer = only(find_layers(model, batch, head="1"), "0")
        (spread,) = {layer.input_size // 4 if transposed else layer.output_size // 8}
        per_place = Fraction(8 * 4 * 9, options.get("groups", 1))
        assert layer.macs == spread * per_place
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model[0](batch)
        if not transposed or options.get("groups", 1) == 1:
            assert layer.macs == counter.get_total_flops() // 2

    def test_warns_of_nothing_by_itself(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            find_layers(small_net(), small_images(1, size=8))
