from dataclasses import replace

import pytest
import torch
from torch import nn

from adabet.errors import OptionError, SelectionError
from adabet.freezing import apply
from adabet.methods import select
from adabet.selection import Selection
from tests.cases.models import SMALL, SmallNet, digest, small_images, small_net, state_of

IMAGES = small_images(16, size=8)


def choose(*names, model=None, **options):
    """A selection of layers by name."""
    full = select("full", model or small_net(), [IMAGES], **options)
    chosen = tuple(choice for choice in full.choices if choice.layer in names or choice.head)
    return Selection("test", chosen, full.fingerprint, full.candidates)


def train(model, steps=3, lr=0.1):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def state_dict(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("names", [("conv1",), ("hidden", "norm3"), ("norm1",), ()])
@pytest.mark.parametrize("as_context", [True, False])
def test_only_the_selection_trains(names, as_context):
    model = small_net()
    before = state_dict(model)
    chosen = choose(*names)
    applied = apply(model, chosen)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(chosen.parameters)
    if as_context:
        with applied:
            train(model)
    else:
        train(model)
    assert changed(model, before) == set(chosen.parameters)
    applied.restore()
    assert changed(model, before) == set(chosen.parameters)
    assert all(parameter.requires_grad for parameter in model.parameters())


class TestRestore:
    @pytest.mark.parametrize("case", [case for case in SMALL if "swin" in case.name or "resnet" in case.name], ids=str)
    @pytest.mark.parametrize("training", [True, False])
    def test_everything_is_as_it_was(self, case, training):
        model = case.build().train(training)
        parameters = list(model.parameters())
        parameters[0].requires_grad_(False)
        next(module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)).eval()
        before = state_of(model)
        chosen = select("last-k", model, [case.batch(2)], layer_ratio=0.3)
        with apply(model, chosen):
            assert state_of(model) != before
        assert state_of(model) == before
        assert all(left is right for left, right in zip(parameters, model.parameters(), strict=True))

    def test_also_after_an_error(self):
        model = small_net()
        before = state_of(model)
        with pytest.raises(KeyError), apply(model, choose("conv1")):
            raise KeyError
        assert state_of(model) == before

    def test_twice_is_once(self):
        model = small_net()
        applied = apply(model, choose("conv1"))
        applied.restore()
        model.conv1.weight.requires_grad_(False)
        applied.restore()
        assert not model.conv1.weight.requires_grad

    def test_a_model_that_went_into_eval_mode_meanwhile_stays_there(self):
        model = small_net().train()
        with apply(model, choose("conv1")):
            train(model)
            model.eval()
            expected = model(IMAGES)
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(IMAGES), expected)

    def test_a_model_that_went_into_train_mode_meanwhile_is_in_it_whole(self):
        model = small_net().eval()
        with apply(model, choose("conv1")):
            train(model)
        assert all(module.training for module in model.modules())

    def test_nested(self):
        model = small_net()
        before = state_of(model)
        with apply(model, choose("conv1", "norm1")):
            outer = state_of(model)
            with apply(model, choose("hidden")) as inner:
                assert {n for n, p in model.named_parameters() if p.requires_grad} == set(inner.selection.parameters)
            assert state_of(model) == outer
            buffers = digest(*model.buffers())
            train(model)
            assert digest(*model.buffers()) == buffers
        assert state_of(model).hooks == before.hooks
        assert state_of(model).requires_grad == before.requires_grad


