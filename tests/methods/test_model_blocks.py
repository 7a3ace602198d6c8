"""Stem, blocks and rest: every layer once, as a reader of the model would divide it."""

import pytest
import torch
from torch import nn

from adabet.layers import find_layers
from adabet.methods.model_blocks import block_paths, divide_blocks
from tests.methods.block_nets import REST, STEM, UNITS, Residual, Text, images, made, names_of, texts


def divided(model, batch, **options):
    return divide_blocks(model, find_layers(model, batch, **options))


def test_a_residual_net_by_hand():
    parts = divided(made(Residual), images()[0])
    assert names_of(parts.stem) == STEM
    assert [block.name for block in parts.blocks] == ["units.0", "units.1", "deep.0"]
    # the convolution between two units belongs to the later one, which is alone in its container
    assert [set(block.parameters) for block in parts.blocks] == UNITS
    assert names_of(parts.rest) == REST
    assert [set(group) for group in parts.groups] == [STEM, *UNITS[:2], UNITS[2] | REST]


def test_a_transformer_by_hand():
    parts = divided(made(Text), texts()[0])
    assert names_of(parts.stem) == {"embed.weight"}
    assert [block.name for block in parts.blocks] == [f"encoder.layers.{index}" for index in range(3)]
    assert all(len(block.parameters) == 12 for block in parts.blocks)
    assert parts.rest == ()


def test_a_plain_net_has_a_block_for_each_layer_with_its_norms():
    model = nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten()
    )
    parts = divided(model, images()[0], head=None)
    assert [layer.name for layer in parts.stem] == ["0"]
    assert [[layer.name for layer in block.layers] for block in parts.blocks] == [["1", "2"], ["4"]]


class Stage(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.down = nn.Conv2d(width, width, 1)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.ReLU()), *[Inner(width) for _ in range(depth)]])

    def forward(self, images):
        return self.blocks(self.down(images))


class Inner(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.experts = nn.ModuleList([Expert(width), Expert(width)])

    def forward(self, images):
        return sum(expert(images) for expert in self.experts)


class Expert(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, images):
        return self.conv(images)


def test_stages_are_looked_into_and_blocks_are_not():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sequential(Stage(3, 1), Stage(3, 2)))
    assert block_paths(model) == ("1.0.blocks.1", "1.1.blocks.1", "1.1.blocks.2")
    parts = divided(model, images()[0], head=None)
    assert [layer.name for layer in parts.stem] == ["0", "1.0.down"]
    assert parts.blocks[1].layers[0].name == "1.1.down"


@pytest.mark.parametrize(
    ("name", "stem", "blocks", "rest"),
    [
        ("resnet18", {"conv1", "bn1"}, 8, set()),
        ("vit_tiny_patch16_224", {"", "patch_embed.proj"}, 12, {"norm"}),
        ("convnext_atto", {"stem.0", "stem.1"}, 12, {"head.norm"}),
        ("swin_tiny_patch4_window7_224", {"patch_embed.proj", "patch_embed.norm"}, 12, {"norm"}),
        ("densenet121", {"features.conv0", "features.norm0"}, 4, {"features.norm5"}),
    ],
)
def test_published_nets(name, stem, blocks, rest):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=5)
    layers = find_layers(model, torch.zeros(1, 3, 224, 224))
    parts = divide_blocks(model, layers)
    assert {layer.name for layer in parts.stem} == stem
    assert len(parts.blocks) == blocks
    assert {layer.name for layer in parts.rest} == rest
    found = [*names_of(parts.stem), *names_of(parts.rest), *layers.head_parameters]
    found += [name for block in parts.blocks for name in block.parameters]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
