"""The plain alternatives that every method has to beat."""

import random

from adabet.methods.registry import Request, register, scored
from adabet.ranking import RankedLayer, Ranking


@register("full", needs="nothing", source="ordinary fine-tuning")
def rank_full(request: Request) -> Ranking:
    """Everything trains."""
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda *_: 1), method="full", fixed_ratio=1.0)


@register("head", needs="nothing", source="linear probing, 'transfer learning' in the AdaBet paper")
def rank_head(request: Request) -> Ranking:
    """Only the classifier trains."""
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda *_: 0), method="head", fixed_ratio=0.0)


@register("last-k", needs="nothing", source="baseline of the AdaBet paper")
def rank_last_k(request: Request) -> Ranking:
    """The layers nearest to the output, k being the ratio's share of them."""
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda index, _: index), method="last-k")


@register("random", needs="nothing", source="control")
def rank_random(request: Request) -> Ranking:
    """A random order, the same for the same seed."""
    layers = request.find_layers()
    draw = random.Random(request.seed)
    ranked = scored(layers, lambda *_: draw.random())
    return request.ranking(layers, ranked, method="random", options={"seed": request.seed})


@register("size", needs="nothing", source="ablation of AdaBet: 1/|a|, what is left without the topology")
def rank_size(request: Request) -> Ranking:
    """The layers with the fewest activations."""
    layers = request.find_layers()
    ranked = [RankedLayer(layer, 1.0, float(layer.output_size)) for layer in layers]
    return request.ranking(layers, ranked, method="size")
