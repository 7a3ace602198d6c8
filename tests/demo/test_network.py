"""The demo's network and the checkpoint that the package ships."""

import pytest
import torch

from adabet.demo import network
from adabet.demo.digits import load_part, user_conditions
from adabet.demo.network import WEIGHTS, demo_model, save_weights
from adabet.errors import CheckpointError, OptionError


@torch.no_grad()
def accuracy(model, images, labels):
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def test_checkpoint_reads_the_held_out_digits_as_the_script_says():
    test = load_part("test")
    assert accuracy(demo_model(), test.images, test.labels) >= 0.99


def test_the_users_conditions_break_the_reader():
    test = load_part("test")
    assert 0.35 <= accuracy(demo_model(), user_conditions(test.images), test.labels) <= 0.45


def test_checkpoint_is_small_and_plain():
    assert WEIGHTS.stat().st_size < 200_000
    assert WEIGHTS.suffix == ".safetensors"


def test_another_number_of_classes_has_a_fresh_head_on_the_same_features():
    ten, four = demo_model(), demo_model(4)
    assert four.head.out_features == 4
    assert torch.equal(four.block4.conv2.weight, ten.block4.conv2.weight)
    assert torch.equal(four.stem.norm.running_mean, ten.stem.norm.running_mean)


def test_without_pretraining_the_seed_decides():
    torch.manual_seed(3)
    first = demo_model(pretrained=False)
    torch.manual_seed(3)
    second = demo_model(pretrained=False)
    assert torch.equal(first.block2.conv1.weight, second.block2.conv1.weight)
    assert not torch.equal(first.block2.conv1.weight, demo_model().block2.conv1.weight)


def test_network_has_the_layers_and_parameters_that_it_says():
    model = demo_model()
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    assert len(layers) == 25
    assert sum(parameter.numel() for parameter in model.parameters()) == 67_978


def test_saved_weights_come_back_to_half_precision(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = demo_model(pretrained=False)
    monkeypatch.setattr(network, "WEIGHTS", tmp_path / "weights.safetensors")
    save_weights(model, network.WEIGHTS)
    loaded = demo_model().state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.allclose(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_damaged_checkpoint_is_an_error_that_says_so(tmp_path, monkeypatch):
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:1000])
    monkeypatch.setattr(network, "WEIGHTS", damaged)
    with pytest.raises(CheckpointError, match="reinstall"):
        demo_model()


def test_classes_below_one_are_refused():
    with pytest.raises(OptionError, match="num_classes"):
        demo_model(0)
