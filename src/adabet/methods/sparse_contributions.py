"""How much each tensor contributes, by short trainings from the same start: Sparse Update's analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import CheckpointError, OptionError, SelectionError, TrainingError
from adabet.files import write_text
from adabet.layers import Fingerprint, Layers, fingerprint
from adabet.methods.registry import Request
from adabet.methods.sparse_scheme import Scheme, Site, Sites, select_scheme
from adabet.methods.sparse_trials import MEASURES, score_after, split_samples
from adabet.records import read_record, write_record

KIND = "adabet/contributions"
RATIOS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Contributions:
    """Gains over training the head alone, in held-out accuracy or in held-out loss; more is better.

    Attributes:
        layers: names of the layers that can be chosen, in the order of a forward pass.
        baseline: accuracy, or loss with its sign turned, after the head alone has trained.
        biases: gain by the number of last layers whose biases train too.
        weights: gain by the layer and the share of its input channels whose weights train too.
        fingerprint: of the model.
        options: what the analysis was told, for the record.
    """

    layers: tuple[str, ...]
    baseline: float
    biases: Mapping[int, float]
    weights: Mapping[str, Mapping[float, float]]
    fingerprint: Fingerprint
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gain_anywhere(self) -> bool:
        """Whether anything gained over the head alone."""
        gains = [*self.biases.values(), *(gain for by_ratio in self.weights.values() for gain in by_ratio.values())]
        return max(gains, default=0.0) > 0

    def check(self, model: nn.Module, layers: Layers, sites: Sites) -> None:
        """Make sure that the analysis was made of a model like this; the head may have other classes.

        Raises:
            SelectionError: if it was made of another.
        """
        found = fingerprint(model, layers.head_parameters)
        if found.digest != self.fingerprint.digest or self.layers != tuple(site.layer for site in sites.items):
            raise SelectionError(
                f"these contributions were measured on another model: expected {self.fingerprint}, got {found}; "
                "measure this model's own, with the same head and blocks"
            )

    def to_json(self) -> str:
        """The contributions as JSON text."""
        return write_record(
            KIND,
            {
                **asdict(self),
                "biases": list(self.biases.items()),
                "weights": {layer: list(gains.items()) for layer, gains in self.weights.items()},
            },
        )

    @classmethod
    def from_json(cls, text: str) -> "Contributions":
        """Contributions from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no such record, or of another version.
        """
        values = read_record(KIND, text)
        try:
            return cls(
                **{
                    **values,
                    "layers": tuple(values["layers"]),
                    "biases": {int(depth): float(gain) for depth, gain in values["biases"]},
                    "weights": {
                        layer: {float(ratio): float(gain) for ratio, gain in gains}
                        for layer, gains in values["weights"].items()
                    },
                    "fingerprint": Fingerprint(**values["fingerprint"]),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this file of contributions lacks or misnames a field: {error}") from error


@dataclass(frozen=True)
class Analysis:
    """How contributions are measured: one short training for each depth, and for each layer and ratio.

    Attributes:
        epochs: passes over the training samples in each.
        samples: at most so many samples are used, the held-out ones among them; None for all.
        rate: learning rate of plain SGD, where the request has no optimizer.
        ratios: shares of input channels to look at.
        depths: numbers of last layers whose biases to look at; None for all.
        last: look at the weights of so many of the last layers only; None for all.
        measure: ``"accuracy"``, the paper's, or ``"loss"``, which tells finer differences in short trainings, and
            serves tasks without classes.

    Raises:
        OptionError: if one makes no sense.
    """

    epochs: int = 1
    samples: int | None = 256
    rate: float = 0.01
    ratios: Sequence[float] = RATIOS
    depths: Sequence[int] | None = None
    last: int | None = None
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("epochs", "samples", "last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"expected {name} of at least 1, got {value}")
        if self.measure not in MEASURES:
            raise OptionError(f"expected a measure of {' or '.join(MEASURES)}, got {self.measure!r}")
        if not self.rate > 0:
            raise OptionError(f"expected a rate above 0, got {self.rate}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise OptionError(f"expected ratios above 0 and up to 1, got {list(self.ratios)}")

    def schemes(self, sites: Sites) -> list[Scheme]:
        """What to train in turn, without repeats: biases of last layers, then weights of one layer at a time.

        Raises:
            OptionError: if a depth is not between 1 and the number of layers.
        """
        count = len(sites.items)
        depths = range(1, count + 1) if self.depths is None else sorted(set(self.depths))
        if any(not 1 <= depth <= count for depth in depths):
            raise OptionError(f"expected depths from 1 to {count} layers, got {list(depths)}")
        first = 0 if self.last is None else max(0, count - self.last)
        return [Scheme(depth) for depth in depths] + [
            Scheme(0, {index: ratio})
            for index in range(first, count)
            for ratio in _different(sites.items[index], self.ratios)
        ]


def _different(site: Site, ratios: Sequence[float]) -> list[float]:
    """The ratios that keep different numbers of a layer's channels, and not none of them."""
    smallest = {site.kept(ratio): ratio for ratio in sorted(ratios, reverse=True)}
    return sorted(ratio for kept, ratio in smallest.items() if kept)


