"""Put a selection onto a model, and take it off again."""

from collections.abc import Callable
from functools import partial
from types import TracebackType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adabet.errors import OptionError
from adabet.freezing.slices import SlicedModule, slice_module
from adabet.layers import on_bare_model
from adabet.selection import Choice, Selection

BATCH_NORM = ("eval", "train")


class Applied:
    """A selection that is on a model, until `restore`.

    Attributes:
        selection: what is applied.
    """

    def __init__(self, model: nn.Module, selection: Selection, batch_norm: str) -> None:
        self.selection = selection
        self._model = model
        self._training = model.training
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._slices: list[SlicedModule] = []
        self._modes: list[tuple[nn.Module, bool, Callable[..., nn.Module] | None]] = []
        self._freeze()
        self._settle_batch_norms(batch_norm)
        try:
            self._slice()
        except BaseException:  # an interrupt too: the model is the user's again
            self.restore()
            raise

    def restore(self) -> None:
        """Take the selection off: gradient flags, batch-norm modes and slices go; trained values stay."""
        for piece in reversed(self._slices):
            piece.remove()
        for module, training, train in self._modes:
            if train is None:
                vars(module).pop("train", None)
            else:
                module.train = train  # type: ignore[method-assign]  # that of a selection applied before
            # if the whole model went into another mode meanwhile, its batch-norms go with it
            module.training = training if self._model.training == self._training else self._model.training
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._slices, self._modes, self._flags = [], [], []

    def __enter__(self) -> "Applied":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _freeze(self) -> None:
        chosen = set(self.selection.parameters)
        for name, parameter in self._model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(name in chosen)

    def _settle_batch_norms(self, batch_norm: str) -> None:
        """Keep batch-norms that do not train, or all of them, in eval mode through any `model.train()`."""
        for module in self._model.modules():
            if not isinstance(module, _BatchNorm):
                continue
            trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            if not (trains and batch_norm == "train"):
                self._modes.append((module, module.training, vars(module).get("train")))
                module.eval()
                # not by a hook: compiled models do not see one that comes or goes after their first call
                module.train = partial(_keep_mode, module)  # type: ignore[method-assign, assignment]

    def _slice(self) -> None:
        for choice in self.selection.choices:
            if choice.channels is not None:
                self._slice_layer(choice, choice.channels)

    def _slice_layer(self, choice: Choice, channels: tuple[int, ...]) -> None:
        """Slice a layer and, with it, the norm that may be tied to it; input channels mean nothing to that norm."""
        owned: dict[str, list[str]] = {}
        for parameter in choice.parameters:
            owner, _, name = parameter.rpartition(".")
            owned.setdefault(owner, []).append(name)
        for owner, names in owned.items():
            if owner == choice.layer or choice.axis == "out":
                module = self._model.get_submodule(owner)
                self._slices.append(slice_module(module, channels, axis=choice.axis, parameters=names))


@on_bare_model
def apply(model: nn.Module, selection: Selection, *, batch_norm: str = "eval") -> Applied:
    """Freeze a model but for a selection, at once.

    As a context manager it is taken off at the end of the block; without, it stays until `Applied.restore`.
    Trained values stay in the model either way.

    Args:
        model: the model that the selection was made for.
        selection: what trains.
        batch_norm: ``"eval"`` (default): every batch-norm uses and keeps its running statistics, whatever
            `model.train()` says, so that samples do not mix and micro-batches are exact; chosen ones train scale
            and shift. ``"train"``: chosen ones use the batch's statistics and update their running ones.

    Raises:
        SelectionError: if the selection was made for another model, or has channels of a layer that has none.
        OptionError: if batch_norm is something else.

    Examples:
        >>> import torch, adabet
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> selection = adabet.select("head", model, [torch.zeros(2, 4)], head="2")
        >>> with apply(model, selection):
        ...     [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
        >>> all(parameter.requires_grad for parameter in model.parameters())
        True
    """
    if batch_norm not in BATCH_NORM:
        raise OptionError(f"expected batch_norm to be 'eval' or 'train', got {batch_norm!r}")
    selection.check(model)
    return Applied(model, selection, batch_norm)


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - the signature of Module.train
    """What ``train`` and ``eval`` of a batch-norm do while its mode is settled: nothing."""
    return module
