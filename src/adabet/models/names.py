"""The error for a model that nobody knows."""

import difflib

from adabet.errors import UnknownNameError

FORMS = ("demo", "timm/NAME", "torchvision/NAME", "hf/NAME", "mcu/NAME", "audio/NAME", "a folder")


def unknown_model(name: str, known: list[str]) -> UnknownNameError:
    """The error for an unknown name: the nearest of more than a thousand, or the forms that names have.

    Examples:
        >>> print(unknown_model("timm/resnet5O", ["timm/resnet50", "timm/vgg16"]))
        unknown model 'timm/resnet5O'; did you mean 'timm/resnet50'?
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return UnknownNameError("model", name, near or FORMS)