def measure_contributions(
    request: Request, analysis: Analysis | None = None, *, criterion: str = "magnitude+"
) -> Contributions:
    """Train a model briefly, again and again from the same start, each time something else beside the head.

    Meant to be done once, where there is time and memory, and reused on the device and for other tasks; see
    `read_contributions`.

    Args:
        request: the model, left as it was, labelled batches, and what trains it (loss, optimizer, micro-batch);
            the score is measured on ``val_batches``, or on every fourth sample of the batches, which then trains
            nothing. ``progress`` is told after each training.
        analysis: how; None for the defaults.
        criterion: which input channels a ratio keeps, see `select_scheme`.

    Raises:
        DataError: if there are no labels, no class numbers for accuracy, or too few samples.
        TrainingError: if the training of the head alone diverges. Of other trainings that diverge there is no
            gain, so that no scheme will hold what they trained.
    """
    analysis = analysis or Analysis()
    layers = request.find_layers()
    sites = Sites.of(request.model, layers)
    train, held_out = split_samples(request, analysis.samples)
    schemes = analysis.schemes(sites)

    def score_of(scheme: Scheme) -> float | None:
        selection = select_scheme(request, layers, sites, scheme, criterion=criterion)
        return score_after(
            request,
            selection,
            train,
            held_out,
            epochs=analysis.epochs,
            rate=analysis.rate,
            measure=analysis.measure,
        )

    baseline = score_of(Scheme(0))
    if baseline is None:
        raise TrainingError(f"training the head alone diverges at a rate of {analysis.rate:g}; give a lower one")
    biases: dict[int, float] = {}
    weights: dict[str, dict[float, float]] = {}
    for done, scheme in enumerate(schemes, 1):
        score = score_of(scheme)
        if score is not None:
            for index, ratio in scheme.ratios.items():
                weights.setdefault(sites.items[index].layer, {})[float(ratio)] = score - baseline
            if not scheme.ratios:
                biases[scheme.biases] = score - baseline
        if request.progress is not None:
            request.progress(done, len(schemes))
    return Contributions(
        layers=tuple(site.layer for site in sites.items),
        baseline=baseline,
        biases=biases,
        weights=weights,
        fingerprint=fingerprint(request.model, layers.head_parameters),
        options={
            "epochs": analysis.epochs,
            "samples": analysis.samples,
            "measure": analysis.measure,
            "criterion": criterion,
            "seed": request.seed,
        },
    )


def read_contributions(path: Path, request: Request, analysis: Analysis, *, criterion: str) -> Contributions:
    """Contributions from a file; where it does not exist yet, they are measured and written there.

    Raises:
        CheckpointError: if the file is none of contributions.
    """
    if path.exists():
        try:
            return Contributions.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"could not read contributions from {path}: {error}") from error
    contributions = measure_contributions(request, analysis, criterion=criterion)
    write_text(path, contributions.to_json())
    return contributions
