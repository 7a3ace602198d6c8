"""Weights from safetensors files, and whether they fit a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from adabet.errors import ModelError
from adabet.extras import require
from adabet.layers import find_head
from adabet.models.heads import new_head

PICKLED_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"})
NAMED_AT_MOST = 3


def refuse_pickle(path: Path) -> None:
    """Refuse a file whose format may run code when it is read.

    Raises:
        ModelError: if the suffix is one of a pickled checkpoint; says how to convert it.
    """
    if path.suffix.lower() in PICKLED_SUFFIXES:
        raise ModelError(
            f"expected safetensors weights, got {path.name}, a pickle, which can run code when it is read; "
            "if you trust it, convert it once: safetensors.torch.save_file("
            f"torch.load({path.name!r}, weights_only=True), {path.with_suffix('.safetensors').name!r})"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: if the file is missing, pickled, corrupt or not safetensors.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise ModelError(f"expected a safetensors file with weights, got {path}, which is no file")
    safetensors = require("safetensors", "reading weights")
    load_file = require("safetensors.torch", "reading weights").load_file
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {one_line(error)}") from error
    return tensors


def fit_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, name: str, source: str, keep_head: bool
) -> tuple[str, ...]:
    """Put weights onto a model, with or without their head.

    Args:
        model: changed in place.
        weights: tensors by the names of the model's state dict.
        name: what to call the model in an error.
        source: what to call the weights in an error.
        keep_head: keep the model's own head where the weights' has another number of classes; otherwise the
            model gets a head of the weights' number.

    Returns:
        Notes in words: that the head was left out, if it was.

    Raises:
        ModelError: if tensors are missing, unexpected or of another shape; names the first of each kind.
    """
    given = dict(weights)
    if not keep_head:
        _adopt_head(model, given)
    own = model.state_dict()
    notes = _leave_out_head(model, own, given) if keep_head else ()
    for counter in own.keys() - given.keys():
        if counter.endswith("num_batches_tracked"):
            given[counter] = own[counter]
    misfit = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {_shape(given[key])} instead of {_shape(own[key])}"
            for key in own
            if key in given and given[key].shape != own[key].shape
        ],
    }
    if any(misfit.values()):
        problems = f"{describe_misfit(misfit)}{_advice(model, misfit)}"
        raise ModelError(f"the weights {source} do not fit {name}: {problems}")
    model.load_state_dict(given)
    return notes


def _adopt_head(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give the model a head of as many classes as the weights have, if its own has another number."""
    own = model.state_dict()
    for path in find_head(model):
        keys = [key for key in own if key.startswith(f"{path}.") and key in given and own[key].dim()]
        if keys and given[keys[-1]].shape[0] != own[keys[-1]].shape[0]:
            new_head(model, given[keys[-1]].shape[0])
            return


def _leave_out_head(model: nn.Module, own: Mapping[str, Tensor], given: dict[str, Tensor]) -> tuple[str, ...]:
    """Replace the head's tensors among the given ones by the model's own where the head differs or lacks."""
    notes = []
    for path in find_head(model):
        keys = [key for key in own if key.startswith(f"{path}.") and own[key].dim()]
        found = [given[key] for key in keys if key in given]
        if found and len(found) < len(keys):
            continue
        if found and all(given[key].shape == own[key].shape for key in keys):
            continue
        notes.append(
            f"the weights' head {path!r} of {found[-1].shape[0]} classes was left out: the model's is new"
            if found
            else f"the weights have no head {path!r}: the model's is new"
        )
        given |= {key: own[key] for key in keys}
    return tuple(notes)


def describe_misfit(kinds: Mapping[str, Iterable[str]]) -> str:
    """Kinds of misfit in one line, each with its count, its first names and the rest counted.

    Examples:
        >>> describe_misfit({"missing": ["a", "b", "c", "d", "e"], "unexpected": []})
        '5 missing (a, b, c and 2 more)'
    """
    texts = []
    for kind, names in kinds.items():
        listed = list(names)
        more = f" and {len(listed) - NAMED_AT_MOST} more" if len(listed) > NAMED_AT_MOST else ""
        if listed:
            texts.append(f"{len(listed)} {kind} ({', '.join(listed[:NAMED_AT_MOST])}{more})")
    return "; ".join(texts)


def _advice(model: nn.Module, misfit: Mapping[str, Iterable[str]]) -> str:
    """What to do when only the head differs."""
    heads = tuple(f"{path}." for path in find_head(model))
    if heads and all(text.startswith(heads) for names in misfit.values() for text in names):
        return "; give num_classes to load them without the head"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
