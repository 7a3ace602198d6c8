"""PruneTrain against plain loops over its formula, and whole runs that make a network smaller."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import adabet
from adabet.errors import CheckpointError, DataError, LayerError, OptionError, TrainingError
from adabet.methods import METHODS, Moment, Request
from adabet.methods.prune_train import kernels, prune_train, prune_train_l1
from adabet.methods.registry import optimizer_outside_a_run
from adabet.training import fit, load_delta
from tests.methods.channel_nets import Flattened, Helped, Inverted, Residual, images, make
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import KillAt


def batches(count=2, size=5):
    generator = torch.Generator().manual_seed(3)
    return [(images(size, seed), torch.randint(4, (size,), generator=generator)) for seed in range(count)]


def moment(epoch=1, step=1):
    return Moment(epoch, step, 30, 6, optimizer_outside_a_run)


def started(model, **options):
    method = prune_train(Request(model, batches()), **options)
    method.turn(moment())
    return method


def lasso_of_convolution(weight, *, inputs=True, outputs=True, scale=False):
    """The formula of one layer, channel by channel."""
    groups = []
    if outputs:
        groups += [weight[channel] for channel in range(weight.shape[0])]
    if inputs:
        groups += [weight[:, channel] for channel in range(weight.shape[1])]
    return sum(
        math.sqrt(float((group.double() ** 2).sum()) + 1e-8) * (math.sqrt(group.numel()) if scale else 1)
        for group in groups
    )


def lasso_of_residual(model, scale=False):
    dense = [model.conv1, model.conv2, model.conv3, model.conv4, model.short]
    total = sum(lasso_of_convolution(layer.weight.detach(), scale=scale) for layer in dense)
    total += lasso_of_convolution(model.stem.weight.detach(), inputs=False, scale=scale)
    return total + lasso_of_convolution(model.head.weight.detach(), outputs=False, scale=scale)


class TestPenalty:
    @pytest.mark.parametrize("ratio", [0.2, 0.3])
    @pytest.mark.parametrize("scale", [False, True])
    def test_has_its_share_of_the_first_objective(self, ratio, scale):
        model = make(Residual)
        method = started(model, penalty_ratio=ratio, scale_by_size=scale)
        inputs, labels = batches()[0]
        loss, penalty = float(F.cross_entropy(model(inputs), labels).detach()), float(method.penalty().detach())
        assert penalty / (penalty + loss) == pytest.approx(ratio, rel=1e-5)

    @pytest.mark.parametrize("scale", [False, True])
    def test_grows_as_the_formula(self, scale):
        model = make(Residual)
        method = started(model, scale_by_size=scale)
        strength = method.state_dict()["strength"]
        for _ in range(2):
            expected = strength * lasso_of_residual(model, scale)
            assert float(method.penalty().detach()) == pytest.approx(expected, rel=1e-5)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))

    def test_leaves_out_depthwise_convolutions_norms_and_biases(self):
        model = make(Inverted)
        started(model).penalty().backward()
        penalised = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert penalised == {f"{name}.weight" for name in ("stem", "expand", "squeeze", "excite", "project", "head")}

    def test_of_a_flattened_map_takes_a_channels_columns_together(self):
        model = make(Flattened)
        method = started(model)
        first, second = model.features[0].weight.detach(), model.features[3].weight.detach()
        hidden, head = model.hidden.weight.detach(), model.head.weight.detach()
        expected = (
            lasso_of_convolution(first, inputs=False)
            + lasso_of_convolution(second)
            + lasso_of_convolution(hidden.view(9, 5, 4))
            + lasso_of_convolution(head, outputs=False)
        )
        assert float(method.penalty().detach()) == pytest.approx(method.state_dict()["strength"] * expected, rel=1e-5)

    def test_has_the_formulas_gradient(self):
        model = make(Residual)
        method = started(model)
        strength = method.state_dict()["strength"]
        with torch.no_grad():
            model.conv1.weight[2] = 0  # no gradient may be lost to a root of zero
        method.penalty().backward()
        weight = model.conv1.weight.detach().double()
        rows = (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        columns = (weight.square().sum((0, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = strength * (weight / rows + weight / columns)
        assert torch.allclose(model.conv1.weight.grad.double(), expected, rtol=1e-4, atol=1e-7)

    def test_has_a_loss_of_the_users(self):
        model = make(Residual)
        plain, double = (
            started(model),
            prune_train(Request(model, batches(), loss=lambda *of: 2 * F.cross_entropy(*of))),
        )
        double.turn(moment())
        assert double.state_dict()["strength"] == pytest.approx(2 * plain.state_dict()["strength"])

    def test_looks_at_the_whole_batch_in_slices(self):
        whole, sliced = (prune_train(Request(make(Residual), batches(), micro_batch=size)) for size in (None, 2))
        whole.turn(moment())
        sliced.turn(moment())
        assert sliced.state_dict()["strength"] == pytest.approx(whole.state_dict()["strength"], rel=1e-5)


class TestTurn:
    def test_is_due_at_the_start_and_every_interval(self):
        method = started(make(Residual), interval=3)
        due = [(epoch, step) for epoch in range(1, 9) for step in (1, 2) if method.due(moment(epoch, step))]
        assert due == [(1, 1), (4, 1), (7, 1)]

    def test_trains_everything(self):
        model = make(Residual)
        selection = prune_train(Request(model, batches())).turn(moment()).selection
        assert set(selection.parameters) == set(dict(model.named_parameters()))
        assert selection.method == "prune-train"

    @pytest.mark.parametrize("kind", [Residual, Inverted, Flattened])
    def test_leaves_the_model_as_it_was_at_the_start(self, kind):
        model = make(kind).train()
        before, random = weights_of(model), torch.get_rng_state()
        flags = [
            parameter.requires_grad_(index % 2 == 0).requires_grad for index, parameter in enumerate(model.parameters())
        ]
        started(model)
        assert same(weights_of(model), before)
        assert all(module.training for module in model.modules())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), random)

    def test_removes_what_is_below_the_threshold_everywhere(self):
        model = make(Residual)
        method = started(model)
        with torch.no_grad():
            model.conv1.weight[[1, 4]], model.conv2.weight[:, [1, 4]] = 9e-5, -9e-5
            model.conv3.weight[3] = 0  # but conv4 still reads it
            model.conv3.weight[5], model.conv4.weight[:, 5] = 9e-5, 0
            model.conv4.weight[0, 5, 0, 0] = -2e-4  # negative, and large enough
        inputs, size = images(), sum(parameter.numel() for parameter in model.parameters())
        before = model(inputs)
        turn = method.turn(moment(11))
        assert model.conv1.weight.shape == (4, 8, 3, 3)
        assert model.conv2.weight.shape == (8, 4, 3, 3)
        assert model.norm1.running_mean.shape == (4,)
        assert model.conv3.weight.shape == (10, 8, 3, 3)
        assert not model.conv3.weight[5].any()
        # weights that the threshold clears move it by next to nothing
        assert torch.allclose(model(inputs), before, atol=1e-2)
        assert set(turn.follow) == {"conv1.weight", "norm1.weight", "norm1.bias", "conv2.weight"}
        momentum = torch.randn(6, 8, 3, 3)
        assert torch.equal(turn.follow["conv1.weight"](momentum), momentum[[0, 2, 3, 5]])
        assert turn.note == "2 channels removed, 2 of 36 so far"
        turn.selection.check(model)
        assert turn.selection.parameter_count == sum(parameter.numel() for parameter in model.parameters()) < size

    def test_penalty_is_that_of_what_is_left(self):
        model = make(Residual)
        method = started(model)
        strength = method.state_dict()["strength"]
        with torch.no_grad():
            model.conv1.weight[1], model.conv2.weight[:, 1] = 0, 0
        method.turn(moment(11))
        assert method.state_dict()["strength"] == strength
        assert float(method.penalty().detach()) == pytest.approx(strength * lasso_of_residual(model), rel=1e-5)

    def test_of_nothing_empty_only_clears_small_weights(self):
        model = make(Residual)
        method = started(model)
        with torch.no_grad():
            model.conv1.weight[0, 0, 0] = torch.tensor([9e-5, -9e-5, -2e-4])
            model.norm1.weight[0] = 5e-5
        before = weights_of(model)
        turn = method.turn(moment(11))
        assert not turn.follow
        assert turn.note == "no channel is empty"
        assert torch.equal(model.conv1.weight[0, 0, 0], torch.tensor([0, 0, -2e-4]))
        for name, tensor in model.state_dict().items():
            changed = tensor != before[name]
            assert (tensor[changed] == 0).all()
            assert (before[name][changed].abs() < 1e-4).all()
        assert model.norm1.weight[0] == 5e-5

    @pytest.mark.parametrize("asserted", [True, False])
    def test_is_taken_back_where_the_model_knows_better(self, asserted):
        class Counting(Residual):
            def forward(self, images):
                if self.conv1.out_channels != 6:
                    if asserted:
                        raise RuntimeError("expected six channels")
                    return super().forward(images) + 1
                return super().forward(images)

        model = make(Counting)
        method = started(model)
        with torch.no_grad():
            model.conv1.weight[1], model.conv2.weight[:, 1] = 0, 0
        before = weights_of(model)
        turn = method.turn(moment(11))
        said = "RuntimeError: expected six channels" if asserted else "other outputs"
        assert turn.note == f"1 empty channels stay, for without them the model gives {said}"
        assert not turn.follow
        assert weights_of(model).keys() == before.keys()
        assert all(tensor.shape == before[name].shape for name, tensor in model.state_dict().items())
        turn.selection.check(model)

    @pytest.mark.filterwarnings("ignore:1 layers never run")
    def test_leaves_alone_what_never_trains(self):
        model = make(Helped)
        method = started(model)
        with torch.no_grad():
            model.helper.weight.fill_(5e-5)
            model.first.weight[0], model.second.weight[:, 0] = 0, 0
        method.turn(moment(11))
        assert (model.helper.weight == 5e-5).all()
        assert model.first.out_channels == 6


class TestState:
    def test_takes_the_same_channels_out_of_a_whole_model(self):
        model = make(Inverted)
        method = started(model)
        with torch.no_grad():
            for layer in (model.expand, model.excite):
                layer.weight[2:5] = 0
            for layer in (model.squeeze, model.project):
                layer.weight[:, 2:5] = 0
        method.turn(moment(11))
        assert model.depth.groups == 9

        fresh = make(Inverted, seed=1)
        resumed = prune_train(Request(fresh, batches()))
        resumed.load_state_dict(method.state_dict())
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(images()), model(images()))
        assert torch.equal(resumed.penalty(), method.penalty())
        assert resumed.turn(moment(21)).selection == method.turn(moment(21)).selection

    def test_of_another_model_is_refused(self):
        with pytest.raises(CheckpointError, match="with 36 channels that could go, got one with 19"):
            started(make(Residual)).load_state_dict(started(make(Inverted)).state_dict())


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"penalty_ratio": 1.0}, "penalty_ratio between 0 and 1, got 1.0"),
            ({"interval": 0}, "interval of at least 1 epoch, got 0"),
            ({"threshold": math.nan}, "of at least 0, got nan"),
        ],
    )
    def test_of_options(self, options, said):
        with pytest.raises(OptionError, match=said):
            prune_train(Request(make(Residual), batches()), **options)

    def test_of_a_model_without_channels_that_could_go(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))
        with pytest.raises(LayerError, match="use the method 'prune-train-l1' or 'full'"):
            prune_train(Request(model, batches()))

    def test_of_no_batch(self):
        with pytest.raises(DataError, match="the loader is empty"):
            prune_train(Request(make(Residual), []))

    def test_of_no_labels(self):
        with pytest.raises(OptionError, match="expected a batch with labels"):
            prune_train(Request(make(Residual), [images()])).turn(moment())

    def test_of_a_loss_that_is_not_finite(self):
        model = make(Residual)
        nn.init.constant_(model.head.bias, math.inf)
        with pytest.raises(TrainingError, match="expected a finite loss"):
            prune_train(Request(model, batches())).turn(moment())

    def test_of_a_strength(self):
        with pytest.raises(OptionError, match="strength of at least 0, got -1"):
            prune_train_l1(Request(make(Residual), batches()), strength=-1)


class TestL1:
    def test_is_the_sum_over_all_kernels(self):
        model = make(Inverted)
        method = prune_train_l1(Request(model, batches()))
        names = ("stem", "expand", "depth", "squeeze", "excite", "project", "doubled", "head")
        weights = [model.get_submodule(name).weight.detach() for name in names]
        expected = 1e-4 * sum(float(weight.double().abs().sum()) for weight in weights)
        assert float(method.penalty().detach()) == pytest.approx(expected, rel=1e-5)

    def test_of_attention_takes_its_projections(self):
        layer = nn.TransformerEncoderLayer(8, 2, 12)
        layer.shared, layer.words = layer.linear1, nn.Embedding(5, 8)
        names = {id(parameter): name for name, parameter in layer.named_parameters()}
        expected = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
        assert {names[id(kernel)] for kernel in kernels(layer)} == expected
        assert len(kernels(layer)) == 4

    def test_trains_everything_once(self):
        model = make(Residual)
        method = prune_train_l1(Request(model, batches()))
        assert [epoch for epoch in range(1, 30) if method.due(moment(epoch))] == [1]
        assert set(method.turn(moment()).selection.parameters) == set(dict(model.named_parameters()))

    def test_moves_weights_as_stock_torch_does(self):
        options = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
        data = TensorDataset(*batches(1, 8)[0])
        model, other = make(Residual), make(Residual)
        fit(model, DataLoader(data, 8), method="prune-train-l1", method_options={"strength": 0.01}, epochs=3, **options)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
        weights = [parameter for parameter in other.parameters() if parameter.dim() > 1]
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(other(data.tensors[0]), data.tensors[1])
            (loss + 0.01 * sum(weight.abs().sum() for weight in weights)).backward()
            optimizer.step()
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, other.state_dict()[name], atol=1e-5)


EMPTYING = {"penalty_ratio": 0.9, "interval": 2, "threshold": 0.02}
"""A penalty that empties channels of a tiny network within a few steps."""


def train(folder=None, *, epochs=5, **options):
    model = make_net()
    result = fit(
        model,
        *make_loaders(),
        method="prune-train",
        method_options=EMPTYING,
        lr=0.05,
        epochs=epochs,
        run_dir=folder,
        **{"optimizer": "sgdw", **options},
    )
    return model, result


class StopAt(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


class TestRun:
    def test_makes_the_network_smaller(self, tmp_path):
        model, result = train(tmp_path)
        whole = make_net()
        assert model.conv2.out_channels < whole.conv2.out_channels
        assert result.history[-1].train_loss < result.history[0].train_loss
        assert all(parameter.requires_grad for parameter in model.parameters())
        load_delta(whole, tmp_path / "last.safetensors")
        assert whole.conv2.out_channels == 8
        inputs = torch.randn(4, 1, 6, 6)
        assert torch.allclose(whole.eval()(inputs), model.eval()(inputs), atol=1e-5)
        notes = [line for line in (tmp_path / "turns.jsonl").read_text().splitlines() if "channels removed" in line]
        assert notes

    @pytest.mark.parametrize("at", [(2, 3), (3, 1), (4, 2), (5, 6)])
    @pytest.mark.parametrize("optimizer", ["sgdw", "adamw"])
    def test_that_stopped_ends_with_the_same_bits(self, tmp_path, optimizer, at):
        options = {"optimizer": optimizer, "batch_norm": "train" if at[0] == 5 else "eval"}
        whole, expected = train(tmp_path / "whole", **options)
        assert whole.conv2.out_channels < 8
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", progress=StopAt(*at), **options)
        resumed, result = train(tmp_path / "stopped", resume=True, **options)
        assert same(weights_of(resumed), weights_of(whole))
        assert str(resumed) == str(whole)
        assert result.history[-1].train_loss == expected.history[-1].train_loss

    def test_steps_with_momentum_as_stock_torch_does(self):
        """The last epochs of a run, repeated by hand on the smaller network from the turn on."""
        data = TensorDataset(*batches(1, 8)[0])
        model, other = make(Residual), make(Residual)
        options = {"penalty_ratio": 0.5, "interval": 3, "threshold": 0.02}
        for net in (model, other):
            with torch.no_grad():
                net.conv1.weight[[0, 3]] *= 0.01
                net.conv2.weight[:, [0, 3]] *= 0.01
        fit(
            model,
            DataLoader(data, 8),
            method="prune-train",
            method_options=options,
            epochs=5,
            **{"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant"},
        )
        inputs, labels = data.tensors
        loss = float(F.cross_entropy(other(inputs), labels).detach())
        strength = 0.5 * loss / (lasso_of_residual(other) * 0.5)
        momentum = {name: torch.zeros_like(parameter) for name, parameter in other.named_parameters()}
        for epoch in range(1, 6):
            if epoch == 4:
                kept = self.remove_by_hand(other, momentum)
            other.zero_grad()
            (F.cross_entropy(other(inputs), labels) + strength * differentiable_lasso(other)).backward()
            with torch.no_grad():
                for name, parameter in other.named_parameters():
                    momentum[name] = 0.9 * momentum[name] + parameter.grad
                    parameter -= 0.01 * momentum[name]
        assert 0 < len(kept) < 6
        assert model.conv1.out_channels == len(kept)
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, other.state_dict()[name], atol=1e-5), name

    @staticmethod
    @torch.no_grad()
    def remove_by_hand(net, momentum):
        """Threshold, then the inner channels of the first block; nothing else gets empty in this run."""
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < 0.02] = 0
        dense = net.conv1.weight.abs().amax((1, 2, 3)) + net.conv2.weight.abs().amax((0, 2, 3))
        kept = dense.nonzero().flatten()
        for name, axis in [("conv1.weight", 0), ("norm1.weight", 0), ("norm1.bias", 0), ("conv2.weight", 1)]:
            parameter = net.get_parameter(name)
            parameter.data = parameter.data.index_select(axis, kept)
            momentum[name] = momentum[name].index_select(axis, kept)
        net.norm1.running_mean, net.norm1.running_var = net.norm1.running_mean[kept], net.norm1.running_var[kept]
        return kept

    def test_of_a_small_transformer(self):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
        data = TensorDataset(torch.randn(12, 5, 8), torch.arange(12) % 3)
        with torch.no_grad():
            layer.linear1.weight[:4] *= 1e-4
            layer.linear2.weight[:, :4] *= 1e-4
        options = {"interval": 1, "threshold": 1e-2}
        fit(model, DataLoader(data, 4), method="prune-train", method_options=options, epochs=2, lr=1e-4)
        assert layer.linear1.weight.shape == (8, 8)
        assert layer.linear2.in_features == 8

    def test_in_the_lean_mode_is_the_same(self):
        plain, lean = train(lean=False)[0], train(lean=True)[0]
        assert plain.conv2.out_channels < 8
        for name, tensor in lean.state_dict().items():
            assert torch.allclose(tensor, plain.state_dict()[name], atol=1e-4), name


def differentiable_lasso(net):
    total = 0
    for name in ("stem", "conv1", "conv2", "conv3", "conv4", "short", "head"):
        weight = net.get_submodule(name).weight
        squares = weight.flatten(2).square().sum(2) if weight.dim() > 2 else weight.square()
        for axis, left_out in ((1, "head"), (0, "stem")):
            if name != left_out:
                total = total + (squares.sum(axis) + 1e-8).sqrt().sum()
    return total


def test_both_select_everything_at_first():
    for name, (kind, seed) in itertools.product(("prune-train", "prune-train-l1"), [(Residual, 0), (Inverted, 1)]):
        model = make(kind, seed=seed)
        selection = adabet.select(name, model, batches())
        assert set(selection.parameters) == set(dict(model.named_parameters()))
        assert METHODS[name].kind == "selects again"
