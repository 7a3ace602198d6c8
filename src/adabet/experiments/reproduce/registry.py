"""The tables and figures by name."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adabet.errors import OptionError, UnknownNameError
from adabet.experiments.reproduce import (
    ablations,
    curves,
    figure2,
    figure6,
    medyate,
    ratios,
    resources,
    stability,
    table2,
    table3,
)
from adabet.experiments.reproduce.task import Found, Task

PAPERS = {
    "AdaBet": "Tenison et al. 2026 (arXiv 2510.03101)",
    "MeDyate": "Quelennec et al., Memory-constrained dynamic fine-tuning with LaRa",
}


@dataclass(frozen=True)
class Reproduction:
    """A table or figure that can be made again.

    Attributes:
        name: what it is asked for by.
        shows: in a few words.
        paper: whose, a key of `PAPERS`.
        place: in the paper.
        duration: roughly, with the paper's settings, and quickly.
        columns: of the CSV, with what each means.
        make: does it.
    """

    name: str
    shows: str
    paper: str
    place: str
    duration: str
    columns: Mapping[str, str] = field(repr=False)
    make: Callable[[Task], Found] = field(repr=False)

    @property
    def source(self) -> str:
        """Place and paper."""
        return f"{self.paper}, {self.place}: {PAPERS[self.paper]}"


REPRODUCTIONS = {
    item.name: item
    for item in (
        Reproduction(
            "table2",
            "accuracy of seven methods on sixteen pairs of model and data",
            "AdaBet",
            "table 2",
            "days on a GPU; quick: a minute",
            table2.COLUMNS,
            table2.make,
        ),
        Reproduction(
            "table3",
            "memory of training: published, by the paper's formula, counted once, measured",
            "AdaBet",
            "table 3",
            "10 minutes; quick: half a minute",
            table3.COLUMNS,
            table3.make,
        ),
        Reproduction(
            "figure2",
            "activations of layers in the plane (UMAP), and their clusters (DBSCAN)",
            "AdaBet",
            "figure 2",
            "5 minutes; quick: a minute",
            figure2.COLUMNS,
            figure2.make,
        ),
        Reproduction(
            "figure6",
            "where in the network each method trains",
            "AdaBet",
            "figure 6",
            "1 hour; quick: half a minute",
            figure6.COLUMNS,
            figure6.make,
        ),
        Reproduction(
            "curves",
            "validation accuracy by epoch, of the runs of table 2",
            "AdaBet",
            "accuracy by epoch",
            "as table2, whose runs it takes up",
            curves.COLUMNS,
            curves.make,
        ),
        Reproduction(
            "ratios",
            "accuracy by the share of the layers that train, and by measured memory",
            "AdaBet",
            "layer ratio",
            "days on a GPU; quick: a minute",
            ratios.COLUMNS,
            ratios.make,
        ),
        Reproduction(
            "ablations",
            "accuracy of AdaBet's variants: normalization, samples, channels",
            "AdaBet",
            "ablations",
            "days on a GPU; quick: a minute",
            ablations.COLUMNS,
            ablations.make,
        ),
        Reproduction(
            "stability",
            "how far the ranking depends on the samples",
            "AdaBet",
            "appendix D",
            "1 hour; quick: half a minute",
            stability.COLUMNS,
            stability.make,
        ),
        Reproduction(
            "e16",
            "resident memory and CPU use while methods choose and train",
            "AdaBet",
            "figure E.16",
            "half an hour; quick: half a minute",
            resources.COLUMNS,
            resources.make,
        ),
        Reproduction(
            "medyate",
            "accuracy of channel-drawing methods at 27,946 memory units",
            "MeDyate",
            "table 1",
            "days on a GPU; quick: a minute",
            medyate.COLUMNS,
            medyate.make,
        ),
    )
}


SHOWN_BY = ("ratios", "ablations", "curves", "stability")
"""What the paper's other figures are about; their axes and settings are not known here one by one."""

OTHER_FIGURE = re.compile(r"(fig(ure)?[ ._-]?)?([357]|d[._-]?([89]|1[0-6]))", re.IGNORECASE)


def find_reproduction(name: str) -> Reproduction:
    """A reproduction by name.

    Raises:
        UnknownNameError: if there is none; offers the nearest.
        OptionError: if it is a figure that is not made again by its number; says what shows the same.
    """
    if OTHER_FIGURE.fullmatch(name):
        raise OptionError(
            f"{name!r} is not made again by its number; expected one of {', '.join(SHOWN_BY)}, which show what the "
            "paper's other figures are about"
        )
    if name not in REPRODUCTIONS:
        raise UnknownNameError("table or figure", name, REPRODUCTIONS)
    return REPRODUCTIONS[name]
