"""Gradient norms of input channels, and the preliminary run that says which layers matter."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adabet.errors import DataError, LayerError, OptionError, TrainingError
from adabet.freezing import apply
from adabet.freezing.trained import trained_parameters
from adabet.layers import Layers, fingerprint, forward_call
from adabet.layers.batches import Forward
from adabet.memory.unchanged import unchanged, values_kept
from adabet.methods.channel_draws import ChannelPool
from adabet.methods.layer_choice import LayerImportance
from adabet.methods.registry import Request
from adabet.methods.tensors import choose_tensors
from adabet.methods.units import channel_costs
from adabet.selection import Selection
from adabet.step import Loss, train_step

Channels = Mapping[str, tuple[int, ...]]
Choose = Callable[[Channels], Selection]
"""Makes a selection of input channels by layer, and whatever else trains."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms of gradients, summed over observations.

    Attributes:
        channels: of each channel of a pool, ``(channels,)``, float64.
        layers: of the whole gradient of each layer of the pool, ``(layers,)``, float64.
    """

    channels: Tensor
    layers: Tensor


def sliceable(model: nn.Module, layers: Layers) -> ChannelPool:
    """The input channels of all layers of which single ones can train.

    Raises:
        LayerError: if there are none.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    costs = channel_costs(model, layers)
    pool = ChannelPool({name: cost for name, cost in costs.items() if isinstance(model.get_submodule(name), kinds)})
    if not pool.names:
        raise LayerError(
            "expected convolutions or linear layers beside the head to draw input channels from, the model has none; "
            "choose a method that takes whole layers"
        )
    return pool


def gradient_norms(
    request: Request,
    pool: ChannelPool,
    choose: Choose,
    *,
    groups: Iterable[Channels] | None = None,
    per_step: bool = False,
    batches: int | None = None,
) -> GradientNorms:
    """Norms of the gradient of each input channel's weights, from a pass over the batches without updates.

    Args:
        request: model, batches and loss. The model is left as it was.
        pool: whose channels.
        choose: makes selections of channels.
        groups: sets of channels whose gradients are in memory at once, each with a pass of its own; None for all.
        per_step: sum up the norms of each batch's gradient, instead of taking the norm of their average.
        batches: how many batches to look at; None for all.

    Raises:
        DataError: if there is no batch.
        TrainingError: if a gradient is not finite.
    """
    whole = {name: tuple(range(cost.channels)) for name, cost in pool.costs.items()}
    channels = torch.zeros(pool.size, dtype=torch.float64)
    # a layer may be in several groups: its squared norms are added up by observation
    squares = torch.zeros(1, len(pool.names), dtype=torch.float64)
    for group in [whole] if groups is None else groups:
        for observation, found in enumerate(_observations(request, choose(group), group, per_step, batches)):
            if observation >= len(squares):
                squares = torch.cat([squares, torch.zeros_like(squares[:1])])
            for name, norms in found.items():
                channels[pool.numbers(name, group[name])] += norms
                squares[observation, pool.names.index(name)] += norms.square().sum()
    return GradientNorms(channels, squares.sqrt().sum(0))


def importance(
    request: Request,
    layers: Layers,
    pool: ChannelPool,
    choose: Choose,
    *,
    epochs: int = 1,
    train: Literal["all", "head"] = "head",
    groups: Iterable[Channels] | None = None,
    per_step: bool = False,
    batches: int | None = None,
) -> LayerImportance:
    """RGN and LaRa of every layer, accumulated over the epochs of a preliminary run; see `layer_importance`.

    After each epoch of training comes a pass that takes the gradients. Trained values are put back at the end.
    """
    if epochs < 1:
        raise OptionError(f"expected preliminary, epochs of the run that ranks the layers, of at least 1, got {epochs}")
    if train not in ("all", "head"):
        raise OptionError(f"expected train to be 'all' or 'head', got {train!r}")
    names = [name for name, _ in request.model.named_parameters()] if train == "all" else layers.head_parameters
    trained = choose_tensors(request, layers, set(names), method="preliminary")
    sums = torch.zeros(2, len(pool.names), dtype=torch.float64)
    totals = torch.tensor([cost.total for cost in pool.costs.values()], dtype=torch.float64)
    groups = None if groups is None else list(groups)
    with values_kept([request.model.get_parameter(name) for name in names]):
        for epoch in range(1, epochs + 1):
            if names:
                _train_epoch(request, trained, epoch)
            norms = gradient_norms(request, pool, choose, groups=groups, per_step=per_step, batches=batches)
            sums[0].index_add_(0, pool.owners, norms.channels / pool.spaces)
            sums[1] += norms.layers / totals
    return LayerImportance(
        rgn=dict(zip(pool.names, sums[0].tolist(), strict=True)),
        lara=dict(zip(pool.names, sums[1].tolist(), strict=True)),
        fingerprint=fingerprint(request.model, layers.head_parameters),
        epochs=epochs,
        options={"train": train, "per_step_accumulate": per_step, "gradient_batches": batches},
    )


