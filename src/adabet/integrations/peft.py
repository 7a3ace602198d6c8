"""Where a ranking or a selection puts LoRA's adapters: arguments for PEFT's own configuration."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from adabet.errors import AdabetWarning, LayerError, OptionError, UnknownNameError
from adabet.extras import require
from adabet.methods.adapter_places import adaptable_modules, best_adaptable, places, targets_of
from adabet.ranking import Ranking
from adabet.selection import Selection

require("peft", "adabet.integrations.peft")

IN_A_BLOCK = re.compile(r"(?P<blocks>.*?[^.\d][^.]*)\.(?P<index>\d+)\.(?P<inside>.+)")
"""The path of a module in a list of blocks."""


def target_modules(
    model: nn.Module,
    chosen: Ranking | Selection,
    *,
    layers: Sequence[str] | None = None,
    layer_ratio: float | None = None,
    modules: Sequence[str] | None = None,
    rank: int | None = None,
    alpha: float = 8,
    by_index: bool = False,
    head: bool = True,
) -> dict[str, Any]:
    """Arguments of ``peft.LoraConfig`` that put adapters into the best layers, and nowhere else.

    Adapters go into the linear layers, transformers' ``Conv1D``, embeddings and convolutions of the chosen layers; an
    attention block is one layer, with all its projections. What can take no adapter is left out: norms, convolutions
    with groups or dilation, tied embeddings and the parts of torch's ``MultiheadAttention``. Whether a layer was
    chosen whole or by channels makes no difference.

    PEFT freezes the rest of the model, but leaves batch-norms in train mode: put those into eval mode after
    ``model.train()``. Run the forward passes in `adabet.lean`: a frozen layer then keeps no input of its own, and its
    adapter keeps it once, also where it drops some of it out. Under autocast PEFT copies that input to the adapter's
    type, unless told not to by ``peft.helpers.disable_input_dtype_casting(model)``. For adapters that `adabet.fit`
    trains see the method ``"lora"`` (`adabet.methods.lora`).

    Args:
        model: the model that was ranked, without adapters.
        chosen: a ranking, whose best layers get adapters, or a selection, whose layers all do.
        layers: names of layers of the ranking or selection to take instead.
        layer_ratio: with a ranking, the share of the layers that can take adapters, at least one; default the
            paper's 0.1.
        modules: names of modules to keep to, ends of their paths such as ``("query", "value")``; default all.
        rank: shares out ranks by the layers' scores: their mean over the adapters is about ``rank``, each is at least 1
            and at most full. Give ``LoraConfig`` the same as ``r``. Default: no ``rank_pattern``, all get ``r``.
        alpha: with ``rank``, the ``lora_alpha`` that ``LoraConfig`` gets (PEFT's default is 8): an ``alpha_pattern``
            keeps every adapter's scale at ``alpha / rank``.
        by_index: name modules of one block and the blocks' numbers (``layers_to_transform``, ``layers_pattern``)
            instead of every path, where that comes to exactly the same modules.
        head: name the head in ``modules_to_save``, so that PEFT trains it too.

    Returns:
        ``target_modules`` and, where they have something to say, ``modules_to_save``, ``rank_pattern``,
        ``alpha_pattern``, ``layers_to_transform`` with ``layers_pattern``, and ``fan_in_fan_out``.

    Raises:
        LayerError: if none of the chosen layers can take adapters.
        OptionError: if an option makes no sense, or needs a ranking and a selection was given.
        SelectionError: if the ranking or selection was made for another model.
        UnknownNameError: if ``layers`` names one that there is not.

    Warns:
        AdabetWarning: naming chosen layers that can take no adapters, with a selection or ``layers``; naming modules
            that PEFT takes for the head, since its paths are matched by their ends (``pre_classifier`` is trained
            like ``classifier``).

    Examples:
        >>> import adabet, torch
        >>> model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
        >>> batches = torch.randn(5, 8, 5, generator=torch.Generator().manual_seed(0))
        >>> ranking = adabet.rank(model, batches, head="4")
        >>> target_modules(model, ranking, layer_ratio=1)
        {'target_modules': ['0', '2'], 'modules_to_save': ['4']}
    """
    _check(chosen, layer_ratio, layers, modules, rank, alpha)
    (chosen.select() if isinstance(chosen, Ranking) else chosen).check(model)
    able = {path for path in adaptable_modules(model) if modules is None or _ends_with_one(path, modules)}
    by_layer = {name: targets_of(parameters, able) for name, parameters in _layers(chosen, layers, layer_ratio, able)}
    left_out = [name for name, targets in by_layer.items() if not targets]
    if left_out:
        _warn(f"{len(left_out)} chosen layers can take no adapters and are left out: {', '.join(left_out)}")
    heads = _head_modules(chosen) if head else []
    taken = _taken_by_head(model, heads)
    by_layer = {name: [path for path in found if path not in taken] for name, found in by_layer.items()}
    targets = [target for found in by_layer.values() for target in found]
    if not targets:
        raise LayerError(
            f"expected chosen layers that can take adapters, got {', '.join(by_layer) or 'none'}; "
            "choose linear layers, convolutions without groups, attention blocks or embeddings"
        )
    if taken:
        _warn(
            f"PEFT takes for the head, and trains whole, what is named like it: {', '.join(taken)}; or give head=False"
        )
    found = places(model, targets)
    if by_index:
        found |= _by_index(model, targets)
    if rank is not None and isinstance(chosen, Ranking):
        found |= _patterns(model, by_layer, chosen, rank, alpha)
    return found | ({"modules_to_save": heads} if heads else {})


def _check(
    chosen: Ranking | Selection,
    layer_ratio: float | None,
    layers: Sequence[str] | None,
    modules: Sequence[str] | None,
    rank: int | None,
    alpha: float,
) -> None:
    for name, value in (("layers", layers), ("modules", modules)):
        if isinstance(value, str):
            raise OptionError(f"expected {name} to be a list of names, got the text {value!r}")
    if isinstance(chosen, Selection):
        if layer_ratio is not None or rank is not None:
            raise OptionError("expected layer_ratio and rank with a ranking; a selection has no scores, give a ranking")
        if chosen.method == "lora":
            raise OptionError("expected a selection of layers, this one is of adapters: use adabet.methods.lora.inject")
    if layers is not None and layer_ratio is not None:
        raise OptionError("expected either layers or layer_ratio, got both")
    if rank is not None and (rank < 1 or alpha <= 0):
        raise OptionError(f"expected rank of at least 1 and alpha above 0, got {rank} and {alpha}")


def _layers(
    chosen: Ranking | Selection, names: Sequence[str] | None, layer_ratio: float | None, able: Iterable[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Names and parameters of the layers that get adapters."""
    if isinstance(chosen, Selection):
        known = {choice.layer: choice.parameters for choice in chosen.choices if not choice.head}
    elif names is None:
        best = best_adaptable(chosen, frozenset(able), 0.1 if layer_ratio is None else layer_ratio)
        return [(layer.name, layer.parameters) for layer in best]
    else:
        known = {ranked.layer.name: ranked.layer.parameters for ranked in chosen.layers}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("layer", name, known)
    return [(name, parameters) for name, parameters in known.items() if names is None or name in names]


def _warn(message: str) -> None:
    warnings.warn(message, AdabetWarning, stacklevel=3)


def _ends_with_one(path: str, ends: Iterable[str]) -> bool:
    return any(path == end or path.endswith(f".{end}") for end in ends)


def _by_index(model: nn.Module, targets: Sequence[str]) -> dict[str, Any]:
    """The same targets as modules inside blocks and the blocks' numbers; nothing where that names others too."""
    matches = [IN_A_BLOCK.fullmatch(target) for target in targets]
    places_in = [match.groupdict() for match in matches if match is not None]
    blocks = {place["blocks"] for place in places_in}
    inside = list(dict.fromkeys(place["inside"] for place in places_in))
    numbers = sorted({int(place["index"]) for place in places_in})
    if len(places_in) < len(targets) or len(blocks) > 1:
        return {}
    pattern = blocks.pop()
    reached = {
        path
        for path, _ in model.named_modules()
        if _ends_with_one(path, inside)
        # as PEFT looks for the number: the first after the pattern, wherever that stands
        if (match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path)) and int(match.group(1)) in numbers
    }
    if reached != set(targets):
        return {}
    return {"target_modules": inside, "layers_to_transform": numbers, "layers_pattern": [pattern]}


