"""A callback for Lightning's trainer: choose before the first step, freeze the rest, train lean."""

import functools
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from adabet.errors import AdabetWarning, CheckpointError, DataError, LayerError, OptionError
from adabet.extras import require
from adabet.freezing import apply
from adabet.freezing.apply import BATCH_NORM
from adabet.integrations.distributed import choose_once
from adabet.lean.mode import lean as lean_mode
from adabet.lean.recompute import recomputing
from adabet.methods import find_method, select
from adabet.planning import Plan
from adabet.selection import Selection
from adabet.training.delta import save_delta
from adabet.training.random_state import random_state_kept
from adabet.training.weights import BufferWatch

OLD_NAME = find_spec("lightning") is None and find_spec("pytorch_lightning") is not None
pl = require("pytorch_lightning" if OLD_NAME else "lightning.pytorch", "adabet.integrations.lightning")

SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
"""Strategies that cut parameters into pieces, of which none can be frozen or sliced by itself."""


class AdaBetFinetuning(pl.Callback):  # type: ignore[misc, name-defined]
    """Chooses the layers worth training when a fit starts, freezes the others, and runs the training steps lean.

    Lightning sets callbacks up before it moves the model, wraps it for several processes and asks for optimizers, and
    that is where this one chooses, by forward passes over the training data. So ``configure_optimizers`` sees what is
    frozen by ``requires_grad``. Frozen tensors that it gives to an optimizer all the same are taken out again; chosen
    ones that no optimizer has are an error. The network has to be whole before: built in ``__init__``, not in
    ``setup`` or ``configure_model``.

    The selection is kept in the checkpoints, and a fit that goes on from one (``ckpt_path``) trains the same layers,
    whatever would be chosen now. With several processes (``"ddp"``) the first one chooses for all. When a fit ends, or
    fails, the model gets its gradient flags back. A fit resumes as exactly as Lightning does, which does not put random
    generators back: to shuffle alike, take a sampler that goes by the epoch.

    A plan keeps to its budget if ``training_step`` does no more than pass one batch through the network to a loss, and
    ``adabet.plan`` was told the optimizer, and by ``micro_batch`` the loader's batch size. It recomputes blocks if it
    says so.

    Args:
        selection: what to train, or a plan whose ``micro_batch`` holds the training dataloader's batches; None lets
            ``method`` choose.
        method: a name from the registry that selects once, see `adabet methods`.
        layer_ratio: share of the layers that it may choose; default the paper's 0.1.
        channel_ratio: share of each chosen layer's channels that train.
        network: path of the network in the LightningModule, such as ``"model"``; the selection is made for it, and what
            is outside stays as it is. Default: the only child that has parameters; the LightningModule itself
            if there are several.
        batches: what the method looks at; default the batches of the training dataloader as they come from it, before
            any ``on_after_batch_transfer``.
        batch_norm: how chosen batch-norms train, see `adabet.apply`.
        lean: run ``training_step`` in the `adabet.lean` mode.
        delta: a file for the delta of the network, written with every checkpoint and at the end; see
            `adabet.load_delta`.
        seed: of the method.
        options: more options of the method, and those of `adabet.rank`, such as ``head`` and ``forward``.

    Attributes:
        selection: what trains; None before the first fit.
        plan: the plan that was given, or None.

    Raises:
        OptionError: if options contradict each other, the method chooses again while training, or a plan has fewer
            samples in memory at once than the training dataloader's batches.
        UnknownNameError: if there is no such method.

    Examples:
        >>> callback = AdaBetFinetuning(layer_ratio=0.2, delta="adapted.safetensors")
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False, accelerator="cpu")  # doctest: +SKIP
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        selection: Selection | Plan | None = None,
        method: str = "adabet",
        layer_ratio: float | None = None,
        channel_ratio: float = 1.0,
        network: str | None = None,
        batches: Iterable[Any] | None = None,
        batch_norm: str = "eval",
        lean: bool = True,
        delta: str | os.PathLike[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if find_method(method).kind == "selects again" or options.get("every") is not None:
            raise OptionError(f"expected a method that selects once, {method!r} chooses again; train it by adabet.fit")
        if selection is not None and not isinstance(selection, Selection | Plan):
            raise OptionError(f"expected a Selection or a Plan, got {type(selection).__name__}")
        if isinstance(selection, Plan) and (not lean or batch_norm != "eval"):
            raise OptionError("expected lean and batch_norm='eval' with a plan: plans are measured that way")
        if selection is not None and (layer_ratio is not None or channel_ratio != 1 or options):
            raise OptionError("expected either a selection or options of a method that chooses, got both")
        if batch_norm not in BATCH_NORM:
            raise OptionError(f"expected batch_norm to be 'eval' or 'train', got {batch_norm!r}")
        self.selection: Selection | None = None
        self.plan = selection if isinstance(selection, Plan) else None
        self._given = selection.selection if isinstance(selection, Plan) else selection
        self._method, self._batches = method, batches
        ratio = 0.1 if layer_ratio is None else layer_ratio
        self._options = {"layer_ratio": ratio, "channel_ratio": channel_ratio, "seed": seed, **options}
        self._path, self._batch_norm, self._lean, self._delta = network, batch_norm, lean, delta
        self._network: nn.Module | None = None
        self._applied: ExitStack | None = None
        self._buffers: BufferWatch | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Choose and freeze; a checkpoint that is to be loaded is not known yet."""
        if stage != "fit":
            return
        _check_strategy(trainer)
        self._network = find_network(pl_module, self._path)
        self._buffers = BufferWatch.of(self._network)
        if self._delta is not None:
            Path(self._delta).parent.mkdir(parents=True, exist_ok=True)
        self._put_on(self._choose(trainer, self._network))
        if self._lean:
            one = trainer.world_size == 1 and pl_module.automatic_optimization
            _run_lean(pl_module, into_grad=one and trainer.accumulate_grad_batches > 1)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """See that the optimizers have what trains, all of it and nothing else.

        Raises:
            OptionError: if something that was chosen is in no optimizer.
        """
        if self._network is not None:
            _settle_optimizers(trainer.optimizers, dict(self._network.named_parameters()))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """See that a plan holds the loader's batches.

        Raises:
            OptionError: if it does not.
        """
        size = getattr(trainer.train_dataloader, "batch_size", None)
        if self.plan is not None and size is not None and self.plan.micro_batch < size:
            raise OptionError(
                f"this plan has {self.plan.micro_batch} samples in memory at once, the training dataloader gives "
                f"{size}: set its batch_size={self.plan.micro_batch} and "
                f"accumulate_grad_batches={-(-size // self.plan.micro_batch)}"
            )

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """See that the checkpoint of a fit that goes on says what trains.

        Raises:
            CheckpointError: if it was made without this callback.
        """
        if self._network is not None and self.state_key not in checkpoint["callbacks"]:
            raise CheckpointError(
                "the checkpoint to go on from holds no selection: it was made without AdaBetFinetuning; load its "
                "weights into the model and fit without ckpt_path"
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Write the delta."""
        self._write_delta(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Write the delta."""
        self._write_delta(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Give the model back as it was, but for what it has learned."""
        self._take_off(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Give the model back as it was, but for what it has learned."""
        self._take_off(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The selection, for a checkpoint."""
        return {} if self.selection is None else {"selection": self.selection.to_json()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the selection from a checkpoint; in a fit it is what trains from here on."""
        selection = Selection.from_json(state_dict["selection"])
        if self._network is not None:
            self._put_on(selection)
        self.selection = selection

    def _choose(self, trainer: Any, network: nn.Module) -> Selection:
        """What the user or the first process's method says."""
        if self._given is not None:
            return self._given
        return choose_once(functools.partial(self._ask, trainer, network))

    def _ask(self, trainer: Any, network: nn.Module) -> Selection:
        batches = _training_batches(trainer) if self._batches is None else self._batches
        network.to(trainer.strategy.root_device)
        with random_state_kept([batches], trainer.strategy.root_device):
            return select(self._method, network, batches, **self._options)

    def _put_on(self, selection: Selection) -> None:
        if self._applied is not None:
            self._applied.close()
            self._applied = None
        if self._network is not None:
            with ExitStack() as changes:
                changes.enter_context(apply(self._network, selection, batch_norm=self._batch_norm))
                if self.plan is not None and self.plan.recompute:
                    changes.enter_context(recomputing(self._network))
                self._applied = changes.pop_all()
        self.selection = selection

    def _take_off(self, pl_module: Any) -> None:
        pl_module.__dict__.pop("training_step", None)
        if self._applied is not None:
            self._applied.close()
        self._applied = self._network = self._buffers = None

    def _write_delta(self, trainer: Any) -> None:
        if self._delta is None or self._buffers is None or self._network is None or not trainer.is_global_zero:
            return
        if self.selection is not None:
            changed = self._buffers.changed(self._network)
            save_delta(self._network, self.selection, self._delta, buffers=changed)


def find_network(pl_module: nn.Module, path: str | None = None) -> nn.Module:
    """The network inside a LightningModule.

    Args:
        pl_module: the LightningModule.
        path: of the network; None: the only child with parameters, or else the LightningModule itself.

    Raises:
        LayerError: if there is nothing at the path, or nothing with parameters.
    """
    modules = dict(pl_module.named_modules())
    if path is not None and path not in modules:
        raise LayerError(f"expected network to be the path of a module, {type(pl_module).__name__} has no {path!r}")
    with_parameters = [child for child in pl_module.children() if any(True for _ in child.parameters())]
    own = any(True for _ in pl_module.parameters(recurse=False))
    network = with_parameters[0] if len(with_parameters) == 1 and not own else pl_module
    network = network if path is None else modules[path]
    if not any(True for _ in network.parameters()):
        raise LayerError(
            f"expected a network with parameters in {type(network).__name__} when the fit is set up, there are none; "
            "build it in __init__, not in setup or configure_model"
        )
    return network


def _check_strategy(trainer: Any) -> None:
    strategy = type(trainer.strategy).__name__
    if strategy in SHARDED:
        raise OptionError(
            f"AdaBetFinetuning cannot freeze parts of parameters that {strategy} shards; train with 'ddp' or on "
            "one device"
        )


def _training_batches(trainer: Any) -> Iterable[Any]:
    """The training dataloader that Lightning is going to use, before it wraps it."""
    source = getattr(trainer.fit_loop, "_data_source", None)
    if source is None:
        raise DataError("this version of Lightning does not tell its training data before it trains; give batches")
    loader = source.dataloader()
    several = isinstance(loader, list | tuple) and any(isinstance(item, DataLoader) for item in loader)
    if several or isinstance(loader, Mapping) or type(loader).__name__ == "CombinedLoader":
        raise DataError(f"expected one training dataloader to look at, got a {type(loader).__name__}; give batches")
    found: Iterable[Any] = loader
    return found


def _run_lean(pl_module: Any, *, into_grad: bool) -> None:
    step = pl_module.training_step

    @functools.wraps(step)
    def training_step(*arguments: Any, **keywords: Any) -> Any:
        with lean_mode(into_grad=into_grad):
            return step(*arguments, **keywords)

    pl_module.training_step = training_step


def _settle_optimizers(optimizers: Iterable[Any], parameters: Mapping[str, nn.Parameter]) -> None:
    """Take what is frozen out of the optimizers, and refuse if something that trains is in none."""
    held: set[int] = set()
    frozen = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            trains = [parameter for parameter in group["params"] if parameter.requires_grad]
            frozen += len(group["params"]) - len(trains)
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    optimizer.state.pop(parameter, None)
            # in place: some optimizers hold the list too
            group["params"][:] = trains
            held |= set(map(id, trains))
    missing = [name for name, value in parameters.items() if value.requires_grad and id(value) not in held]
    if missing:
        raise OptionError(
            f"{len(missing)} tensors of the network are to train and in no optimizer, such as {missing[0]!r}; in "
            "configure_optimizers take all parameters that require a gradient, and build no modules after __init__"
        )
    if frozen:
        warnings.warn(
            f"configure_optimizers gave {frozen} frozen tensors to the optimizers; they were taken out again; give "
            "them [p for p in self.parameters() if p.requires_grad]",
            AdabetWarning,
            stacklevel=2,
        )
