"""TraDy: input channels drawn anew for every epoch from the layers that matter, within a memory budget."""

from adabet.methods.drawn_channels import DrawnChannels, DrawOptions, Variant
from adabet.methods.dynamic import Dynamic
from adabet.methods.layer_choice import Given
from adabet.methods.registry import Request, register

VARIANTS = {
    "trady": Variant("rgn", "uniform"),
    "d-topk-random": Variant("rgn", "uniform"),
    "s-topk-random": Variant("rgn", "uniform", once=True),
    "d-full-random": Variant("all", "uniform"),
    "s-full-random": Variant("all", "uniform", once=True),
    "d-det-rgn": Variant("all", "highest rgn"),
    "s-det-rgn": Variant("all", "highest rgn", once=True),
}
"""The variants that the paper compares, by its names; ``"d-topk-random"`` is TraDy."""


@register(
    "trady",
    needs="labels; gradients to rank the layers, unless ranking= is given",
    source="Quelennec et al., Study of Training Dynamics for Memory-Constrained Fine-Tuning (TraDy)",
    budget=True,
)
def start_trady(
    request: Request,
    *,
    variant: str = "trady",
    units: int | None = None,
    k: int | None = None,
    share: float = 0.97,
    ranking: Given | None = None,
    preliminary: int = 1,
    per_step_accumulate: bool = False,
    gradient_batches: int | None = None,
    fill: str = "prefix",
    train_bn: str = "frozen",
) -> Dynamic:
    """Random input channels of the layers with the largest gradients for their memory, drawn anew every epoch.

    An input channel with C_w weights and C_a pixels for one sample costs ``C_w + C_a`` memory units. Layers are ranked
    by their re-weighted gradient norm, ``RGN = sum_c g_c / (C_w + C_a)`` with g_c the norm of a channel's gradient, and
    the fewest that hold 97 % of the sum are drawn from: with equal chances, without replacement, until the budget is
    met. The head always trains and costs nothing of the units.

    Args:
        request: model, labelled batches, and what all methods share. Its ``memory`` is a budget of bytes for the
            measured peak of a training step in the lean mode, everything counted; no draw exceeds it, if no batch is
            larger than the first. Early layers that it does not pay for are left out.
        variant: ``"trady"`` (also ``"d-topk-random"``), ``"s-topk-random"`` (drawn once), ``"d-full-random"`` and
            ``"s-full-random"`` (from all layers), ``"d-det-rgn"`` and ``"s-det-rgn"`` (the channels with the highest
            RGN by a full gradient taken before every epoch, or the first).
        units: budget in memory units; the papers' run from 15936 to 112640 for small networks.
        k: number of layers to draw from, instead of ``share``.
        share: of the layers' summed RGN that those to draw from hold.
        ranking: the layers' values, made before: what `adabet.methods.layer_importance` gave, a file that it was
            saved to, or a number for each layer. None makes them at the start of the run.
        preliminary: epochs in which the head trains before layers are ranked, if ``ranking`` is not given; each is
            followed by a pass that takes gradients. The head starts the run as it was.
        per_step_accumulate: there, sum up the norms of every batch's gradient instead of the norm of their average.
        gradient_batches: how many batches to take full gradients of; None for all.
        fill: ``"prefix"`` ends the draw at the first channel that does not fit, ``"skip_and_continue"`` goes on.
        train_bn: ``"frozen"``, or ``"affine"``: scale and shift of all norms train as well, outside the units but
            within ``memory``. Biases stay frozen.

    Raises:
        OptionError: if there is no budget, or an option makes no sense.
        UnknownNameError: if there is no such variant.
        BudgetError: if the bytes don't pay for a single channel.
        SelectionError: if the ranking is of another model.
        LayerError: if the model has no layer with input channels beside its head.

    Departs from the paper: without ``ranking``, layers are ranked on the target batches with only the head trained,
    where the paper fine-tunes on another task; it costs one gradient pass and no second data set. With ``memory`` that
    pass, and the head's training, take so few samples at once that all gradients fit; and several rounds where they do
    not even with one. The paper does not say which gradient is normed (here the
    mean over a pass), what happens at a channel that does not fit, or whether norms train.

    Source: Quelennec et al., TraDy: Algorithm 1, equations 2 to 8, appendix D.
    """
    options = DrawOptions(
        method="trady",
        variant=variant,
        units=units,
        k=k,
        share=share,
        alpha=1.0,
        ranking=ranking,
        preliminary=preliminary,
        per_step_accumulate=per_step_accumulate,
        gradient_batches=gradient_batches,
        fill=fill,
        train_bn=train_bn,
    )
    return DrawnChannels(request, options, options.check(request, VARIANTS))
