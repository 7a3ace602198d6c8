"""What a run was started with, as JSON: options that a resumed run must share, and the environment."""

import functools
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn


def describe(option: Any) -> Any:
    """An option as JSON can hold it: functions by their name, modules by their text.

    Examples:
        >>> describe(0.1), describe(torch.nn.functional.mse_loss), describe(nn.CrossEntropyLoss())
        (0.1, 'torch.nn.functional.mse_loss', 'CrossEntropyLoss()')
    """
    if option is None or isinstance(option, bool | int | float | str):
        return option
    if isinstance(option, nn.Module):
        return repr(option)
    if isinstance(option, functools.partial):
        return {"of": describe(option.func), "with": describe([*option.args, option.keywords])}
    if isinstance(option, dict):
        return {str(name): describe(item) for name, item in option.items()}
    if isinstance(option, list | tuple):
        return [describe(item) for item in option]
    named = option if hasattr(option, "__qualname__") else type(option)
    return f"{named.__module__}.{named.__qualname__}"


def short_digest(text: str) -> str:
    """A few letters that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device, to be noted with a run."""
    return {
        "adabet": _own_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _own_version() -> str:
    try:
        return version("adabet")
    except PackageNotFoundError:
        return "not installed"
