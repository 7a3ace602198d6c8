"""One exact training step: forward and backward over a batch, in slices that fit into memory."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from adabet.errors import OptionError, TrainingError
from adabet.layers.batches import (
    LABEL_KEYS,
    device_of,
    forward_call,
    map_tensors,
    sample_count,
    take_samples,
)
from adabet.lean.mode import lean as lean_mode
from adabet.lean.recompute import recomputing

IGNORED_LABEL = -100

Loss = Callable[[Any, Any], Tensor]
"""Computes a scalar from what the model returned and the labels: ``loss(outputs, labels)``."""

Reduction = Literal["mean", "sum"]


def train_step(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    *,
    micro_batch: int | None = None,
    lean: bool = True,
    recompute: bool = False,
    reduction: Reduction | None = None,
    terms: Callable[[Any], Tensor | float] | None = None,
    backward: Callable[[Tensor], object] = Tensor.backward,
    into_grad: bool | None = None,
    accumulating: Callable[[], AbstractContextManager[object]] = nullcontext,
    observe: Callable[[Tensor, Any], object] | None = None,
) -> Tensor:
    """Add the gradient of a batch's loss to the parameters' ``.grad``.

    With ``micro_batch`` the batch runs in slices, one after the other, and their gradients sum to that of
    the whole batch, also where the last slice is shorter or labels are ignored: a mean loss of a slice
    counts by its share of the terms that the mean runs over, a sum loss counts once. Dropout draws other
    masks than it would for the whole batch.

    Args:
        model: called on the inputs of each slice, on its own device and in the mode that it is in.
        batch: ``(inputs, labels)``, or a mapping of keywords with the labels under one of their usual names.
        loss: gives a scalar from the model's output and the labels. Default: the loss that the model computes
            itself if it takes ``labels``, as those of transformers do; otherwise cross entropy of the logits.
        micro_batch: samples in memory at once; None takes all.
        lean: run forward in the `adabet.lean` mode.
        recompute: run repeated blocks again in the backward pass, see `adabet.lean.recompute.recomputing`.
        reduction: whether the loss is a mean or a sum. Default: what ``loss.reduction`` says, else a mean.
        terms: counts, in a slice of the batch, the terms that a mean loss runs over. Default: labels that
            are not ignored, with their class weights for `torch.nn.CrossEntropyLoss`; samples, where labels
            are not integers.
        backward: called with each slice's loss; ``accelerator.backward`` under accelerate.
        into_grad: whether the gradients of micro-batches may be added where they lie, see `adabet.lean`. Default: if
            ``backward`` is ``Tensor.backward`` and the model is in no wrapper for several processes.
        accumulating: context in which all slices but the last run, such as
            ``lambda: accelerator.no_sync(model)`` with several processes.
        observe: called with each slice's detached logits and its labels, to add up metrics.

    Returns:
        The loss of the whole batch, detached, a scalar.

    Raises:
        OptionError: if ``micro_batch`` is below 1, the loss is no scalar, or the default finds no labels.
        TrainingError: if slices cannot give the batch's gradient since a batch-norm in train mode mixes
            samples, or if the loss depends on nothing that trains.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> _ = train_step(model, batch)
        >>> whole = model.weight.grad.clone()
        >>> model.zero_grad()
        >>> _ = train_step(model, batch, micro_batch=2)
        >>> torch.allclose(model.weight.grad, whole)
        True
    """
    count = sample_count(batch)
    if micro_batch is not None and micro_batch < 1:
        raise OptionError(f"expected micro_batch of at least 1 sample, got {micro_batch}")
    size = min(micro_batch or count, count)
    if into_grad is None:
        into_grad = backward is Tensor.backward and _unwrapped(model) is model
    adds = into_grad and size < count
    forward = partial(_forward, model, loss=loss, lean=lean, into_grad=adds, recompute=recompute, observe=observe)
    if size == count:
        value = forward(batch)
        backward(value)
        return value.detach()

    slices = [take_samples(batch, start, start + size) for start in range(0, count, size)]
    shares = _shares(model, slices, loss, reduction, terms)
    values = []
    with _refusing_to_mix(model, micro_batch=size):
        for part, share in zip(slices, shares, strict=True):
            with nullcontext() if part is slices[-1] else accumulating():
                value = forward(part)
                # The mean over ignored labels alone is nan. It adds nothing, but other processes wait for it.
                value = value * share if share else torch.nan_to_num(value) * 0
                backward(value)
            values.append(value.detach())
            del value  # and with it what is left of the graph, before the next slice builds its own
    return torch.stack(values).sum()


def labels_of(batch: Any) -> Any:
    """The labels of a batch: the last element of a tuple or list, a mapping's entry of a usual name, or None.

    Examples:
        >>> labels_of((torch.zeros(2, 3), torch.ones(2)))
        tensor([1., 1.])
    """
    if isinstance(batch, Mapping):
        return next((value for key, value in batch.items() if key in LABEL_KEYS), None)
    return batch[-1] if isinstance(batch, Sequence) and len(batch) > 1 else None


def logits_of(outputs: Any) -> Tensor:
    """The main tensor of what a model returned: itself, its ``logits``, or the first element of a tuple.

    Raises:
        OptionError: if there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(outputs, Sequence) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise OptionError(
        f"expected a model that returns a tensor or something with logits, got {type(outputs).__name__}; "
        "pass a loss that takes it"
    )


