"""Surgical fine-tuning by itself: learning rates, or what trains, from each tensor's gradients, epoch by epoch."""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from adabet.errors import CheckpointError, DataError, LayerError, OptionError, TrainingError
from adabet.freezing import apply
from adabet.layers import Layers
from adabet.layers.structure import kind_of
from adabet.memory.unchanged import unchanged
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors
from adabet.step import train_step

Statistic = Callable[[Tensor, Tensor], Tensor]
"""``statistic(gradient, parameter)``, a scalar."""

SOURCE = "Lee et al., Surgical Fine-Tuning, ICLR 2023, arXiv 2210.11466"
NEEDS = "labels, and before every epoch the gradients of everything over a few batches"


@register("auto-rgn", needs=NEEDS, source=SOURCE)
def start_auto_rgn(request: Request, *, mini_batches: int = 5) -> Dynamic:
    """Everything but norms trains, each tensor at a rate by its relative gradient norm.

    Before every epoch each tensor's ``RGN = ||g|| / ||theta||`` is averaged over a few mini-batches, and its learning
    rate becomes ``lr * RGN / max RGN``, with new optimizer state. Scales and shifts of norms do not train.

    At that moment the gradients of all tensors are in memory at once, and so are the activations of a whole backward
    pass (``micro_batch`` cuts these). Training then takes the memory of training everything. The ratios
    of a request do not apply.

    Args:
        request: the model, labelled batches, the loss and the micro-batch.
        mini_batches: how many to average over.

    Raises:
        OptionError: if mini_batches is below 1, or they have no labels.
        DataError: if there is no batch.
        TrainingError: if a gradient is not finite.

    Departs from the paper, which adapts heads that are trained already: here the head is new, so it trains at the full
    rate and does not count in the maximum; with ``head_as_candidate`` it is a tensor like others, as there. A tensor
    that is all zeros when the run starts has no relative gradient, and while it is small would outdo all others: it
    trains at the full rate throughout and does not count either. The paper's code knows norms by a name with "bn",
    here by their kind. Batch-norms normalise by their running statistics while the probe runs.

    Source: Lee et al., Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR 2023, and its code.
    """
    _check_mini_batches(mini_batches)
    return AutoRGN(request, mini_batches)


@register("auto-snr", needs=NEEDS, source=SOURCE)
def start_auto_snr(request: Request, *, mini_batches: int = 5, threshold: float = 0.95) -> Dynamic:
    """The tensors whose gradients stand out of their noise, chosen anew every epoch.

    Before every epoch each tensor's mean of ``g^2 / (Var(g) + 1e-8)``, the variance taken over the first axis of the
    gradient, is averaged over a few mini-batches; those that reach the threshold train, with new optimizer state.
    Scales and shifts of norms do not train, the head always does.

    It takes the memory of a whole backward pass and of all gradients before every epoch, as `start_auto_rgn` does;
    training takes that of what was chosen. The ratios of a request do not apply.

    Args:
        request: the model, labelled batches, the loss and the micro-batch.
        mini_batches: how many to average over.
        threshold: what the average has to reach.

    Raises:
        OptionError: if an option makes no sense, or the batches have no labels.
        DataError: if there is no batch.
        TrainingError: if a gradient is not finite.

    Departs from the paper, which describes the variance as one over samples; followed is its code, over the first axis
    of the gradient. Where that has a single row, the variance is 0, not undefined as there. With ``head_as_candidate``
    the head competes as in the paper; where nothing reaches the threshold then, the best tensor trains.

    Source: Lee et al., Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR 2023, and its code
    (``eb-criterion``).
    """
    _check_mini_batches(mini_batches)
    if not 0 <= threshold < float("inf"):
        raise OptionError(f"expected threshold of at least 0, got {threshold}")
    return AutoSNR(request, mini_batches, threshold)


class Surgical(Dynamic):
    """A statistic of every tensor's gradient before each epoch; subclasses say what follows from it."""

    def __init__(self, request: Request, mini_batches: int) -> None:
        self._request, self._mini_batches = request, mini_batches
        self._layers = request.find_layers()
        self._names = tunable(request, self._layers)
        if not self._names:
            raise LayerError("expected layers beside norms to train, the model has none")

    def due(self, moment: Moment) -> bool:
        """At the start of every epoch."""
        return moment.starts_epoch


