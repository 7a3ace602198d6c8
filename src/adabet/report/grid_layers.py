"""Where in the network each method of a comparison trains."""

from collections.abc import Sequence
from statistics import fmean

from adabet.experiments import EntryResult
from adabet.report.grid_verdict import line_name
from adabet.report.markup import Markup, figure, join, table
from adabet.report.page import paragraphs
from adabet.report.plots.rows import StripRow, draw_strips
from adabet.report.words import percentage

NAMES_TOLD = 12


class Network:
    """The layers of a model, as far as the runs of a comparison tell.

    Args:
        lines: of one model.

    Attributes:
        names: layers by their position; those that nobody trained are empty.
        heads: names of the head's layers.
        complete: whether some method trained all layers, so that the end of the network is known.
    """

    def __init__(self, lines: Sequence[EntryResult]) -> None:
        outcomes = [outcome for line in lines for outcome in line.outcomes]
        placed: dict[str, int] = {}
        for outcome in outcomes:
            for layer in outcome.layers:
                if layer.position is not None:
                    placed.setdefault(layer.name, layer.position)
        self.heads = {
            layer.name
            for outcome in outcomes
            if any(layer.position is not None for layer in outcome.layers)
            for layer in outcome.layers
            if layer.position is None and layer.name not in placed
        }
        self.places = placed
        self.names = [""] * (max(placed.values(), default=-1) + 1)
        for name, place in placed.items():
            self.names[place] = name
        self.complete = any(line.entry.method.method == "full" and line.outcomes for line in lines)


def layers_of(group: Sequence[EntryResult], reference: str) -> Markup | None:
    """A strip for each line, and the table of all layers under them; None where no method names its layers."""
    network = Network(group)
    lines = [line for line in group if line.outcomes]
    if not network.names:
        return None
    shares = [_shares(line) for line in lines]
    rows = [
        _row(line_name(line, group), share, network, strong=line.entry.method.label == reference)
        for line, share in zip(lines, shares, strict=True)
    ]
    headings = ["layer", *(line_name(line, group) for line in lines)]
    named = [name for name in network.names if name] + sorted(network.heads)
    cells = [[name or "(the model's own)", *(_often(share.get(name, 0.0)) for share in shares)] for name in named]
    data = table(
        "Share of seeds and selections in which each layer trains", headings, cells, numbers=range(1, len(headings))
    )
    caption = "A cell for each layer, filled as high as the method trains it often, over its seeds and selections"
    unplaced = {name for share in shares for name in share} - network.places.keys() - network.heads
    notes = []
    if not network.complete:
        notes.append("No method here trained all layers: the network may go on beyond the last cell.")
    if unplaced:
        notes.append(
            f"{len(unplaced)} layers whose place is not known are left out: {', '.join(sorted(unplaced)[:6])}."
        )
    return join([figure(caption, draw_strips(rows), data, summary="The layers"), paragraphs(*notes, class_="quiet")])


def _shares(line: EntryResult) -> dict[str, float]:
    """How often each layer trains, in [0, 1], the mean over the seeds."""
    often = [{layer.name: layer.turns / max(1, outcome.turns) for layer in outcome.layers} for outcome in line.outcomes]
    names = dict.fromkeys(name for found in often for name in found)
    return {name: min(1.0, fmean(found.get(name, 0.0) for found in often)) for name in names}


def _row(name: str, shares: dict[str, float], network: Network, *, strong: bool) -> StripRow:
    cells = [0.0] * len(network.names)
    for layer, share in shares.items():
        if layer in network.places:
            cells[network.places[layer]] = share
    trained = sorted((layer for layer in shares if layer in network.places), key=lambda layer: network.places[layer])
    heads = [shares.get(head, 0.0) for head in network.heads]
    listed = ", ".join(f"{layer} ({_often(shares[layer])})" for layer in trained[:NAMES_TOLD])
    more = f" and {len(trained) - NAMES_TOLD} more" if len(trained) > NAMES_TOLD else ""
    return StripRow(
        name=name,
        shares=cells,
        head=max(heads) if heads else None,
        told=f"{len(trained)} of {len(cells)} layers",
        layers=f"Trains {listed or 'the head alone'}{more}.",
        strong=strong,
    )


def _often(share: float) -> str:
    return "" if share == 0 else "always" if share == 1 else percentage(share)