class TestBatchNorms:
    @pytest.mark.parametrize("names", [(), ("norm1",)])
    def test_use_and_keep_their_running_statistics(self, names):
        model, reference = small_net(), small_net().eval()
        buffers = digest(*model.buffers())
        with apply(model, choose(*names)):
            for mode in (True, False, True):
                model.train(mode)
                model.drop.eval()
                assert torch.equal(model(IMAGES), reference(IMAGES))
                assert not model.norm1.training
                assert not model.norm2.training
            train(model)
        assert digest(*model.buffers()) == buffers

    def test_scale_and_shift_of_a_chosen_one_train(self):
        model = small_net()
        with apply(model, choose("norm1")):
            before = state_dict(model)
            train(model)
            assert {"norm1.weight", "norm1.bias"} <= changed(model, before)

    def test_chosen_ones_update_their_statistics_if_asked(self):
        model = small_net()
        before = state_dict(model)
        with apply(model, choose("norm1"), batch_norm="train"):
            train(model)
            assert model.norm1.training
            assert not model.norm2.training
        statistics = {f"norm1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
        assert changed(model, before) & {name for name, _ in model.named_buffers()} == statistics

    def test_other_modules_follow_the_model(self):
        model = small_net()
        with apply(model, choose("conv1")):
            model.train()
            assert model.drop.training
            assert model.norm3.training
            model.eval()
            assert not model.drop.training

    def test_micro_batches_are_exact(self):
        model = small_net()
        model.drop.p = 0.0
        with apply(model, choose("conv1", "norm1", "conv2")):
            model.train()
            model(IMAGES).square().sum().backward()
            whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
            model.zero_grad()
            for part in IMAGES.split(5):
                model(part).square().sum().backward()
            for gradient, parameter in zip(whole, [p for p in model.parameters() if p.requires_grad], strict=True):
                assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("value", ["frozen", "", None, True])
    def test_of_no_kind(self, value):
        with pytest.raises(OptionError, match="batch_norm to be 'eval' or 'train', got"):
            apply(small_net(), choose("conv1"), batch_norm=value)


class TestSlices:
    @pytest.mark.parametrize("axis", ["out", "in"])
    @pytest.mark.parametrize("tie_norm", [False, True])
    def test_train_only_themselves(self, axis, tie_norm):
        model = small_net()
        chosen = select("adabet", model, [IMAGES], layer_ratio=1, channel_ratio=0.4, axis=axis, tie_norm=tie_norm)
        before = state_dict(model)
        with apply(model, chosen):
            train(model)
        difference = {name: model.state_dict()[name] != tensor for name, tensor in before.items()}
        for choice in chosen.choices:
            if choice.head:
                continue
            for name in choice.parameters:
                own = name.startswith(choice.layer + ".")
                if axis == "out" or choice.kind == "norm":
                    moved = difference[name].flatten(1).any(1) if difference[name].dim() > 1 else difference[name]
                elif own and difference[name].dim() > 1 and choice.layer != "conv2":
                    moved = difference[name].transpose(0, 1).flatten(1).any(1)
                elif own and difference[name].dim() > 1:
                    moved = difference[name].flatten(1).any(1)  # depthwise: its input channels are its rows
                else:
                    continue  # a bias, or a tied norm, has no input channels: it trains whole
                assert set(moved.nonzero().flatten().tolist()) <= set(choice.channels), name
                if name.startswith("hidden"):
                    assert moved.any()

    def test_leave_no_trace(self):
        model = small_net()
        parameters = dict(model.named_parameters())
        before = state_of(model)
        chosen = select("adabet", model, [IMAGES], layer_ratio=1, channel_ratio=0.4)
        with apply(model, chosen):
            assert state_of(model) != before
        assert state_of(model) == before
        assert all(parameters[name] is parameter for name, parameter in model.named_parameters())

    def test_that_do_not_fit_leave_no_trace(self):
        model = small_net()
        before = state_of(model)
        chosen = select("adabet", model, [IMAGES], layer_ratio=1, channel_ratio=0.4)
        *good, _ = chosen.choices
        broken = replace(good[-1], channels=(999,))
        wrong = Selection("test", (*good[:-1], broken, chosen.choices[-1]), chosen.fingerprint, chosen.candidates)
        with pytest.raises(SelectionError, match="between 0 and 19"):
            apply(model, wrong)
        assert state_of(model) == before


class TestOtherModels:
    def test_are_refused_and_left_alone(self):
        class Other(SmallNet):
            def __init__(self):
                super().__init__()
                self.more = nn.Linear(2, 2)

        model = Other()
        before = state_of(model)
        with pytest.raises(SelectionError, match="made for another model"):
            apply(model, choose("conv1"))
        assert state_of(model) == before

    def test_with_another_head_are_welcome(self):
        model = SmallNet(31)
        with apply(model, choose("conv1", model=SmallNet(5))):
            assert model.head.weight.requires_grad
            assert not model.hidden.weight.requires_grad

    def test_tied_weights(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
                self.second.weight = self.first.weight

            def forward(self, x):
                return self.head(self.second(self.first(x)))

        model = Tied()
        chosen = select("size", model, [torch.zeros(2, 4)], layer_ratio=0.5)
        assert chosen.layers == ("first",)
        with apply(model, chosen):
            assert model.second.weight.requires_grad
            assert not model.second.bias.requires_grad


def test_selections_applied_one_inside_the_other_come_off_in_turn():
    model = small_net().train()
    before = state_of(model)
    with apply(model, choose("conv1")):
        within = state_of(model)
        with apply(model, choose("hidden")):
            model.train()
            assert not model.norm1.training
        assert state_of(model) == within
        model.train()
        assert not model.norm1.training, "the outer one still keeps it in eval mode"
    assert state_of(model) == before
    assert model.eval().train().norm1.training
