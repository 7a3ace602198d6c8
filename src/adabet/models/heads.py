"""A new classifier for another number of classes."""

from typing import Any

from torch import nn

from adabet.errors import ModelError, OptionError
from adabet.layers import find_head


def check_classes(num_classes: int | None) -> None:
    """Refuse a number of classes below one.

    Raises:
        OptionError: if there is less than one class.
    """
    if num_classes is not None and num_classes < 1:
        raise OptionError(f"expected num_classes of at least 1, got {num_classes}")


def new_head(model: nn.Module, num_classes: int, *, head: str | None = None) -> tuple[str, ...]:
    """Replace a model's classifier by a fresh one, in place.

    timm's models replace it themselves (`reset_classifier`). Elsewhere the head is found by the names that
    libraries give it (torchvision: ``fc``, the last linear layer of ``classifier``, ``heads.head``;
    transformers: ``classifier``, ``score``), and its last linear layer, or 1x1 convolution, is replaced.

    Args:
        model: any module with a head that can be found; changed in place.
        num_classes: outputs of the new head.
        head: path of the module that is the head, where it is not found by itself.

    Returns:
        Paths of the modules that are now the head.

    Raises:
        ModelError: if no head is found, or it holds no linear layer.
        OptionError: if there is less than one class.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1000))
        >>> new_head(model, 10, head="1"), model[1].out_features
        (('1',), 10)
    """
    check_classes(num_classes)
    reset: Any = getattr(model, "reset_classifier", None)
    if head is None and callable(reset):
        reset(num_classes)
        return find_head(model)
    found = find_head(model, head or "auto")
    if not found:
        raise ModelError(f"no classifier found in {type(model).__name__}: name the module that is one with head='path'")
    replaced = tuple(_replace_last(model, path, num_classes) for path in found)
    _tell(model, num_classes)
    return replaced


def _replace_last(model: nn.Module, path: str, num_classes: int) -> str:
    """Replace the last layer with one output a class inside the module at `path`; return its path."""
    inside = [
        f"{path}.{name}" if name else path
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]
    if not inside:
        raise ModelError(
            f"the head {path!r} of {type(model).__name__} holds no linear layer to replace: "
            "name the module to replace with head='path'"
        )
    parent, _, name = inside[-1].rpartition(".")
    setattr(model.get_submodule(parent), name, _like(model.get_submodule(inside[-1]), num_classes))
    return inside[-1]


def _like(layer: nn.Module, num_classes: int) -> nn.Module:
    """A fresh layer of the same kind, place and precision with another number of outputs."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None) is not None
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype, "bias": bias}
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(layer.in_channels, num_classes, 1, **place)
    return nn.Linear(weight.shape[1], num_classes, **place)


def _tell(model: nn.Module, num_classes: int) -> None:
    """Update the places where libraries write down their number of classes."""
    for name in ("num_classes", "num_labels"):
        if isinstance(getattr(model, name, None), int):
            setattr(model, name, num_classes)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "num_labels"):
        config.num_labels = num_classes
