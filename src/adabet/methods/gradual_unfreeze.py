"""Gradual unfreezing: the head first, then one more block every epoch, from the output to the input."""

from adabet.errors import LayerError, OptionError
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.model_blocks import divide_blocks
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors


@register("gradual-unfreeze", needs="nothing", source="Howard and Ruder, ULMFiT, ACL 2018, arXiv 1801.06146")
def start_gradual_unfreeze(request: Request, *, decay: float | None = None) -> Dynamic:
    """The head first, and one more block from the output side every epoch.

    Epoch 1 trains the head, epoch 2 the last block too (with what lies between it and the head, such as the final
    norm), and so on; after all blocks comes the stem, and then everything trains. Blocks are those of
    `adabet.methods.model_blocks.divide_blocks`. A run with fewer epochs than blocks leaves the earliest frozen. Where
    a model has no head, epoch 1 trains the last block. The ratios of a request do not apply.

    Args:
        request: the model and a batch to find its layers with.
        decay: makes the learning rates discriminative: that of each block is the next one's divided by this, the
            paper's 2.6; None trains all at the same rate.

    Raises:
        OptionError: if decay is below 1.
        LayerError: if the model has neither head nor blocks.

    Departs from the paper: its unit is a layer of an LSTM, here a block; its slanted triangular learning rate is the
    run's schedule to give, and its discriminative rates are off unless asked for.

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018, section 3.3.
    """
    if decay is not None and not 1 <= decay < float("inf"):
        raise OptionError(
            f"expected decay, by which learning rates fall from block to block, of at least 1, got {decay}"
        )
    return GradualUnfreeze(request, decay)


class GradualUnfreeze(Dynamic):
    """The method at work in a run; see `start_gradual_unfreeze`. Where it stands follows from the moment alone."""

    def __init__(self, request: Request, decay: float | None) -> None:
        self._request, self._decay = request, decay
        self._layers = request.find_layers()
        groups = divide_blocks(request.model, self._layers).groups
        if self._layers.head:
            groups = (*groups, self._layers.head_parameters)
        if not groups:
            raise LayerError("expected a model with a head or blocks to unfreeze, it has neither")
        self._downwards = groups[::-1]

    def due(self, moment: Moment) -> bool:
        """At the start of every epoch that adds a block."""
        return moment.starts_epoch and moment.epoch <= len(self._downwards)

    def turn(self, moment: Moment) -> Turn:
        """As many groups from the output side as epochs have begun."""
        groups = self._downwards[: moment.epoch]
        rates = {}
        if self._decay is not None:
            rates = {name: self._decay**-depth for depth, group in enumerate(groups) for name in group}
        selection = choose_tensors(
            self._request,
            self._layers,
            {name for group in groups for name in group},
            method="gradual-unfreeze",
            options={"decay": self._decay},
        )
        return Turn(selection, rates=rates, note=f"{len(groups)} of {len(self._downwards)} groups from the output")
