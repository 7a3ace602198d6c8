"""AdaBet: layers whose activations have the most complex topology for their size."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from adabet.errors import DataError, LayerError, OptionError
from adabet.layers import Layer, inputs_of, sample_count
from adabet.methods.registry import Request, register
from adabet.ranking import AXES, SLICEABLE, RankedLayer, Ranking
from adabet.topology import Probe, Prober, betti_one
from adabet.topology.pool import FEWEST, SLICE
from adabet.topology.stability import half_counts, spearman

NORMALIZE = ("activations", "parameters", "none")

REFERENCE_BATCHES = 4
"""Batches that the paper's code looks at."""

ESTIMATES = "distances are estimates from random projections; leave out the sketch for exact counts"

UNSTABLE = 0.5
"""Rank correlation between halves of the samples below which a ranking is called unstable."""


@register(
    "adabet",
    needs="forward passes over about 40 unlabelled samples",
    source="Tenison et al. 2026, arXiv 2510.03101",
)
def rank_adabet(
    request: Request,
    *,
    samples: int = 40,
    normalize: str = "activations",
    channels: float = 0.0,
    axis: str = "out",
    samples_in_memory: int | None = None,
    sketch: int | None = None,
    slice_size: int = SLICE,
    min_persistence: float | None = None,
    reference: bool = False,
) -> Ranking:
    """Loops in the cloud of a layer's activations (first Betti number) over their number.

    Args:
        request: model, batches and what all methods share.
        samples: how many samples to pool; the paper's 5 batches of 8.
        normalize: what the Betti number is divided by: ``"activations"`` (elements of the layer's output for one
            sample, the paper's), ``"parameters"``, or ``"none"``.
        channels: share of the best layers whose channels are ranked too, by the loops in each channel's own
            cloud; takes another round of forward passes. 0 for none.
        axis: whose channels those are, the layers' outputs (``"out"``, the paper's) or inputs (``"in"``).
        samples_in_memory: see `Prober`.
        sketch: see `Prober`.
        slice_size: see `Prober`.
        min_persistence: count only loops that live longer than this, in the units of the distances; through ripser.
        reference: count as the paper's published code does, to reproduce its numbers: each of the first 4 batches is a
            cloud of its own, its loops are divided by the elements of the batch's activations, and what the batches
            give is summed and divided by the number of layers. ``samples`` is not used then.

    The published code differs from the paper in more than arithmetic. In all cases, layers of equal priority come in
    the order of the forward pass, as there. With ``head_as_candidate`` of a request the head competes, as there. Where
    the ratio stands for less than one layer, it selects none and `Ranking.count` one. It runs layers one after the
    other instead of the network, and so leaves some out: this is not followed.

    Raises:
        OptionError: if normalize or channels make no sense.
        ActivationError: if activations are not finite or cannot be compared, or there are fewer than four samples.
        LayerError: if the model has no layer but its head.

    Source: Tenison et al. 2026 (arXiv 2510.03101), sections 3.1 and 4.2.
    """
    if normalize not in NORMALIZE:
        raise OptionError(f"expected normalize to be one of {', '.join(NORMALIZE)}, got {normalize!r}")
    if not 0 <= channels <= 1:
        raise OptionError(f"expected channels, a share of the layers, from 0 to 1, got {channels}")
    if axis not in AXES:
        raise OptionError(f"expected an axis of 'out' or 'in', got {axis!r}")
    look = partial(
        Prober,
        request.model,
        samples_in_memory=samples_in_memory,
        sketch=sketch,
        slice_size=slice_size,
        seed=request.seed,
        head=request.head_paths,
        blocks=request.blocks,
        tie_norm=request.tie_norm,
        forward=request.forward,
    )
    if reference:
        if channels:
            raise OptionError("expected no channels with reference=True: the published code does not rank any")
        return _as_published(request, look, normalize, sketch, min_persistence)
    prober = look(request.batches, samples=samples, progress=request.progress)
    probe = _probe(prober)
    clouds = torch.stack([probe.distances[layer.name] for layer in probe.layers])
    counts = betti_one(clouds, min_persistence=min_persistence).tolist()
    halves = half_counts(probe.distances, seed=request.seed)
    spreads = torch.cat(halves).double().std(0).tolist()
    ranked = [
        RankedLayer(layer, float(count), cost_of(layer, normalize), spread)
        for layer, count, spread in zip(probe.layers, counts, spreads, strict=True)
    ]
    costs = torch.tensor([layer.cost for layer in ranked], dtype=torch.float64)
    agreement, score_agreement = _agreement(halves, costs), _agreement(halves, torch.ones_like(costs))
    ranking = request.ranking(
        probe.layers,
        ranked,
        method="adabet",
        samples=probe.samples,
        agreement=agreement,
        score_agreement=score_agreement,
        notes=_notes(probe, counts, samples, agreement, score_agreement),
        options={
            "normalize": normalize,
            "samples": samples,
            "sketch": sketch,
            "min_persistence": min_persistence,
        },
        channel_axis=axis if channels else None,
    )
    return _with_channels(ranking, prober, channels, min_persistence) if channels else ranking