def _patterns(
    model: nn.Module, by_layer: Mapping[str, Sequence[str]], ranking: Ranking, rank: int, alpha: float
) -> dict[str, Any]:
    """Ranks in proportion to scores; an alpha that keeps the scale of each adapter the same."""
    scores = {ranked.layer.name: max(0.0, ranked.score) for ranked in ranking.layers}
    shares = {target: scores[name] for name, targets in by_layer.items() for target in targets}
    mean = sum(shares.values()) / len(shares)
    ranks = {
        target: max(1, min(round(rank * share / mean) if mean else rank, _full_rank(model, target)))
        for target, share in shares.items()
    }
    # PEFT takes a key for a pattern that may begin in the middle of a path
    other = {f"^{re.escape(target)}": value for target, value in ranks.items() if value != rank}
    if not other:
        return {}
    return {"rank_pattern": other, "alpha_pattern": {key: alpha * value / rank for key, value in other.items()}}


def _full_rank(model: nn.Module, path: str) -> int:
    weight: Any = model.get_submodule(path).weight
    return int(min(weight.flatten(1).shape))


def _head_modules(chosen: Ranking | Selection) -> list[str]:
    if isinstance(chosen, Ranking):
        return [layer.name for layer in chosen.head]
    return [choice.layer for choice in chosen.choices if choice.head]


def _taken_by_head(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Paths outside the head that ``modules_to_save`` takes for it."""
    # PEFT trains whole whose path ends with the name, and puts no adapters where the name is a part of the path
    named_alike = [
        path
        for path, _ in model.named_modules()
        if any(path.endswith(name) or re.match(rf"(.*\.)?{name}(\..*)?$", path) for name in heads)
    ]
    return [path for path in named_alike if not any(f"{path}.".startswith(f"{name}.") for name in heads)]
