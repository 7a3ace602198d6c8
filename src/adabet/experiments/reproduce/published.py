"""The papers' settings and published numbers, as printed."""

from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings

MODELS = (
    ModelSpec("timm/resnet50", label="ResNet50", pretrained=True),
    ModelSpec("timm/vgg16", label="VGG16", pretrained=True),
    ModelSpec("timm/mobilenetv2_100", label="MobileNetV2", pretrained=True),
    ModelSpec("timm/vit_base_patch16_224", label="ViT-B16", pretrained=True),
)
"""Of the AdaBet paper. Its VGG16 has no fully connected layers but the head; the library's has."""

DATA = (
    DataSpec("cub", label="CUB-200"),
    DataSpec("pets", label="Oxford-IIIT Pets"),
    DataSpec("dogs", label="Stanford Dogs"),
    DataSpec("flowers", label="Flowers-102"),
)

SETTINGS = Settings(epochs=50, batch_size=8, optimizer="sgdw", weight_decay=5e-4, momentum=0.9)
"""The paper does not state the epochs; its curves show 50."""

LAYER_RATIO = 0.1
SEEDS = (0, 1, 2)
SAMPLES, BATCH_SIZE = 40, 8

METHODS = (
    MethodSpec("adabet", label="AdaBet"),
    MethodSpec("full", label="Full training"),
    MethodSpec("head", label="Transfer learning"),
    MethodSpec("last-k", label="Last-K"),
    MethodSpec("elastic-trainer", label="ElasticTrainer"),
    MethodSpec("fisher", label="Fisher"),
    MethodSpec("prune-train-l1", label="PruneTrain"),
)
"""What the paper calls them. Its PruneTrain is full training with an L1 penalty, as in ElasticTrainer's code."""


def learning_rate(model: ModelSpec, data: DataSpec) -> float:
    """The paper's: 1e-4 for MobileNetV2, 1e-2 for CUB-200, 1e-3 otherwise. For the two together it does not say."""
    if model.label == "MobileNetV2":
        return 1e-4
    return 1e-2 if data.label == "CUB-200" else 1e-3


AVERAGES = {
    "AdaBet": 76.26,
    "Last-K": 73.76,
    "Full training": 71.80,
    "Transfer learning": 71.39,
    "ElasticTrainer": 64.69,
    "PruneTrain": 63.35,
    "Fisher": 59.40,
}
"""Table 2: mean accuracy over the sixteen pairs of model and data, in %."""

PRUNE_TRAIN_RECOMPUTED = 63.55
"""What the sixteen printed cells of PruneTrain average to; all other printed averages agree with their cells."""

ACCURACIES = {
    ("ViT-B16", "Stanford Dogs", "Fisher"): 14.37,
    ("ViT-B16", "Oxford-IIIT Pets", "Fisher"): 26.23,
    ("ViT-B16", "Flowers-102", "Fisher"): 13.10,
    ("ViT-B16", "CUB-200", "Fisher"): 62.34,
}
"""Table 2: single cells that the paper's text repeats, in %."""

TABLE_3 = {
    ("resnet50", "inference"): 243.04,
    ("resnet50", "head"): 243.30,
    ("resnet50", "full"): 777.12,
    ("mobilenet_v2", "inference"): 315.86,
    ("mobilenet_v2", "head"): 316.02,
    ("mobilenet_v2", "full"): 373.58,
    ("vgg16", "inference"): 932.21,
    ("vgg16", "head"): 932.27,
    ("vgg16", "full"): 988.77,
    ("vgg16", "adabet"): 932.45,
    ("vit_b16", "inference"): 86.26,
    ("vit_b16", "head"): 86.46,
    ("vit_b16", "full"): 386.60,
}
"""Table 3: memory of training by the paper's formula, batch 8, 224 px, in MB of 1e6 bytes."""
