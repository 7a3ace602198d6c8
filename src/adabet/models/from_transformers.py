"""Classifiers of Hugging Face transformers: of images, or of text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import ModelError
from adabet.extras import require
from adabet.layers import find_head
from adabet.models.config import DataConfig
from adabet.models.weights import PICKLED_SUFFIXES, describe_misfit, one_line

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of interpolations, as transformers' image processors store them."""

LEAST_SQUASHED = 384
"""Pixels from which ConvNeXt's image processor squashes an image, instead of cropping by its `crop_pct`."""


def build(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    arguments: dict[str, Any],
) -> tuple[nn.Module, DataConfig | None, tuple[str, ...]]:
    """Build a transformers classifier, of images or of text, whichever its configuration is for.

    Args:
        name: a name on the hub, or a local folder with config.json; a folder's weights are loaded.
        num_classes: outputs of the head; None keeps those of the configuration.
        weights: a local folder that stands in for the hub, or None.
        pretrained: fetch the hub's weights.
        image_size: pixels; told to the configuration where it has an image size.
        arguments: values of the configuration to replace.

    Returns:
        The model, what its images look like (None for text), and notes in words.

    Raises:
        ModelError: if there is no configuration, it is not of a classifier of images or text, or the weights
            are pickled or do not fit.
    """
    transformers = require("transformers", "a Hugging Face model")
    source, loads = _source(name, weights, pretrained)
    with _quietly(transformers):
        config = _config(transformers, source, num_classes, image_size, arguments)
        family = _family(transformers, config, source)
        if loads:
            model, notes = _load(family, source, config, new_head=num_classes is not None)
        else:
            model, notes = family.from_config(config), ()
        images = family is transformers.AutoModelForImageClassification
        data_config = _data_config(transformers, source, config) if images else None
    return model, data_config, notes


def _source(name: str, weights: Path | None, pretrained: bool) -> tuple[str, bool]:
    """Where config.json is, a folder or a hub name, and whether weights are loaded from there."""
    folder = weights if weights is not None else Path(name)
    if weights is None and not folder.is_dir():
        return name, pretrained
    if not (folder / "config.json").is_file():
        raise ModelError(f"expected a folder with config.json and model.safetensors, got {folder}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED_SUFFIXES)
        if pickles or weights is not None:
            raise ModelError(
                f"expected model.safetensors in {folder}, found {', '.join(pickles) or 'no weights'}; "
                "save the model again with save_pretrained, which writes safetensors"
            )
        return str(folder), False
    return str(folder), True


def _config(
    transformers: Any, source: str, num_classes: int | None, image_size: int | None, arguments: dict[str, Any]
) -> Any:
    changes = dict(arguments)
    if num_classes is not None:
        changes["num_labels"] = num_classes
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except Exception as error:
        raise ModelError(
            f"no configuration for hf/{source} ({one_line(error)}): check the name and the network, "
            "or give weights=FOLDER"
        ) from error
    if image_size is not None and hasattr(config, "image_size"):
        changes.setdefault("image_size", image_size)
    for key, value in changes.items():
        if not hasattr(config, key):
            raise ModelError(f"hf/{source} takes no argument {key!r}: its configuration has no such value")
        setattr(config, key, value)
    return config


def _family(transformers: Any, config: Any, source: str) -> Any:
    """The auto class that builds a classifier from this configuration."""
    if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForImageClassification
    if type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForSequenceClassification
    kind = getattr(config, "model_type", "model")
    raise ModelError(f"hf/{source} is a {kind}: expected one that classifies images or text")


def _load(family: Any, source: str, config: Any, *, new_head: bool) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        model, loaded = family.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(
            f"the weights of hf/{source} cannot be loaded ({one_line(error)}): check the network, "
            "or give weights=FOLDER with model.safetensors"
        ) from error
    head = tuple(f"{path}." for path in find_head(model))
    misfit = {
        "missing": sorted(loaded["missing_keys"]),
        "unexpected": sorted(loaded["unexpected_keys"]),
        "of another shape": sorted(key for key, *_ in loaded["mismatched_keys"]),
    }
    body = {kind: [key for key in keys if not key.startswith(head)] for kind, keys in misfit.items()}
    if any(body.values()):
        raise ModelError(f"the weights of hf/{source} do not fit: {describe_misfit(body)}")
    if not any(misfit.values()):
        return model, ()
    if not new_head:
        raise ModelError(
            f"the weights of hf/{source} have no head that fits ({describe_misfit(misfit)}): give num_classes"
        )
    return model, ("the weights' head was left out: the model's is new",)


def _data_config(transformers: Any, source: str, config: Any) -> DataConfig:
    """The configuration that gives the same images as the model's own image processor.

    Without one, ImageNet's usual values and the image size of the model's configuration.
    """
    size = getattr(config, "image_size", None)
    side = size if isinstance(size, int) else None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return DataConfig().replaced(image_size=side, channels=getattr(config, "num_channels", None))
    resized = {edge: pixels for edge, pixels in dict(processor.size).items() if pixels}
    edge = resized.get("shortest_edge") or resized.get("height") or 224
    mode = "center" if "shortest_edge" in resized else "squash"
    crop_pct = getattr(processor, "crop_pct", None)
    cropped = edge
    if crop_pct is not None and edge >= LEAST_SQUASHED:
        crop_pct, mode = None, "squash"
    elif crop_pct is None and getattr(processor, "do_center_crop", None):
        cropped = dict(processor.crop_size)["height"]
        crop_pct = cropped / edge
    return DataConfig(
        input_size=(3, cropped, cropped),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=RESAMPLING[int(processor.resample)],
        crop_pct=crop_pct or 1.0,
        crop_mode=mode,
    )


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Keep transformers' own notes and progress bars off the terminal; what they say is in our errors."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
