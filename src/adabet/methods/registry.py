"""The methods by name. Each ranks layers; selections follow from the ranking."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from adabet.errors import DataError, OptionError, UnknownNameError
from adabet.layers import Layer, Layers, find_layers, fingerprint, forward_call
from adabet.layers.batches import Forward
from adabet.ranking import RankedLayer, Ranking
from adabet.selection import Axis, Selection
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
        progress: told after every forward pass.
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


Rank = Callable[..., Ranking]


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        name: what users call it.
        rank: ``rank(request, **options) -> Ranking``.
        summary: one line.
        needs: what it looks at: nothing, forward passes, labels, gradients, ...
        source: where it comes from.
    """

    name: str
    rank: Rank
    summary: str
    needs: str
    source: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that this method takes beside those of `Request`."""
        parameters = inspect.signature(self.rank).parameters.values()
        return tuple(item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY)


METHODS: dict[str, Method] = {}


def register(name: str, *, needs: str, source: str) -> Callable[[Rank], Rank]:
    """Enter a method into the registry; its summary is the first line of its docstring."""

    def enter(function: Rank) -> Rank:
        summary = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
        METHODS[name] = Method(name, function, summary, needs, source)
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


def rank(model: nn.Module, batches: Iterable[Any], *, method: str = "adabet", **options: Any) -> Ranking:
    """Score every layer of a model by one method; AdaBet's by default.

    Args:
        model: any module; left as it was.
        batches: unlabelled batches (labels are ignored unless the method says that it needs them): an iterable
            of tensors, of tuples that start with the inputs, or of mappings.
        method: a name from the registry, see `adabet methods`.
        options: those of `Request` (seed, head, blocks, tie_norm, head_as_candidate, forward, progress) and the
            method's own, for AdaBet see `adabet.methods.adabet.rank_adabet`.

    Raises:
        UnknownNameError: if there is no such method.
        OptionError: if it does not take an option.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
        >>> batches = torch.randn(5, 8, 5, generator=torch.Generator().manual_seed(0))
        >>> ranking = rank(model, batches, head="4")
        >>> ranking.select(layer_ratio=0.5).candidates
        2
    """
    entry = find_method(method)
    shared = {name for name in Request.__dataclass_fields__ if name not in ("model", "batches")}
    for name in options:
        if name not in shared and name not in entry.options:
            raise OptionError(
                f"method {method!r} takes no option {name!r}; it takes {', '.join(sorted(shared | set(entry.options)))}"
            )
    request = Request(model, batches, **{name: value for name, value in options.items() if name in shared})
    return entry.rank(request, **{name: value for name, value in options.items() if name not in shared})


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
    """Rank by a method and select in one go; see `rank` and `Ranking.select` for the arguments."""
    if channel_ratio < 1 and "channels" in find_method(method).options:
        options = {"channels": layer_ratio, "axis": axis, **options}
    ranking = rank(model, batches, method=method, **options)
    return ranking.select(layer_ratio=layer_ratio, channel_ratio=channel_ratio, axis=axis)


def scored(layers: Layers, score: Callable[[int, Layer], float]) -> list[RankedLayer]:
    """Layers with a score from their index and what they are."""
    return [RankedLayer(layer, float(score(index, layer))) for index, layer in enumerate(layers)]
