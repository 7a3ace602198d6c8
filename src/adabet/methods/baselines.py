"""The plain alternatives that every method has to beat."""

import random

from adabet.methods.registry import Request, register, scored
from adabet.ranking import RankedLayer, Ranking


@register("full", needs="nothing", source="ordinary fine-tuning")
def rank_full(request: Request) -> Ranking:
    """Everything trains.

    Source: ordinary fine-tuning, the upper end of the papers' tables.
    """
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda *_: 1), method="full", fixed_ratio=1.0)


@register("head", needs="nothing", source="linear probing, 'transfer learning' in the AdaBet paper")
def rank_head(request: Request) -> Ranking:
    """Only the classifier trains.

    Source: linear probing; "transfer learning" in Tenison et al. 2026 (arXiv 2510.03101).
    """
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda *_: 0), method="head", fixed_ratio=0.0)


@register("last-k", needs="nothing", source="baseline of the AdaBet paper")
def rank_last_k(request: Request) -> Ranking:
    """The layers nearest to the output, k being the ratio's share of them.

    A layer's score is its place in a forward pass.

    Source: baseline of Tenison et al. 2026 (arXiv 2510.03101), ``k = int(rho L)``; here at least one.
    """
    layers = request.find_layers()
    return request.ranking(layers, scored(layers, lambda index, _: index), method="last-k")


@register("random", needs="nothing", source="control")
def rank_random(request: Request) -> Ranking:
    """A random order, the same for the same seed.

    Source: a control; every score is a draw from [0, 1).
    """
    layers = request.find_layers()
    draw = random.Random(request.seed)
    ranked = scored(layers, lambda *_: draw.random())
    return request.ranking(layers, ranked, method="random", options={"seed": request.seed})


@register("size", needs="nothing", source="ablation of AdaBet: 1/|a|, what is left without the topology")
def rank_size(request: Request) -> Ranking:
    """The layers with the fewest activations.

    The score is ``1 / |a|`` for a output elements of a sample.

    Source: ablation of Tenison et al. 2026 (arXiv 2510.03101): AdaBet's score without the topology.
    """
    layers = request.find_layers()
    ranked = [RankedLayer(layer, 1.0, float(layer.output_size)) for layer in layers]
    return request.ranking(layers, ranked, method="size")
