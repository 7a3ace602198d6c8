"""What a comparison found, in sentences that say no more than its seeds can tell."""

from collections.abc import Sequence
from statistics import fmean

from adabet.experiments import Difference, EntryResult, GridResults
from adabet.report.words import counted, metric_text, rounded, signed, size_text

GROUPS_TOLD = 4
"""Models and data that get a sentence of their own."""

FEW_SEEDS = 5


def reference_of(results: GridResults) -> str:
    """Label of the method that the others are compared with: AdaBet's where it takes part, else the first."""
    labels = [spec.label for spec in results.grid.methods]
    by_name = [spec.label for spec in results.grid.methods if spec.method == "adabet"]
    return "adabet" if "adabet" in labels else (by_name or labels)[0]


def line_name(line: EntryResult, group: Sequence[EntryResult]) -> str:
    """What a line of a group is called: its method, and its share where the group has several."""
    share = line.entry.share
    shares = {other.entry.share for other in group if other.entry.share is not None}
    return line.entry.method.label if share is None or len(shares) < 2 else f"{line.entry.method.label} ({share})"


def verdict_of(groups: Sequence[Sequence[EntryResult]], found: Sequence[Difference], reference: str) -> list[str]:
    """A sentence for each of the reference's lines, of not too many models and data."""
    told = [sentence for group in groups[:GROUPS_TOLD] for sentence in _group(group, found, reference, len(groups))]
    if all(line.summary is None for group in groups for line in group):
        return ["No training run has ended yet, so there is nothing to tell."]
    if len(groups) > GROUPS_TOLD:
        told.append(f"{len(groups) - GROUPS_TOLD} more pairs of model and data are below.")
    return told


def _group(group: Sequence[EntryResult], found: Sequence[Difference], reference: str, groups: int) -> list[str]:
    where = f"{group[0].entry.model.label} on {group[0].entry.data.label}: " if groups > 1 else ""
    bases = [line for line in group if line.entry.method.label == reference and line.summary is not None]
    if not bases:
        return [f"{where}{reference} has no result."]
    return [where + _sentence(base, group, found) for base in bases]


def _sentence(base: EntryResult, group: Sequence[EntryResult], found: Sequence[Difference]) -> str:
    """What the reference reached, what it took, and how the others stand to it."""
    monitor = base.outcomes[0].monitor
    parts = [f"{line_name(base, group)} reached {metric_text(monitor, fmean(base.tests.values()))} test {monitor}"]
    full = next((line for line in group if line.entry.method.method == "full" and line.peak), None)
    if base.peak is not None:
        took = f" with a peak of {size_text(base.peak)}"
        if full is not None and full.peak and full is not base:
            took += f", {rounded(base.peak / full.peak)} of what training everything takes"
        parts.append(took)
    told = "".join(parts)
    head = next((line for line in group if line.entry.method.method == "head" and line.summary), None)
    if head is not None and head.summary is not None and head is not base:
        told += f"; the head alone reached {metric_text(monitor, head.summary.mean)}"
    names = {line.entry: line_name(line, group) for line in group}
    against = [(names[item.entry], item) for item in found if item.reference == base.entry and item.entry in names]
    better = [_gap(name, item, monitor) for name, item in against if not item.within_noise and item.mean > 0]
    worse = [_gap(name, item, monitor) for name, item in against if not item.within_noise and item.mean < 0]
    noise = [_gap(name, item, monitor) for name, item in against if item.within_noise]
    told += "."
    for verb, texts in (("Better than it", better), ("Worse", worse), ("Within noise of it", noise)):
        if texts:
            told += f" {verb}: {'; '.join(texts)}."
    return told


def _gap(name: str, difference: Difference, monitor: str) -> str:
    points = monitor == "accuracy"
    size = f"{signed(100 * difference.mean, '.1f')} points" if points else signed(difference.mean, ".3g")
    return f"{name}, {size}"


def doubt_of(found: Sequence[Difference]) -> str:
    """How much the seeds can tell."""
    if not found:
        return "No two methods have two seeds in common yet, so no difference can be told from noise."
    seeds = max(len(difference.seeds) for difference in found)
    widths = sorted(difference.resolution for difference in found)
    told = (
        f"Differences are means over {counted(seeds, 'seed')}, paired; within noise means that a paired t test with "
        f"Holm's correction does not tell them from none at 5 %. A 95 % interval is typically "
        f"± {100 * widths[len(widths) // 2]:.1f} points wide"
    )
    return told + ("; that is little to go by: more seeds tell more." if seeds < FEW_SEEDS else ".")