def layer_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int = 3,
    train: Literal["all", "head"] = "all",
    per_step_accumulate: bool = False,
    gradient_batches: int | None = None,
    optimizer: Callable[[Sequence[Any]], Optimizer] | None = None,
    loss: Loss | None = None,
    micro_batch: int | None = None,
    seed: int = 0,
    head: str | Sequence[str] | None = "auto",
    blocks: Sequence[str] | None = None,
    forward: Forward = forward_call,
) -> LayerImportance:
    """Rank layers once for TraDy and MeDyate, by a preliminary run on any task; the result serves all target tasks.

    In every epoch the model trains on the batches, and then the mini-batches' gradients are averaged over one more
    pass. From the norm g_c of that average at each input channel c, of C_w weights and C_a input pixels, follow
    ``RGN = sum_c g_c / (C_w + C_a)`` and ``LaRa = sqrt(sum_c g_c^2) / (C (C_w + C_a))`` of a layer with C channels.
    The papers don't say which gradient they take the norm of.

    Args:
        model: any module with a head for the task of these batches; left as it was.
        batches: labelled, of a task other than the target if you do as the papers do; iterable again every epoch.
        epochs: of training; a few are enough.
        train: whether everything trains meanwhile, as in the papers, or only the head, which takes less memory.
        per_step_accumulate: sum up the norms of each mini-batch's gradient instead.
        gradient_batches: how many batches to take the gradients of; None for all.
        optimizer: makes the optimizer for a list of parameters; SGD with a learning rate of 0.01 by default.
        loss: see `train_step`.
        micro_batch: samples in memory at once.
        seed: of dropout.
        head: see `find_layers`.
        blocks: see `find_layers`.
        forward: how to run the model on a batch while its layers are found.

    Raises:
        OptionError: if an option makes no sense, or batches have no labels.
        DataError: if there is no batch.
        LayerError: if the model has no layer with input channels beside its head.
        TrainingError: if the loss or a gradient is not finite.

    Source: Quelennec et al., TraDy, equations 6 to 8 and appendix D.5; MeDyate, equation 9 and section 3.4.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))]
        >>> found = layer_importance(model, batches, epochs=1, head="4")
        >>> sorted(found.lara), found == LayerImportance.from_json(found.to_json())
        (['0', '2'], True)
    """
    request = Request(
        model,
        batches,
        seed=seed,
        head=head,
        blocks=blocks,
        forward=forward,
        loss=loss,
        optimizer=optimizer,
        micro_batch=micro_batch,
    )
    layers = request.find_layers()

    def choose(channels: Channels) -> Selection:
        names = {f"{name}.weight" for name in channels}
        return choose_tensors(request, layers, names, method="preliminary", channels=channels)

    return importance(
        request,
        layers,
        sliceable(model, layers),
        choose,
        epochs=epochs,
        train=train,
        per_step=per_step_accumulate,
        batches=gradient_batches,
    )


def _observations(
    request: Request, selection: Selection, channels: Channels, per_step: bool, limit: int | None
) -> Iterator[dict[str, Tensor]]:
    """Norms by layer, one for each of its channels: of every batch's gradient, or once of their average."""
    model = request.model
    with unchanged(model), apply(model, selection):
        model.train()
        torch.manual_seed(request.seed)
        parts = trained_parameters(model, [f"{name}.weight" for name in channels])
        count = 0
        for batch in itertools.islice(request.batches, limit):
            train_step(model, batch, request.loss, micro_batch=request.micro_batch)
            count += 1
            if per_step:
                yield _norms(parts, 1)
                model.zero_grad()
        if not count:
            raise DataError("expected batches to take gradients of, the loader is empty")
        if not per_step:
            yield _norms(parts, count)


def _norms(parts: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    found = {}
    for name, part in parts.items():
        gradient = part.parameter.grad
        rows = torch.zeros(part.shape[0], 1) if gradient is None else gradient.detach().flatten(1) / count
        found[name.removesuffix(".weight")] = norms = rows.norm(dim=1).double().cpu()
        if not norms.isfinite().all():
            raise TrainingError(
                f"expected finite gradients, got some that are not at {name!r}; lower lr, or look for samples that "
                "are not finite"
            )
    return found


def _train_epoch(request: Request, selection: Selection, epoch: int) -> None:
    model = request.model
    with unchanged(model), apply(model, selection):
        model.train()
        torch.manual_seed(request.seed + epoch)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = (request.optimizer or _plain_sgd)(parameters)
        for step, batch in enumerate(request.batches, start=1):
            loss = float(train_step(model, batch, request.loss, micro_batch=request.micro_batch))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of the preliminary run became {loss} in epoch {epoch}, step {step}; lower lr, or look "
                    "for samples that are not finite"
                )
            optimizer.step()
            optimizer.zero_grad()


def _plain_sgd(parameters: Sequence[Any]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)
