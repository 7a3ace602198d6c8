"""What a monitor says: how far the ranking has moved, and whether chance explains it."""

import json
import math
from dataclasses import dataclass

from adabet.errors import CheckpointError
from adabet.ranking import Ranking
from adabet.records import read_record, write_record

KIND = "adabet/drift"

MEASURED = ("correlation", "shift", "kept")
"""Numbers of a report that there are only once the window is full."""


@dataclass(frozen=True)
class DriftReport:
    """What a monitor knows after a batch.

    Attributes:
        samples: looked at since the reference.
        window: samples that a comparison takes.
        correlation: Spearman's, between the scores of the latest window and the reference; NaN until it is full.
        bound: least correlation that chance allows.
        shift: how far the layers' scores have moved relative to each other, in units of what chance does: the variance
            over the layers of their differences, each divided by its standard deviation; NaN until the window is full.
        shift_bound: largest shift that chance allows.
        kept: share of the layers that the reference would choose which the window would choose again; chance alone
            leaves some out (of a tenth of MobileNetV2 a fifth); NaN until the window is full.
        alarm: whether correlation or shift is beyond its bound.
        ranking: by the latest window; None until it is full.
    """

    samples: int
    window: int
    correlation: float
    bound: float
    shift: float
    shift_bound: float
    kept: float
    alarm: bool
    ranking: Ranking | None = None

    def to_json(self) -> str:
        """The report as JSON text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {name: None for name in MEASURED if math.isnan(values[name])}
        values["ranking"] = None if self.ranking is None else json.loads(self.ranking.to_json())
        return write_record(KIND, values)

    @classmethod
    def from_json(cls, text: str) -> "DriftReport":
        """A report from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no report, or of another version.
        """
        values = read_record(KIND, text)
        try:
            values |= {name: math.nan for name in MEASURED if values[name] is None}
            ranking = values["ranking"]
            return cls(**{**values, "ranking": None if ranking is None else Ranking.from_json(json.dumps(ranking))})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this drift report lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        if self.ranking is None:
            return f"drift: {self.samples} of the {self.window} samples that a comparison takes"
        said = "the ranking has moved: training on the new data may pay" if self.alarm else "no more than chance"
        return (
            f"drift: {said}\n"
            f"  rank correlation {self.correlation:.2f} (alarm below {self.bound:.2f}), "
            f"shift {self.shift:.2f} (alarm above {self.shift_bound:.2f})\n"
            f"  {self.kept:.0%} of the chosen layers would be chosen again; {self.samples} samples so far"
        )
