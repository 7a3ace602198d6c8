"""Memory by category, for one run or many methods."""

from collections.abc import Collection, Mapping

from adabet.memory import MemoryReport, Peak
from adabet.memory.report import CATEGORIES
from adabet.report.markup import Markup, figure, join, table
from adabet.report.page import paragraphs
from adabet.report.plots.rows import BarRow, draw_bars
from adabet.report.words import size_text

HOLDERS = 8
"""Layers that are named as those that hold most."""


def memory_figure(
    reports: Mapping[str, MemoryReport], *, limit: int | None = None, strong: Collection[str] = ()
) -> Markup:
    """Stacked bars of what a training step takes at its peak, and who holds the saved activations of a single one.

    Args:
        reports: at least one, by name.
        limit: a budget that is marked, bytes.
        strong: names that are set bold.
    """
    first = next(iter(reports.values()))
    peaks: dict[str, Peak] = {}
    inference = next((report.inference for report in reports.values() if report.inference is not None), None)
    if inference is not None:
        peaks["inference alone"] = inference
    peaks |= {name: report.training for name, report in reports.items()}
    bars = [BarRow(name, _parts(peak), strong=name in strong) for name, peak in peaks.items()]
    rows = [
        [name, *(size_text(getattr(peak, part)) for part in CATEGORIES), size_text(peak.total)]
        for name, peak in peaks.items()
    ]
    headings = ["what trains", *CATEGORIES.values(), "peak"]
    data = table("Bytes at the peak of a training step, by category", headings, rows, numbers=range(1, len(headings)))
    caption = f"Peak of a training step, by what the memory is for{'' if limit is None else '; dashed: the budget'}"
    plot = draw_bars(bars, text=size_text, limit=limit)
    parts = [figure(caption, plot, data), paragraphs(_setting(reports), class_="quiet")]
    if len(reports) == 1 and first.layers:
        parts.append(_holders(first))
    return join(parts)


def _parts(peak: Peak) -> dict[str, float]:
    return {title: float(getattr(peak, name)) for name, title in CATEGORIES.items()}


def _setting(reports: Mapping[str, MemoryReport]) -> str:
    """How it was measured, as far as all have it in common."""
    first = next(iter(reports.values()))
    told = ["Measured as allocated, weights and batch included"]
    facts = [
        ("batch_size", f"batch {first.batch_size}"),
        ("micro_batch", f"{first.micro_batch} at once"),
        ("mode", first.mode),
        ("optimizer", first.optimizer),
        ("device", f"on {first.device}"),
    ]
    told += [text for name, text in facts if len({getattr(report, name) for report in reports.values()}) == 1]
    return ", ".join(told) + "."


def _holders(report: MemoryReport) -> Markup:
    largest = sorted(report.layers.items(), key=lambda item: -item[1])
    shown = [BarRow(name, {"saved activations": float(size)}) for name, size in largest[:HOLDERS]]
    data = table(
        "Bytes of saved activations by layer, in the order of a forward pass",
        ["layer", "bytes", "size"],
        [[name, f"{size:,}", size_text(size)] for name, size in report.layers.items()],
        numbers=(1, 2),
    )
    rest = len(largest) - len(shown)
    more = f"; {rest} more hold less" if rest > 0 else ""
    caption = f"Who holds the {size_text(report.saved)} of activations that the backward pass needs{more}"
    return figure(caption, draw_bars(shown, text=size_text), data)
