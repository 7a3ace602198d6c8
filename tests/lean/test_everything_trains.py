"""Whole models: the gradients of stock autograd, and never more memory than it keeps, whatever trains."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lean.against_stock import Run, run


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        y += x
        return F.relu(y, inplace=True)


class Inverted(nn.Module):
    """An inverted residual with squeeze-and-excitation, as in MobileNet and EfficientNet."""

    def __init__(self, width: int, activation: Callable[..., Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        inner = 4 * width
        self.activation, self.gate = activation, gate
        self.up, self.depthwise = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.squeeze, self.excite = nn.Conv2d(inner, width, 1), nn.Conv2d(width, inner, 1)
        self.down = nn.Conv2d(inner, width, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norms[0](self.up(x)), inplace=True)
        y = self.activation(self.norms[1](self.depthwise(y)), inplace=True)
        y = y * self.gate(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)), inplace=True)))
        return x + self.norms[2](self.down(y))


class Gated(nn.Module):
    """A transformer layer with RMS-norm and a gated linear unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True, bias=False, dropout=0.1)
        self.up, self.gate, self.down = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def image_model(*blocks: nn.Module) -> nn.Module:
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.MaxPool2d(3, 2, 1)
    )
    return nn.Sequential(stem, *blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 16, 5))


def sequence_model(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), *layers, nn.LayerNorm(16), nn.Linear(16, 5))


def encoder_layer(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)


def plain_convolutions() -> nn.Module:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    head = [nn.Flatten(), nn.Linear(8 * 64, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 5)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(8), *head)


IMAGES, SEQUENCES = (2, 3, 16, 16), (2, 24, 3)
MODELS = {
    "residual": (lambda: image_model(Residual(8), Residual(8)), IMAGES),
    "inverted, relu6": (lambda: image_model(Inverted(8, F.relu6, torch.sigmoid)), IMAGES),
    "inverted, silu": (
        lambda: image_model(Inverted(8, F.silu, torch.sigmoid), Inverted(8, F.silu, torch.sigmoid)),
        IMAGES,
    ),
    "inverted, hardswish": (lambda: image_model(Inverted(8, F.hardswish, F.hardsigmoid)), IMAGES),
    "plain": (plain_convolutions, IMAGES),
    "pre-norm": (lambda: sequence_model(encoder_layer(norm_first=True, activation="gelu")), SEQUENCES),
    "post-norm": (lambda: sequence_model(encoder_layer(), encoder_layer()), SEQUENCES),
    "gated": (lambda: sequence_model(Gated(16), Gated(16)), SEQUENCES),
}


def everything(model: nn.Module) -> None:
    model.train().requires_grad_(True)


def everything_in_eval_mode(model: nn.Module) -> None:
    model.eval().requires_grad_(True)


def a_tenth(model: nn.Module) -> None:
    """A tenth of the modules, the last one, and batch statistics of those alone."""
    model.train().requires_grad_(False)
    modules = [module for module in model.modules() if list(module.parameters(recurse=False))]
    chosen = {*random.Random(1).sample(modules[:-1], max(1, len(modules) // 10)), modules[-1]}
    for module in modules:
        if module in chosen:
            module.requires_grad_(True)
        elif isinstance(module, nn.BatchNorm2d):
            module.eval()


def norms_alone(model: nn.Module) -> None:
    model.train().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.RMSNorm):
            module.requires_grad_(True)


def biases_alone(model: nn.Module) -> None:
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


STATES = [everything, everything_in_eval_mode, a_tenth, norms_alone, biases_alone]


def in_stock_and_in_lean(model: nn.Module, x: Tensor) -> list[Run]:
    """The same step twice, from the same buffers."""
    held = [*model.parameters(), *model.buffers(), x]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = []
    for in_lean in (False, True):
        model.load_state_dict(before)
        runs.append(run(lambda x: model(x).square(), [x], in_lean=in_lean, parameters=held))
    return runs


def assert_gradients_agree(thin: Run, stock: Run) -> None:
    torch.testing.assert_close(thin.output, stock.output, rtol=1e-4, atol=1e-5)
    largest = max(float(each.abs().max()) for each in stock.gradients if each is not None)
    for mine, its in zip(thin.gradients, stock.gradients, strict=True):
        assert (mine is None) == (its is None)
        if its is not None:
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_lean_keeps_no_more_than_stock(make, shape, state, channels_last: bool) -> None:
    torch.manual_seed(12)
    model, x = make(), torch.randn(shape)
    state(model)
    if (channels_last and shape != IMAGES) or not any(parameter.requires_grad for parameter in model.parameters()):
        pytest.skip("nothing to see")
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    stock, thin = in_stock_and_in_lean(model, x)
    assert_gradients_agree(thin, stock)
    assert thin.kept <= stock.kept


# Published models, and the side of the images that they see here.
PUBLISHED = {
    "resnet50": 64,
    "mobilenetv2_100": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_100": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "nfnet_l0": 64,
    "mobilevit_xs": 64,
    "swin_tiny_patch4_window7_224": 224,
    "vit_tiny_patch16_224": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("state", [everything, everything_in_eval_mode, a_tenth])
@pytest.mark.parametrize(("name", "side"), PUBLISHED.items())
def test_lean_keeps_no_more_than_stock_of_published_models(name: str, side: int, state) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(13)
    # In float64: statistics of a few pixels blow up the least difference in rounding.
    model = timm.create_model(name, pretrained=False, num_classes=7).double()
    state(model)
    stock, thin = in_stock_and_in_lean(model, torch.randn(2, 3, side, side).double())
    assert_gradients_agree(thin, stock)
    assert thin.kept <= stock.kept
