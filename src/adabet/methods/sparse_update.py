"""Sparse Update: biases of the last layers, and weights of some channels of some of them, within a budget."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from adabet.errors import AdabetWarning, BudgetError, OptionError
from adabet.layers import Layers
from adabet.memory import measure_memory
from adabet.methods.registry import Request, register
from adabet.methods.sparse_contributions import (
    RATIOS,
    Analysis,
    Contributions,
    measure_contributions,
    read_contributions,
)
from adabet.methods.sparse_scheme import Scheme, Sites, find_scheme, select_scheme
from adabet.methods.sparse_search import Evolution, search_scheme
from adabet.selection import Selection
from adabet.sizes import format_size, parse_size

RUNGS, GROWTH = 12, 1.5
"""How many sizes of scheme are tried at first for a measured peak, and how much larger each is than the one before."""

REFINEMENTS = 4
"""How often the interval between the last that fitted and the first that did not is halved."""


@register(
    "sparse-update",
    needs="nothing for the published schemes of three nets; else labels and short trainings, once",
    source="Lin et al. 2022 (NeurIPS), arXiv 2206.15472",
    budget=True,
)
def select_sparse_update(
    request: Request,
    *,
    scheme: str | Scheme | None = None,
    extra: str | float | None = None,
    contributions: Contributions | str | Path | None = None,
    criterion: str = "magnitude+",
    bits: int = 8,
    epochs: int = 1,
    samples: int | None = 256,
    rate: float = 0.01,
    ratios: Sequence[float] = RATIOS,
    depths: Sequence[int] | None = None,
    last: int | None = None,
    measure: str = "accuracy",
    population: int = 100,
    generations: int = 100,
    mutation: float = 0.05,
) -> Selection:
    """The last biases and parts of some weights, by what each of them adds to accuracy.

    A scheme trains the head, the biases of the last k convolutions and linear layers, and of some of these the weights
    of a share of the input channels. What each depth k and each weight at each share adds to held-out accuracy is
    measured by itself, in short trainings from the same start (`measure_contributions`); the gains are taken to add
    up, and an evolutionary search finds the scheme with the largest sum within a number of bytes (`search_scheme`).
    For the nets ``mcu/mbv2-w0.35``, ``mcu/mcunet-5fps`` and ``mcu/proxyless-w0.3`` the schemes that the authors found
    are known, and take the place of analysis and search unless contributions are given.

    How large the scheme may be: ``extra`` counts bytes by the paper's rule (`Sites.extra_bytes`: one sample, 8 bits a
    number, without the head's weights); ``memory`` is the measured peak of a real step, everything counted. With
    ``memory`` schemes are tried from the smallest up, and the first that is too large ends the search for more.
    Without either, ``extra`` is ``layer_ratio`` of what training everything would take. The analysis itself keeps to
    no budget: do it once where there is room, and take its file along.

    Args:
        request: model, batches and what all methods share. Labels are needed for the analysis and for ``memory``.
        scheme: a published one by its name, such as ``"49kB"``, or one of your own.
        extra: bytes beyond inference, such as ``"49kB"``. The published names count units of 1024 bytes and round
            down: ``scheme="49kB"`` takes 49.8 of them.
        contributions: measured before; or a file of them, which is written if it does not exist yet.
        criterion: which input channels to keep: ``"magnitude+"`` (the largest weights), ``"magnitude-"``, ``"random"``.
        bits: of a weight and of an activation in ``extra``; 32 counts what training in single precision takes.
        epochs: see `Analysis`.
        samples: see `Analysis`.
        rate: see `Analysis`.
        ratios: see `Analysis`.
        depths: see `Analysis`.
        last: see `Analysis`.
        measure: see `Analysis`.
        population: see `Evolution`.
        generations: see `Evolution`.
        mutation: see `Evolution`.

    Raises:
        OptionError: if a scheme is named for a model that it was not published for, or options contradict each other.
        BudgetError: if no scheme fits; names the smallest.
        DataError: if the analysis finds no labels.

    Warns:
        AdabetWarning: if nothing was measured to gain over the head, which then trains alone.

    Departs from the paper: trains in floating point where it trains in int8 with rescaled gradients; a layer without
    a bias of its own trains the shift of the batch-norm behind it, into which that bias is folded on the device;
    attention blocks stay frozen unless ``blocks=()`` makes each projection a layer; the search begins with schemes
    grown by gain per byte. How long the paper's trainings and how large its populations were is not known.

    Source: Lin et al. 2022, On-Device Training Under 256KB Memory (arXiv 2206.15472); rule of memory, choice of
    channels and schemes as in mit-han-lab/tiny-training.
    """
    layers = request.find_layers()
    sites = Sites.of(request.model, layers, bits=bits)
    if scheme is not None:
        if extra is not None or contributions is not None:
            raise OptionError("expected either a scheme, or extra and contributions to find one; got both")
        limits, scheme_of = _named(sites, find_scheme(sites, scheme))
    else:
        limit = _limit(request, sites, extra)
        if contributions is None and sites.published:
            limits, scheme_of = _published(sites, limit)
        else:
            analysis = Analysis(epochs, samples, rate, tuple(ratios), depths, last, measure)
            evolution = Evolution(population, generations, mutation, request.seed)
            known = _contributions(request, layers, sites, contributions, analysis, criterion)
            limits, scheme_of = _searched(request, sites, known, limit, evolution)

    def selection_of(limit: int) -> Selection:
        return select_scheme(request, layers, sites, scheme_of(limit), criterion=criterion)

    return selection_of(limits[-1]) if request.memory is None else _largest(request, limits, selection_of)


SchemeOf = Callable[[int], Scheme]
"""The scheme for a number of extra bytes."""


def _limit(request: Request, sites: Sites, extra: str | float | None) -> int:
    """The most extra bytes that a scheme may take."""
    if extra is not None:
        return parse_size(extra)
    everything, head = sites.extra_bytes(sites.everything), sites.extra_bytes(Scheme(0))
    if request.memory is not None:
        return everything
    if not 0 <= request.layer_ratio <= 1:
        raise OptionError(f"expected a layer_ratio from 0 to 1, got {request.layer_ratio}")
    return max(head, int(request.layer_ratio * everything))


def _named(sites: Sites, scheme: Scheme) -> tuple[list[int], SchemeOf]:
    """A scheme that was asked for, whatever it takes."""
    return [sites.extra_bytes(scheme)], lambda _: scheme


def _published(sites: Sites, limit: int) -> tuple[list[int], SchemeOf]:
    """The published schemes within a limit, by what they take."""
    by_size = {sites.extra_bytes(scheme): scheme for scheme in sites.published.values()}
    limits = sorted(size for size in by_size if size <= limit)
    if not limits:
        raise BudgetError(
            f"expected extra of at least {min(by_size)} bytes, what the smallest published scheme takes, got {limit}; "
            "give contributions to search for a smaller scheme"
        )
    return limits, lambda extra: by_size[max(size for size in by_size if size <= extra)]


def _searched(
    request: Request, sites: Sites, contributions: Contributions, limit: int, evolution: Evolution
) -> tuple[list[int], SchemeOf]:
    """Limits up to the largest, and the search for the best scheme within one."""
    head = sites.extra_bytes(Scheme(0))
    limits = [head, *(head + int((limit - head) * GROWTH**-power) for power in reversed(range(RUNGS)))]
    return (
        limits if request.memory is not None else [limit],
        lambda extra: search_scheme(sites, contributions, extra, evolution),
    )


def _contributions(
    request: Request,
    layers: Layers,
    sites: Sites,
    given: Contributions | str | Path | None,
    analysis: Analysis,
    criterion: str,
) -> Contributions:
    if given is None:
        given = measure_contributions(request, analysis, criterion=criterion)
    elif not isinstance(given, Contributions):
        given = read_contributions(Path(given), request, analysis, criterion=criterion)
    given.check(request.model, layers, sites)
    if not given.gain_anywhere:
        warnings.warn(
            "no layer was measured to gain anything over the head, so that the head trains alone: give the analysis "
            "more samples or epochs, another rate, or measure='loss'",
            AdabetWarning,
            stacklevel=2,
        )
    return given


def _largest(request: Request, limits: Sequence[int], selection_of: Callable[[int], Selection]) -> Selection:
    """The largest scheme whose step stays within the budget, found from the smallest up."""
    memory = request.memory or 0
    batch = next(iter(request.batches))

    def peak(selection: Selection) -> int:
        report = measure_memory(
            request.model,
            batch,
            selection,
            loss=request.loss,
            optimizer=request.optimizer or "sgd momentum",
            micro_batch=request.micro_batch,
            inference=False,
        )
        return report.training.total

    best: Selection | None = None
    lower, upper, used = 0, 0, 0
    for limit in limits:
        selection = selection_of(limit)
        if selection == best:
            continue
        used = peak(selection)
        if used > memory:
            upper = limit
            break
        best, lower = selection, limit
    if best is None:
        raise BudgetError(
            f"expected memory of at least {used} bytes ({format_size(used)}), what a step of the smallest scheme "
            f"takes, got {memory}; give a smaller micro_batch or another scheme"
        )
    for _ in range(REFINEMENTS if upper else 0):
        middle = (lower + upper) // 2
        selection = selection_of(middle)
        if selection == best or peak(selection) <= memory:
            best, lower = selection, middle
        else:
            upper = middle
    return best
