"""The page of a comparison."""

import time
from itertools import groupby

from adabet.experiments import EntryResult, GridResults
from adabet.report.grid_layers import layers_of
from adabet.report.grid_tables import commands_of, results_of
from adabet.report.grid_verdict import doubt_of, line_name, reference_of, verdict_of
from adabet.report.markup import Markup, facts, figure, join, table, tag
from adabet.report.memory_parts import memory_figure
from adabet.report.page import Section, paragraphs, write_page
from adabet.report.plots.axis import linear
from adabet.report.plots.curves import LOOKS, Curve, draw_curves
from adabet.report.plots.scatter import Point, draw_scatter
from adabet.report.words import as_text, counted, metric_text, size_text

Group = tuple[EntryResult, ...]
"""The lines of one model and data."""


def grid_page(results: GridResults) -> str:
    """A comparison's page as HTML text.

    Args:
        results: whole or not; of one that is not, the page shows what there is.
    """
    groups = [
        tuple(lines) for _, lines in groupby(results.entries, key=lambda line: (line.entry.model, line.entry.data))
    ]
    reference = reference_of(results)
    found = results.differences(reference)
    parts: list[tuple[str, str, list[Markup | None]]] = [
        ("frontier", "Accuracy against memory", [_frontier(group, reference) for group in groups]),
        ("results", "Results", [results_of(group, found, reference) for group in groups]),
        ("layers", "Where each method trains", [layers_of(group, reference) for group in groups]),
        ("memory", "Memory", [_memory(group, reference) for group in groups]),
        ("curves", "Training", [_curves(group) for group in groups]),
        (
            "delta",
            "Get the delta of a line",
            [commands_of(group, results.grid.seeds[0], reference) for group in groups],
        ),
    ]
    sections = [Section("asked", "What was asked", _asked(results))]
    for name, title, bodies in parts:
        known = [(group, body) for group, body in zip(groups, bodies, strict=True) if body is not None]
        if known:
            headed = [join([_heading(group, len(groups)), body]) for group, body in known]
            sections.append(Section(name, title, join(headed)))
    models = ", ".join(spec.label for spec in results.grid.models)
    return write_page(
        title=f"{models} on {', '.join(spec.label for spec in results.grid.data)}",
        kicker=f"Comparison of {counted(len(results.grid.methods), 'method')}, {results.path.name}",
        verdict=verdict_of(groups, found, reference),
        doubt=doubt_of(found),
        notice=_notice(results),
        sections=sections,
        footer=f"Written by adabet report from {results.path}. {_environments(results)}",
    )


def _heading(group: Group, groups: int) -> Markup | None:
    if groups == 1:
        return None
    return tag("h3", f"{group[0].entry.model.label} on {group[0].entry.data.label}")


def _notice(results: GridResults) -> str | None:
    """What to know of a comparison that is not whole, or has lost runs."""
    told = []
    if not results.complete:
        told.append(
            f"This comparison is not complete: {counted(results.waiting, 'run')} that could start now "
            f"{'has' if results.waiting == 1 else 'have'} not been done, and more may follow; "
            "the same adabet compare command goes on."
        )
    lost = sum(cell.status == "failed" for cell in results.cells)
    if lost:
        told.append(f"{counted(lost, 'run')} failed; the results below say why.")
    return " ".join(told) or None


def _environments(results: GridResults) -> str:
    """The different environments that the runs had, in words."""
    names = ("adabet", "torch", "python", "platform", "device", "threads")
    kinds = {
        ", ".join(f"{name} {as_text(cell.environment[name])}" for name in names if name in cell.environment)
        for cell in results.cells
    }
    return f"The runs: {'; '.join(sorted(kinds))}." if kinds else ""


def _asked(results: GridResults) -> Markup:
    grid, settings = results.grid, results.grid.settings
    search = {"uphill": "uphill on validation, first seed", "all": "all, with all seeds"}
    pairs = [
        ("models", ", ".join(spec.name for spec in grid.models)),
        ("data", ", ".join(spec.name for spec in grid.data)),
        ("methods", ", ".join(spec.label for spec in grid.methods)),
        ("how much may train", ", ".join(_share(share.layer_ratio, str(share)) for share in grid.shares)),
        ("learning rates", ", ".join(f"{rate:g}" for rate in grid.learning_rates)),
        ("search of the rate", search.get(grid.search, grid.search) if len(grid.learning_rates) > 1 else None),
        ("head's learning rate", f"{settings.head_lr_factor:g} times" if settings.head_lr_factor != 1 else None),
        ("seeds", ", ".join(map(str, grid.seeds))),
        ("epochs", str(settings.epochs)),
        ("batch size", str(settings.batch_size)),
        ("optimizer", settings.optimizer),
        ("weight decay", f"{settings.weight_decay:g}"),
        ("momentum", f"{settings.momentum:g}"),
        ("training runs", f"{len(results.cells):,}"),
        ("begun", time.strftime("%Y-%m-%d", time.gmtime(results.created))),
    ]
    told = (
        "Each line's learning rate, and the epoch that is kept, are chosen by validation accuracy; no choice is made "
        "on the test images."
    )
    return join([facts(pairs), paragraphs(told, class_="quiet")])


