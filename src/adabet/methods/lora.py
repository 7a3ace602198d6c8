"""LoRA: low-rank adapters instead of the weights, in the layers that a ranking says."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import CheckpointError, LayerError, OptionError
from adabet.extras import require
from adabet.layers import Layer, fingerprint
from adabet.layers.batches import device_of
from adabet.methods.adapter_places import adaptable_modules, best_adaptable, places, targets_of
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.registry import Request, find_method, register
from adabet.ranking import Ranking
from adabet.selection import Choice, Selection

ADAPTER = "adabet"
"""What PEFT knows the adapters by."""

PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
"""Where PEFT keeps adapters in a module."""


@register(
    "lora",
    needs="what the ranking needs that says where, forward passes by default; PEFT",
    source="Hu et al., ICLR 2022, arXiv 2106.09685",
)
def start_lora(
    request: Request, *, rank: int = 8, alpha: float | None = None, dropout: float = 0.0, where: str = "adabet"
) -> Dynamic:
    """Low-rank adapters in the best layers by a ranking, and the head; all weights stay frozen.

    An adapted layer computes ``W x + (alpha / rank) B A x`` with A of ``rank`` rows, B of as many columns, and only
    these train; B A starts at 0. PEFT makes the adapters, in the model itself: after the first turn, and so after
    `adabet.select` too, what has adapters is wrapped and its tensors have other names
    (``conv.base_layer.weight``). `remove` takes adapters off, or merges them into the weights.

    A run's deltas hold adapters and head; `adabet.load_delta` puts adapters into the bare model first. Who applies a
    saved selection by hand calls `inject` before.

    Args:
        request: the model, batches for the ranking, and ``layer_ratio``: of the layers that can take adapters, the
            share that gets some, at least one.
        rank: of the adapters.
        alpha: their scale; None takes the rank, so that the scale is 1.
        dropout: share of the adapters' inputs that is dropped in training.
        where: the name of a method that ranks layers, or ``"all"`` for every layer that can take adapters.

    Raises:
        OptionError: if an option makes no sense.
        LayerError: if no layer can take adapters, or the model has some already.
        MissingExtraError: if PEFT is not installed.

    Departs from the paper, which adapts attention projections chosen by hand. Adapters go into linear layers (all
    projections of an attention block together), convolutions and embeddings; see `adaptable_modules`.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, through PEFT.
    """
    if rank < 1:
        raise OptionError(f"expected rank, that of the adapters, of at least 1, got {rank}")
    scale = float(rank) if alpha is None else alpha
    if not 0 < scale < math.inf:
        raise OptionError(f"expected alpha, the adapters' scale, above 0, got {alpha}")
    if not 0 <= dropout < 1:
        raise OptionError(f"expected dropout from 0 to below 1, got {dropout}")
    if where != "all" and find_method(where).kind != "ranks layers":
        raise OptionError(f"expected where to be 'all' or a method that ranks layers, got {where!r}")
    if not 0 <= request.layer_ratio <= 1:
        raise OptionError(f"expected a layer_ratio from 0 to 1, got {request.layer_ratio}")
    require("peft", "method 'lora'")
    return Lora(request, {"rank": rank, "alpha": scale, "dropout": dropout, "where": where, "seed": request.seed})


class Lora(Dynamic):
    """The method at work in a run; see `start_lora`. It chooses once, and puts the adapters in then."""

    def __init__(self, request: Request, options: Mapping[str, Any]) -> None:
        self._request, self._options = request, options
        if adapted_layers(request.model) or hasattr(request.model, "peft_config"):
            raise LayerError("expected a model without adapters, this one has some; see adabet.methods.lora.remove")
        self._layers = request.find_layers()
        self._modules = adaptable_modules(request.model)
        self._able = [layer for layer in self._layers if targets_of(layer.parameters, self._modules)]
        if not self._able:
            raise LayerError(
                "expected linear layers, convolutions or embeddings that can take adapters, the model has none beside "
                "the head; choose another method"
            )
        self._selection: Selection | None = None

    def turn(self, moment: Moment) -> Turn:  # noqa: ARG002 - there is only one
        """Put in adapters."""
        model, layers = self._request.model, self._layers
        targets = [path for layer in self._chosen() for path in targets_of(layer.parameters, self._modules)]
        _inject(model, targets, self._options)
        choices = [_choice(model, path) for path in targets]
        self._selection = Selection(
            method="lora",
            choices=(*choices, *map(Choice.of, layers.head)),
            fingerprint=fingerprint(model, layers.head_parameters),
            candidates=len(layers),
            options={**self._options, "layer_ratio": self._request.layer_ratio, "targets": targets},
        )
        return Turn(self._selection, note=f"adapters in {len(targets)} modules")

    def state_dict(self) -> dict[str, Any]:
        """The selection, which says where adapters are."""
        return {"selection": "" if self._selection is None else self._selection.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the adapters into a bare model again; their values come from the checkpoint."""
        if "selection" not in state:
            raise CheckpointError("the checkpoint is of another method, it lacks 'selection'")
        if state["selection"]:
            self._selection = Selection.from_json(state["selection"])
            inject(self._request.model, self._selection)

    def _chosen(self) -> list[Layer]:
        """The layers that get adapters, in the order of a forward pass."""
        where = self._options["where"]
        if where == "all":
            return self._able
        ranking: Ranking = find_method(where).start(self._request)  # type: ignore[assignment]
        if ranking.fixed_ratio is not None:
            raise OptionError(f"expected where to be 'all' or a method that orders layers, got {where!r}")
        return best_adaptable(ranking, self._modules, self._request.layer_ratio)


