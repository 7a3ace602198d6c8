"""Where in the network a run trains, and by what its layers were ranked."""

from collections import Counter
from collections.abc import Sequence

from adabet.ranking import Ranking
from adabet.report.markup import Markup, figure, join, table
from adabet.report.page import Section, paragraphs
from adabet.report.plots.rows import StripRow, draw_strips
from adabet.report.run_files import RunRecord
from adabet.report.words import counted
from adabet.selection import Choice, Selection

TURNS_SHOWN = 12
"""Selections that get a strip of their own."""

NAMES_TOLD = 12


def layers_section(run: RunRecord) -> Section | None:
    """Which layers train, as strips over the network where the order of its layers is known."""
    if run.selection is None:
        return None
    parts: list[Markup | None] = []
    names = _network(run)
    whole = len(names) >= run.selection.candidates
    turns = [set(turn.layers) for turn in run.turns] or [{choice.layer for choice in run.selection.choices}]
    often = Counter(layer for turn in turns for layer in turn)
    rows = [_strip(run.method, names, {name: often[name] / len(turns) for name in often}, run, strong=True)]
    if len(turns) > 1:
        rows += [
            _strip(f"epoch {record.epoch}, step {record.step}", names, dict.fromkeys(record.layers, 1.0), run)
            for record in run.turns[:TURNS_SHOWN]
        ]
    if run.ranking is not None:
        rows += _scores(run.ranking)
    caption = "Where in the network it trains: a cell for each layer, filled as high as it trains often"
    if not whole:
        caption = "The layers that trained, in the order of a forward pass: filled as high as each trained often"
    parts.append(figure(caption, draw_strips(rows), _table(run, often, len(turns)), summary="The layers"))
    if not whole:
        parts.append(
            paragraphs(
                f"The run folder does not tell where the other {run.selection.candidates - len(names)} of "
                f"{counted(run.selection.candidates, 'layer')} lie: only adabet tune keeps the order of the layers.",
                class_="quiet",
            )
        )
    hidden = len(turns) - TURNS_SHOWN
    if hidden > 0:
        parts.append(paragraphs(f"The first {TURNS_SHOWN} of {len(turns)} selections are shown.", class_="quiet"))
    return Section("layers", "Where it trains", join(parts))


def _network(run: RunRecord) -> list[str]:
    """Layers in the order of a forward pass: all of them if the folder tells, else those that trained."""
    if run.ranking is not None:
        return [ranked.layer.name for ranked in run.ranking.layers]
    selections = [run.selection.choices] if run.selection is not None else []
    trained = [choice.layer for choices in selections for choice in choices if not choice.head]
    heads = {choice.layer for choices in selections for choice in choices if choice.head}
    trained += [layer for turn in run.turns for layer in turn.layers]
    known = [] if run.task is None else [name for name in run.task.layers if name not in heads]
    found = [name for name in dict.fromkeys(trained) if name not in heads]
    return known if set(found) <= set(known) else found


def _strip(
    name: str, names: Sequence[str], shares: dict[str, float], run: RunRecord, *, strong: bool = False
) -> StripRow:
    heads = [choice.layer for choice in (run.selection.choices if run.selection else ()) if choice.head]
    trained = [layer for layer in names if shares.get(layer)]
    total = run.selection.candidates if run.selection else len(names)
    listed = ", ".join(trained[:NAMES_TOLD]) + (
        f" and {len(trained) - NAMES_TOLD} more" if len(trained) > NAMES_TOLD else ""
    )
    return StripRow(
        name=name,
        shares=[shares.get(layer, 0.0) for layer in names],
        head=max((shares.get(head, 0.0) for head in heads), default=0.0) if heads else None,
        told=f"{len(trained)} of {counted(total, 'layer')}",
        layers=f"Trains {listed or 'the head alone'}.",
        strong=strong,
    )


def _scores(ranking: Ranking) -> list[StripRow]:
    """The ranking's priority along the network, and its score where a cost divides it."""
    found = []
    score = "b1" if ranking.method == "adabet" else "score"
    kinds = {f"what ranks: {score} / cost": [ranked.priority for ranked in ranking.layers]}
    if any(ranked.cost != 1 for ranked in ranking.layers):
        kinds[f"{score} alone"] = [ranked.score for ranked in ranking.layers]
    else:
        kinds = {f"what ranks: {score}": [ranked.priority for ranked in ranking.layers]}
    for name, values in kinds.items():
        most, least = max(values, default=0.0), min([*values, 0.0])
        span = most - least
        best = ranking.layers[values.index(most)].layer.name if values else ""
        found.append(
            StripRow(
                name=name,
                shares=[(value - least) / span if span else 0.0 for value in values],
                head=0.0 if ranking.head else None,
                told=f"up to {most:.3g}",
                layers=f"Largest at {best}, {most:.3g}.",
            )
        )
    return found


def _table(run: RunRecord, often: Counter[str], turns: int) -> Markup:
    chosen: dict[str, Choice] = {} if run.selection is None else {item.layer: item for item in run.selection.choices}
    rows = []
    for name in dict.fromkeys([*chosen, *often]):
        choice = chosen.get(name)
        rows.append(
            [
                name or "(the model's own)",
                "" if choice is None else "head" if choice.head else choice.kind,
                _channels(choice),
                "" if choice is None else f"{choice.parameter_count:,}",
                *([f"{often[name]} of {turns}"] if turns > 1 else []),
            ]
        )
    headings = ["layer", "kind", "channels", "parameters", *(["selections"] if turns > 1 else [])]
    title = "What trains" if turns == 1 else "What trains; kind, channels and parameters are of the first selection"
    return table(title, headings, rows, numbers=(3, 4))


def _channels(choice: Choice | None) -> str:
    if choice is None:
        return ""
    return "all" if choice.channels is None else f"{len(choice.channels)} {choice.axis}put"


def ranking_section(run: RunRecord) -> Section | None:
    """The ranking table, or None where no ranking was kept."""
    if run.ranking is None:
        return None
    return Section("ranking", "The ranking", ranking_table(run.ranking, run.selection))


def ranking_table(ranking: Ranking, selection: Selection | None) -> Markup:
    """A ranking, best first, the chosen layers marked."""
    chosen = set(() if selection is None else selection.layers)
    score = "b1" if ranking.method == "adabet" else "score"
    order = ranking.order
    rows = [
        [
            ranked.layer.name,
            str(place),
            "yes" if ranked.layer.name in chosen else "",
            ranked.layer.kind,
            f"{ranked.score:g}" + (f" ± {ranked.spread:.1f}" if ranking.samples else ""),
            f"{ranked.cost:,.0f}",
            f"{ranked.priority:.3g}",
            f"{ranked.layer.parameter_count:,}",
        ]
        for place, ranked in enumerate(order, start=1)
    ]
    headings = ["layer", "place", "trains", "kind", score, "cost", f"{score} / cost", "parameters"]
    marked = [index for index, ranked in enumerate(order) if ranked.layer.name in chosen]
    looked = f", from {counted(ranking.samples, 'sample')} without labels" if ranking.samples else ""
    caption = f"All {len(order)} layers by {ranking.method}{looked}, best first; those that train are bold"
    notes = paragraphs(*ranking.notes, class_="quiet")
    return join([table(caption, headings, rows, numbers=(1, 4, 5, 6, 7), marked=marked), notes])
