"""Models of every library: their published sizes on the meta device, small ones to run, and hand-written oddities."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelCase:
    """A model as its library builds it by default, and what is known of it.

    Attributes:
        name: of the case.
        build: makes the model; called on the meta device, so that size costs nothing.
        batch: makes a batch of so many samples.
        kinds: number of layers of each kind, the head apart.
        head: paths of the head.
        unranked: parameters that the model itself holds.
        gmacs: billions of multiply-accumulates as published; None where nobody does.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    kinds: dict[str, int]
    head: tuple[str, ...]
    unranked: tuple[str, ...] = ()
    gmacs: float | None = None

    def __str__(self) -> str:
        return self.name


def images(count: int, *, size: int = 224) -> Tensor:
    return torch.zeros(count, 3, size, size)


def pixels(count: int) -> dict[str, Tensor]:
    return {"pixel_values": images(count)}


def words(count: int) -> dict[str, Tensor]:
    return {"input_ids": torch.ones(count, 16, dtype=torch.long)}


def hf(name: str, **options: Any) -> nn.Module:
    """A transformers model from its configuration, with random weights: ``hf("BertModel", num_hidden_layers=2)``."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**options))


LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "pad_token_id": 0,
}
RESNET50 = {"convolution": 53, "norm": 53}
VIT_B = {"convolution": 1, "norm": 25, "attention": 12, "linear": 24}
SWIN_T = {"convolution": 1, "norm": 29, "attention": 12, "linear": 27}
CONVNEXT_T = {"convolution": 22, "norm": 23, "linear": 36, "parameter": 18}

# GMACs: the tables of weights in torchvision's documentation (column GFLOPS, which counts a multiply-add once);
# coatnet: timm's model card.
FULL_SIZE = [
    ModelCase("timm-resnet50", partial(timm.create_model, "resnet50"), images, RESNET50, ("fc",), gmacs=4.09),
    ModelCase(
        "timm-vgg16", partial(timm.create_model, "vgg16"), images, {"convolution": 15}, ("head.fc",), gmacs=15.47
    ),
    ModelCase(
        "timm-mobilenetv2_100",
        partial(timm.create_model, "mobilenetv2_100"),
        images,
        {"convolution": 52, "norm": 52},
        ("classifier",),
        gmacs=0.30,
    ),
    ModelCase(
        "timm-vit_base_patch16_224",
        partial(timm.create_model, "vit_base_patch16_224"),
        images,
        VIT_B,
        ("head",),
        ("cls_token", "pos_embed"),
        gmacs=17.56,
    ),
    ModelCase(
        "timm-convnext_tiny", partial(timm.create_model, "convnext_tiny"), images, CONVNEXT_T, ("head.fc",), gmacs=4.46
    ),
    ModelCase(
        "timm-swin_tiny",
        partial(timm.create_model, "swin_tiny_patch4_window7_224"),
        images,
        SWIN_T,
        ("head.fc",),
        gmacs=4.49,
    ),
    ModelCase(
        "timm-coatnet_0",
        partial(timm.create_model, "coatnet_0_rw_224"),
        images,
        {"convolution": 49, "norm": 35, "attention": 9},
        ("head.fc",),
        gmacs=4.43,
    ),
    ModelCase("torchvision-resnet50", torchvision.models.resnet50, images, RESNET50, ("fc",), gmacs=4.09),
    ModelCase(
        "torchvision-vit_b_16",
        torchvision.models.vit_b_16,
        images,
        VIT_B | {"parameter": 1},
        ("heads.head",),
        ("class_token",),
        gmacs=17.56,
    ),
    ModelCase("torchvision-swin_t", torchvision.models.swin_t, images, SWIN_T, ("head",), gmacs=4.49),
    ModelCase(
        "torchvision-vgg16",
        torchvision.models.vgg16,
        images,
        {"convolution": 13, "linear": 2},
        ("classifier.6",),
        gmacs=15.47,
    ),
    ModelCase(
        "hf-vit",
        partial(hf, "ViTForImageClassification"),
        pixels,
        VIT_B | {"parameter": 1},
        ("classifier",),
        gmacs=17.56,
    ),
    ModelCase(
        "hf-resnet", partial(hf, "ResNetForImageClassification"), pixels, RESNET50, ("classifier.1",), gmacs=4.09
    ),
    ModelCase(
        "hf-bert",
        partial(hf, "BertForSequenceClassification"),
        words,
        {"embedding": 3, "norm": 25, "attention": 12, "linear": 25},
        ("classifier",),
    ),
    ModelCase(
        "hf-distilbert",
        partial(hf, "DistilBertForSequenceClassification"),
        words,
        {"embedding": 2, "norm": 13, "attention": 6, "linear": 13},
        ("classifier",),
    ),
    ModelCase(
        "hf-llama",
        partial(hf, "LlamaForSequenceClassification", **LLAMA),
        words,
        {"embedding": 1, "norm": 5, "attention": 2, "linear": 6},
        ("score",),
    ),
    ModelCase(
        "hf-llama-lm",
        partial(hf, "LlamaForCausalLM", **LLAMA),
        words,
        {"embedding": 1, "norm": 5, "attention": 2, "linear": 6},
        ("lm_head",),
    ),
]


def small_images(count: int, *, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_words(count: int, *, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(1, 90, (count, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def small_pixels(count: int) -> dict[str, Tensor]:
    return {"pixel_values": small_images(count)}


@dataclass(frozen=True)
class SmallCase:
    """A model small enough to run many times, with random weights."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    attention: int = 0

    def build(self) -> nn.Module:
        """The same model each time, with biases and norms that differ from zero and one."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def __str__(self) -> str:
        return self.name


VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
BERT = VIT | {"vocab_size": 90, "max_position_embeddings": 16}
SMALL = [
    SmallCase(
        "timm-resnet",
        partial(timm.create_model, "resnet50", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)),
        small_images,
    ),
    SmallCase("timm-mobilenetv2", partial(timm.create_model, "mobilenetv2_035", num_classes=7), small_images),
    SmallCase(
        "timm-vit",
        partial(timm.create_model, "vit_tiny_patch16_224", depth=2, embed_dim=24, img_size=32, patch_size=8),
        small_images,
        attention=2,
    ),
    SmallCase(
        "timm-convnext",
        partial(timm.create_model, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)),
        small_images,
    ),
    SmallCase(
        "timm-swin",
        partial(
            timm.create_model,
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            depths=(2, 1),
            embed_dim=12,
            num_heads=(2, 3),
        ),
        small_images,
        attention=3,
    ),
    SmallCase(
        "torchvision-vit",
        partial(
            torchvision.models.VisionTransformer,
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=24,
            mlp_dim=48,
        ),
        small_images,
        attention=2,
    ),
    SmallCase(
        "hf-vit",
        partial(hf, "ViTForImageClassification", image_size=32, patch_size=8, **VIT),
        small_pixels,
        attention=2,
    ),
    SmallCase(
        "hf-resnet",
        partial(hf, "ResNetForImageClassification", embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]),
        small_pixels,
    ),
    SmallCase("hf-bert", partial(hf, "BertForSequenceClassification", **BERT), small_words, attention=2),
    SmallCase(
        "hf-distilbert",
        partial(hf, "DistilBertForSequenceClassification", dim=24, n_layers=2, n_heads=3, hidden_dim=48, vocab_size=90),
        small_words,
        attention=2,
    ),
    SmallCase("hf-llama", partial(hf, "LlamaForSequenceClassification", **LLAMA), small_words, attention=2),
]


class SmallNet(nn.Module):
    """Two convolutions with batch-norms, one of them depthwise, dropout and a head: 6 layers and the head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm2 = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(12, 20)
        self.norm3 = nn.LayerNorm(20)
        self.head = nn.Linear(20, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(pictures)))
        features = self.drop(torch.relu(self.norm2(self.conv2(features))))
        return self.head(torch.relu(self.norm3(self.hidden(features.mean((2, 3))))))


