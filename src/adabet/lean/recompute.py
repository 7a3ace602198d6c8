"""Recompute repeated blocks in the backward pass instead of keeping what is inside them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adabet.errors import LayerError
from adabet.layers.batches import tensors_of
from adabet.lean.mode import lean

CONTAINERS = (nn.Sequential, nn.ModuleList)


def repeated_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of a model's repeated blocks, such as a transformer's layers or a stage's bottlenecks.

    A block is a child of a `torch.nn.Sequential` or `torch.nn.ModuleList` that has parameters and children of its
    own, and a sibling of the same class; outermost ones count, containers of containers are looked into.

    Args:
        model: any module.

    Examples:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> repeated_blocks(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
        ('layers.0', 'layers.1')
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, CONTAINERS) or any(path.startswith(block + ".") for block in found):
            continue
        children = {name: child for name, child in module.named_children() if _is_block(child)}
        kinds = [type(child) for child in children.values()]
        prefix = f"{path}." if path else ""
        found += [f"{prefix}{name}" for name, child in children.items() if kinds.count(type(child)) > 1]
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return tuple(sorted(found, key=order.__getitem__))


def _is_block(module: nn.Module) -> bool:
    composed = not isinstance(module, CONTAINERS) and any(True for _ in module.children())
    return composed and any(True for _ in module.parameters())


@contextmanager
def recomputing(model: nn.Module, *, lean_mode: bool = True) -> Iterator[tuple[str, ...]]:
    """Have a model's repeated blocks keep only their inputs, and run them again in the backward pass.

    What comes before the first trainable parameter runs as ever: it keeps nothing, so nothing is recomputed.
    Gradients are those of an ordinary pass; random numbers (dropout) are drawn again alike.

    Args:
        model: any module; gets its own forward methods back at the end.
        lean_mode: run the second pass in the lean mode too, where the backward pass finds no mode of its own.

    Yields:
        Paths of the blocks.

    Raises:
        LayerError: if the model has no repeated blocks.
    """
    paths = repeated_blocks(model)
    if not paths:
        raise LayerError(f"{type(model).__name__} has no repeated blocks to recompute; train it without recompute")
    again: Callable[[], AbstractContextManager[Any]] = lean if lean_mode else nullcontext
    blocks = [model.get_submodule(path) for path in paths]
    try:
        for block in blocks:
            block.forward = partial(_forward, block, type(block).forward, again)
        yield paths
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _forward(
    block: nn.Module,
    forward: Callable[..., Any],
    again: Callable[[], AbstractContextManager[Any]],
    *arguments: Any,
    **keywords: Any,
) -> Any:
    """A block's forward pass, checkpointed if anything in it, or before it, trains."""
    given = tensors_of([list(arguments), keywords])
    trains = any(tensor.requires_grad for tensor in given) or any(item.requires_grad for item in block.parameters())
    if not (torch.is_grad_enabled() and trains):
        return forward(block, *arguments, **keywords)
    return checkpoint(
        partial(_on_views, partial(forward, block)),
        *arguments,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), again()),
        **keywords,
    )


def _on_views(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call it with views of the tensors, on which lean has noted nothing from before the block.

    In the second pass there are no such notes, and both passes have to keep the same.
    """
    named = {name: _view(value) for name, value in keywords.items()}
    return forward(*map(_view, arguments), **named)


def _view(value: Any) -> Any:
    return value.view_as(value) if isinstance(value, Tensor) else value
