"""The papers' formulas against their published numbers and networks worked by hand."""

import pytest
import torch
from torch import Tensor, nn

from adabet.errors import CheckpointError, OptionError, UnknownNameError
from adabet.memory import MemoryEstimate, estimate_memory, keras_network
from adabet.memory.keras_order import keras_order
from adabet.memory.operations import trace_operations

MB = 1e6
PHOTO = (1, 3, 224, 224)

# Network, which layers train, classes of the head that fit, this rule and what the paper's table 3 says, in MB.
TABLE_3 = [
    ("resnet50", "none", 37, 243.04, 243.04),
    ("resnet50", "all", 37, 777.12, 777.12),
    ("resnet50", "head", 37, 243.31, 243.30),
    ("mobilenet_v2", "none", 37, 315.86, 315.86),
    ("mobilenet_v2", "all", 37, 373.58, 373.58),
    ("mobilenet_v2", "head", 37, 316.02, 316.02),
    ("vgg16", "none", 37, 932.21, 932.21),
    ("vgg16", "all", 120, 988.77, 988.77),
    ("vgg16", "head", 37, 932.28, 932.27),
    ("vit_b16", "none", 37, 86.27, 86.26),
    ("vit_b16", "all", 37, 386.66, 386.60),
    ("vit_b16", "head", 37, 86.37, 86.46),
]


@pytest.mark.parametrize(("name", "train", "classes", "rule", "published"), TABLE_3)
def test_table_3_of_the_paper(name: str, train: str, classes: int, rule: float, published: float) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    model = keras_network(name, classes=classes).requires_grad_(train == "all")
    if train == "head":
        *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
        head.requires_grad_(True)
    estimate = estimate_memory(model, torch.zeros(PHOTO), convention="adabet_table3")
    assert estimate.total / MB == pytest.approx(rule, abs=0.0051)
    assert estimate.total / MB == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize(
    ("name", "inference", "full"),
    [("resnet50", 63.21, 754.71), ("mobilenet_v2", 46.11, 324.41), ("vgg16", 212.89, 352.77)],
)
def test_table_3_with_the_batch_counted_once(name: str, inference: float, full: float) -> None:
    """With a batch of one the rule's slip does nothing, so its activations are those of one sample."""
    pytest.importorskip("torchvision")
    for trains, expected in ((False, inference), (True, full)):
        model = keras_network(name, classes=37).requires_grad_(trains)
        estimate = estimate_memory(model, torch.zeros(PHOTO), convention="adabet_table3", batch_size=1)
        assert (8 * estimate.activations + estimate.parameters) / MB == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 25_636_712),
        ("mobilenet_v2", 3_538_984),
        ("vgg16", 14_714_688 + 512 * 1000 + 1000),
        ("vit_b16", 86_567_656),
    ],
)
def test_the_networks_have_as_many_parameters_as_keras_says(name: str, parameters: int) -> None:
    """Batch-norm statistics included, as Keras counts; the vision transformer's is timm's number."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    model = keras_network(name, classes=1000)
    tensors = (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point()))
    assert sum(tensor.numel() for tensor in tensors) == parameters


class Block(nn.Module):
    """A residual block as torchvision names it."""

    use_res_connect = True

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Small(nn.Module):
    """8 x 8 pixels, worked by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.swish = nn.Hardswish()
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.block(self.swish(self.stem(x)))).flatten(1))


PIXELS = 64
STEM, BLOCK, HEAD = 4 * 27 + 4, 4 * 9 + 8, 25


def small_estimate(trained: str, **options: int) -> MemoryEstimate:
    model = Small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained.split())))
    return estimate_memory(model, torch.zeros(2, 3, 8, 8), **options)


