"""PruneTrain: train with a penalty on channels, and take out those that it has emptied."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import CheckpointError, DataError, LayerError, OptionError, TrainingError
from adabet.freezing import apply
from adabet.layers import inputs_of, observing, take_samples
from adabet.layers.batches import tensors_of
from adabet.layers.structure import kind_of
from adabet.methods.channel_removal import ChannelRemoval, find_edges
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.group_lasso import GroupLasso
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors
from adabet.selection import Selection
from adabet.step import train_step

SAMPLES_TO_CHECK = 8
"""Samples on which the smaller model has to agree with the larger one."""

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@register(
    "prune-train",
    needs="labels; everything trains, and channels that training empties are removed",
    source="Lym et al., PruneTrain, SC 2019",
)
def prune_train(
    request: Request,
    *,
    penalty_ratio: float = 0.2,
    interval: int = 10,
    threshold: float = 1e-4,
    scale_by_size: bool = False,
) -> Dynamic:
    """Full training that empties channels by a group lasso and removes them as it goes.

    Adds ``lambda * R`` to the loss. R sums, over the dense convolutions and linear layers, the norms of the weights
    that write each output channel and of those that read each input channel: ``sqrt(sum(w ** 2) + 1e-8)``. Before
    the first step lambda is set to ``penalty_ratio * L / (R * (1 - penalty_ratio))``, with L the loss of the first
    batch, and stays there.

    Before the first step of every ``interval``-th epoch, weights below the threshold become zero. Then the channels go
    whose weights are zero in all layers that write them and in all that read them: the layers on both sides of an
    edge, or all that residual additions connect. Batch norms and depthwise convolutions lose the same channels. The
    model's parameters shrink in place, with the optimizer's state; what the model computes in eval mode stays the same,
    which is checked on a few samples (if it does not, the channels stay and the run's record says so). Where no channel
    would be left, one stays. A delta holds zeros for what is gone, so that it loads onto the original model.

    A step shortens a norm by little more than the learning rate times lambda (times ten with a momentum of 0.9): with
    the paper's learning rate of 0.1 it takes thousands of steps to empty a channel, and a short run at a small one
    removes nothing.

    Args:
        request: model, labelled batches, loss.
        penalty_ratio: share of the penalty in the first step's objective; the paper uses 0.2 to 0.3.
        interval: epochs between removals.
        threshold: absolute value below which a weight becomes zero.
        scale_by_size: multiply each norm by the root of the number of weights under it.

    Raises:
        OptionError: if an option is out of range, or there are no labels.
        LayerError: if the model has no channel that could go.
        TrainingError: if the first loss is not finite.

    Departs from the paper: the batch does not grow as memory falls, since it is the loader's. A residual branch that
    is empty keeps one channel instead of being dropped. Where a map of places is flattened before a linear layer, the
    columns that read one channel are one group, since only together can they go. Grouped convolutions and whatever
    looks at several channels at once (layer and group norms, attention) keep their width, and what cannot go is not
    penalised; on plain convolutional networks that leaves out what the authors' code does, the first layer's
    input, the last one's output and depthwise convolutions. Weights are compared with the threshold by their absolute
    values; the code, in one place, forgets the sign.

    Source: the authors' code (mirror VictorSuciu/prunetrain).
    """
    if not 0 < penalty_ratio < 1:
        raise OptionError(f"expected a penalty_ratio between 0 and 1, got {penalty_ratio}")
    if interval < 1:
        raise OptionError(f"expected an interval of at least 1 epoch, got {interval}")
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise OptionError(f"expected a threshold, an absolute value of weights, of at least 0, got {threshold}")
    return PruneTrain(request, penalty_ratio, interval, threshold, scale_by_size)


class PruneTrain(Dynamic):
    """See `prune_train`."""

    def __init__(
        self, request: Request, penalty_ratio: float, interval: int, threshold: float, scale_by_size: bool
    ) -> None:
        self._request, self._ratio, self._interval, self._threshold = request, penalty_ratio, interval, threshold
        self._options = {
            "penalty_ratio": penalty_ratio,
            "interval": interval,
            "threshold": threshold,
            "scale_by_size": scale_by_size,
        }
        trained = set(_everything(request, "prune-train", self._options).parameters)
        frozen = [parameter for name, parameter in request.model.named_parameters() if name not in trained]
        edges = find_edges(request.model, _first_batch(request), forward=request.forward, frozen=frozen)
        if not edges.count:
            raise LayerError(
                f"expected channels that could go, {type(request.model).__name__} has none between dense layers; "
                "use the method 'prune-train-l1' or 'full'"
            )
        self._removal = ChannelRemoval(request.model, edges)
        self._lasso = GroupLasso(request.model, self._removal, scale_by_size=scale_by_size)
        self._strength: float | None = None

    def due(self, moment: Moment) -> bool:
        """At the start, and after every interval."""
        return moment.starts_epoch and (moment.epoch - 1) % self._interval == 0

    def turn(self, moment: Moment) -> Turn:
        """Everything that is left, after taking out what is empty."""
        follow: Mapping[str, Callable[[Tensor], Tensor]] = {}
        note = ""
        if not moment.starts_run:
            self._clear_small_weights()
            follow, note = self._remove_unused()
        selection = _everything(self._request, "prune-train", self._options)
        if self._strength is None:
            self._strength = self._find_strength(selection)
        return Turn(selection, follow=follow, note=note)

    def penalty(self) -> Tensor | None:
        """The weighted group lasso."""
        return None if self._strength is None else self._strength * self._lasso()

    @property
    def reshapes(self) -> bool:
        """Yes."""
        return True

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """With zeros where channels have gone."""
        return self._removal.whole(name, tensor)

    def state_dict(self) -> dict[str, Any]:
        """The penalty's weight and the channels that are left."""
        return {"strength": self._strength, "kept": self._removal.kept.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the same channels out of a whole model."""
        kept = state["kept"]
        if kept.shape != self._removal.kept.shape:
            raise CheckpointError(
                f"expected a checkpoint of a model with {len(self._removal.kept)} channels that could go, got one with "
                f"{len(kept)}"
            )
        self._strength = state["strength"]
        self._removal.keep(kept.cpu())
        self._lasso.refresh()

    def _find_strength(self, selection: Selection) -> float:
        """The penalty's weight that gives it its share of the first batch's objective."""
        request = self._request
        with apply(request.model, selection), observing(request.model), torch.enable_grad():
            loss = float(
                train_step(
                    request.model,
                    _first_batch(request),
                    request.loss,
                    micro_batch=request.micro_batch,
                    backward=lambda _: None,
                )
            )
        with torch.no_grad():
            lasso = float(self._lasso())
        if not (math.isfinite(loss) and math.isfinite(lasso)):
            raise TrainingError(
                f"expected a finite loss and finite weights to weigh the penalty by, got a loss of {loss} and a sum of "
                f"norms of {lasso}; look for samples or weights that are not finite"
            )
        return self._ratio * loss / (lasso * (1 - self._ratio))

    @torch.no_grad()
    def _clear_small_weights(self) -> None:
        for name in dict(self._removal.edges.voters):
            weight = self._request.model.get_parameter(name)
            weight.masked_fill_(weight.abs() < self._threshold, 0)

    def _remove_unused(self) -> tuple[Mapping[str, Callable[[Tensor], Tensor]], str]:
        removal = self._removal
        kept, used = removal.kept, removal.used()
        if used[kept].all():
            return {}, "no channel is empty"
        count = min(SAMPLES_TO_CHECK, self._request.micro_batch or SAMPLES_TO_CHECK)
        samples = take_samples(inputs_of(_first_batch(self._request)), 0, count)
        tensors, before = removal.tensors(), self._outputs(samples)
        follow = removal.keep(used)
        try:
            difference = "" if _agree(before, self._outputs(samples)) else "other outputs"
        except Exception as error:  # whatever a model does when it meets shapes that it does not expect
            difference = f"{type(error).__name__}: {error}".partition("\n")[0]
        if difference:
            removal.undo(tensors, kept)
            return {}, f"{int((kept & ~used).sum())} empty channels stay, for without them the model gives {difference}"
        self._lasso.refresh()
        gone = int((~removal.kept).sum())
        return follow, f"{int((kept & ~used).sum())} channels removed, {gone} of {len(kept)} so far"

    def _outputs(self, inputs: Any) -> list[Tensor]:
        with observing(self._request.model):
            return tensors_of(self._request.forward(self._request.model, inputs))


@register(
    "prune-train-l1",
    needs="nothing; everything trains",
    source="Huang et al., ElasticTrainer, MobiSys 2023, its code's 'prunetrain'",
)
def prune_train_l1(request: Request, *, strength: float = 1e-4) -> Dynamic:
    """Full training with an L1 penalty on all kernels, which two papers call PruneTrain.

    Adds ``strength * sum(|w|)`` over the kernels of all convolutions and linear layers, attention's included, to the
    loss. Nothing else: no groups, no threshold, no channel goes, so the memory is that of full training. It is here
    to reproduce the baseline that ElasticTrainer and AdaBet report under that name; the method of that name's own
    paper is ``prune-train``.

    Args:
        request: the model.
        strength: the penalty's weight.

    Raises:
        OptionError: if the strength is negative or not finite.

    Departs from the paper: from PruneTrain's, by all of the above. The baselines' code takes an interval too, which it
    does not use.

    Source: the code of ElasticTrainer (Huang et al. 2023), ``prune_training`` in train.py.
    """
    if not (strength >= 0 and math.isfinite(strength)):
        raise OptionError(f"expected a strength of at least 0, got {strength}")
    return SparseKernels(request, strength)


class SparseKernels(Dynamic):
    """See `prune_train_l1`."""

    def __init__(self, request: Request, strength: float) -> None:
        self._request, self._strength = request, strength

    def turn(self, moment: Moment) -> Turn:  # noqa: ARG002 - everything, whenever
        """Everything."""
        return Turn(_everything(self._request, "prune-train-l1", {"strength": self._strength}))

    def penalty(self) -> Tensor | None:
        """The weighted sum of the kernels' absolute values."""
        weights = kernels(self._request.model)
        sums = [weight.abs().sum(dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
        return self._strength * torch.stack(sums).sum() if sums else None


def kernels(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all convolutions and linear layers, tied ones once."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        dense = kind_of(module) in ("convolution", "linear")
        for name in ("weight",) if dense else PROJECTIONS:
            parameter = module._parameters.get(name)
            if parameter is not None:
                found[id(parameter)] = parameter
    return list(found.values())


def _everything(request: Request, method: str, options: Mapping[str, Any]) -> Selection:
    names = {name for name, _ in request.model.named_parameters()}
    return choose_tensors(request, request.find_layers(), names, method=method, options=options)


def _first_batch(request: Request) -> Any:
    for batch in request.batches:
        return batch
    raise DataError("expected batches to look at, the loader is empty")


def _agree(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether two models give the same, but for rounding."""
    if len(before) != len(after):
        return False
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            return False
        if one.is_floating_point():
            room = math.sqrt(torch.finfo(one.dtype).eps)
            if not torch.allclose(one, other, rtol=room, atol=room * float(one.abs().max()), equal_nan=True):
                return False
    return True
