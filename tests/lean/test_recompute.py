"""Recomputed blocks give the gradients of an ordinary pass and keep less."""

from contextlib import nullcontext

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional as F

from adabet import lean
from adabet.errors import LayerError
from adabet.lean.recompute import recomputing, repeated_blocks
from adabet.memory import measure_memory, measure_peak

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=5, depth=4, drop_rate=0.1, proj_drop_rate=0.1
    )


@pytest.mark.parametrize(
    ("build", "first", "count"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "blocks.0", 12),
        (lambda: timm.create_model("resnet18"), "layer1.0", 8),
        (lambda: timm.create_model("mobilenetv2_100"), "blocks.1.0", 15),
        (lambda: torchvision.models.swin_t(), "features.1.0", 15),
        (
            lambda: transformers.BertModel(
                transformers.BertConfig(
                    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9
                )
            ),
            "encoder.layer.0",
            3,
        ),
    ],
)
def test_blocks_are_found_by_structure(build, first, count):
    blocks = repeated_blocks(build())
    assert blocks[0] == first
    assert len(blocks) == count


def gradients(model, *, recompute, lean_mode=True):
    model.zero_grad()
    torch.manual_seed(3)
    with lean() if lean_mode else nullcontext():
        if recompute:
            with recomputing(model, lean_mode=lean_mode):
                loss = F.cross_entropy(model(IMAGE), torch.tensor([0, 1]))
        else:
            loss = F.cross_entropy(model(IMAGE), torch.tensor([0, 1]))
    loss.backward()
    return {name: item.grad for name, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("lean_mode", [True, False])
def test_gradients_are_those_of_an_ordinary_pass_dropout_included(lean_mode):
    model = vit().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks.1.attn", "blocks.3.mlp", "head")))
    plain = gradients(model, recompute=False, lean_mode=lean_mode)
    again = gradients(model, recompute=True, lean_mode=lean_mode)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


def test_nothing_before_the_first_trainable_block_is_recomputed():
    model = vit().train()
    calls = [0] * 4
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("blocks.2"))
    gradients(model, recompute=True)
    assert calls == [1, 1, 2, 2]


def test_it_needs_less_memory_and_leaves_the_model_as_it_was():
    model = timm.create_model("vit_tiny_patch16_224", img_size=128, depth=6).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    images = torch.randn(4, 3, 128, 128)

    def step(context):
        with lean(), context:
            model(images).sum().backward()
        model.zero_grad()

    plain = measure_peak(lambda: step(nullcontext()))
    assert measure_peak(lambda: step(recomputing(model))) < 0.5 * plain
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_model_without_repeated_blocks_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(LayerError, match="no repeated blocks"), recomputing(model):
        pass


@pytest.mark.parametrize("before", ["bert.encoder.layer.1.output.LayerNorm", "bert.embeddings.LayerNorm"])
def test_both_passes_keep_the_same_whatever_came_before_a_block(before):
    """A linear layer may save, in place of its input, what the norm before it keeps; in a second pass there is none."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    config = transformers.BertConfig(num_hidden_layers=3, **sizes)
    model = transformers.BertForSequenceClassification(config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith((before, "bert.encoder.layer.2.attention.self")))
    batch = {"input_ids": torch.randint(0, 50, (2, 8)), "labels": torch.tensor([0, 1])}
    plain, again = (measure_memory(model, batch, recompute=recompute, inference=False) for recompute in (False, True))
    assert again.saved < plain.saved
