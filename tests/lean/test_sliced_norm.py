"""A batch-norm of which a slice trains keeps that slice of its input, and has stock autograd's gradients."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from adabet import lean
from adabet.freezing import slice_module

CHANNELS = (1, 4, 5)


def norm_with_statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm.eval()


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_stock_autograds(axis, layout):
    whole, sliced = norm_with_statistics(), norm_with_statistics()
    handle = slice_module(sliced, CHANNELS, axis=axis)
    x = torch.randn(3, 8, 5, 6).to(memory_format=layout)
    upstream = torch.randn(3, 8, 5, 6).to(memory_format=layout)
    stock_x, lean_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    stock = whole(stock_x)
    stock.backward(upstream)
    with lean():
        y = sliced(lean_x)
    y.backward(upstream)
    assert torch.equal(y, stock)
    torch.testing.assert_close(lean_x.grad, stock_x.grad, rtol=1e-6, atol=1e-7)
    for name, part in handle.parameters.items():
        expected = getattr(whole, name).grad[list(CHANNELS)]
        torch.testing.assert_close(part.grad, expected, rtol=1e-5, atol=1e-5)


def test_only_the_slice_of_the_input_is_kept():
    norm = norm_with_statistics()
    slice_module(norm, CHANNELS, axis="out")
    x = torch.randn(3, 8, 5, 6, requires_grad=True)
    saved = []
    with lean(), saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        norm(x)
    large = [tensor.numel() for tensor in saved if tensor.dim() == 4]
    assert large == [3 * len(CHANNELS) * 5 * 6]


def test_a_slice_of_the_scale_alone_is_right_too():
    whole, sliced = norm_with_statistics(), norm_with_statistics()
    handle = slice_module(sliced, CHANNELS, axis="out", parameters=["weight"])
    x = torch.randn(3, 8, 5, 6)
    whole(x).square().sum().backward()
    with lean():
        y = sliced(x)
    y.square().sum().backward()
    expected = whole.weight.grad[list(CHANNELS)]
    torch.testing.assert_close(handle.parameters["weight"].grad, expected, rtol=1e-5, atol=1e-5)
