"""What trains with BN + bias and with TinyTL's biases, by name and by what is kept for the backward pass."""

import pytest
import torch
from torch import nn

import adabet
from adabet.errors import LayerError
from adabet.memory import measure_memory
from adabet.methods import find_method, select
from adabet.methods.bn_bias import is_bias
from tests.cases.models import SMALL, small_images, small_net, state_of
from tests.training.nets import make_loaders, make_net

CASES = {case.name: case for case in SMALL}
BATCHES = [(small_images(8, size=8), torch.arange(8) % 5)]
METHODS = ("bn-bias", "tinytl-bias")


def test_of_a_small_net():
    chosen = select("bn-bias", small_net(), BATCHES)
    assert chosen.parameters == (
        *("conv1.bias", "norm1.weight", "norm1.bias", "conv2.bias", "norm2.weight", "norm2.bias"),
        *("hidden.bias", "norm3.weight", "norm3.bias", "head.weight", "head.bias"),
    )
    assert chosen.parameter_count == 3 * 24 + 20 + 40 + 105
    biases = select("tinytl-bias", small_net(), BATCHES)
    assert set(chosen.parameters) - set(biases.parameters) == {"norm1.weight", "norm2.weight", "norm3.weight"}
    assert biases.parameter_count == chosen.parameter_count - 12 - 12 - 20


def test_norms_that_are_tied_to_a_layer_train_too():
    for method in METHODS:
        apart, tied = (select(method, small_net(), BATCHES, tie_norm=tie) for tie in (False, True))
        assert set(tied.parameters) == set(apart.parameters)


@pytest.mark.parametrize("name", CASES)
def test_of_every_library(name):
    """A second rule for the same: what torch and the libraries call a norm, and all vectors called bias."""
    model = CASES[name].build().train()
    before = state_of(model)
    head = set(select("head", model, [CASES[name].batch(2)]).parameters)
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    affine = {
        f"{path}.{leaf}"
        for path, module in model.named_modules()
        if isinstance(module, norms) or "RMSNorm" in type(module).__name__
        for leaf, _ in module.named_parameters(recurse=False)
    }
    biases = {name for name, value in model.named_parameters() if name.endswith("bias") and value.dim() == 1}
    assert set(select("bn-bias", model, [CASES[name].batch(2)]).parameters) == affine | biases | head
    assert set(select("tinytl-bias", model, [CASES[name].batch(2)]).parameters) == biases | head
    assert state_of(model) == before


def test_of_attention_and_recurrence():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(6))
            self.scale = nn.Parameter(torch.ones(6))
            self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True, batch_first=True)
            self.gru = nn.GRU(6, 4, batch_first=True)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.attention(x * self.scale + self.cls_token, x, x)[0]
            return self.head(self.gru(x)[0][:, -1])

    for method in METHODS:
        chosen = select(method, Mixed(), [torch.randn(2, 3, 6)])
        assert chosen.parameters[:-2] == (
            *("attention.in_proj_bias", "attention.out_proj.bias", "gru.bias_ih_l0", "gru.bias_hh_l0"),
        )


def test_a_bias_is_a_vector_by_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_bias = nn.Parameter(torch.zeros(3))
            self.relative_position_bias = nn.Parameter(torch.zeros(3, 2))
            self.unbiased = nn.Parameter(torch.zeros(3))

    assert [name for name, _ in Odd().named_parameters() if is_bias(Odd(), name)] == ["q_bias"]


def test_biases_keep_less_than_scales_and_scales_less_than_weights():
    def saved(method):
        selection = select(method, small_net(), BATCHES, layer_ratio=1)
        return measure_memory(small_net(), BATCHES[0], selection, inference=False).saved

    assert saved("tinytl-bias") < saved("bn-bias") < saved("full")
    # of 12 channels on 8 x 8 places, one bit an element for each of two ReLUs, and what is behind the pooling
    bits, behind = 2 * 8 * 12 * 64 // 8, 16 * 8 * 20 * 4
    assert saved("tinytl-bias") < bits + behind


@pytest.mark.parametrize("method", METHODS)
def test_fit_trains_just_them(method):
    net, (train, val) = make_net(), make_loaders()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = select(method, net, train)
    adabet.fit(net, train, val, method=method, epochs=1, seed=0, keep="last")
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(expected.parameters)


def test_a_model_without_any():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for method in METHODS:
        with pytest.raises(LayerError, match=f"norms, biases or a head for '{method}' to train"):
            select(method, model, [torch.zeros(2, 4)], head=None)


def test_are_described():
    for method in METHODS:
        assert find_method(method).kind == "selects"
        assert find_method(method).options == ()
