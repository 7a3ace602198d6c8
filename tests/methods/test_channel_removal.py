"""Channels that nothing reads or writes go, and the network computes what it did."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adabet.layers import find_layers
from adabet.methods.channel_removal import ChannelRemoval, find_edges
from tests.methods.channel_nets import (
    MIDDLES,
    NETS,
    Flattened,
    Helped,
    Inverted,
    Joined,
    Mixing,
    Residual,
    images,
    make,
)


def empty(model, edges, channels):
    """Zero all weights that write or read the channels."""
    gone = torch.zeros(edges.count, dtype=torch.bool)
    gone[list(channels)] = True
    with torch.no_grad():
        for name, axis in edges.voters:
            numbers = edges.axes[name][axis]
            places = ((numbers >= 0) & gone[numbers]).nonzero().flatten()
            model.get_parameter(name).index_fill_(axis, places, 0.0)
    return gone


def idle(model, edges):
    """Channels that only zeros write and read, because all of the layers beside them have been emptied."""
    busy = set()
    for name, axis in edges.voters:
        weight = model.get_parameter(name)
        for place, number in enumerate(edges.axes[name][axis].tolist()):
            if number >= 0 and weight.select(axis, place).count_nonzero():
                busy.add(number)
    return torch.tensor([number not in busy for number in range(edges.count)])


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def macs(model, batch):
    layers = find_layers(model, batch)
    return sum(layer.macs for layer in (*layers.candidates, *layers.head))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


class TestEdges:
    """Which channels go together, worked out by hand."""

    @pytest.mark.parametrize(
        ("kind", "count"),
        [
            # one edge for the first addition, one for the second, two inside the blocks
            (Residual, 8 + 12 + 6 + 10),
            # stem, projection and doubling convolution are one edge; expansion, gate and depthwise another
            (Inverted, 4 + 12 + 3),
            (Flattened, 6 + 5 + 9),
            (Joined, 5 + 7 + 4 + 3 + 6),
            (Helped, 6 + 5),
        ],
    )
    def test_count(self, kind, count):
        assert find_edges(make(kind), images()).count == count

    def test_of_a_sum_are_the_same_in_all_its_layers(self):
        edges = find_edges(make(Residual), images())
        first = edges.axes["stem.weight"][0]
        for name, axis in [("stem_norm.running_var", 0), ("conv1.weight", 1), ("conv2.weight", 0), ("conv3.weight", 1)]:
            assert torch.equal(edges.axes[name][axis], first)
        assert torch.equal(edges.axes["short.weight"][1], first)
        assert torch.equal(edges.axes["conv4.weight"][0], edges.axes["head.weight"][1])
        assert 1 not in edges.axes["stem.weight"]
        assert 0 not in edges.axes["head.weight"]

    def test_of_a_depthwise_convolution_follow_its_input(self):
        edges = find_edges(make(Inverted), images())
        assert torch.equal(edges.axes["depth.weight"][0], edges.axes["expand.weight"][0])
        assert torch.equal(edges.axes["doubled.bias"][0], edges.axes["stem.weight"][0].repeat_interleave(2))
        assert not {"depth.weight", "doubled.weight"} & {name for name, _ in edges.voters}

    def test_of_a_flattened_map_lie_side_by_side(self):
        edges = find_edges(make(Flattened), images())
        assert torch.equal(edges.axes["hidden.weight"][1], edges.axes["features.3.weight"][0].repeat_interleave(4))
        assert torch.equal(edges.axes["flat.weight"][0], edges.axes["hidden.weight"][1])

    @pytest.mark.parametrize("middle", MIDDLES)
    def test_that_something_looks_at_together_stay(self, middle):
        edges = find_edges(make(Mixing, middle), images())
        assert not {"first.weight", "first.bias"} & set(edges.axes)
        assert edges.count == 6
        assert set(edges.voters) == {("second.weight", 0), ("head.weight", 1)}

    def test_of_a_transformer_are_those_inside_its_blocks(self):
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        edges = find_edges(nn.Sequential(layer, nn.Linear(8, 3)), torch.randn(2, 5, 8))
        assert edges.voters == (("0.linear1.weight", 0), ("0.linear2.weight", 1))
        assert edges.count == 12

    def test_of_frozen_parameters_stay(self):
        model = make(Residual)
        edges = find_edges(model, images(), frozen=[model.conv2.weight])
        assert {name for name, _ in edges.voters} == {"conv3.weight", "conv4.weight", "short.weight", "head.weight"}

    @pytest.mark.parametrize("kind", NETS)
    def test_leave_the_model_as_it_was(self, kind):
        model = make(kind).train()
        model.get_submodule("head").eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes, random = [module.training for module in model.modules()], torch.get_rng_state()
        find_edges(model, images())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)


class TestRemoval:
    @pytest.mark.filterwarnings("ignore:1 layers never run")  # Helped's helper
    @pytest.mark.parametrize("kind", NETS)
    @settings(max_examples=15)
    @given(data=st.data())
    def test_keeps_the_function(self, kind, data):
        model, batch = make(kind), images()
        edges = find_edges(model, batch)
        gone = empty(model, edges, data.draw(st.sets(st.integers(0, edges.count - 1))))
        before, size, work = model(batch), parameters(model), macs(model, batch)
        momentum = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
        removal = ChannelRemoval(model, edges)
        used = removal.used()
        assert used[~gone & ~idle(model, edges)].all()
        follow = removal.keep(used)

        assert torch.allclose(model(batch), before, atol=1e-5)
        if used.all():
            assert not follow
        else:
            assert parameters(model) < size
            assert macs(model, batch) < work
        for name, parameter in model.named_parameters():
            assert (name in follow) == (parameter.shape != momentum[name].shape)
            if name in follow:
                smaller = follow[name](momentum[name])
                assert smaller.shape == parameter.shape
                whole = removal.whole(name, smaller)
                assert torch.equal(whole[whole != 0], momentum[name][whole != 0])
                assert (whole != 0).sum() == smaller.numel()

        whole = make(kind)
        whole.load_state_dict({name: removal.whole(name, tensor) for name, tensor in model.state_dict().items()})
        assert torch.allclose(whole(batch), before, atol=1e-5)

    @pytest.mark.parametrize("kind", NETS)
    def test_in_two_goes_is_removal_in_one(self, kind):
        model, other = make(kind), make(kind)
        edges = find_edges(model, images())
        removal, at_once = ChannelRemoval(model, edges), ChannelRemoval(other, edges)
        first, second = (
            torch.rand(edges.count, generator=torch.Generator().manual_seed(seed)) > 0.2 for seed in (0, 1)
        )
        removal.keep(first)
        removal.keep(second)
        at_once.keep(first & second)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])
        assert str(model) == str(other)

    @pytest.mark.parametrize("kind", NETS)
    def test_can_be_undone(self, kind):
        model, batch = make(kind), images()
        before, text = model(batch), str(model)
        removal = ChannelRemoval(model, find_edges(model, batch))
        tensors, kept = removal.tensors(), removal.kept
        removal.keep(torch.arange(removal.edges.count) % 2 == 0)
        assert str(model) != text
        removal.undo(tensors, kept)
        assert torch.equal(model(batch), before)
        assert str(model) == text
        assert removal.kept.all()

    def test_tells_the_modules(self):
        model = make(Inverted)
        edges = find_edges(model, images())
        gone = [*edges.axes["stem.weight"][0][:1].tolist(), *edges.axes["expand.weight"][0][:5].tolist()]
        empty(model, edges, gone)
        removal = ChannelRemoval(model, edges)
        removal.keep(removal.used())
        depth, doubled = model.depth, model.doubled
        assert (depth.in_channels, depth.out_channels, depth.groups) == (7, 7, 7)
        assert (doubled.in_channels, doubled.out_channels, doubled.groups) == (3, 6, 3)
        assert (model.project.in_channels, model.project.out_channels) == (7, 3)
        assert (model.expand_norm.num_features, model.head.in_features) == (7, 6)

    def test_keeps_the_parameters_and_what_they_are_tied_to(self):
        model = make(Joined)
        model.again = nn.ModuleList([model.same])
        same = model.same.weight
        edges = find_edges(model, images())
        empty(model, edges, edges.axes["same.weight"][0][:3].tolist())
        removal = ChannelRemoval(model, edges)
        removal.keep(removal.used())
        assert model.again[0].weight is same
        assert same.shape == (4, 4, 1, 1)
        assert removal.whole("again.0.weight", same).shape == (7, 7, 1, 1)

    def test_while_training_too(self):
        model, batch = make(Helped), images()
        edges = find_edges(model, batch)
        empty(model, edges, [0, 1])
        before = model.train()(batch)
        removal = ChannelRemoval(model, edges)
        removal.keep(removal.used())
        assert model.first.out_channels == 4
        assert torch.allclose(model(batch), before, atol=1e-6)

    @pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "efficientnet_b0"])
    @torch.no_grad()
    def test_of_published_networks(self, name):
        torch.manual_seed(0)
        model, batch = timm.create_model(name, num_classes=5).eval(), torch.randn(2, 3, 32, 32)
        size, work = parameters(model), macs(model, batch)
        edges = find_edges(model, batch)
        empty(model, edges, (torch.rand(edges.count) < 0.5).nonzero().flatten().tolist())
        removal = ChannelRemoval(model, edges)
        before = model(batch)
        removal.keep(removal.used())
        assert torch.allclose(model(batch), before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
        assert parameters(model) < 0.4 * size
        assert macs(model, batch) < 0.4 * work


class TestUnion:
    """One weight anywhere on an edge keeps the channel, whichever layer it is in."""

    @pytest.mark.parametrize(
        ("layer", "place"),
        [
            ("stem", (2, 0, 0, 0)),
            ("conv1", (3, 2, 1, 1)),
            ("conv2", (2, 5, 0, 0)),
            ("conv3", (0, 2, 2, 2)),
            ("short", (1, 2, 0, 0)),
        ],
    )
    def test_of_all_layers_at_an_addition(self, layer, place):
        model = make(Residual)
        edges = find_edges(model, images())
        channel = int(edges.axes["stem.weight"][0][2])
        empty(model, edges, [channel])
        removal = ChannelRemoval(model, edges)
        assert (~removal.used()).nonzero().flatten().tolist() == [channel]
        with torch.no_grad():
            model.get_submodule(layer).weight[place] = 1e-30
        assert removal.used().all()

    def test_does_not_ask_norms_and_depthwise_convolutions(self):
        model = make(Inverted)
        edges = find_edges(model, images())
        empty(model, edges, edges.axes["depth.weight"][0][:2].tolist())
        assert (model.depth.weight[:2] != 0).all()
        assert (model.depth_norm.bias[:2] != 0).all()
        assert (~ChannelRemoval(model, edges).used()).sum() == 2

    @pytest.mark.parametrize(("kind", "left"), [(Residual, 4), (Inverted, 3), (Flattened, 3), (Joined, 5), (Helped, 2)])
    def test_leaves_one_channel_where_all_are_empty(self, kind, left):
        model, batch = make(kind), images()
        edges = find_edges(model, batch)
        empty(model, edges, range(edges.count))
        before = model(batch)
        removal = ChannelRemoval(model, edges)
        removal.keep(removal.used())
        assert torch.allclose(model(batch), before, atol=1e-6)
        assert all(math.prod(shape) > 0 for shape in shapes(model).values())
        assert removal.kept.sum() == left