def _share(ratio: float | None, text: str) -> str:
    return f"{text} of the layers" if ratio is not None else f"memory {text}"


def _frontier(group: Group, reference: str) -> Markup | None:
    points, left = [], []
    for line in group:
        if line.summary is None:
            continue
        if line.peak is None:
            left.append(line_name(line, group))
            continue
        strong = line.entry.method.label == reference
        points.append(Point(line_name(line, group), line.peak, line.summary.mean, line.summary.std, strong=strong))
    if not points:
        return None
    points.sort(key=lambda point: (point.cost, -point.gain))
    monitor = _monitor(group)
    plot = draw_scatter(
        f"test {monitor} against peak memory",
        points,
        cost="peak memory of a training step",
        gain=f"test {monitor}",
        cost_text=size_text,
        gain_text=lambda value: metric_text(monitor, value),
        reference=reference,
    )
    seeds = max(line.summary.count for line in group if line.summary is not None)
    bars = "; upright lines: standard deviation over the seeds" if seeds > 1 else ""
    caption = f"Mean test {monitor} against the measured peak of a training step{bars}"
    note = f"Without a measured peak: {', '.join(left)}." if left else None
    return join([figure(caption, plot), paragraphs(note, class_="quiet")])


def _monitor(group: Group) -> str:
    return next((outcome.monitor for line in group for outcome in line.outcomes), "accuracy")


def _memory(group: Group, reference: str) -> Markup | None:
    reports = {}
    for line in group:
        measured = [outcome.memory for outcome in line.outcomes if outcome.memory is not None]
        if measured:
            reports[line_name(line, group)] = max(measured, key=lambda report: report.training.total)
    strong = {line_name(line, group) for line in group if line.entry.method.label == reference}
    ordered = dict(sorted(reports.items(), key=lambda item: item[1].training.total))
    return memory_figure(ordered, strong=strong) if ordered else None


def _curves(group: Group) -> Markup | None:
    """A panel for each line, all with the same axes, a curve for each seed."""
    monitor = _monitor(group)
    lines = [line for line in group if line.outcomes]
    values = [
        record.val_metrics[monitor]
        for line in lines
        for outcome in line.outcomes
        for record in outcome.history
        if monitor in record.val_metrics
    ]
    if not values:
        return None
    up = linear(values, lambda value: metric_text(monitor, value), count=3)
    panels = []
    for line in lines:
        curves = [
            Curve(
                f"seed {run.cell.seed}",
                [(record.epoch, record.val_metrics[monitor]) for record in run.outcome.history],
            )
            for run in line.runs
            if run.outcome is not None and monitor in run.outcome.history[0].val_metrics
        ][: len(LOOKS)]
        if curves:
            name = line_name(line, group)
            plot = draw_curves(f"validation {monitor} of {name}", curves, text=up.text, name=monitor, up=up, height=120)
            panels.append(figure(f"{name}, learning rate {line.learning_rate:g}", plot))
    shown = f"Validation {monitor} by epoch; all panels have the same axes."
    if any(len(line.outcomes) > len(LOOKS) for line in lines):
        shown += f" Of more than {len(LOOKS)} seeds the first {len(LOOKS)} are drawn."
    panel_list = tag("div", *panels, class_="panels")
    folded = tag("details", tag("summary", "The numbers"), _curve_table(lines, group, monitor))
    return join([paragraphs(shown), panel_list, folded])


def _curve_table(lines: list[EntryResult], group: Group, monitor: str) -> Markup:
    epochs = max(len(outcome.history) for line in lines for outcome in line.outcomes)
    rows = []
    for line in lines:
        for run in line.runs:
            if run.outcome is not None:
                found = [record.val_metrics.get(monitor) for record in run.outcome.history]
                texts = ["" if value is None else metric_text(monitor, value) for value in found]
                rows.append([line_name(line, group), str(run.cell.seed), *texts, *[""] * (epochs - len(texts))])
    headings = ["method", "seed", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))]
    return table(f"Validation {monitor} by epoch", headings, rows, numbers=range(1, len(headings)))
