"""timm's way of training with a selection: parameter groups for `timm.optim.create_optimizer_v2`.

Nothing of timm's is patched. `adabet.apply` freezes the model, timm makes optimizer and schedule, and the forward pass
runs in `adabet.lean`, inside the loop of timm's training script:

    >>> import adabet, timm, torch
    >>> from timm.optim import create_optimizer_v2
    >>> from timm.scheduler import create_scheduler_v2
    >>> model = timm.create_model("resnet18", num_classes=3)
    >>> draw = torch.Generator().manual_seed(0)
    >>> loader = [(torch.randn(4, 3, 32, 32, generator=draw), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    >>> selection = adabet.rank(model, loader).select(layer_ratio=0.2)
    >>> with adabet.apply(model, selection):
    ...     groups = param_groups(model, selection, weight_decay=0.05, layer_decay=0.75)
    ...     optimizer = create_optimizer_v2(groups, opt="adamw", lr=1e-3)
    ...     scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2, warmup_epochs=1)
    ...     for epoch in range(epochs):
    ...         _ = model.train()
    ...         for images, labels in loader:
    ...             with adabet.lean():
    ...                 loss = torch.nn.functional.cross_entropy(model(images), labels)
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    ...         scheduler.step(epoch + 1)
    >>> adabet.save_delta(model, selection, "adapted.safetensors")  # doctest: +SKIP
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from adabet.errors import OptionError, SelectionError
from adabet.extras import require
from adabet.freezing import trained_parameters
from adabet.selection import Selection

optim: Any = require("timm.optim", "adabet.integrations.timm")


def param_groups(
    model: nn.Module,
    selection: Selection,
    *,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    min_scale: float = 0.0,
    no_weight_decay: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """What trains, in timm's own groups, for ``create_optimizer_v2``.

    timm's rules decide: vectors (biases, the weights of norms) and what a model names in its ``no_weight_decay`` are
    not decayed; a layer is as deep as in the whole model, with frozen layers counted. Given the model itself,
    ``create_optimizer_v2`` makes the same groups of whatever requires a gradient; this makes sure that it is the
    selection.

    Args:
        model: with the selection on it, see `adabet.apply`.
        selection: what trains.
        weight_decay: of the groups that decay.
        layer_decay: factor on the learning rate for each layer further from the output, which timm's schedulers take
            from the groups' ``lr_scale``; None for one rate.
        min_scale: the smallest such factor.
        no_weight_decay: names or patterns of tensors that are not decayed; None asks the model.

    Returns:
        Groups with ``params``, ``weight_decay`` and, with ``layer_decay``, ``lr_scale``.

    Raises:
        OptionError: if an option is out of range.
        SelectionError: if something else than the selection would train, or it was made for another model.

    Examples:
        >>> import adabet, timm, torch
        >>> model = timm.create_model("resnet18", num_classes=3)
        >>> selection = adabet.select("head", model, [torch.zeros(2, 3, 32, 32)])
        >>> with adabet.apply(model, selection):
        ...     groups = param_groups(model, selection, weight_decay=0.01)
        >>> [(group["weight_decay"], [tuple(item.shape) for item in group["params"]]) for group in groups]
        [(0.0, [(3,)]), (0.01, [(3, 512)])]
    """
    if weight_decay < 0:
        raise OptionError(f"expected a weight_decay of at least 0, got {weight_decay}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise OptionError(f"expected a layer_decay above 0 and up to 1, got {layer_decay}")
    _check_applied(model, selection)
    spared = getattr(model, "no_weight_decay", set)() if no_weight_decay is None else no_weight_decay
    groups: list[dict[str, Any]]
    if layer_decay is None:
        groups = optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared)
    else:
        groups = optim.param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay, min_scale=min_scale
        )
    return groups


def _check_applied(model: nn.Module, selection: Selection) -> None:
    """Make sure that what trains in the model is the selection.

    Raises:
        SelectionError: if it is not.
    """
    try:
        chosen = trained_parameters(model, selection.parameters)
    except AttributeError as error:
        raise SelectionError(f"this selection was made for another model: {error}") from error
    wanted = {id(item.parameter) for item in chosen.values()}
    trains = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wanted != trains.keys():
        raise SelectionError(
            f"expected a model in which the selection's {len(wanted)} tensors train and nothing else, {len(trains)} "
            "do; make the groups inside `with adabet.apply(model, selection):`"
        )
