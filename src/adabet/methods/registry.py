"""The methods by name: each ranks layers, selects, or selects again while training."""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adabet.errors import DataError, OptionError, UnknownNameError
from adabet.layers import Layer, Layers, find_layers, fingerprint, forward_call, on_bare_model
from adabet.layers.batches import Forward
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.ranking import RankedLayer, Ranking
from adabet.selection import Axis, Selection
from adabet.step import Loss
from adabet.topology.probe import Progress


@dataclass(frozen=True)
class Request:
    """What every method is given.

    Attributes:
        model: the model.
        batches: batches to look at; labels are allowed, and used only by methods that say so.
        seed: of whatever the method draws.
        head: see `find_layers`.
        blocks: see `find_layers`.
        tie_norm: see `find_layers`.
        head_as_candidate: let the head compete with the other layers instead of training it in any case, as the
            paper's reference code does.
        forward: how to run the model on a batch.
        progress: told how much of the looking is done, and how much there is.
        layer_ratio: share of the layers that may train, for methods that select by themselves.
        channel_ratio: share of the channels of each, for methods that select by themselves.
        memory: bytes that a training step may take at its peak, everything counted, or None; kept by the methods that
            are registered with ``budget=True``.
        loss: ``loss(outputs, labels)``, for methods that need gradients; None for the default of `train_step`.
        optimizer: makes the run's optimizer, or None where there is no run.
        micro_batch: samples in memory at once, or None for whole batches.
        val_batches: held-out batches, for methods that want them, or None.
        every: select again every so many epochs, for methods that rank layers; None selects once.
    """

    model: nn.Module
    batches: Iterable[Any]
    seed: int = 0
    head: str | Sequence[str] | None = "auto"
    blocks: Sequence[str] | None = None
    tie_norm: bool = False
    head_as_candidate: bool = False
    forward: Forward = forward_call
    progress: Progress | None = None
    layer_ratio: float = 0.1
    channel_ratio: float = 1.0
    memory: int | None = None
    loss: Loss | None = None
    optimizer: Callable[[Sequence[Any]], Optimizer] | None = None
    micro_batch: int | None = None
    val_batches: Iterable[Any] | None = None
    every: int | None = None

    @property
    def head_paths(self) -> str | Sequence[str] | None:
        """Where the head is, or None if it is a layer like any other."""
        return None if self.head_as_candidate else self.head

    def find_layers(self) -> Layers:
        """The model's layers, found with the first batch.

        Raises:
            DataError: if there is no batch.
        """
        for batch in self.batches:
            return find_layers(
                self.model,
                batch,
                head=self.head_paths,
                blocks=self.blocks,
                tie_norm=self.tie_norm,
                forward=self.forward,
            )
        raise DataError("expected batches to look at, the loader is empty")

    def ranking(self, layers: Layers, ranked: Sequence[RankedLayer], **values: Any) -> Ranking:
        """A ranking of this request's model."""
        return Ranking(
            layers=tuple(ranked),
            head=layers.head,
            unranked=layers.unranked,
            fingerprint=fingerprint(self.model, layers.head_parameters),
            **values,
        )


Found = Ranking | Selection | Dynamic
"""What a method may be: scores for all layers, a selection of its own, or one that chooses again while training."""

Start = Callable[..., Found]


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        name: what users call it.
        start: ``start(request, **options)`` gives a `Ranking`, a `Selection` or a `Dynamic`.
        summary: one line.
        needs: what it looks at: nothing, forward passes, labels, gradients, ...
        source: where it comes from.
        budget: whether it keeps to ``Request.memory`` by itself.
    """

    name: str
    start: Start
    summary: str
    needs: str
    source: str
    budget: bool = False

    @property
    def kind(self) -> str:
        """What it chooses: ``"ranks layers"``, ``"selects"`` or ``"selects again"`` while training."""
        found = typing.get_type_hints(self.start).get("return")
        return KINDS.get(found, "selects again")  # type: ignore[arg-type]

    @property
    def labelled(self) -> bool:
        """Whether it needs the labels of the batches."""
        return "labels" in self.needs

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that this method takes beside those of `Request`."""
        parameters = inspect.signature(self.start).parameters.values()
        return tuple(item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY)


KINDS = {Ranking: "ranks layers", Selection: "selects"}

METHODS: dict[str, Method] = {}


def register(name: str, *, needs: str, source: str, budget: bool = False) -> Callable[[Start], Start]:
    """Enter a method into the registry; its summary is the first line of its docstring."""

    def enter(function: Start) -> Start:
        summary = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
        METHODS[name] = Method(name, function, summary, needs, source, budget)
        return function

    return enter


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        UnknownNameError: with the nearest name there is.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


