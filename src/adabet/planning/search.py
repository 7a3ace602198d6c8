"""Search for the best selection within a budget, and for the widest micro-batch that it can be trained with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adabet.layers import Layer, inputs_of, take_samples
from adabet.memory import MemoryReport
from adabet.planning.activations import Passes
from adabet.planning.costs import Costs
from adabet.planning.knapsack import Chosen
from adabet.planning.options import BYTES, options_of
from adabet.planning.settings import Settings
from adabet.planning.trials import Trials
from adabet.ranking import Ranking
from adabet.selection import Selection
from adabet.sizes import format_size

CEILING = 0.98
"""Share of the budget that trials aim at in the end: predictions are not exact."""

STRIDES = (0.6, 0.8)
"""How far the first trial, and later ones, may go from what was measured towards the ceiling: each corrects the next
prediction."""

ENOUGH = 0.1
"""Share of the room above the head alone that may be left when the search for a better selection becomes choosy."""

CHOOSY = 1.05
"""By what factor a set has to be worth more than the one that fills the room: trials may have shown by then that what
they began with is dearer than others."""

TRIALS = 10
"""Trials of selections at most, and of micro-batches."""

LOOKS = 4
"""Sets at most of which a forward pass is taken before one is tried."""


@dataclass(frozen=True)
class Candidate:
    """A set of layers and a way to train it, tried."""

    chosen: Chosen
    selection: Selection
    micro_batch: int
    recompute: bool
    predicted: float
    measured: int


class Search:
    """Solves for the best set of layers, tries it, corrects the prediction, and solves again.

    Args:
        trials: takes the steps.
        ranking: says what layers are worth.
        head: the selection of the head alone.
        base: what a step with that took, one sample at a time.
        settings: what else limits the plan.
    """

    def __init__(
        self, trials: Trials, ranking: Ranking, head: Selection, base: MemoryReport, settings: Settings
    ) -> None:
        self.trials, self.ranking, self.head, self.base, self.settings = trials, ranking, head, base, settings
        best = {ranked.layer.name for ranked in ranking.order[: ranking.count(settings.layer_ratio)]}
        self.ranked = [ranked for ranked in ranking.layers if ranked.layer.name in best]
        self.layers = [_for_samples(ranked.layer, trials.unit) for ranked in self.ranked]
        # a layer without a single loop is still worth more than nothing, if there is room
        smallest = min((ranked.score for ranked in self.ranked if ranked.score > 0), default=1.0)
        self.scores = [max(ranked.score, 0.01 * smallest) for ranked in self.ranked]
        self.times = settings.times(self.layers, head)
        self.passes, self.costs = self._passes(recompute=False)
        self.all: Chosen = tuple((index, 0) for index in range(len(self.layers)))

    def best(self, *, recompute: bool, over: float = 0.0) -> Candidate:
        """The best set of layers with one sample at a time, approached from below.

        Args:
            recompute: run repeated blocks again in the backward pass.
            over: what the set has to be worth more than; not tried if that is out of reach.
        """
        passes, costs = self._passes(recompute=True) if recompute else (self.passes, self.costs)
        ceiling, took = CEILING * self.trials.budget, self.base.training.total
        best = Candidate((), self.head, 1, False, took, took)
        if over and costs.worth(costs.hopeful().solve(ceiling)) <= over:
            return best
        for trial in range(TRIALS):
            stride = STRIDES[min(trial, len(STRIDES) - 1)]
            full = ceiling - best.measured < ENOUGH * (ceiling - took)
            wanted = costs.worth(best.chosen) * (CHOOSY if full else 1)
            chosen: Chosen = ()
            if not full:
                chosen = self._solve(costs, passes, best.measured + stride * (ceiling - best.measured))
            if costs.worth(chosen) <= wanted:
                chosen = self._solve(costs, passes, ceiling)
            if costs.worth(chosen) <= wanted:
                break
            predicted, selection = costs.predict(chosen), self._selection(costs, chosen)
            report = self.trials.run(selection, micro_batch=1, recompute=recompute)
            costs.learn(chosen, report)
            if report.training.total <= self.trials.budget:
                best = Candidate(chosen, selection, 1, recompute, predicted, report.training.total)
            if best.chosen == self.all:
                break
        return best

    def _solve(self, costs: Costs, passes: Passes, limit: float) -> Chosen:
        """The best set for a limit once it is known what it keeps; nothing if none is found whose figures are so."""
        errors = []
        for _ in range(LOOKS):
            chosen = costs.solve(limit)
            costs.look(chosen, passes.kept([costs.options[index][way].choice for index, way in chosen]))
            if costs.predict(chosen) <= limit:
                return chosen
            errors.append(costs.kept_error)
            # sets differ in how much their layers share: after two the most careful figure ends the back and forth
            costs.kept_error = max(errors) if len(errors) > 1 else errors[0]
        return ()

    def widen(self, best: Candidate, *, fixed: bool = False) -> Candidate:
        """The largest micro-batch that the selection can be trained with; without recomputation if possible.

        If it is ``fixed``, only that.
        """
        if best.recompute and self.costs.predict(best.chosen) <= CEILING * self.trials.budget:
            took = self.trials.run(best.selection, micro_batch=1).training.total
            if took <= self.trials.budget:
                best = replace(best, recompute=False, measured=took)
        return best if fixed else self._widest(best)

    def _widest(self, best: Candidate) -> Candidate:
        """Twice as many samples at most from one trial to the next, on the steepest line through two measurements.

        Or on a steeper one if the saved activations alone grow faster: the moment when all of them are there may be
        just below the peak. The last slice of a batch may be a short one, beside which the peak is lower.
        """
        budget, size = self.trials.budget, self.trials.batch_size
        # before there are two, each sample is taken to cost all that depends on the first
        slope, steepest = max(1.0, best.measured - self._constant(best)), 1.0
        for _ in range(TRIALS):
            room = math.floor((CEILING * budget - best.measured) / slope)
            micro_batch = min(size, 2 * best.micro_batch, best.micro_batch + room)
            if micro_batch <= best.micro_batch:
                break
            report = self.trials.run(best.selection, micro_batch=micro_batch, recompute=best.recompute)
            took = report.training.total
            if took > budget:
                break
            predicted = best.measured + slope * (micro_batch - best.micro_batch)
            steepest = max(steepest, (took - best.measured) / (micro_batch - best.micro_batch))
            slope = max(steepest, report.saved / micro_batch)
            best = replace(best, micro_batch=micro_batch, predicted=predicted, measured=took)
        return best

    def _constant(self, best: Candidate) -> float:
        """Bytes that do not depend on the micro-batch."""
        return self.costs.constant(best.chosen)

    def worth(self, best: Candidate) -> float:
        """Sum of the scores of what trains."""
        return self.costs.worth(best.chosen)

    def everything(self) -> float:
        """Bytes that training every layer with the whole batch at once is expected to take."""
        return self.costs.whole_batch(self.all, self.trials.batch_size)

    def notes(self, best: Candidate) -> tuple[str, ...]:
        """What was bought and what was given up."""
        full = self.everything()
        notes = [f"training everything with {self.trials.samples} samples at once would take {format_size(full)}"]
        if best.micro_batch < self.trials.batch_size:
            notes.append(f"{math.ceil(self.trials.batch_size / best.micro_batch)} passes a step, to the same gradient")
        if best.recompute:
            notes.append("blocks run twice: about a third more time a step")
        sliced = sum(choice.channels is not None for choice in best.selection.choices)
        if sliced:
            notes.append(f"layers that train only some of their channels: {sliced}")
        left = len(self.layers) - len(best.chosen)
        if left or sliced:
            share = self.worth(best) / sum(self.scores)
            notes.append(f"layers that stay frozen: {left}; what trains holds {share:.0%} of the score")
        if self.times.reach:
            share = self.costs.time(best.chosen) / self.times.total
            counted = self.settings.profile is not None and self.settings.profile.unit != "seconds"
            unit = "multiply-accumulates (there was no room to measure times)" if counted else "time"
            notes.append(f"a backward pass takes {share:.0%} of the {unit} of training everything")
        return tuple(notes)

    def _passes(self, *, recompute: bool) -> tuple[Passes, Costs]:
        sample = take_samples(inputs_of(self.trials.batch), 0, self.trials.unit)
        passes = Passes(self.trials.model, self.layers, self.head, sample, recompute=recompute)
        activations = passes.activations()
        # where no gradient is left when a step peaks, as with a single slice, they are counted by their elements
        gradients = self.base.training.gradients or BYTES * self.base.trainable
        options = [
            options_of(
                ranked,
                score,
                own=own,
                state=self.base.training.optimizer / max(1, gradients),
                budget=self.trials.budget,
                channel_ratios=self.settings.channel_ratios,
                axis=self.settings.axis,
                channel_axis=self.ranking.channel_axis,
                times=self.times.own,
            )
            for ranked, score, own in zip(self.ranked, self.scores, activations.own, strict=True)
        ]
        return passes, Costs(options, self.layers, activations, self.base, self.times, twice=recompute)

    def _selection(self, costs: Costs, chosen: Chosen) -> Selection:
        choices = tuple(costs.options[index][way].choice for index, way in chosen)
        options: Mapping[str, object] = self.ranking.options
        return replace(self.head, method=self.ranking.method, choices=choices + self.head.choices, options=options)


def _for_samples(layer: Layer, count: int) -> Layer:
    """A layer with the sizes that it has for so many samples."""
    return replace(layer, input_size=count * layer.input_size, output_size=count * layer.output_size)
