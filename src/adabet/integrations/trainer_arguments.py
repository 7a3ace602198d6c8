"""What a ``transformers.Trainer`` is told that adabet has to refuse, or to replace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adabet.errors import OptionError, SelectionError
from adabet.planning import Plan
from adabet.selection import Selection


def check_arguments(args: Any, model: Any, *, lean: bool, chosen: bool) -> None:
    """Refuse what cannot work with these arguments of the trainer."""
    if args.n_gpu > 1:
        raise OptionError(
            f"expected one GPU for each process, this one sees {args.n_gpu} and the trainer would copy the model to "
            "all of them: set CUDA_VISIBLE_DEVICES, or start it with torchrun"
        )
    if args.fsdp or args.deepspeed:
        raise OptionError("expected a trainer without FSDP and DeepSpeed: both take the model's weights apart")
    if args.world_size > 1 and not chosen:
        raise OptionError(
            f"expected a selection with {args.world_size} processes, which wrap the model before the data is seen: "
            "choose before, by adabet.integrations.distributed.choose_once, and give it to the callback"
        )
    if lean and args.torch_compile:
        raise OptionError(
            "expected lean=False with torch_compile=True: a compiled model decides by itself what it keeps"
        )
    if getattr(model, "peft_config", None):
        raise OptionError(
            "expected a model without adapters; to put PEFT's adapters where a ranking says, see "
            "adabet.integrations.peft.target_modules"
        )
    if not wants_checkpointing(args):
        return
    options = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
    others = sorted(set(options) - {"use_reentrant"})
    if lean and others:
        raise OptionError(
            f"expected gradient checkpointing without {', '.join(others)}: under lean adabet's own recomputation of "
            "repeated blocks takes its place; leave that out, or give lean=False"
        )


def check_processes(selection: Selection) -> None:
    """Refuse selections that differ between the processes of a run; all of them have to ask."""
    text = selection.to_json()
    texts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(texts, text)
    if any(other != text for other in texts):
        raise SelectionError(
            "expected one selection in all processes, they differ: choose it by "
            "adabet.integrations.distributed.choose_once"
        )


def wants_checkpointing(args: Any) -> bool:
    """Whether the trainer is to recompute blocks; newer versions of transformers have another name for it."""
    return bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing)


def stop_checkpointing(model: Any) -> bool:
    """Switch off transformers' own recomputation, and say whether it was on.

    With it goes the hook that makes the embeddings' output require a gradient, for which the backward pass would go
    through every frozen layer.
    """
    if not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return False
    for name in ("activation_checkpointing_disable", "gradient_checkpointing_disable"):
        if hasattr(model, name):
            getattr(model, name)()
            break
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
    return True


@contextmanager
def without_cache(model: Any) -> Iterator[None]:
    """Have a decoder return no keys and values of past tokens, which a second pass would add once more."""
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "use_cache", False):
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = True


def check_batch(plan: Plan, batch_size: int) -> None:
    """Refuse a plan that has fewer samples in memory at once than the trainer."""
    if plan.micro_batch < batch_size:
        steps = -(-batch_size // plan.micro_batch)
        raise OptionError(
            f"this plan has {plan.micro_batch} samples in memory at once, the trainer {batch_size}: set "
            f"per_device_train_batch_size={plan.micro_batch} and gradient_accumulation_steps={steps}"
        )
