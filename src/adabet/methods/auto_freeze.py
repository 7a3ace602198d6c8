"""AutoFreeze: freeze a growing prefix of blocks whose gradients have come to rest."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adabet.errors import CheckpointError, LayerError, OptionError
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.model_blocks import divide_blocks, names_in
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors

SUMS = ("signed", "absolute")


@register(
    "auto-freeze",
    needs="the gradients of training, which begins with everything",
    source="Liu et al., AutoFreeze, 2021, arXiv 2102.01386",
)
def start_auto_freeze(
    request: Request, *, intervals: int = 10, percentile: float = 50, sums: str = "signed"
) -> Dynamic:
    """Everything at first; then, from the input side, blocks whose gradients have come to rest are frozen.

    The run is cut into equal intervals. Within each the gradients of every tensor are summed; a block's norm is the sum
    of their absolute values, and ``eta = |previous - now| / previous`` says how it changes from one interval to the
    next. At the end of the second interval and of each after it, the threshold is a percentile of eta over the blocks
    that are not frozen; training goes on from the first block that reaches it, and all before it are frozen for good.
    The stem is frozen together with the first block, since nothing before a frozen block trains. What follows the last
    block and the head always train. Blocks are those of `adabet.methods.model_blocks.divide_blocks`.

    The first two intervals take the memory of training everything. Sums of signed gradients are as large as the
    gradients; they lie in main memory, and in the checkpoints of epochs that end within an interval. The ratios of a
    request do not apply.

    Args:
        request: the model and a batch to find its layers with.
        intervals: of the run; as many as it has steps if it has fewer.
        percentile: from 0 (nothing ever freezes) to 100 (all before the block that changes most).
        sums: ``"signed"``: gradients that point to and fro cancel, the paper's; ``"absolute"``: they do not, and only
            one number for each block is remembered.

    Raises:
        OptionError: if an option makes no sense, or the training loader does not know its length.
        LayerError: if the model has fewer than two blocks.

    Departs from the paper: it caches the activations of the frozen prefix, which is left out. A step whose gradients
    are not finite, as loss scaling has them, is not summed.

    Source: Liu et al., AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning, 2021, and its code.
    """
    if intervals < 1:
        raise OptionError(f"expected intervals of at least 1, got {intervals}")
    if not 0 <= percentile <= 100:
        raise OptionError(f"expected percentile from 0 to 100, got {percentile}")
    if sums not in SUMS:
        raise OptionError(f"expected sums to be one of {', '.join(SUMS)}, got {sums!r}")
    return AutoFreeze(request, intervals, percentile, sums)


class AutoFreeze(Dynamic):
    """The method at work in a run; see `start_auto_freeze`.

    Attributes:
        frozen: how many blocks, from the first.
    """

    def __init__(self, request: Request, intervals: int, percentile: float, sums: str) -> None:
        self._request, self._intervals, self._percentile = request, intervals, percentile
        self._signed = sums == "signed"
        self._layers = request.find_layers()
        self._parts = divide_blocks(request.model, self._layers)
        if len(self._parts.blocks) < 2:
            raise LayerError(
                f"expected a model with at least 2 blocks to freeze some, it has {len(self._parts.blocks)}; choose "
                "another method"
            )
        self.frozen = 0
        self._before: list[float] | None = None
        self._sums: dict[str, Tensor] = {}
        self._options = {"intervals": intervals, "percentile": percentile, "sums": sums}

    def due(self, moment: Moment) -> bool:
        """At the start of the run, and at the end of every interval but the last."""
        if moment.steps is None:
            raise OptionError(
                "method 'auto-freeze' cuts the run into intervals, the training loader does not know its length; give "
                "one with a length"
            )
        total = moment.epochs * moment.steps
        count = min(self._intervals, total)
        done = (moment.epoch - 1) * moment.steps + moment.step - 1
        return moment.starts_run or done in {index * total // count for index in range(1, count)}

    def turn(self, moment: Moment) -> Turn:
        """Freeze what has come to rest since the last interval."""
        note = "" if moment.starts_run else self._end_interval()
        blocks = self._parts.blocks[self.frozen :]
        names = {name for block in blocks for name in block.parameters} | set(names_in(self._parts.rest))
        if not self.frozen:
            names |= set(names_in(self._parts.stem))
        selection = choose_tensors(self._request, self._layers, names, method="auto-freeze", options=self._options)
        return Turn(selection, note=f"{self.frozen} of {len(self._parts.blocks)} blocks frozen{note}")

    @property
    def watches(self) -> bool:
        """Always: what freezes follows from the gradients."""
        return True

    def watch(self, moment: Moment, gradients: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - turns end intervals
        """Add up the gradients of blocks."""
        found = {
            block.name: {name: gradients[name].detach() for name in block.parameters if name in gradients}
            for block in self._parts.blocks[self.frozen :]
        }
        if not all(gradient.isfinite().all() for part in found.values() for gradient in part.values()):
            return
        for block, part in found.items():
            for name, gradient in part.items():
                key, value = (name, gradient) if self._signed else (block, gradient.abs().sum())
                held = self._sums.get(key)
                self._sums[key] = value.float().cpu().clone() if held is None else held.add_(value.float().cpu())

    def state_dict(self) -> dict[str, Any]:
        """What is frozen, the norms of the last interval and the sums of this one."""
        before = [] if self._before is None else list(self._before)
        sums = {name: value.clone() for name, value in self._sums.items()}
        return {"frozen": self.frozen, "before": before, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        try:
            self.frozen = int(state["frozen"])
            self._before = list(state["before"]) or None
            self._sums = {name: sums.cpu().clone() for name, sums in state["sums"].items()}
        except KeyError as error:
            raise CheckpointError(f"the checkpoint is of another method, it lacks {error}") from error

    def _end_interval(self) -> str:
        """Freeze by the sums of an interval, and begin to sum anew."""
        now = [self._norm(index) for index in range(len(self._parts.blocks))]
        before, self._before, self._sums = self._before, now, {}
        if before is None:
            return ""
        rates = change_rates(before[self.frozen :], now[self.frozen :])
        advance, threshold = first_moving(rates, self._percentile)
        self.frozen += advance
        return f", change of gradients {', '.join(f'{rate:.2g}' for rate in rates)}, threshold {threshold:.2g}"

    def _norm(self, index: int) -> float:
        block = self._parts.blocks[index]
        keys = block.parameters if self._signed else (block.name,)
        return math.fsum(float(self._sums[key].abs().double().sum()) for key in keys if key in self._sums)


def change_rates(before: list[float], now: list[float]) -> list[float]:
    """``|before - now| / before``; 0 where both are zero, infinite where only the first is.

    Examples:
        >>> change_rates([2.0, 4.0, 0.0, 0.0], [1.0, 5.0, 0.0, 3.0])
        [0.5, 0.25, 0.0, inf]
    """
    return [
        abs(first - second) / first if first else (math.inf if second else 0.0)
        for first, second in zip(before, now, strict=True)
    ]


def first_moving(rates: list[float], percentile: float) -> tuple[int, float]:
    """The first block whose rate reaches the percentile of all rates, and that percentile.

    Between two ranks the percentile is interpolated linearly.

    Examples:
        >>> first_moving([0.1, 0.4, 0.2, 0.3], 50)
        (1, 0.25)
        >>> first_moving([0.1, 0.4, 0.2, 0.3], 100)
        (1, 0.4)
        >>> first_moving([0.1, 0.4, 0.2, 0.3], 0)
        (0, 0.1)
    """
    order = sorted(rates)
    place = percentile / 100 * (len(order) - 1)
    low, high = order[math.floor(place)], order[math.ceil(place)]
    # an infinite rate beside the same would interpolate to nan
    exact = low == high or place == math.floor(place)
    threshold = low if exact else min(high, low + (high - low) * (place - math.floor(place)))
    return next(index for index, rate in enumerate(rates) if rate >= threshold), threshold
