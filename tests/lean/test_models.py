"""Whole networks: lean gradients are stock's, and no more is kept, whatever trains."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adabet.freezing import slice_module
from adabet.lean import lean
from tests.lean.against_stock import kept_bytes

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def from_timm(name: str, size: int = 32, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        model = timm.create_model(name, num_classes=7, drop_rate=0.1, **options)
        return model, torch.randn(2, 3, size, size)

    return make


def bert() -> tuple[nn.Module, Any]:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=50, num_labels=3
    )
    tokens = torch.randint(0, 50, (2, 12))
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens}


def vit() -> tuple[nn.Module, Any]:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, num_labels=3
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 12, 32)


MODELS = {
    "resnet18": from_timm("resnet18"),
    "resnet50": from_timm("resnet50", 64),
    "mobilenetv2": from_timm("mobilenetv2_100", 64),
    "mobilenetv3 small": from_timm("mobilenetv3_small_100", 64),
    "efficientnet b0": from_timm("efficientnet_b0", 64, drop_path_rate=0.1),
    "regnet": from_timm("regnetx_002", 64),
    "convnext": from_timm("convnext_atto", drop_path_rate=0.1),
    "swin": from_timm(
        "swin_tiny_patch4_window7_224",
        64,
        img_size=64,
        window_size=4,
        embed_dim=24,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
    ),
    "vit tiny": from_timm("vit_tiny_patch16_224", 96, img_size=96, depth=4, drop_path_rate=0.1, attn_drop_rate=0.1),
    "transformers bert": bert,
    "transformers vit": vit,
    "torch encoder": encoder,
}
SLOW_MODELS = {"vgg11": from_timm("vgg11")}
ALL = [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MODELS)]


def build(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, batch = {**MODELS, **SLOW_MODELS}[name]()
    model.train()
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:  # scales start at 0 or nearly so in many a network, and let no gradient through
            nn.init.uniform_(parameter, *((-0.1, 0.1) if "bias" in key else (0.7, 1.0)))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, batch


def train_a_tenth(model: nn.Module) -> None:
    """The layers that ``random.Random(1)`` picks: a tenth of those with parameters of their own, and the last."""
    model.requires_grad_(False)
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    for layer in [*random.Random(1).sample(layers, max(1, len(layers) // 10)), layers[-1]]:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(True)


def step(model: nn.Module, batch: Any, *, in_lean: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Output and gradients of one training step, and the bytes kept in between."""
    model.zero_grad()
    torch.manual_seed(2)
    free = [*model.parameters(), *model.buffers()]
    with lean() if in_lean else nullcontext():
        result, kept = kept_bytes(lambda: model(**batch) if isinstance(batch, dict) else model(batch), free)
    output = result.logits if hasattr(result, "logits") else result
    output.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients, kept


def assert_equal_steps(model: nn.Module, batch: Any) -> tuple[int, int]:
    """Compare a lean step to a stock one; the bytes that each keeps."""
    output, stock, kept_by_stock = step(model, batch, in_lean=False)
    lean_output, mine, kept = step(model, batch, in_lean=True)
    torch.testing.assert_close(lean_output, output, rtol=1e-4, atol=1e-5)
    assert mine.keys() == stock.keys()
    assert relative_error(mine, stock) < 1e-4
    return kept_by_stock, kept


def relative_error(mine: dict[str, Tensor], stock: dict[str, Tensor]) -> float:
    """The largest, over the parameters, of the norm of the difference to that of the gradient, which must not vanish.

    A softmax does not change if all keys are shifted alike, so the gradient of their bias is rounding alone.
    """
    errors = []
    for name, gradient in stock.items():
        if not name.endswith("key.bias"):
            assert gradient.any(), name
            errors.append((mine[name] - gradient).norm() / gradient.norm())
    return max(errors).item()


@pytest.mark.parametrize("name", ALL)
def test_a_random_tenth_trains_alike_and_keeps_less(name: str) -> None:
    model, batch = build(name)
    train_a_tenth(model)
    stock, mine = assert_equal_steps(model, batch)
    assert mine < stock


@pytest.mark.parametrize("name", MODELS)
def test_everything_trains_alike_and_keeps_no_more(name: str) -> None:
    model, batch = build(name)
    stock, mine = assert_equal_steps(model, batch)
    assert mine <= stock


@pytest.mark.parametrize("name", ["resnet18", "efficientnet b0", "vit tiny", "transformers bert"])
def test_autocast_trains_alike_and_keeps_less(name: str) -> None:
    model, batch = build(name)
    train_a_tenth(model)
    with torch.autocast("cpu", torch.bfloat16):
        output, stock, kept_by_stock = step(model, batch, in_lean=False)
        lean_output, mine, kept = step(model, batch, in_lean=True)
    torch.testing.assert_close(lean_output, output, rtol=0.05, atol=0.05)
    assert relative_error(mine, stock) < 0.05
    assert kept < kept_by_stock


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "vit tiny", "transformers bert"])
def test_slices_train_alike_and_keep_no_more_than_whole_layers(name: str, axis: str) -> None:
    model, batch = build(name)
    train_a_tenth(model)
    _, _, kept_by_whole = step(model, batch, in_lean=True)
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            count = module.weight.shape[0] if axis == "out" else module.weight.shape[1] * getattr(module, "groups", 1)
            slice_module(module, range(0, count, 4), axis=axis)
    stock, mine = assert_equal_steps(model, batch)
    assert mine < stock
    assert mine < kept_by_whole if axis == "in" else mine <= kept_by_whole