def _as_published(
    request: Request, look: Callable[..., Prober], normalize: str, sketch: int | None, min_persistence: float | None
) -> Ranking:
    """The ranking by the published code's arithmetic, one batch after the other."""
    probes: list[Probe] = []
    for batch in islice(request.batches, REFERENCE_BATCHES):
        done = len(probes)

        def progress(passes: int, total: int, done: int = done) -> None:
            if request.progress is not None:
                request.progress(done * total + passes, REFERENCE_BATCHES * total)

        # a batch of fewer samples than make a loop is an error of the prober
        probes.append(_probe(look([batch], samples=max(FEWEST, sample_count(inputs_of(batch))), progress=progress)))
    if not probes:
        raise DataError("expected batches to look at, the loader is empty")
    layers = probes[0].layers
    clouds = [torch.stack([probe.distances[layer.name] for layer in layers]) for probe in probes]
    loops = torch.stack([betti_one(cloud, min_persistence=min_persistence).cpu() for cloud in clouds])
    shares = loops.double() / torch.tensor([probe.samples for probe in probes])[:, None]
    spreads = shares.std(0, correction=min(1, len(probes) - 1)).tolist()
    ranked = [
        RankedLayer(layer, score, cost_of(layer, normalize) * len(layers), spread)
        for layer, score, spread in zip(layers, shares.sum(0).tolist(), spreads, strict=True)
    ]
    flat = int((loops.sum(0) == 0).sum())
    return request.ranking(
        layers,
        ranked,
        method="adabet",
        samples=sum(probe.samples for probe in probes),
        notes=(
            f"counted as the published code does: loops of {len(probes)} batches by themselves, per sample, summed",
            *([f"{flat} of {len(layers)} layers have no loop in any batch and tie"] if flat else []),
            *([] if probes[0].exact else [ESTIMATES]),
        ),
        options={
            "normalize": normalize,
            "sketch": sketch,
            "min_persistence": min_persistence,
            "reference": True,
        },
    )


def _probe(prober: Prober) -> Probe:
    if not prober.layers.candidates:
        raise LayerError("expected layers beside the head to choose from, the model has none; use the method 'head'")
    return prober.probe()


def cost_of(layer: Layer, normalize: str) -> float:
    """What a layer's Betti number is divided by."""
    if normalize == "activations":
        return float(layer.output_size)
    return float(layer.parameter_count) if normalize == "parameters" else 1.0


def _agreement(halves: tuple[Tensor, Tensor], costs: Tensor) -> float:
    """Mean rank correlation between what disjoint halves of the samples say."""
    correlations = spearman(halves[0] / costs, halves[1] / costs)
    known = correlations[~correlations.isnan()]
    return float(known.mean()) if len(known) else math.nan


def _with_channels(ranking: Ranking, prober: Prober, share: float, min_persistence: float | None) -> Ranking:
    """The ranking with channel scores for the best layers, where channels have a meaning."""
    best = {ranked.layer.name for ranked in ranking.order[: ranking.count(share)]}
    wanted = [
        ranked.layer
        for ranked in ranking.layers
        if ranked.layer.name in best and ranked.layer.channel_axis and ranked.layer.kind in SLICEABLE
    ]
    found = {
        layer.name: tuple(betti_one(distances, min_persistence=min_persistence).double().tolist())
        for layer, distances in prober.channel_distances(wanted, axis=ranking.channel_axis or "out")
    }
    layers = tuple(replace(ranked, channel_scores=found.get(ranked.layer.name)) for ranked in ranking.layers)
    return replace(ranking, layers=layers)


def _notes(probe: Probe, counts: list[int], asked: int, agreement: float, score_agreement: float) -> tuple[str, ...]:
    """What a user should know of the ranking, each with the remedy."""
    notes = []
    if probe.samples < asked:
        notes.append(f"only {probe.samples} of {asked} samples were given: give more batches for a surer ranking")
    flat = sum(count == 0 for count in counts)
    if flat == len(counts):
        notes.append("flat: no layer has a single loop, so the order is that of the forward pass; give more samples")
    elif flat > len(counts) / 2:
        notes.append(f"{flat} of {len(counts)} layers have no loop and tie: give more samples to tell them apart")
    if math.isnan(agreement) and len(counts) > 1:
        notes.append("how sure the order is cannot be told: halves of the samples have no loops; give more samples")
    elif agreement < UNSTABLE:
        notes.append(f"unstable: halves of the samples agree on the order only at {agreement:.2f}; give more samples")
    elif score_agreement < UNSTABLE:
        notes.append(
            f"halves of the samples agree on the Betti numbers only at {score_agreement:.2f} (on the priorities at "
            f"{agreement:.2f}): mostly the layers' sizes decide; give more samples if topology should count for more"
        )
    if not probe.exact:
        notes.append(ESTIMATES)
    return tuple(notes)
