"""What others wrap around a model: torch.compile's wrapper is looked through, those that split or copy it refused."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from adabet.errors import OptionError

Verb = TypeVar("Verb", bound=Callable[..., Any])


def on_bare_model(verb: Verb) -> Verb:
    """Decorate a function that takes a ``model`` so that it sees the model that was compiled, and runs it uncompiled.

    A compiled model's tensors have other names (``_orig_mod.conv.weight``), and hooks that come after its first call
    are not seen there. So the verb gets what is inside, and whatever it runs of it runs eagerly: what is found,
    measured and saved is the bare model's own.

    Raises:
        OptionError: see `bare`; raised when the verb is called.
    """
    place = list(inspect.signature(verb).parameters).index("model")

    @functools.wraps(verb)
    def called(*args: Any, **kwargs: Any) -> Any:
        if len(args) > place:
            model = bare(args[place])
            args = (*args[:place], model, *args[place + 1 :])
        elif "model" in kwargs:
            model = kwargs["model"] = bare(kwargs["model"])
        else:
            return verb(*args, **kwargs)  # which says what is missing
        with uncompiled(model):
            return verb(*args, **kwargs)

    return cast(Verb, called)


def bare(model: nn.Module) -> nn.Module:
    """The model itself, without the wrapper that ``torch.compile(model)`` returns.

    Raises:
        OptionError: if it is wrapped in ``DataParallel``, ``DistributedDataParallel`` or ``FullyShardedDataParallel``,
            which do not see later which parameters train.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> bare(torch.compile(model)) is model, bare(model) is model
        (True, True)
    """
    if _is_compiled_wrapper(model):
        return bare(cast(nn.Module, model._orig_mod))
    kinds = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("torch.")}
    for wrapper in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
        if wrapper in kinds:
            raise OptionError(
                f"expected the model itself, got {wrapper}: give adabet its .module, and wrap it once a selection is "
                "applied, for the wrapper looks only at its start at which parameters train"
            )
    return model


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run whatever is compiled in a model eagerly within the block; nothing happens where nothing is compiled."""
    if not any(map(_is_compiled, model.modules())):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of a tensor, as those of ``fully_shard`` do."""
    return hasattr(tensor, "device_mesh")


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or _is_compiled_wrapper(module)


def _is_compiled_wrapper(module: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo")  # never imported here: that takes seconds
    return compiler is not None and isinstance(module, compiler.OptimizedModule)
