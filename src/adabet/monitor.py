"""Say from unlabelled batches, while a model is in use, when its layers' ranking has moved."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adabet.drift import DriftReport
from adabet.errors import ActivationError, CheckpointError, OptionError, SelectionError
from adabet.layers import bare, find_layers, fingerprint, forward_call, sample_count, uncompiled
from adabet.layers.batches import Forward, inputs_of, take_samples
from adabet.methods.adabet import NORMALIZE, cost_of
from adabet.ranking import RankedLayer, Ranking
from adabet.records import read_record, write_record
from adabet.topology import Sketcher
from adabet.topology.drift import Reference, learn_reference, mean_counts
from adabet.topology.layer_sketches import Shapes, sketch_distances, sketch_layers
from adabet.topology.padding import lengths_of, without_padding
from adabet.topology.pool import FEWEST, SLICE, collect

STATE = "adabet/monitor"
FEWEST_DRAWS = 20


class Monitor:
    """Watches unlabelled batches for a ranking that has moved.

    Each layer's score is AdaBet's, the first Betti number of 40 samples, averaged over the clouds of a window of the
    latest samples. Two statistics compare it with reference samples: Spearman's rank correlation, and the shift of the
    layers relative to each other in units of what chance does, which notices more. The bounds of both come from random
    splits of the reference itself; each may be crossed by half of ``false_alarms`` of windows of fresh samples of the
    same data. Windows that overlap are not independent: an alarm that lasts is one event.

    An alarm says that the ranking moved, not that the model got worse or that selecting again will help: look at
    ``kept``, and at `rank` on labelled data where there is some.

    Activations are compared as `rank` compares them, so samples have to be of one shape; sequences of one length, to
    which padding that an ``attention_mask`` tells does not add.

    The cost of an update is one forward pass of the batch, sketching and comparing: together about that of two plain
    passes for MobileNetV2 at 160 px, so that ``every=20`` adds a tenth to inference. What is kept are sketches of
    ``sketch`` numbers a layer and sample of one window, see `state_bytes` (12.8 MB for the 104 layers of MobileNetV2);
    never activations. A start looks at ``2 * window`` samples once, and counts for some seconds. The model is left as
    it was: modes, hooks and random state, also while a selection on it trains.

    Args:
        model: any module, with whatever weights it has now. Training moves the ranking too: `restart` after it.
        reference_batches: unlabelled batches of the data that the selection was made for, at least ``2 * window``
            samples; more are not looked at.
        window: samples that a comparison takes.
        points: of a cloud; the paper's 40 samples.
        every: look at every so many batches.
        false_alarms: wanted share of false alarms, in (0, 1).
        draws: random splits of the reference; at least 20.
        layer_ratio: share of the layers that `DriftReport.kept` is about.
        normalize: see `adabet.methods.adabet.rank_adabet`; only for `DriftReport.kept` and the ranking's priorities.
        sketch: numbers kept of each layer's activation of a sample, a power of two; 64 take a quarter of the memory and
            notice less (a blur that 256 notice in half of the windows in a fifth).
        seed: of sketches and splits.
        head: see `find_layers`.
        blocks: see `find_layers`.
        tie_norm: see `find_layers`.
        forward: how to run the model on a batch.

    Raises:
        OptionError: if an option makes no sense.
        ActivationError: if the reference has too few samples, or activations are not finite or cannot be compared.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 2))
        >>> monitor = Monitor(model, torch.randn(4, 30, 6, generator=draw), window=60, points=30, head="4")
        >>> print(monitor.update(torch.randn(20, 6, generator=draw)))
        drift: 20 of the 60 samples that a comparison takes
    """

    def __init__(
        self,
        model: nn.Module,
        reference_batches: Iterable[Any],
        *,
        window: int = 120,
        points: int = 40,
        every: int = 1,
        false_alarms: float = 0.05,
        draws: int = 100,
        layer_ratio: float = 0.1,
        normalize: str = "activations",
        sketch: int = 256,
        seed: int = 0,
        head: str | Sequence[str] | None = "auto",
        blocks: Sequence[str] | None = None,
        tie_norm: bool = False,
        forward: Forward = forward_call,
    ) -> None:
        if not FEWEST <= points <= window:
            raise OptionError(f"expected points from {FEWEST} to the window of {window}, got {points}")
        if every < 1 or draws < FEWEST_DRAWS:
            raise OptionError(
                f"expected every of at least 1 and draws of at least {FEWEST_DRAWS}, got {every}, {draws}"
            )
        if not 0 < false_alarms < 1 or not 0 < layer_ratio <= 1:
            raise OptionError(
                f"expected false_alarms between 0 and 1 and layer_ratio up to 1, got {false_alarms} and {layer_ratio}"
            )
        if normalize not in NORMALIZE:
            raise OptionError(f"expected normalize to be one of {', '.join(NORMALIZE)}, got {normalize!r}")
        self.model = bare(model)
        self.every = every
        self._look = partial(sketch_layers, self.model, sketcher=Sketcher(size=sketch, seed=seed), forward=forward)
        self._find = partial(find_layers, head=head, blocks=blocks, tie_norm=tie_norm, forward=forward)
        self._layer_ratio = layer_ratio
        self._options: dict[str, Any] = {"window": window, "points": points, "normalize": normalize}
        self._options |= {"sketch": sketch, "seed": seed}
        self._learn = partial(
            learn_reference, window=window, points=points, false_alarms=false_alarms, draws=draws, seed=seed
        )
        self.restart(reference_batches)

    @property
    def state_bytes(self) -> int:
        """Bytes of sketches that a full window takes."""
        return sum(4 * self.report.window * sketches.shape[1] for sketches in self._kept)

    @property
    def reference(self) -> Ranking:
        """The ranking by the reference samples, to select by."""
        return self._ranking(self._reference.scores, self._reference.deviations)

    def restart(self, reference_batches: Iterable[Any]) -> None:
        """Begin anew with another reference, as after selecting again; on an error all stays as it was.

        Args:
            reference_batches: as at the start.
        """
        window = self._options["window"]
        pool = collect(reference_batches, samples=2 * window)
        if pool.samples < 2 * window:
            raise ActivationError(
                f"expected at least {2 * window} reference samples, twice the window of {window}, got {pool.samples}; "
                "give more, or a smaller window"
            )
        with uncompiled(self.model):
            layers = self._find(self.model, pool.slices[0])
        if not layers.candidates:
            raise ActivationError("expected layers beside the head to watch, the model has none")
        shapes: Shapes = {}
        parts = [self._look(inputs, layers.candidates, shapes=shapes) for inputs in pool.slices]
        joined = [torch.cat(sketches) for sketches in zip(*parts, strict=True)]
        reference = self._learn(sketch_distances(joined))
        self._layers, self._shapes, self._reference = layers, shapes, reference
        self._fingerprint = fingerprint(self.model, layers.head_parameters)
        self._kept = [sketches[:0].clone() for sketches in joined]
        self._batches = 0
        self.report = DriftReport(
            samples=0,
            window=window,
            correlation=math.nan,
            bound=reference.correlation_bound,
            shift=math.nan,
            shift_bound=reference.shift_bound,
            kept=math.nan,
            alarm=False,
        )

    def update(self, batch: Any) -> DriftReport:
        """Look at a batch, and compare once the window is full.

        Args:
            batch: as the model is fed; labels are ignored.

        Returns:
            What is known now; the last report again if it was not this batch's turn (see ``every``).

        Raises:
            ActivationError: if the batch is empty, or gives activations that are not finite or of another shape than
                the reference's; nothing of it is kept then.
            SelectionError: if the model has lost a layer that the reference had.
        """
        turn = self._batches % self.every == 0
        if turn:
            inputs = inputs_of(batch)
            count = sample_count(inputs)
            if count == 0:
                raise ActivationError("expected a batch with at least one sample, got an empty one")
            window = self._options["window"]
            latest = take_samples(inputs, max(0, count - window), count)
            parts = [self._look(piece, self._layers.candidates, shapes=self._shapes) for piece in _slices(latest)]
            joined = (torch.cat(rows) for rows in zip(self._kept, *parts, strict=True))
            self._kept = [rows[-window:].clone() for rows in joined]  # a view would keep all of them
            self.report = self._compared(replace(self.report, samples=self.report.samples + count))
        self._batches += 1
        return self.report

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on: tensors, and text for the rest."""
        values = {
            "fingerprint": asdict(self._fingerprint),
            "options": self._options,
            "batches": self._batches,
            "bounds": [self._reference.correlation_bound, self._reference.shift_bound],
            "report": self.report.to_json(),
        }
        tensors = {f"window.{layer.name}": kept for layer, kept in zip(self._layers, self._kept, strict=True)}
        scores = {"scores": self._reference.scores, "deviations": self._reference.deviations}
        return {"monitor": write_record(STATE, values), **scores, **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another monitor of the same model and options stopped, with its reference.

        Args:
            state: what `state_dict` gave.

        Raises:
            CheckpointError: if it is no monitor's state, or of another version.
            SelectionError: if it is of another model, or of other options.
        """
        try:
            values = read_record(STATE, state["monitor"])
            same = {"fingerprint": asdict(self._fingerprint), "options": self._options}
            for name, own in same.items():
                if values[name] != own:
                    raise SelectionError(
                        f"this monitor's state is of another {name}: expected {own}, got {values[name]}"
                    )
            kept = [state[f"window.{layer.name}"].clone() for layer in self._layers]
            reference = Reference(state["scores"].clone(), state["deviations"].clone(), *values["bounds"])
            report, batches = DriftReport.from_json(values["report"]), int(values["batches"])
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"this monitor's state lacks or misnames a field: {error}") from error
        self._kept, self._reference, self.report, self._batches = kept, reference, report, batches

    def _compared(self, report: DriftReport) -> DriftReport:
        """The report with what the window says, if it is full."""
        if len(self._kept[0]) < report.window:
            return report
        # the same window is cut into the same clouds, whoever asks
        generator = torch.Generator().manual_seed(self._options["seed"] + report.samples)
        counts = mean_counts(sketch_distances(self._kept), points=self._options["points"], generator=generator)
        scores, now = counts.mean(0), self._reference
        correlation, shift = now.correlation(scores), now.shift(scores)
        ranking = self._ranking(scores, counts.std(0, correction=min(1, len(counts) - 1)))
        best, former = (
            {item.layer.name for item in found.order[: found.count(self._layer_ratio)]}
            for found in (ranking, self.reference)
        )
        return replace(
            report,
            correlation=correlation,
            shift=shift,
            kept=len(best & former) / len(former),
            alarm=correlation < report.bound or shift > report.shift_bound,
            ranking=ranking,
        )

    def _ranking(self, scores: Tensor, spreads: Tensor) -> Ranking:
        ranked = tuple(
            RankedLayer(layer, score, cost_of(layer, self._options["normalize"]), spread)
            for layer, score, spread in zip(self._layers, scores.tolist(), spreads.tolist(), strict=True)
        )
        return Ranking(
            method="adabet",
            layers=ranked,
            head=self._layers.head,
            unranked=self._layers.unranked,
            fingerprint=self._fingerprint,
            samples=self._options["window"],
            options={**self._options},
        )


def _slices(inputs: Any) -> Iterator[Any]:
    """Inputs a few samples at a time, so that little is in memory; sequences without padding, one by one."""
    count, masked = sample_count(inputs), lengths_of(inputs) is not None
    size = 1 if masked else SLICE
    for start in range(0, count, size):
        part = take_samples(inputs, start, min(start + size, count))
        yield without_padding(part) if masked else part