def test_tinytl_when_all_trains() -> None:
    estimate = small_estimate("stem block head")
    stem, swish, conv, norm, relu = 3 * PIXELS * 4, 4 * PIXELS * 4, 4 * PIXELS * 4, 4 * PIXELS * 4, 4 * PIXELS / 8
    residual = 4 * PIXELS * 4
    assert estimate.saved == 8 * (stem + swish + conv + norm + relu + 16)
    # The ReLU: its input, the block's input beside it, and what was kept before.
    assert estimate.activations == 8 * (stem + swish + conv + norm + 4 * PIXELS * 4 + residual)
    assert estimate.peak_at == "block.act"
    assert estimate.parameters == 4 * (STEM + BLOCK + HEAD)
    assert estimate.total == estimate.parameters + estimate.activations


def test_tinytl_when_the_head_trains() -> None:
    estimate = small_estimate("head", batch_size=1)
    # Masks and smooth activations count wherever they are, as soon as anything trains.
    assert estimate.saved == 4 * PIXELS * 4 + 4 * PIXELS / 8 + 16
    # The depthwise convolution: input, an output a group, the block's input, and the swish's input kept before.
    assert estimate.activations == 4 * PIXELS * 4 + 4 * PIXELS * 4 // 4 + 2 * 4 * PIXELS * 4
    assert estimate.peak_at == "block.conv"
    assert estimate.parameters == STEM + BLOCK + 4 * HEAD


def test_tinytl_for_inference() -> None:
    estimate = small_estimate("nothing")
    assert estimate.saved == 0
    assert estimate.activations == 8 * (4 * PIXELS * 4 + 4 * PIXELS * 4 // 4 + 4 * PIXELS * 4)


def test_frozen_bits() -> None:
    assert small_estimate("head", frozen_bits=32).parameters == 4 * (STEM + BLOCK + HEAD)
    assert small_estimate("head", frozen_bits=8).parameters == small_estimate("head").parameters


def test_tinytl_keeps_a_norms_input_only_if_it_trains() -> None:
    assert small_estimate("block.norm").saved - small_estimate("block.conv").saved == 0
    both, one = small_estimate("block"), small_estimate("block.norm")
    assert both.saved - one.saved == 8 * 4 * PIXELS * 4


class Branches(nn.Module):
    """A shortcut with a layer of its own, computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        long = self.second(self.first(x).relu())
        long += self.shortcut(x)
        return long


def test_operations_know_where_their_inputs_come_from() -> None:
    operations = trace_operations(Branches(), torch.zeros(3, 2))
    makers = {found.name: [operations[number].name for number in found.inputs] for found in operations}
    assert makers == {
        "input": [],
        "unused": ["input"],
        "first": ["input"],
        "relu": ["first"],
        "second": ["relu"],
        "shortcut": ["input"],
        "__iadd__": ["second", "shortcut"],
    } or makers.pop("add_") == ["second", "shortcut"]


def test_keras_sorts_by_depth_and_leaves_out_what_leads_nowhere() -> None:
    names = [found.name for found in keras_order(trace_operations(Branches(), torch.zeros(3, 2)))]
    assert names[:3] == ["input", "first", "relu"]
    assert set(names[3:5]) == {"second", "shortcut"}
    assert len(names) == 6


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Small().train()
    model.block.eval()
    before = [buffer.clone() for buffer in model.buffers()]
    trace_operations(model, torch.zeros(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, True, False, False, False, False, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(now, old) for now, old in zip(model.buffers(), before, strict=True))


def test_text_and_json() -> None:
    estimate = small_estimate("head")
    assert str(estimate) == ("26.9 kB by tinytl, batch 8: 256 B parameters, 26.6 kB activations (peak at block.conv)")
    assert MemoryEstimate.from_json(estimate.to_json()) == estimate
    with pytest.raises(CheckpointError, match="lacks or misnames"):
        MemoryEstimate.from_json(estimate.to_json().replace("saved", "spared"))


def test_what_makes_no_sense() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tinytl'"):
        small_estimate("head", convention="tinyml")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="frozen_bits of at least 1, got 0"):
        small_estimate("head", frozen_bits=0)
    with pytest.raises(UnknownNameError, match="unknown network 'resnet'"):
        keras_network("resnet", classes=2)
