"""Several processes in your own loop: choose once, train the same layers everywhere.

Under ``torchrun`` or ``accelerate launch`` (`adabet.fit` sees to all of this by itself)::

    torch.distributed.init_process_group()                    # or accelerate.Accelerator()
    selection = choose_once(lambda: adabet.select("adabet", model, batches, layer_ratio=0.1))
    adabet.apply(model, selection)                            # first apply,
    wrapped = DistributedDataParallel(model)                  # then wrap (or accelerator.prepare)
    for images, labels in loader:
        with adabet.lean():
            loss = loss_fn(wrapped(images), labels)
        loss.backward()

The order matters: ``DistributedDataParallel`` looks at its start at which parameters train. Wrapped after
`adabet.apply` it waits for no frozen one and needs no ``find_unused_parameters``; wrapped before, its second step fails
over parameters that got no gradient. For another selection make another wrapper, or leave the wrapper out and call
`average_gradients` before each optimizer step, as methods that select again while training need it: a parameter that
the wrapper does not know would get other gradients in each process. Micro-batches go with the wrapper's ``no_sync``,
such as ``train_step(wrapped, batch, micro_batch=8, accumulating=wrapped.no_sync)``.

**Sharded models.** ``fully_shard`` works with selections of whole layers, applied before or after it, changed as often
as you like, and with `adabet.lean`; choose before you shard, since a sharded model runs only in all processes at
once. Channels of sharded layers (``channel_ratio`` below 1) are refused, if need be only when the selection is taken
off, and so are `adabet.fit`, `adabet.save_delta` and `adabet.load_delta`: gather the state into a whole model for those
(``torch.distributed.checkpoint.state_dict.get_model_state_dict``). The older ``FullyShardedDataParallel`` trains the
same with ``use_orig_params=True``, around a model that a selection was applied to before, but makes one gradient for
each module that it wraps, frozen elements included; without that option torch refuses a module of which a part is
frozen.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from adabet import errors
from adabet.errors import AdabetError, OptionError, SelectionError
from adabet.training.random_state import random_state_kept

MAIN = 0
"""The process that chooses."""


class Chosen(Protocol):
    """What can be sent to other processes: a `Selection`, a `Ranking` or a `Plan`."""

    def to_json(self) -> str:
        """As text."""
        ...

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From that text."""
        ...


C = TypeVar("C", bound=Chosen)


def choose_once(choose: Callable[[], C]) -> C:
    """Choose in the main process and give every process the same; all of them have to call it.

    The other processes wait, at most as long as the process group's timeout allows. Random generators are afterwards
    in the main process as they were, so that it stays in step with the others. With one process this is ``choose()``.

    Args:
        choose: takes nothing and gives a `Selection`, a `Ranking` or a `Plan`; called in the main process (rank 0)
            only, so it must not itself wait for others, as a sharded model's forward pass does.

    Raises:
        OptionError: if a launcher started several processes that are not connected yet.
        AdabetError: in every process, what ``choose`` raised in the main one.
        SelectionError: in the others, if that was no error of adabet's; names it.

    Examples:
        >>> import adabet
        >>> model, images = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), torch.zeros(2, 4)
        >>> choose_once(lambda: adabet.select("head", model, [images], head="1")).parameters
        ('1.weight', '1.bias')
    """
    if _processes() == 1:
        return choose()
    if dist.get_rank() != MAIN:
        kind, text = _from_main(None)
        return cast(C, _chosen_kinds()[kind].from_json(text)) if kind in _chosen_kinds() else _raise(kind, text)
    try:
        with random_state_kept([], _device()):
            chosen = choose()
        message = _message(chosen)
    except Exception as error:
        _from_main((type(error).__name__, str(error)))
        raise
    _from_main(message)
    return chosen


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in place; all of them have to call it.

    What ``DistributedDataParallel`` does, for models whose selection changes and that are therefore not wrapped. Call
    it once before each optimizer step, after all micro-batches. Frozen parameters are passed over; one that trains and
    got no gradient in a process counts as zero there.

    Args:
        parameters: the same in every process and in the same order, such as ``model.parameters()``.

    Raises:
        OptionError: if a launcher started several processes that are not connected yet.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> average_gradients(model.parameters())  # one process: as it was
        >>> model.weight.grad
        tensor([[1., 1.]])
    """
    count = _processes()
    if count == 1:
        return
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= count


def _processes() -> int:
    """How many processes act together.

    Raises:
        OptionError: see `choose_once`.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise OptionError(
            f"expected {launched} connected processes (WORLD_SIZE), torch.distributed is not initialized: call "
            "torch.distributed.init_process_group() or make an accelerate.Accelerator() before"
        )
    return 1


def _device() -> torch.device:
    """Where this process computes; its random generator is kept beside the CPU's."""
    return torch.device("cuda") if torch.cuda.is_initialized() else torch.device("cpu")


def _chosen_kinds() -> dict[str, type[Chosen]]:
    from adabet.planning import Plan
    from adabet.ranking import Ranking
    from adabet.selection import Selection

    return {kind.__name__: kind for kind in (Selection, Ranking, Plan)}


def _message(chosen: Chosen) -> tuple[str, str]:
    kind = type(chosen).__name__
    if kind not in _chosen_kinds():
        raise OptionError(f"expected choose to give a Selection, a Ranking or a Plan, got {kind}")
    return kind, chosen.to_json()


def _from_main(message: tuple[str, str] | None) -> tuple[str, str]:
    box: list[Any] = [message]
    dist.broadcast_object_list(box, src=MAIN)
    received: tuple[str, str] = box[0]
    return received


def _raise(kind: str, text: str) -> Any:
    """Raise what failed in the main process."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, AdabetError):
        error = known.__new__(known)  # not by its own arguments, which one class makes its message of
        error.args = (text,)
        raise error
    raise SelectionError(f"choosing failed in the main process: {kind}: {text}")
