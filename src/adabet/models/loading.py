"""One door to models: ``load_model("timm/mobilenetv2_100", num_classes=10, weights=...)``."""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import ModelError, OptionError
from adabet.layers import find_head
from adabet.models import audio, from_mcu, from_timm, from_torchvision, from_transformers
from adabet.models.audio import AudioConfig
from adabet.models.config import DataConfig
from adabet.models.heads import check_classes
from adabet.models.names import unknown_model
from adabet.models.weights import refuse_pickle


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be ranked and adapted.

    Attributes:
        name: what it was asked for by.
        model: the module.
        data_config: what its images look like; None if it reads none.
        head: paths of the modules that classify; their outputs are the classes.
        notes: what the user should know, in words, such as a head that was left out.
        audio_config: what its sound looks like; None if it reads none.
    """

    name: str
    model: nn.Module = field(repr=False)
    data_config: DataConfig | None
    head: tuple[str, ...]
    notes: tuple[str, ...] = ()
    audio_config: AudioConfig | None = None

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = f", {self.data_config.input_size[1]} px images" if self.data_config else ""
        size += f", {self.audio_config}" if self.audio_config else ""
        head = ", ".join(self.head) or "none"
        return "\n  ".join((f"{self.name}: {count:,} parameters, head {head}{size}", *self.notes))


def load_model(
    name: str | Path,
    *,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    **model_arguments: Any,
) -> LoadedModel:
    """Build a model by name and put weights onto it.

    The head is replaced for the number of classes: weights whose head has another number are loaded without
    it. Any other tensor that is missing, unexpected or of another shape is an error. Weights are safetensors,
    never a pickle.

    Args:
        name: ``"timm/..."``, ``"torchvision/..."``, ``"hf/..."`` (a name on the hub or a local folder),
            ``"mcu/..."`` (the three nets of Sparse Update), ``"audio/mel-cnn"`` or ``"audio/raw-cnn"`` (for sound),
            ``"demo"``, or a folder that timm or transformers wrote.
        num_classes: outputs of the head; None keeps what the weights or the architecture have.
        weights: a local safetensors file (for ``mcu`` with its json beside it); for ``hf`` a folder.
        pretrained: fetch the library's own weights (the demo's are always there).
        image_size: height and width, pixels, in place of the model's own.
        mean: of each channel for pixels in [0, 1], in place of the model's own; one number serves all.
        std: like `mean`.
        interpolation: of the resize, in place of the model's own.
        crop_pct: crop over resize, in (0, 1], in place of the model's own.
        **model_arguments: for the model's constructor, such as ``pad_type="same"`` (timm's MobileNetV2).

    Raises:
        UnknownNameError: if there is no such model; offers the nearest name.
        ModelError: if the model cannot be built, or its weights do not fit or cannot be had.
        OptionError: if the options contradict each other or make no sense.
        MissingExtraError: if the library that has the model is not installed.

    Examples:
        >>> loaded = load_model("timm/mobilenetv2_100", num_classes=10, image_size=160, mean=0.5, std=0.5)
        >>> loaded.head, loaded.data_config.input_size
        (('classifier',), (3, 160, 160))
    """
    check_classes(num_classes)
    if weights is not None and pretrained:
        raise OptionError("expected weights=FILE or pretrained=True, got both")
    if weights is not None:
        refuse_pickle(Path(weights))
    library, rest = _resolve(str(name))
    model, config, notes = BUILDERS[library](
        rest,
        num_classes=num_classes,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        image_size=image_size,
        arguments=model_arguments,
    )
    if isinstance(config, DataConfig):
        config = config.replaced(
            image_size=image_size, mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct
        )
    elif any(option is not None for option in (image_size, mean, std, interpolation, crop_pct)):
        raise OptionError(f"{name} reads no images: it takes no image_size, mean, std, interpolation or crop_pct")
    return LoadedModel(
        str(name),
        model,
        data_config=config if isinstance(config, DataConfig) else None,
        head=find_head(model),
        notes=notes,
        audio_config=config if isinstance(config, AudioConfig) else None,
    )


def _resolve(name: str) -> tuple[str, str]:
    """The library that builds the model, and the name by which it knows it."""
    library, _, rest = name.partition("/")
    if library in BUILDERS and (rest or library == "demo"):
        return library, rest
    folder = Path(name)
    if folder.is_dir():
        return _resolve_folder(folder)
    if folder.suffix == ".safetensors":
        raise ModelError(
            f"{name} holds weights, which do not say their architecture: give a model name, and weights=FILE"
        )
    if folder.is_absolute() or name.startswith("."):
        raise ModelError(f"expected a folder that timm or transformers wrote, got {name}, which is none")
    refuse_pickle(folder)
    libraries = (audio, from_mcu, from_timm, from_torchvision)
    known = ["demo", *(known for library in libraries for known in library.known_names())]
    raise unknown_model(name, known)


def _resolve_folder(folder: Path) -> tuple[str, str]:
    """Which library wrote a model's folder, by its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a folder with config.json and model.safetensors, got {folder}") from error
    if "architecture" in config and "model_type" not in config:
        return "timm", f"local-dir:{folder}"
    return "hf", str(folder)


def _demo(
    name: str,
    *,
    num_classes: int | None,
    weights: Path | None,
    pretrained: bool,  # noqa: ARG001 (its weights come with it, and are always loaded)
    image_size: int | None,  # noqa: ARG001 (it reads any size from 8 px up)
    arguments: dict[str, Any],
) -> tuple[nn.Module, DataConfig, tuple[str, ...]]:
    """The demo's digit reader with its own weights: gray images of any size, pixels in [0, 1]."""
    if name or weights is not None or arguments:
        raise OptionError("the demo model comes with its weights and takes no other weights and no arguments")
    network = importlib.import_module("adabet.demo.network")
    model: nn.Module = network.demo_model(**({} if num_classes is None else {"num_classes": num_classes}))
    return model, DataConfig((1, 24, 24), mean=(0.0,), std=(1.0,), interpolation="bilinear", crop_pct=1.0), ()


BUILDERS: dict[str, Callable[..., tuple[nn.Module, DataConfig | AudioConfig | None, tuple[str, ...]]]] = {
    "timm": from_timm.build,
    "torchvision": from_torchvision.build,
    "hf": from_transformers.build,
    "mcu": from_mcu.build,
    "audio": audio.build,
    "demo": _demo,
}
"""Who builds the models whose names begin so; each takes the same keywords."""
