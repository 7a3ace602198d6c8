"""``AdaBetCallback``: choose what trains, and train only that, inside ``transformers.Trainer``."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from adabet.errors import CheckpointError, OptionError, SelectionError
from adabet.extras import require
from adabet.freezing import apply
from adabet.freezing.apply import BATCH_NORM
from adabet.integrations.lean_forward import lean_forward
from adabet.integrations.optimizer_groups import Narrowed
from adabet.integrations.trainer_arguments import (
    check_arguments,
    check_batch,
    check_processes,
    stop_checkpointing,
    wants_checkpointing,
    without_cache,
)
from adabet.integrations.trainer_choice import Wish
from adabet.lean.recompute import recomputing
from adabet.planning import Plan
from adabet.selection import Selection
from adabet.training.delta import save_delta
from adabet.training.weights import BufferWatch

require("transformers", "adabet.integrations.transformers")

from transformers.trainer_callback import ExportableState, TrainerCallback  # noqa: E402 - after the check
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR  # noqa: E402

DELTA = "adabet_delta.safetensors"
"""Name of the delta in each checkpoint's folder."""


class AdaBetCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers has no types
    """Choose the layers worth training on the trainer's own data, freeze the others, and train in the lean mode.

    Give it to ``transformers.Trainer`` among its ``callbacks``. Before the first step it draws samples from the
    training set through the trainer's collator (AdaBet looks at their inputs only, in forward passes), chooses, freezes
    the model (`adabet.apply`) and takes out of the optimizer what does not train. From then on every forward pass that
    is differentiated runs in `adabet.lean`; the trainer's own backward pass needs nothing more. Each checkpoint folder
    gets a delta (``adabet_delta.safetensors``, see `adabet.load_delta`) beside the trainer's own files. When
    training ends the model's ``requires_grad`` and the optimizer's groups are as they were; after a run that
    broke off call `restore`. For a delta of the final weights: ``adabet.save_delta(model, callback.selection, path)``.

    A run resumed from a checkpoint (``trainer.train(resume_from_checkpoint=...)``) does not choose again: it trains
    what the checkpoint's run trained, and ends with the same weights as one that was not interrupted.

    Batches are trained as the trainer makes them. A plan for ``memory`` takes the per-device batch as what is in memory
    at once (for less, lower ``per_device_train_batch_size`` and raise ``gradient_accumulation_steps``). It is measured
    on the longest of the batches that it looks at, so pad to one length to be sure of the peak. It may recompute the
    model's repeated blocks in the backward pass. With ``gradient_checkpointing=True`` (``activation_checkpointing`` in
    newer versions) the callback recomputes them in any case, its own way: transformers' would leave lean in the second
    pass, and send the backward pass through frozen layers down to the embeddings. With ``lean=False`` it stays
    transformers'.

    A head whose weights are tied to the embedding's, as in language models, is no head of its own: the embedding is a
    candidate like any other layer, and where it is chosen the head trains with it. A head in the classes for
    sequences, tokens or images always trains.

    On several processes (DistributedDataParallel) the model is wrapped before a callback sees the data: choose
    before, by `adabet.integrations.distributed.choose_once`, and give the selection. Data parallelism within one
    process, FSDP and DeepSpeed are refused, as are compiled models under lean, models with adapters of PEFT, and
    methods that choose again while training (`adabet.fit` has those). In a hyperparameter search no deltas are written.

    Args:
        selection: what to train, or a plan whose ``micro_batch`` holds the per-device batch; None lets ``method``
            choose.
        method: name of a method that chooses once (`adabet.methods`).
        layer_ratio: share of the layers that it may choose, in [0, 1]; default: the paper's 0.1, or all that fit where
            ``memory`` is given.
        channel_ratio: share of each chosen layer's output channels that train, in (0, 1].
        memory: bytes, or text such as ``"200MB"``, that a step may take at its peak, everything counted.
        method_options: more options for the method, such as ``{"samples": 80}``; what JSON can hold.
        batch_norm: see `adabet.apply`.
        lean: keep for the backward pass only what the selection needs.
        seed: of the samples and of the method; None takes the trainer's.

    Attributes:
        selection: what trains; None before training unless it was given.
        plan: what was planned for ``memory``, or the plan that was given, or None.

    Raises:
        OptionError: if arguments contradict each other or those of the trainer; when training begins, also if a tensor
            that should train is not in the optimizer, since it was frozen before.
        UnknownNameError: if there is no such method.
        SelectionError: if the selection is for another model, or not that of the run to resume.
        CheckpointError: if the run to resume had no such callback.
        BudgetError: if not even the head fits into ``memory``.
        StorageError: if a delta cannot be written.

    Examples:
        >>> callback = AdaBetCallback(layer_ratio=0.1)
        >>> # transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        >>> callback.selection is None  # until training begins
        True
    """

    def __init__(
        self,
        selection: Selection | Plan | None = None,
        *,
        method: str = "adabet",
        layer_ratio: float | None = None,
        channel_ratio: float = 1.0,
        memory: str | float | None = None,
        method_options: Mapping[str, Any] | None = None,
        batch_norm: Literal["eval", "train"] = "eval",
        lean: bool = True,
        seed: int | None = None,
    ) -> None:
        if selection is not None and memory is not None:
            raise OptionError("expected memory without a selection; to keep to a budget give a plan, see adabet.plan")
        if (memory is not None or isinstance(selection, Plan)) and (not lean or batch_norm != "eval"):
            raise OptionError("expected lean and batch_norm='eval' with a budget: plans are measured that way")
        if batch_norm not in BATCH_NORM:
            raise OptionError(f"expected batch_norm to be 'eval' or 'train', got {batch_norm!r}")
        choosing = {
            "method": method,
            "layer_ratio": layer_ratio,
            "channel_ratio": channel_ratio,
            "memory": memory,
            "method_options": dict(method_options or {}),
        }
        self._wish = Wish(**choosing)  # type: ignore[arg-type]  # of a dict of many types
        self._arguments = _as_json({**choosing, "batch_norm": batch_norm, "lean": lean, "seed": seed})
        self._batch_norm, self._lean, self._seed = batch_norm, lean, seed
        self._given = selection
        self.chosen: dict[str, Any] | None = None
        self.selection: Selection | None = None
        self.plan: Plan | None = None
        if selection is not None:
            self._take(selection)
        self._changes: ExitStack | None = None
        self._model: nn.Module | None = None
        self._before: dict[str, nn.Parameter] = {}
        self._buffers = BufferWatch({})
        self._running = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: its arguments and what was chosen."""
        return {"args": self._arguments, "attributes": {"chosen": self.chosen}}

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Refuse what cannot work; on several processes freeze now, before the model is wrapped."""
        self._check(args, model)
        if args.world_size > 1 and self.selection is not None:
            check_processes(self.selection)
            self._put_on(model, self.selection)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,  # noqa: ARG002
        *,
        model: Any,
        optimizer: Any,
        train_dataloader: Any,
        **_: Any,
    ) -> None:
        """Choose, or take what the run to resume has chosen, and put it onto the model and the optimizer."""
        self._check(args, model)
        if self._running or self._model is not model:
            self.restore()
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        checkpointed = self._lean and stop_checkpointing(model)
        if state.global_step > 0:
            selection = self._take(self._resumed(state))
        else:
            chosen = self._given or self._chosen_on(args, state, model, optimizer, train_dataloader)
            selection = self._take(chosen)
        if self.plan is not None:
            check_batch(self.plan, state.train_batch_size or args.train_batch_size)
        try:
            recompute = self.plan.recompute if self.plan else checkpointed
            self._begin(args, model, selection, optimizer, recompute=recompute)
        except BaseException:
            self.restore()
            raise

    def on_save(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:  # noqa: ARG002
        """Write the delta beside what the trainer has just saved."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self.selection is not None and state.is_world_process_zero and folder.is_dir():
            save_delta(model, self.selection, folder / DELTA, buffers=self._buffers.changed(model))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Take everything off again; trained values stay."""
        self.restore()

    def restore(self) -> None:
        """Take off what is on the model and the optimizer: for a run that broke off; otherwise it does nothing."""
        if self._changes is not None:
            self._changes.close()
        self._changes, self._model, self._running = None, None, False

    def _begin(
        self, args: Any, model: nn.Module, selection: Selection, optimizer: Optimizer, *, recompute: bool
    ) -> None:
        changes = self._changes or self._put_on(model, selection)
        changes.callback(Narrowed(optimizer, model, self._before, selection).restore)
        if recompute:
            changes.enter_context(without_cache(model))
            changes.enter_context(recomputing(model, lean_mode=self._lean))
        if self._lean:
            adds = args.gradient_accumulation_steps > 1 and args.world_size == 1
            changes.enter_context(lean_forward(model, into_grad=adds))
        self._running = True

    def _check(self, args: Any, model: Any) -> None:
        check_arguments(args, model, lean=self._lean, chosen=self._given is not None)
        if wants_checkpointing(args) and (self.plan is not None or self._wish.memory is not None):
            raise OptionError("expected gradient_checkpointing=False with a budget: the plan says what is recomputed")

    def _put_on(self, model: nn.Module, selection: Selection) -> ExitStack:
        """Freeze; what is returned takes off this and whatever else is entered into it."""
        self._before = dict(model.named_parameters())
        self._buffers = BufferWatch.of(model)
        self._model, self._changes = model, ExitStack()
        self._changes.enter_context(apply(model, selection, batch_norm=self._batch_norm))
        return self._changes

    def _take(self, found: Selection | Plan) -> Selection:
        self.plan = found if isinstance(found, Plan) else None
        self.selection = selection = selection_of(found)
        self.chosen = {"selection": selection.to_json(), "plan": None if self.plan is None else self.plan.to_json()}
        return selection

    def _chosen_on(
        self, args: Any, state: Any, model: nn.Module, optimizer: Optimizer, loader: Any
    ) -> Selection | Plan:
        with without_cache(model):
            return self._wish.choose(
                model,
                loader,
                optimizer,
                batch_size=state.train_batch_size or args.train_batch_size,
                accumulated=args.gradient_accumulation_steps > 1,
                seed=args.seed if self._seed is None else self._seed,
            )

    def _resumed(self, state: Any) -> Selection | Plan:
        """What the run that a checkpoint is from has trained."""
        kept = (state.stateful_callbacks or {}).get(type(self).__name__)
        chosen = kept.get("attributes", {}).get("chosen") if isinstance(kept, dict) else None
        if not chosen:
            raise CheckpointError(
                f"expected a checkpoint of a run with this callback, the one of step {state.global_step} knows no "
                "selection: start that run anew, or resume it without the callback"
            )
        selection = Selection.from_json(chosen["selection"])
        given = selection if self._given is None else selection_of(self._given)
        if given.choices != selection.choices:
            raise SelectionError(
                f"expected the selection of the run to resume ({', '.join(selection.layers) or 'the head'}), got "
                f"another ({', '.join(given.layers) or 'the head'}); leave it out, or start anew"
            )
        return selection if chosen["plan"] is None else Plan.from_json(chosen["plan"])


def selection_of(found: Selection | Plan) -> Selection:
    """What trains by a selection or a plan."""
    return found.selection if isinstance(found, Plan) else found


def _as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a checkpoint's JSON would hold them."""
    try:
        kept: dict[str, Any] = json.loads(json.dumps(arguments))
    except (TypeError, ValueError) as error:
        raise OptionError(f"expected arguments that a checkpoint can hold as JSON: {error}") from error
    return kept
