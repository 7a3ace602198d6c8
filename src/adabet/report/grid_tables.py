"""The results of a comparison as a table, and the commands that train a line of it again."""

import math
import shlex
from collections.abc import Sequence
from statistics import median
from typing import Any

from adabet.experiments import Difference, EntryResult
from adabet.report.grid_verdict import line_name
from adabet.report.markup import Content, Markup, join, table, tag
from adabet.report.page import code, paragraphs
from adabet.report.plots.scatter import Point, frontier
from adabet.report.words import NO_BREAK, duration, signed, size_text

TUNE_OPTIONS = frozenset(
    {"optimizer", "weight_decay", "head_lr_factor", "early_stop", "micro_batch", "mixed_precision"}
)
"""Options of `adabet.fit` that `adabet tune` has too."""


def results_of(group: Sequence[EntryResult], found: Sequence[Difference], reference: str) -> Markup:
    """The lines, best first, with what each took."""
    order = sorted(group, key=lambda line: math.inf if line.summary is None else -line.summary.mean)
    rows = [_row(line, group, [item for item in found if item.entry == line.entry]) for line in order]
    headings = [
        "method", "test", "95 %", f"against {reference}", "peak", "budget", "parameters", "rate", "a step",
        "choosing takes", "choosing peaks at",
    ]  # fmt: skip
    used = [0] + [column for column in range(1, len(headings)) if any(row[column] for row in rows)]
    shown = [[row[column] for column in used] for row in rows]
    marked = [index for index, line in enumerate(order) if line.entry.method.label == reference]
    caption = (
        "Best first; test: mean ± standard deviation over the seeds; parameters: those that train; rate: learning rate"
    )
    names = [headings[column] for column in used]
    problems = [tag("li", f"{line_name(line, group)}: {line.problem}") for line in group if line.problem]
    lost = join([paragraphs("Without a result, or without some:"), tag("ul", *problems)]) if problems else None
    return join([table(caption, names, shown, numbers=range(1, len(names)), marked=marked), lost])


def _row(line: EntryResult, group: Sequence[EntryResult], differences: Sequence[Difference]) -> list[Content]:
    name = line_name(line, group)
    found = line.summary
    if found is None:
        state = "failed" if line.problem else "not yet"
        return [name, state, *[""] * 9]
    monitor = line.outcomes[0].monitor
    spread = "" if found.std is None else f" ± {_points(monitor, found.std)}"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{_points(monitor, found.low)} to {_points(monitor, found.high)}"
    choosing = line.selection
    return [
        name,
        _one_line(f"{_points(monitor, found.mean)}{spread}{' %' if monitor == 'accuracy' else ''}"),
        _one_line(interval),
        _against(differences, monitor),
        "" if line.peak is None else size_text(line.peak),
        "" if line.budget is None else size_text(line.budget),
        f"{max(outcome.parameters for outcome in line.outcomes):,}",
        "" if line.learning_rate is None else f"{line.learning_rate:g}",
        duration(median(outcome.step_seconds for outcome in line.outcomes)),
        _choosing(line),
        "" if choosing is None or choosing.peak is None else size_text(choosing.peak),
    ]


def _one_line(text: str) -> str:
    return text.replace(" ", NO_BREAK)


def _points(monitor: str, value: float) -> str:
    return f"{100 * value:.1f}" if monitor == "accuracy" else f"{value:.4g}"


def _against(differences: Sequence[Difference], monitor: str) -> str:
    """How a line stands to the reference, or to each line of the reference, by its share."""
    told = []
    for item in differences:
        word = "noise" if item.within_noise else "better" if item.mean > 0 else "worse"
        gap = signed(100 * item.mean, ".1f") if monitor == "accuracy" else signed(item.mean, ".4g")
        share = f" ({item.reference.share})" if len(differences) > 1 else ""
        told.append(_one_line(f"{gap} ± {_points(monitor, item.resolution)} {word}{share}"))
    return "; ".join(told)


def _choosing(line: EntryResult) -> str:
    seconds = [outcome.selection_seconds for outcome in line.outcomes if outcome.selection_seconds is not None]
    return duration(median(seconds)) if seconds else ""


def commands_of(group: Sequence[EntryResult], seed: int, reference: str) -> Markup | None:
    """Commands that train the reference and the frontier once more and keep their deltas."""
    measured = {
        line_name(line, group): Point(line_name(line, group), line.peak, line.summary.mean)
        for line in group
        if line.summary is not None and line.peak is not None
    }
    best = {point.name for point in frontier(list(measured.values()))}
    lines = [
        line
        for line in group
        if line.learning_rate is not None
        and line.runs
        and (line.entry.method.label == reference or line_name(line, group) in best)
    ]
    if not lines:
        return None
    told = (
        "A comparison keeps numbers, not weights. These commands train again what is on the frontier and leave a run "
        "folder each, with a delta; adabet report makes a page of it."
    )
    blocks = [
        join(
            [
                paragraphs(tag("strong", line_name(line, group))),
                code(_command(line, seed), f"Command for {line_name(line, group)}"),
            ]
        )
        for line in lines
    ]
    return join([paragraphs(told), *blocks])


def _command(line: EntryResult, seed: int) -> str:
    entry, settings = line.entry, line.runs[0].cell.settings
    model = entry.model
    names = ("optimizer", "weight_decay", *(["head_lr_factor"] if settings.head_lr_factor != 1 else []))
    fit = {name: getattr(settings, name) for name in names} | dict(entry.method.fit)
    options: dict[str, Any] = {
        "method": entry.method.method,
        "layer_ratio": None if entry.share is None else entry.share.layer_ratio,
        "memory": None if line.budget is None else f"{line.budget}B",
        "lr": line.learning_rate,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        **{name: value for name, value in fit.items() if name in TUNE_OPTIONS},
        "seed": seed,
        "weights": model.weights,
        "image_size": model.image_size,
        "mean": model.mean,
        "std": model.std,
        "max_train": entry.data.max_train,
    }
    words = ["adabet", "tune", model.name, entry.data.name]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--pretrained"] if model.pretrained else []
    for flag, values in (("--option", entry.method.options), ("--model-arg", model.arguments)):
        for name, value in values.items():
            words += [flag, f"{name}={value}"]
    others = sorted(fit.keys() - TUNE_OPTIONS)
    note = f"\n# not at the command line, in Python with adabet.fit: {', '.join(others)}" if others else ""
    return shlex.join(words) + note
