"""Base weights plus delta are the adapted model; anything else is refused whole."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from adabet.errors import CheckpointError, SelectionError
from adabet.training import load_delta, save_delta
from adabet.training.weights import BufferWatch
from tests.training.nets import choose_last, make_net, same, weights_of


@pytest.fixture
def adapted():
    """A net whose last layers moved as if they had been trained."""
    model = make_net()
    selection = choose_last(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in selection.parameters or name.startswith("norm2.running"):
                tensor.add_(torch.randn(tensor.shape))
    return model, selection


def held(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_base_plus_delta_is_the_adapted_model(adapted, tmp_path):
    model, selection = adapted
    save_delta(model, selection, tmp_path / "delta")
    base = make_net()
    assert load_delta(base, tmp_path / "delta") == selection
    assert same(weights_of(base), weights_of(model))


def test_only_what_moved_is_held(adapted, tmp_path):
    model, selection = adapted
    changed = BufferWatch.of(make_net()).changed(model)
    assert set(changed) == {"norm2.running_mean", "norm2.running_var"}
    save_delta(model, selection, tmp_path / "delta", buffers=changed)
    assert held(tmp_path / "delta") == {*selection.parameters, *changed}
    assert not any(name.startswith(("conv1", "norm1")) for name in held(tmp_path / "delta"))


def test_the_delta_of_another_model_is_not_saved(adapted, tmp_path):
    _, selection = adapted
    with pytest.raises(SelectionError):
        save_delta(nn.Linear(3, 2), selection, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def other_classes():
    return make_net(classes=7)


def other_dtype():
    return make_net().bfloat16()


def other_base():
    model = make_net()
    with torch.no_grad():
        model.conv1.weight[3, 0, 1, 2] += 1e-3
    return model


def lacks_a_layer():
    model = make_net()
    model.norm2 = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_classes, r"head.bias of shape \(4,\), in the model it has shape \(7,\); .* as many classes"),
        (other_dtype, r"as torch.float32, in the model it is torch.bfloat16; convert the model before"),
        (other_base, "was made on other base weights"),
        (lacks_a_layer, r"holds norm2\.\w+, which Net does not have"),
    ],
)
def test_a_model_that_does_not_fit_is_left_alone(adapted, tmp_path, make, message):
    model, selection = adapted
    save_delta(model, selection, tmp_path / "delta")
    other = make()
    before = weights_of(other)
    with pytest.raises(CheckpointError, match=message):
        load_delta(other, tmp_path / "delta")
    assert same(weights_of(other), before)


def test_a_damaged_delta(adapted, tmp_path):
    model, selection = adapted
    save_delta(model, selection, tmp_path / "delta")
    content = (tmp_path / "delta").read_bytes()
    (tmp_path / "delta").write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match="is not a whole file of tensors"):
        load_delta(make_net(), tmp_path / "delta")


def test_tied_weights_are_held_once(tmp_path):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
        model[2].weight = model[0].weight
        return model

    model = make()
    selection = choose_last_of(model)
    with torch.no_grad():
        for name in selection.parameters:
            model.get_parameter(name).mul_(2)
    save_delta(model, selection, tmp_path / "delta")
    base = make()
    load_delta(base, tmp_path / "delta")
    assert same(weights_of(base), weights_of(model))
    assert base[2].weight is base[0].weight


def choose_last_of(model):
    from adabet.methods import select

    return select("last-k", model, [torch.tensor([[1, 2]])], layer_ratio=1.0, seed=0)
