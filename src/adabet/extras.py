"""Optional dependencies, resolved in one place."""

import importlib
from types import ModuleType

from adabet.errors import MissingExtraError

EXTRA_OF_MODULE = {
    "accelerate": "train",
    "rich": "train",
    "safetensors": "train",
    "typer": "cli",
    "matplotlib": "plots",
    "PIL": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "scipy": "vision",
    "soundfile": "audio",
    "huggingface_hub": "vision",
    "transformers": "hf",
    "lightning": "lightning",
    "peft": "peft",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "sklearn": "demo",
    "psutil": "train",
    "ripser": "topology",
    "umap": "experiments",
    "ray": "cluster",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name, such as ``"safetensors.torch"``.
        purpose: what the user asked for, as the start of a sentence ("saving a delta").

    Raises:
        MissingExtraError: if the module is not installed.

    Examples:
        >>> require("numpy", "counting").__name__
        'numpy'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        extra = EXTRA_OF_MODULE[package]
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed: pip install 'adabet[{extra}]'"
        ) from error
