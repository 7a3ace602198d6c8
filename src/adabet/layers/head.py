"""Where a model's classifier is."""

from collections.abc import Sequence

from torch import nn

from adabet.errors import LayerError
from adabet.layers.families import HEAD_NAMES


def find_head(model: nn.Module, head: str | Sequence[str] | None = "auto") -> tuple[str, ...]:
    """Module paths of the classifier, or of classifiers.

    Args:
        model: any module.
        head: ``"auto"`` asks the model (`get_classifier`, as timm's models have it), then the names by which
            libraries call their heads; a path or several paths override it; None means that there is none.

    Returns:
        Paths of modules that hold parameters; empty if there is no head to be found.

    Raises:
        LayerError: if a path that was given does not exist or holds no parameters.
    """
    if head is None:
        return ()
    paths = {module: path for path, module in model.named_modules()}
    if head != "auto":
        named = dict(model.named_modules())
        wanted = (head,) if isinstance(head, str) else tuple(head)
        for path in wanted:
            if not path or path not in named or not any(True for _ in named[path].parameters()):
                raise LayerError(f"expected the path of a module with parameters as the head, got {path!r}")
        return wanted
    ask = getattr(model, "get_classifier", None)
    answer = ask() if callable(ask) else None
    modules = answer if isinstance(answer, list | tuple) else (answer,)
    found = tuple(paths[module] for module in modules if isinstance(module, nn.Module) and module in paths)
    return tuple(filter(None, map(_with_parameters(model), found))) or _by_name(model)


def _by_name(model: nn.Module) -> tuple[str, ...]:
    """The first of the usual names that the model has."""
    named = dict(model.named_modules())
    resolve = _with_parameters(model)
    for name in HEAD_NAMES:
        if name in named and (path := resolve(name)):
            return (path,)
    return ()


def _with_parameters(model: nn.Module):  # type: ignore[no-untyped-def]
    """Narrow a path down to the one module in it that classifies: a Sequential's last linear layer."""
    named = dict(model.named_modules())

    def narrow(path: str) -> str | None:
        module = named[path]
        if not any(True for _ in module.parameters()):
            return None
        if isinstance(module, nn.Sequential):
            last = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
            return narrow(f"{path}.{last[-1]}")
        return path

    return narrow
