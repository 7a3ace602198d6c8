"""Where a model's classifier is."""

from collections.abc import Sequence

from torch import nn

from adabet.errors import LayerError
from adabet.layers.families import HEAD_NAMES


def find_head(model: nn.Module, head: str | Sequence[str] | None = "auto") -> tuple[str, ...]:
    """Module paths of the classifier, or of classifiers.

    Args:
        model: any module.
        head: ``"auto"`` asks the model (`get_classifier`, as timm's models have it), then looks for the names by which
            libraries call their heads, and last whether the last of several modules that the model consists of is a
            linear layer; a path or several paths override it; None means that there is none.

    Returns:
        Paths of modules that hold parameters; empty if there is no head to be found.

    Raises:
        LayerError: if a path that was given does not exist or holds no parameters.

    Examples:
        >>> find_head(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)))
        ('2',)
    """
    if head is None:
        return ()
    if head != "auto":
        named = dict(model.named_modules())
        wanted = (head,) if isinstance(head, str) else tuple(head)
        for path in wanted:
            if not path or path not in named or not any(True for _ in named[path].parameters()):
                raise LayerError(f"expected the path of a module with parameters as the head, got {path!r}")
        return wanted
    return named_head(model) or _last_linear(model)


def named_head(model: nn.Module) -> tuple[str, ...]:
    """The classifier that the model itself names, by `get_classifier` or by a usual name; empty if it names none."""
    ask = getattr(model, "get_classifier", None)
    answer = ask() if callable(ask) else None
    modules = answer if isinstance(answer, list | tuple) else (answer,)
    paths = {module: path for path, module in model.named_modules()}
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


def _last_linear(model: nn.Module) -> tuple[str, ...]:
    """The last of the modules that the model consists of, if that is a linear layer."""
    parts = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    path = _with_parameters(model)(parts[-1]) if len(parts) > 1 else None
    return (path,) if path and isinstance(model.get_submodule(path), nn.Linear) else ()


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