def computes_loss(model: nn.Module, batch: Any) -> bool:
    """Whether the model takes the labels itself, as transformers' models do."""
    takes_labels = "labels" in inspect.signature(_unwrapped(model).forward).parameters
    return takes_labels and isinstance(batch, Mapping) and "labels" in batch


@contextmanager
def _refusing_to_mix(model: nn.Module, *, micro_batch: int) -> Iterator[None]:
    """Refuse batch-norms that are about to normalise by the slice.

    Only when they run do they tell: what froze them may put them into eval mode just before.
    """

    def refuse(name: str, module: _BatchNorm, _: Any) -> None:
        if module.training or module.running_mean is None:
            raise TrainingError(
                f"micro_batch={micro_batch} cannot give the gradient of the whole batch: batch-norm {name!r} "
                "normalises by the statistics of the batch; put it into eval mode or train without micro_batch"
            )

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    hooks = [module.register_forward_pre_hook(partial(refuse, name)) for name, module in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _forward(
    model: nn.Module,
    batch: Any,
    *,
    loss: Loss | None,
    lean: bool,
    into_grad: bool,
    recompute: bool,
    observe: Callable[[Tensor, Any], object] | None,
) -> Tensor:
    """Loss of one slice; the model's outputs are let go on return."""
    labels = _moved(labels_of(batch), model)
    again = recomputing(_unwrapped(model), lean_mode=lean) if recompute else nullcontext()
    with lean_mode(into_grad=into_grad) if lean else nullcontext(), again:
        if loss is None and computes_loss(model, batch):
            outputs = model(**_moved(batch, model))
            value: Tensor = outputs["loss"]
        else:
            outputs = forward_call(model, batch)
            value = _cross_entropy(outputs, labels) if loss is None else loss(outputs, labels)
    if value.dim() > 0:
        raise OptionError(f"expected a loss that is a scalar, got one of shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise TrainingError("expected a loss that depends on a trainable parameter; choose layers to train")
    if observe is not None:
        observe(logits_of(outputs).detach(), labels)
    return value


def _moved(value: Any, model: nn.Module) -> Any:
    device = device_of(model)
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), value)


def _cross_entropy(outputs: Any, labels: Any) -> Tensor:
    if labels is None:
        raise OptionError("expected a batch with labels, (inputs, labels) or a dict, or a loss that needs none")
    return F.cross_entropy(logits_of(outputs), labels)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for several processes."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


def _shares(
    model: nn.Module,
    slices: Sequence[Any],
    loss: Loss | None,
    reduction: Reduction | None,
    terms: Callable[[Any], Tensor | float] | None,
) -> list[float]:
    """What the loss of each slice is multiplied by."""
    kind = reduction or getattr(loss, "reduction", "mean")
    if kind not in ("mean", "batchmean", "sum"):
        raise OptionError(f"expected a loss that is a mean or a sum, got reduction={kind!r}")
    if kind == "sum":
        return [1.0] * len(slices)
    if terms is None:
        terms = partial(_count_terms, loss, next_tokens=loss is None and _predicts_next_tokens(model))
    counts = [float(terms(part)) for part in slices]
    return [count / sum(counts) if sum(counts) else 1.0 for count in counts]


def _predicts_next_tokens(model: nn.Module) -> bool:
    """Whether the model's own loss compares each token with the next label, so that the first label is not used.

    What transformers' decoders do (``ForCausalLMLoss``); its encoder-decoders shift the inputs instead.
    """
    inner = _unwrapped(model)
    function = getattr(getattr(inner, "loss_function", None), "__name__", "")
    return function == "ForCausalLMLoss" and not getattr(inner.config, "is_encoder_decoder", False)


def _count_terms(loss: Loss | None, batch: Any, *, next_tokens: bool) -> Tensor | float:
    """How many terms a mean loss of this slice runs over."""
    labels = labels_of(batch)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return sample_count(batch)
    labels = labels[:, 1:] if next_tokens and labels.dim() > 1 else labels
    valid = labels[labels != getattr(loss, "ignore_index", IGNORED_LABEL)]
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.weight is not None:
        return loss.weight[valid.to(loss.weight.device)].sum()
    return valid.numel()