class AutoRGN(Surgical):
    """Rates by relative gradient norm; see `start_auto_rgn`."""

    _zeros: tuple[str, ...] | None = None

    def turn(self, moment: Moment) -> Turn:
        """Everything but norms, with rates."""
        model, head = self._request.model, self._layers.head_parameters
        if self._zeros is None:
            self._zeros = tuple(name for name in self._names if not model.get_parameter(name).any())
        exempt = {*head, *self._zeros}
        rated = [name for name in self._names if name not in exempt]
        found = mean_statistics(
            self._request, self._layers, rated, relative_gradient_norm, self._mini_batches, moment.epoch
        )
        largest = max(found.values(), default=0.0)
        # a tensor that the loss does not depend on would have the rate 0: it stays out
        rates = {name: value / largest for name, value in found.items() if value > 0}
        selection = choose_tensors(
            self._request,
            self._layers,
            {*rates, *exempt},
            method="auto-rgn",
            options={"mini_batches": self._mini_batches},
        )
        best = max(rates, key=rates.__getitem__, default="none")
        return Turn(selection, rates=rates, fresh=True, note=f"full rate: {best}, RGN {largest:.3g}")

    def state_dict(self) -> dict[str, Any]:
        """Which tensors were zero when the run started."""
        return {"zeros": list(self._zeros or ())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if "zeros" not in state:
            raise CheckpointError("the checkpoint is of another method, it lacks 'zeros'")
        self._zeros = tuple(state["zeros"])


class AutoSNR(Surgical):
    """Tensors by the ratio of signal to noise in their gradients; see `start_auto_snr`."""

    def __init__(self, request: Request, mini_batches: int, threshold: float) -> None:
        super().__init__(request, mini_batches)
        self._threshold = threshold

    def turn(self, moment: Moment) -> Turn:
        """What reaches the threshold, and the head."""
        head = set(self._layers.head_parameters)
        rated = [name for name in self._names if name not in head]
        found = mean_statistics(self._request, self._layers, rated, signal_to_noise, self._mini_batches, moment.epoch)
        chosen = {name for name, value in found.items() if value >= self._threshold}
        if not chosen and not head:
            chosen = {max(found, key=found.__getitem__)}
        options = {"mini_batches": self._mini_batches, "threshold": self._threshold}
        selection = choose_tensors(self._request, self._layers, chosen, method="auto-snr", options=options)
        return Turn(selection, fresh=True, note=f"{len(chosen)} of {len(rated)} tensors beside the head")


def tunable(request: Request, layers: Layers) -> tuple[str, ...]:
    """Full names of all tensors but those of norms, the head's included."""
    names = [name for layer in (*layers.unranked, *layers, *layers.head) for name in layer.parameters]
    kinds = {path: kind_of(module) for path, module in request.model.named_modules()}
    return tuple(name for name in names if kinds[name.rpartition(".")[0]] != "norm")


def relative_gradient_norm(gradient: Tensor, parameter: Tensor) -> Tensor:
    """``||g|| / ||theta||``; 0 where both are zero.

    Examples:
        >>> relative_gradient_norm(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
        tensor(2.5000)
    """
    norm = gradient.norm()
    # not norm > 0: what is not finite has to show
    return torch.where(norm == 0, 0.0, norm / parameter.norm().clamp(min=1e-12))


def signal_to_noise(gradient: Tensor, parameter: Tensor) -> Tensor:  # noqa: ARG001 - the signature of a statistic
    """Mean over all elements of ``g^2 / (Var(g) + 1e-8)``, with the variance over the first axis.

    Examples:
        >>> gradient = torch.tensor([[1.0, 1.0], [3.0, -1.0]])  # variances 2 and 2
        >>> signal_to_noise(gradient, gradient)  # the mean of 1/2, 1/2, 9/2 and 1/2
        tensor(1.5000)
    """
    # 0-dimensional parameters have no axis to go along
    rows = gradient.reshape(1) if gradient.dim() == 0 else gradient
    variance = rows.var(0, keepdim=True) if len(rows) > 1 else torch.zeros_like(rows)
    return (rows.square() / (variance + 1e-8)).mean()


def mean_statistics(
    request: Request, layers: Layers, names: Collection[str], statistic: Statistic, count: int, epoch: int
) -> dict[str, float]:
    """A statistic of each tensor's gradient, averaged over mini-batches; the model is left as it was.

    Args:
        request: model, batches, loss and micro-batch.
        layers: the model's.
        names: full names of the tensors; 0 for those that the loss does not depend on.
        statistic: of one mini-batch's gradient.
        count: how many mini-batches to look at, or as many as there are.
        epoch: seeds, with the request's seed, the order of the batches and dropout.

    Raises:
        DataError: if there is no batch.
        TrainingError: if a gradient is not finite.
    """
    if not names:
        return {}
    model = request.model
    everything = choose_tensors(request, layers, {*names}, method="probe")
    sums, seen = dict.fromkeys(names, 0.0), 0
    with unchanged(model), apply(model, everything):
        # as in training; the selection keeps batch-norms in eval mode
        model.train()
        torch.manual_seed((request.seed * 1_000_003 + epoch) % 2**63)
        for batch in itertools.islice(request.batches, count):
            train_step(model, batch, request.loss, micro_batch=request.micro_batch)
            seen += 1
            for name in names:
                parameter = model.get_parameter(name)
                if parameter.grad is not None:
                    sums[name] += _finite(statistic(parameter.grad.float(), parameter.detach().float()), name)
            model.zero_grad()
    if not seen:
        raise DataError("expected batches to take gradients of, the loader is empty")
    return {name: value / seen for name, value in sums.items()}


def _finite(value: Tensor, name: str) -> float:
    if not value.isfinite():
        raise TrainingError(
            f"expected finite gradients, those of {name!r} are not; lower lr, or look for samples that are not finite"
        )
    return float(value)


def _check_mini_batches(mini_batches: int) -> None:
    if mini_batches < 1:
        raise OptionError(f"expected mini_batches, how many to average over, of at least 1, got {mini_batches}")
