"""What training a set of layers is expected to take, corrected by what trials took."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from adabet.layers import Layer
from adabet.memory import MemoryReport
from adabet.planning.activations import Activations
from adabet.planning.knapsack import Chosen, best_within
from adabet.planning.options import BYTES, Option
from adabet.planning.times import Times

CAPS = 1.3
"""Factor between sizes of the largest gradient that are told apart."""

KEPT_EARLY = 0.7
"""Share of what a pass keeps at most that is kept when a step peaks early."""


@dataclass
class Costs:
    """Predicts a step's peak, one sample at a time, and finds the best set of layers for it.

    There are two moments at which a step may peak. Early in the forward pass, where activations are largest: beside
    what is held all the time there is the pass's own workspace, and what has been kept so far; a later layer that is
    trained adds nothing but its gradient and the optimizer's state. And at the start of the backward pass, when
    everything is kept. Each trial says how far off both were, and later predictions are corrected by that.

    Attributes:
        options: for each layer the ways to take it.
        layers: those layers.
        activations: what a sample's pass keeps.
        base: what a step with the head alone took.
        times: of the backward pass.
        twice: whether blocks run again in the backward pass, beside their own errors.
        scratch: for each layer, bytes that the backward pass through it or any layer behind it may take beside what is
            kept: the errors before and behind it, and a kernel's copy of its weights.
        covered: the most of that which any trial so far has had; a forward pass has had as much but for the weights.
        early_error: bytes by which the last trial was off at the first moment.
        late_error: the same for the second; before any trial what is not known is taken to be large.
        kept_error: bytes by which layers keep more together than one by one.
        learned: whether there has been a trial.
    """

    options: Sequence[Sequence[Option]]
    layers: Sequence[Layer]
    activations: Activations
    base: MemoryReport
    times: Times
    twice: bool = False
    early_error: float = 0.0
    late_error: float = math.nan
    covered: float = 0.0
    kept_error: float = 0.0
    learned: bool = False

    def __post_init__(self) -> None:
        self.scratch = [0.0] * (len(self.layers) + 1)
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            errors = (layer.input_size + layer.output_size) * BYTES * (2 if self.twice else 1)
            copied = layer.parameter_count * BYTES if layer.kind == "convolution" else 0
            self.scratch[index] = max(self.scratch[index + 1], errors + copied)
            self.covered = max(self.covered, errors)
        peak = self.base.training
        self.held = peak.weights + peak.inputs + peak.gradients + peak.optimizer
        self.forward = peak.saved + peak.workspace
        self.late_error = self.forward if math.isnan(self.late_error) else self.late_error

    def predict(self, chosen: Chosen) -> float:
        """Bytes at the peak."""
        return self._held(chosen) + max(
            self._early(chosen) + self.early_error,
            self._late(chosen) + self.late_error + self._unknown(chosen),
        )

    def whole_batch(self, chosen: Chosen, samples: int) -> float:
        """Bytes at the peak with so many samples at once, roughly."""
        return self._held(chosen) + max(samples * self._early(chosen), self._late(chosen) * samples)

    def constant(self, chosen: Chosen) -> float:
        """Bytes that do not depend on the number of samples."""
        return self._held(chosen)

    def time(self, chosen: Chosen) -> float:
        """Time of the backward pass."""
        if not chosen:
            return self.times.head
        own = sum(self.options[index][way].time for index, way in chosen)
        return self.times.head + own + (self.times.reach[chosen[0][0]] if self.times.reach else 0.0)

    def worth(self, chosen: Chosen) -> float:
        """Sum of the scores."""
        return sum(self.options[index][way].score for index, way in chosen)

    def hopeful(self) -> "Costs":
        """These costs where nothing is added for what is not known."""
        return replace(self, late_error=0.0, early_error=0.0, covered=float("inf"))

    def look(self, chosen: Chosen, kept: float) -> None:
        """Correct predictions by what a forward pass would keep, in bytes."""
        self.kept_error += kept - self._kept(chosen)

    def learn(self, chosen: Chosen, trial: MemoryReport) -> None:
        """Correct predictions by a trial, which was at one of the two moments' figures and below the other.

        If little was kept when it peaked, that was early. Then the other moment's workspace is somewhere between what
        the layers' sizes say and what the peak leaves for it; the middle is taken, and the next trial says more. If it
        peaked late, the early figure, which counts some memory twice, stands unless it is refuted.
        """
        peak, scratch = trial.training, self._scratch(chosen)
        over = peak.total - self._held(chosen)
        early, late = over - self._early(chosen), over - self._late(chosen)
        peaked_early = not self.twice and peak.saved < KEPT_EARLY * trial.saved
        self.early_error = early if peaked_early else min(early, self.early_error)
        self.late_error = (late + scratch) / 2 if peaked_early and late > scratch else late
        self.covered = max(self.covered if self.learned else 0.0, scratch)
        self.learned = True

    def solve(self, limit: float) -> Chosen:
        """The best set whose predicted peak is within a limit."""
        best: Chosen = ()
        room = limit
        for _ in range(3):
            best = self._solve(room)
            over = self.predict(best) - limit
            if over <= 0 or not best:
                break
            room -= over
        else:
            best = ()
        return self._filled(best, limit)

    def _solve(self, limit: float) -> Chosen:
        """By additive costs: for each size that the largest gradient may have, since that one counts twice."""
        sizes = sorted({option.gradient for ways in self.options for option in ways}, reverse=True)
        best: Chosen = ()
        for cap in _thinned(sizes):
            scores = [[o.score if o.gradient <= cap else 0.0 for o in ways] for ways in self.options]
            if sum(max(row) for row in scores) <= self.worth(best):
                break
            chosen = best_within(scores, *self._limits(limit, cap))
            if self.worth(chosen) > self.worth(best):
                best = chosen
        return best

    def _limits(self, limit: float, cap: float) -> tuple[list[list[list[float]]], list[list[float]], list[float]]:
        """Costs, reach and limits of both moments and of time."""
        found, indices = self.activations, range(len(self.layers))
        early = [[o.fixed + self._own_early(i, o) for o in ways] for i, ways in enumerate(self.options)]
        late = [[o.fixed + o.own for o in ways] for ways in self.options]
        costs, reach = [early, late], [[found.early(i) for i in indices], list(found.reach)]
        limits = [
            limit - self.held - self.forward - self.early_error,
            limit - self.held - found.resting - self.kept_error - self.late_error - cap,
        ]
        if self.times.reach:
            costs.append([[o.time for o in ways] for ways in self.options])
            reach.append(list(self.times.reach))
            limits.append(self.times.limit - self.times.head)
        return costs, reach, limits

    def _filled(self, chosen: Chosen, limit: float) -> Chosen:
        """Take what else fits, or more of what is taken; rounding and the mix of limits leave some room."""
        ways = dict(chosen)
        gains = sorted(
            ((option.score, index, way) for index, row in enumerate(self.options) for way, option in enumerate(row)),
            key=lambda gain: (-gain[0], gain[1], gain[2]),
        )
        for score, index, way in gains:
            if index in ways and self.options[index][ways[index]].score >= score:
                continue
            more = tuple(sorted({**ways, index: way}.items()))
            if self.predict(more) <= limit and self.time(more) <= self.times.limit:
                ways[index] = way
        return tuple(sorted(ways.items()))

    def _options(self, chosen: Chosen) -> Iterator[Option]:
        return (self.options[index][way] for index, way in chosen)

    def _held(self, chosen: Chosen) -> float:
        return self.held + sum(option.fixed for option in self._options(chosen))

    def _early(self, chosen: Chosen) -> float:
        kept = sum(self._own_early(index, self.options[index][way]) for index, way in chosen)
        return self.forward + kept + (self.activations.early(chosen[0][0]) if chosen else 0.0)

    def _own_early(self, index: int, option: Option) -> float:
        return option.own if index <= self.activations.widest else 0.0

    def _late(self, chosen: Chosen) -> float:
        return self._kept(chosen) + max((option.gradient for option in self._options(chosen)), default=0.0)

    def _kept(self, chosen: Chosen) -> float:
        if not chosen:
            return self.activations.resting
        kept = self.activations.resting + self.activations.reach[chosen[0][0]] + self.kept_error
        return kept + sum(option.own for option in self._options(chosen))

    def _scratch(self, chosen: Chosen) -> float:
        return self.scratch[chosen[0][0]] if chosen else 0.0

    def _unknown(self, chosen: Chosen) -> float:
        """Scratch of kernels that no trial has run yet."""
        return max(0.0, self._scratch(chosen) - self.covered)


def _thinned(sizes: Sequence[float]) -> Iterator[float]:
    """Of descending sizes one for each step of `CAPS`, the largest."""
    last = float("inf")
    for size in sizes:
        if size * CAPS < last or size == sizes[-1]:
            last = size
            yield size