def small_net(classes: int = 5) -> SmallNet:
    """The same weights each time; running statistics as after some training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet(classes)
        with torch.no_grad():
            net(small_images(32, size=8, seed=9))
    return net


@dataclass(frozen=True)
class State:
    """Everything about a model and the process that looking at it must not change."""

    tensors: str
    gradients: str
    requires_grad: tuple[bool, ...]
    modes: tuple[bool, ...]
    hooks: tuple[int, ...]
    attributes: tuple[tuple[str, ...], ...]
    random: bytes
    settings: tuple[Any, ...] = field(default=())


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model: nn.Module) -> State:
    """A snapshot to compare with another."""
    modules = list(model.modules())
    return State(
        tensors=digest(*model.parameters(), *model.buffers()),
        gradients=digest(*(parameter.grad for parameter in model.parameters() if parameter.grad is not None)),
        requires_grad=tuple(parameter.requires_grad for parameter in model.parameters()),
        modes=tuple(module.training for module in modules),
        hooks=tuple(len(getattr(module, name)) for module in modules for name in HOOKS),
        attributes=tuple((type(module).__name__, *vars(module)) for module in modules),
        random=torch.get_rng_state().numpy().tobytes(),
        settings=(torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu")),
    )


def digest(*tensors: Tensor) -> str:
    """A hash over the bits of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
