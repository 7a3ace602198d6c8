"""Activations and their gradients one sample after the other, everything kept: slow, and plain autograd."""

from collections import defaultdict

import torch
from torch import nn
from torch.nn import functional as F

from adabet.layers import find_layers, forward_call
from adabet.layers.batches import tensors_of


def exchanged(output, old, new):
    if output is old:
        return new
    return tuple(exchanged(item, old, new) for item in output) if isinstance(output, tuple) else output


def kept_products(model: nn.Module, inputs, labels, layers=None):
    """Activation times gradient of each layer: ``{layer: [[product of a call, ...] of a sample, ...]}``."""
    model.eval()
    layers = layers or find_layers(model, inputs[:1])
    products = defaultdict(list)
    for sample, label in zip(inputs.split(1), labels.split(1), strict=True):
        seen = defaultdict(list)

        def keep(name, module, arguments, output, seen=seen):
            tensor = next(t for t in tensors_of(output) if t.is_floating_point())
            if not tensor.requires_grad:
                return None
            copy = tensor.clone()
            copy.retain_grad()
            seen[name].append(copy)
            return exchanged(output, tensor, copy.clone())

        handles = [
            model.get_submodule(layer.output_module).register_forward_hook(
                lambda *args, name=layer.name, keep=keep: keep(name, *args)
            )
            for layer in layers
        ]
        logits = forward_call(model, sample)
        F.cross_entropy(logits, label).backward()
        for handle in handles:
            handle.remove()
        for layer in layers:
            products[layer.name].append(
                [(call * call.grad).detach().double() for call in seen[layer.name] if call.grad is not None]
            )
    model.zero_grad()
    return layers, products


def channel_axis_first(layer, product):
    """``(channels, places)`` of one sample's product."""
    if layer.channel_axis is None:
        return product.reshape(1, -1)
    return product.movedim(layer.channel_axis, 0).flatten(1)


def slow_elementwise(layer, samples):
    """Of the layer and of each channel."""
    rows = torch.cat([channel_axis_first(layer, call) for calls in samples for call in calls], 1)
    return float(rows.square().mean() / 2), (rows.square().mean(1) / 2).tolist()


def slow_channel_sum(layer, samples):
    sums = torch.stack([sum(channel_axis_first(layer, call).sum(1) for call in calls) for calls in samples])
    channels = sums.square().sum(0) / (2 * len(samples))
    return float(channels.sum()), channels.tolist()