@on_bare_model
def rank(model: nn.Module, batches: Iterable[Any], *, method: str = "adabet", **options: Any) -> Ranking:
    """Score every layer of a model by one method; AdaBet's by default.

    AdaBet looks at sequences without their padding, where the batches have an ``attention_mask``: outputs of layers
    over tokens are compared whole if all sequences have one length, and by their means over each sequence's tokens if
    not (see `adabet.topology.Prober`). A head that is tied to an embedding is not a head of its own: the embedding is a
    candidate like any other layer, and the head trains if that is chosen.

    Args:
        model: any module; left as it was.
        batches: unlabelled batches (labels are ignored unless the method says that it needs them): an iterable
            of tensors, of tuples that start with the inputs, or of mappings.
        method: a name from the registry, see `adabet methods`.
        options: those of `Request` (seed, head, blocks, tie_norm, head_as_candidate, forward, progress) and the
            method's own, for AdaBet see `adabet.methods.adabet.rank_adabet`.

    Raises:
        UnknownNameError: if there is no such method.
        OptionError: if it does not take an option, or selects without a ranking of layers.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
        >>> batches = torch.randn(5, 8, 5, generator=torch.Generator().manual_seed(0))
        >>> ranking = rank(model, batches, head="4")
        >>> ranking.select(layer_ratio=0.5).candidates
        2
    """
    found = start(method, model, batches, **options)
    if not isinstance(found, Ranking):
        raise OptionError(
            f"method {method!r} gives no ranking of layers, it {find_method(method).kind}; "
            f"use adabet.select or adabet.fit with method={method!r}"
        )
    return found


def start(method: str, model: nn.Module, batches: Iterable[Any], **options: Any) -> Found:
    """What a method gives for a model: a ranking, a selection, or a method at work in a run.

    Args:
        method: a name from the registry.
        model: any module; left as it was.
        batches: what it may look at.
        options: those of `Request` and the method's own.

    Raises:
        UnknownNameError: if there is no such method.
        OptionError: if it does not take an option.
    """
    entry = find_method(method)
    shared = {name for name in Request.__dataclass_fields__ if name not in ("model", "batches")}
    for name in options:
        if name not in shared and name not in entry.options:
            raise OptionError(
                f"method {method!r} takes no option {name!r}; it takes {', '.join(sorted(shared | set(entry.options)))}"
            )
    request = Request(model, batches, **{name: value for name, value in options.items() if name in shared})
    if request.memory is not None and not entry.budget:
        raise no_budget(entry)
    own = {name: value for name, value in options.items() if name not in shared}
    if request.every is not None:
        if entry.kind != KINDS[Ranking] or request.every < 1:
            raise OptionError(
                f"expected every, epochs between selections, of at least 1 with a method that ranks layers; "
                f"got every={request.every} with {method!r}"
            )
        return Again(entry, request, own)
    return entry.start(request, **own)


def no_budget(method: Method) -> OptionError:
    """What to say where a method was given a memory budget that it cannot keep to."""
    text = f"method {method.name!r} keeps to no budget by itself; leave memory out, or "
    if method.kind == KINDS[Ranking]:
        return OptionError(text + "use adabet.plan")
    keeping = sorted(other.name for other in METHODS.values() if other.budget)
    return OptionError(text + f"take one that does ({', '.join(keeping)}) or that ranks layers, as 'adabet' does")


class Again(Dynamic):
    """A method that ranks layers, asked again every few epochs."""

    def __init__(self, method: Method, request: Request, options: Mapping[str, Any]) -> None:
        self._method, self._request, self._options = method, request, options

    def due(self, moment: Moment) -> bool:
        """At the start of every so many epochs."""
        return moment.starts_epoch and (moment.epoch - 1) % (self._request.every or 1) == 0

    def turn(self, moment: Moment) -> Turn:  # noqa: ARG002 - the model's weights say it all
        """The ranking's best at this moment."""
        ranking = typing.cast(Ranking, self._method.start(self._request, **self._options))
        return Turn(ranking.select(layer_ratio=self._request.layer_ratio, channel_ratio=self._request.channel_ratio))


@on_bare_model
def select(
    method: str,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layer_ratio: float = 0.1,
    channel_ratio: float = 1.0,
    axis: Axis = "out",
    **options: Any,
) -> Selection:
    """Select by a method in one go; see `rank` and `Ranking.select` for the arguments.

    Of a method that selects again while training, this is what it would begin with.
    """
    own = find_method(method).options
    if channel_ratio < 1 and "channels" in own:
        options = {"channels": layer_ratio, "axis": axis, **options}
    found = start(method, model, batches, layer_ratio=layer_ratio, channel_ratio=channel_ratio, **options)
    if isinstance(found, Dynamic):
        return found.turn(Moment(1, 1, 1, None, optimizer_outside_a_run)).selection
    if isinstance(found, Ranking):
        return found.select(layer_ratio=layer_ratio, channel_ratio=channel_ratio, axis=axis)
    return found


def optimizer_outside_a_run(parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The paper's optimizer, for methods that are asked outside a run."""
    return torch.optim.SGD(list(parameters.values()), lr=1e-3, momentum=0.9)


def scored(layers: Layers, score: Callable[[int, Layer], float]) -> list[RankedLayer]:
    """Layers with a score from their index and what they are."""
    return [RankedLayer(layer, float(score(index, layer))) for index, layer in enumerate(layers)]
