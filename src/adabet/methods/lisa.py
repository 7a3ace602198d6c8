"""LISA: a few random blocks at a time, others every few steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adabet.errors import CheckpointError, OptionError
from adabet.methods.channel_draws import generator_for
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.model_blocks import divide_blocks, names_in
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors


@register("lisa", needs="nothing", source="Pan et al., LISA, NeurIPS 2024, arXiv 2403.17919")
def start_lisa(request: Request, *, active: int = 2, interval: int = 20) -> Dynamic:
    """A few blocks drawn at random, others every few steps; stem, final norm and head always.

    Every ``interval`` optimizer steps, ``active`` of the blocks are drawn with equal chances and without replacement.
    Only these train, besides what lies before the first and after the last block, and the head. Blocks are those of
    `adabet.methods.model_blocks.divide_blocks`: transformer layers, residual units, or plain layers with their norms.

    A draw depends on the request's seed and the number of steps taken, so a resumed run draws the same. The optimizer
    forgets blocks that leave. A stem that trains makes the error go back through the whole network; on a model whose
    stem is large the memory is not much below that of training everything. The ratios of a request do not apply.

    Args:
        request: the model and a batch to find its layers with; the seed.
        active: blocks that train at a time, the paper's gamma.
        interval: steps between draws, the paper's K.

    Raises:
        OptionError: if an option is below 1, or the model has fewer blocks than ``active``.

    Departs from the paper: it is written for language models; there the stem is the embedding, here whatever comes
    before the blocks.

    Source: Pan et al., LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning,
    NeurIPS 2024, and LMFlow's code.
    """
    if active < 1 or interval < 1:
        raise OptionError(f"expected active blocks and interval of at least 1, got {active} and {interval}")
    return Lisa(request, active, interval)


class Lisa(Dynamic):
    """The method at work in a run; see `start_lisa`."""

    def __init__(self, request: Request, active: int, interval: int) -> None:
        self._request, self._active, self._interval = request, active, interval
        self._layers = request.find_layers()
        self._parts = divide_blocks(request.model, self._layers)
        if active > len(self._parts.blocks):
            raise OptionError(
                f"expected active of at most {len(self._parts.blocks)}, as many as the model has blocks; got {active}"
            )
        self._steps = 0

    def due(self, moment: Moment) -> bool:
        """At the start of the run and after every interval."""
        return moment.starts_run or self._steps % self._interval == 0

    def turn(self, moment: Moment) -> Turn:  # noqa: ARG002 - counts steps itself, as loaders may not know their length
        """Draw."""
        blocks, parts = self._parts.blocks, self._parts
        order = torch.randperm(len(blocks), generator=generator_for(self._request.seed, self._steps))
        drawn = [blocks[index] for index in sorted(order[: self._active].tolist())]
        names = {*names_in(parts.stem), *names_in(parts.rest), *(name for block in drawn for name in block.parameters)}
        options = {"active": self._active, "interval": self._interval, "seed": self._request.seed}
        selection = choose_tensors(self._request, self._layers, names, method="lisa", options=options)
        return Turn(selection, note=", ".join(block.name for block in drawn))

    @property
    def watches(self) -> bool:
        """Always: that is how steps are counted."""
        return True

    def watch(self, moment: Moment, gradients: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - only counts
        """One more step."""
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if "steps" not in state:
            raise CheckpointError("the checkpoint is of another method, it lacks 'steps'")
        self._steps = int(state["steps"])
