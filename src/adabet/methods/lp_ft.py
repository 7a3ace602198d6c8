"""LP-FT: first the head, then everything from there."""

from adabet.errors import LayerError, OptionError
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.model_blocks import names_in
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors


@register("lp-ft", needs="nothing", source="Kumar et al., ICLR 2022, arXiv 2202.10054")
def start_lp_ft(request: Request, *, share: float = 0.5, rate: float = 0.1) -> Dynamic:
    """First the head alone, then everything, at a tenth of the learning rate.

    With E epochs, the first ``share * E`` of them (rounded down, at least one and at most E - 1) train the head; then
    everything trains from there, with new optimizer state and ``rate`` times the learning rate that the schedule gives.
    A run of a single epoch is divided by steps in the same way. The second stage takes the memory of training
    everything. The ratios of a request do not apply.

    Args:
        request: the model and a batch to find its layers with.
        share: of the epochs, for the head.
        rate: factor on the learning rate of the second stage.

    Raises:
        OptionError: if an option makes no sense, or a single epoch is to be divided whose length is not known.
        LayerError: if the model has no head.

    Departs from the paper: it trains the head until it has converged, here for half of the epochs; it looks for the
    second learning rate in a grid, here that is a tenth of the first. Batch-norms keep their statistics in both stages
    unless ``batch_norm`` of a run says otherwise.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR 2022.
    """
    if not 0 < share < 1:
        raise OptionError(f"expected share, that of the epochs for the head, between 0 and 1, got {share}")
    if not 0 < rate < float("inf"):
        raise OptionError(f"expected rate, a factor on the learning rate, above 0, got {rate}")
    return LinearProbeFineTune(request, share, rate)


class LinearProbeFineTune(Dynamic):
    """The method at work in a run; see `start_lp_ft`. Where it stands follows from the moment alone."""

    def __init__(self, request: Request, share: float, rate: float) -> None:
        self._request, self._share, self._rate = request, share, rate
        self._layers = request.find_layers()
        if not self._layers.head:
            raise LayerError("method 'lp-ft' trains the head first, the model has none; name it with head=")

    def due(self, moment: Moment) -> bool:
        """At the start of either stage."""
        return moment.starts_run or (moment.epoch, moment.step) == self._switch(moment)

    def turn(self, moment: Moment) -> Turn:
        """The head at the start of the run, everything at the switch."""
        options = {"share": self._share, "rate": self._rate}
        if moment.starts_run:
            selection = choose_tensors(self._request, self._layers, (), method="lp-ft", options=options)
            return Turn(selection, note="stage 1: the head")
        names = names_in((*self._layers.unranked, *self._layers, *self._layers.head))
        selection = choose_tensors(self._request, self._layers, names, method="lp-ft", options=options)
        rates = dict.fromkeys(selection.parameters, self._rate)
        return Turn(selection, rates=rates, fresh=True, note="stage 2: everything")

    def _switch(self, moment: Moment) -> tuple[int, int]:
        """Epoch and step of the second stage's first step."""
        if moment.epochs > 1:
            return 1 + self._first_part(moment.epochs), 1
        if moment.steps is None:
            raise OptionError(
                "method 'lp-ft' divides a single epoch by steps, the training loader does not know its length; give "
                "one with a length, or at least 2 epochs"
            )
        return 1, 1 + self._first_part(moment.steps)

    def _first_part(self, whole: int) -> int:
        # the small addend keeps 0.29 * 100 from becoming 28
        return max(1, min(int(self._share * whole + 1e-9), whole - 1))