def inject(model: nn.Module, selection: Selection) -> None:
    """Put the adapters of a selection by ``"lora"`` into a model, as they are when a run starts.

    Args:
        model: as it was before the selection was made; if it has these adapters already it is left as it is.
        selection: what `adabet.select` gave, a run chose, or a delta holds.

    Raises:
        SelectionError: if the selection was made for another model, which is left as it was then.
        LayerError: if the model has other adapters.
    """
    with injected_for(model, selection):
        selection.check(model)


@contextmanager
def injected_for(model: nn.Module, selection: Selection) -> Iterator[None]:
    """If a selection is one of adapters, put them into the model; if the block fails, take them off again."""
    targets = selection.options.get("targets", ()) if selection.method == "lora" else ()
    there = adapted_layers(model)
    if not targets or set(there) == set(targets):
        yield
        return
    if there:
        raise LayerError("the model has other adapters; take them off by adabet.methods.lora.remove")
    if set(targets) <= adaptable_modules(model):
        _inject(model, targets, selection.options)
    try:
        yield
    except BaseException:
        remove(model)
        raise


def adapted_layers(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that have adapters."""
    return tuple(path for path, module in model.named_modules() if _adapter_tensors(module))


def remove(model: nn.Module, *, merge: bool = False) -> None:
    """Take adapters off; every tensor has its name in the bare model again.

    Args:
        model: with adapters that this method put in; left as it is if there are none.
        merge: add them to the weights first: the model computes what it did with them, but for rounding.
    """
    for path in adapted_layers(model):
        module: Any = model.get_submodule(path)
        if merge:
            module.merge(adapter_names=[ADAPTER])
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module.base_layer)
    if ADAPTER in getattr(model, "peft_config", ()):
        del model.peft_config


def _inject(model: nn.Module, targets: list[str], options: Mapping[str, Any]) -> None:
    """Have PEFT wrap the targets; gradient flags and random state stay as they are."""
    peft = require("peft", "method 'lora'")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config = peft.LoraConfig(
        r=options["rank"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        **places(model, targets),
    )
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
        # a model may have layers of both orders; PEFT sets it right for each
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out")
        torch.manual_seed(options["seed"])
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _adapter_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's adapter by their names in it; empty if it has none."""
    parts: dict[str, Any] = {part: getattr(module, part, ()) for part in PARTS}
    return {
        name: tensor for part, held in parts.items() if ADAPTER in held for name, tensor in _named(part, held[ADAPTER])
    }


def _named(part: str, held: nn.Module | Tensor) -> Iterator[tuple[str, Tensor]]:
    if isinstance(held, Tensor):
        yield f"{part}.{ADAPTER}", held
    else:
        yield from held.named_parameters(f"{part}.{ADAPTER}")


def _choice(model: nn.Module, path: str) -> Choice:
    tensors = {f"{path}.{name}": tensor for name, tensor in _adapter_tensors(model.get_submodule(path)).items()}
    count = sum(tensor.numel() for tensor in tensors.values())
    return Choice(layer=path, kind="adapter", parameters=tuple(tensors), parameter_count=count)
