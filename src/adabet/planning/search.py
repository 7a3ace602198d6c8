"""Search for the best selection within a budget, and for the widest micro-batch that it can be trained with."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adabet.layers import inputs_of, take_samples
from adabet.memory import MemoryReport
from adabet.memory.bytes_by_layer import saved_bytes
from adabet.planning.knapsack import best_set
from adabet.planning.trials import Trials
from adabet.ranking import RankedLayer, Ranking
from adabet.selection import Choice, Selection
from adabet.sizes import format_size

CEILING = 0.97
"""Share of the budget that trials aim at in the end: predictions are not exact."""

STRIDE = 0.6
"""How far a trial may go from what was measured towards the ceiling; what it shows corrects the next prediction."""

ENOUGH = 0.93
"""Share of the budget at which the search for a larger selection stops."""

BYTES = 4
"""Of an element of a gradient."""

TRIALS = 10
"""Trials of selections at most."""

OVERHEAD = 1.25
"""How much more than predicted a first trial may take without going over the budget."""


@dataclass(frozen=True)
class Candidate:
    """A selection and a way to train it, tried."""

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
        layer_ratio: share of the layers that may train.
    """

    def __init__(
        self, trials: Trials, ranking: Ranking, head: Selection, base: MemoryReport, layer_ratio: float
    ) -> None:
        self.trials, self.ranking, self.head = trials, ranking, head
        best = {ranked.layer.name for ranked in ranking.order[: ranking.count(layer_ratio)]}
        self.layers = [ranked for ranked in ranking.layers if ranked.layer.name in best]
        self.limited = layer_ratio < 1
        # a layer without a single loop is still worth more than nothing, if there is room
        smallest = min((ranked.score for ranked in self.layers if ranked.score > 0), default=1.0)
        self.scores = [max(ranked.score, 0.01 * smallest) for ranked in self.layers]
        self.base = base
        # a kernel may take a copy of a layer's weights; whether it does is not known before it has run
        self.scratch = max(parameter.nbytes for parameter in trials.model.parameters())
        self.state = base.training.optimizer / max(1, base.training.gradients)
        sample = take_samples(inputs_of(trials.batch), 0, 1)
        self.all = saved_bytes(trials.model, self._selection(range(len(self.layers))), sample)
        self.first = saved_bytes(trials.model, self._selection([0]), sample)
        self.resting = saved_bytes(trials.model, head, sample).total

    def worth(self, selection: Selection) -> float:
        """Sum of the scores of what is selected."""
        chosen = set(selection.layers)
        return sum(score for score, ranked in zip(self.scores, self.layers, strict=True) if ranked.layer.name in chosen)

    def everything(self) -> float:
        """Bytes that training every layer with the whole batch at once is expected to take."""
        return self._predict(range(len(self.layers)), self.trials.batch_size, 1.0)

    def best(self, *, recompute: bool) -> Candidate:
        """The best set of layers with one sample at a time, approached from below."""
        budget = self.trials.budget
        best = Candidate(self.head, 1, False, self.base.training.total, self.base.training.total)
        corrections, tried = [1.0], set[tuple[int, ...]]()
        for _ in range(TRIALS):
            top = best.measured
            room = CEILING * budget - top - (0 if tried else self.scratch)
            chosen = self._solve(top + STRIDE * room, max(corrections[-2:]))
            if chosen in tried:
                chosen = self._solve(CEILING * budget, max(corrections[-2:]))
            if not chosen or chosen in tried:
                break
            tried.add(chosen)
            selection = self._selection(chosen)
            measured = self.trials.run(selection, micro_batch=1, recompute=recompute).training.total
            if measured <= budget and self.worth(selection) > self.worth(best.selection):
                best = Candidate(selection, 1, recompute, self._predict(chosen, 1, max(corrections[-2:])), measured)
            corrections.append(max(0.05, (measured - self._known(chosen)) / max(1.0, self._varying(chosen, 1))))
            if best.measured >= ENOUGH * budget or len(chosen) == len(self.layers):
                break
        return best

    def widen(self, best: Candidate) -> Candidate:
        """The largest micro-batch that the selection can be trained with; without recomputation if possible."""
        ways = [False, True] if best.recompute else [False]
        for recompute in ways:
            widest = self._widest(best, recompute)
            if widest is not None:
                return widest
        return best

    def _widest(self, best: Candidate, recompute: bool) -> Candidate | None:
        """Double the micro-batch as long as the line through the last two measurements stays below the budget."""
        budget, size = self.trials.budget, self.trials.batch_size
        found: Candidate | None = best if best.recompute == recompute else None
        points = [(1, best.measured)] if found else []
        varying = best.measured - self._known(self._indices(best.selection)) if found else math.inf
        slope = min(varying, self._varying(self._indices(best.selection), 1))
        if not points and self._predict(self._indices(best.selection), 1, OVERHEAD) > budget:
            return None
        for micro_batch in dict.fromkeys([*(2**power for power in range(size.bit_length())), size]):
            if points and micro_batch <= points[-1][0]:
                continue
            unknown = self.scratch if len(points) == 1 and varying < self.scratch else 0
            if points and points[-1][1] + slope * (micro_batch - points[-1][0]) + unknown > CEILING * budget:
                return self._between(found, points, slope, recompute)
            measured = self.trials.run(best.selection, micro_batch=micro_batch, recompute=recompute).training.total
            if measured > budget:
                return found
            if points:
                slope = (measured - points[-1][1]) / (micro_batch - points[-1][0])
            points.append((micro_batch, measured))
            found = replace(best, micro_batch=micro_batch, recompute=recompute, predicted=measured, measured=measured)
        return found

    def _between(
        self, found: Candidate | None, points: list[tuple[int, int]], slope: float, recompute: bool
    ) -> Candidate | None:
        """A micro-batch between the last power of two that fits and the next that does not."""
        if found is None or slope <= 0 or len(points) == 1:
            return found
        room = (CEILING * self.trials.budget - points[-1][1]) / slope
        micro_batch = points[-1][0] + math.floor(room)
        if micro_batch <= points[-1][0] or micro_batch >= self.trials.batch_size:
            return found
        measured = self.trials.run(found.selection, micro_batch=micro_batch, recompute=recompute).training.total
        if measured > self.trials.budget:
            return found
        return replace(found, micro_batch=micro_batch, predicted=points[-1][1] + slope * room, measured=measured)

    def notes(self, best: Candidate) -> tuple[str, ...]:
        """What was bought and what was given up."""
        full = self.everything()
        notes = [f"training everything with {self.trials.batch_size} samples at once would take {format_size(full)}"]
        if best.micro_batch < self.trials.batch_size:
            notes.append(f"{math.ceil(self.trials.batch_size / best.micro_batch)} passes a step, to the same gradient")
        if best.recompute:
            notes.append("blocks run twice: about a third more time a step")
        left = len(self.layers) - len(best.selection.layers)
        if left:
            share = self.worth(best.selection) / sum(self.scores)
            notes.append(f"{left} layers stay frozen; those that train hold {share:.0%} of the score")
        return tuple(notes)

    def _solve(self, budget: float, correction: float) -> tuple[int, ...]:
        """The best set by the predicted costs.

        A gradient is computed beside the one that it is added to, one layer at a time: the largest chosen layer
        counts once more. So the problem is solved for each size that the largest may have.
        """
        costs = [
            self._bytes_of(ranked)
            + correction * max(0, self.all.within(ranked.layer) - self.first.within(ranked.layer))
            for ranked in self.layers
        ]
        reach = [correction * max(0, self.first.since(ranked.layer) - self.resting) for ranked in self.layers]
        room = budget - self._known(()) - correction * self._varying((), 1)
        sizes = [ranked.layer.parameter_count * BYTES for ranked in self.layers]
        best: tuple[int, ...] = ()
        for largest in sorted(set(sizes)):
            scores = [score if size <= largest else 0.0 for score, size in zip(self.scores, sizes, strict=True)]
            chosen = best_set(scores, costs, reach, room - largest)
            if sum(self.scores[index] for index in chosen) > sum(self.scores[index] for index in best):
                best = chosen
        return best

    def _predict(self, chosen: Iterable[int], micro_batch: int, correction: float) -> float:
        chosen = list(chosen)
        return self._known(chosen) + correction * self._varying(chosen, micro_batch)

    def _known(self, chosen: Iterable[int]) -> float:
        """Bytes that do not depend on the micro-batch: weights, inputs, gradients, optimizer state.

        The largest gradient counts twice: a slice's is computed before it is added to those of the others.
        """
        base = self.base.training
        layers = [self.layers[index] for index in chosen]
        own = sum(map(self._bytes_of, layers))
        largest = max((ranked.layer.parameter_count * BYTES for ranked in layers), default=0)
        return base.weights + base.inputs + base.gradients + base.optimizer + own + largest

    def _varying(self, chosen: Iterable[int], micro_batch: int) -> float:
        """Bytes of activations: saved ones, and the workspace of the base, for each sample."""
        chosen = list(chosen)
        base = self.base.training
        saved = float(base.saved + base.workspace)
        if chosen:
            saved += max(0, self.first.since(self.layers[chosen[0]].layer) - self.resting)
            saved += sum(
                max(0, self.all.within(self.layers[index].layer) - self.first.within(self.layers[index].layer))
                for index in chosen
            )
        return saved * micro_batch

    def _bytes_of(self, ranked: RankedLayer) -> float:
        """Gradient and optimizer state of a layer."""
        return ranked.layer.parameter_count * BYTES * (1 + self.state)

    def _selection(self, indices: Iterable[int]) -> Selection:
        choices = tuple(Choice.of(self.layers[index].layer) for index in indices)
        return replace(
            self.head,
            method=self.ranking.method,
            choices=choices + self.head.choices,
            options=self.ranking.options,
        )

    def _indices(self, selection: Selection) -> tuple[int, ...]:
        chosen = set(selection.layers)
        return tuple(index for index, ranked in enumerate(self.layers) if ranked.layer.name in chosen)
