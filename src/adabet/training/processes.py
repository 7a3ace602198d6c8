"""Where a run computes, on accelerate: device, precision, and several processes that act as one."""

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adabet.errors import OptionError
from adabet.extras import require

PURPOSE = "training"

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

WHOLE_MODEL = frozenset({"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"})
"""Kinds of accelerate in which every process holds the whole model."""


class Processes:
    """The processes of a run and what they share.

    Gradients are averaged here and not by torch's DistributedDataParallel: that one fixes at its start which
    parameters train, and a method may select again while training. Autocast is torch's own: accelerate keeps
    one precision for the life of a process, and fits of different precision have to work in one.

    Args:
        accelerator: the user's, or None for accelerate's default (the first GPU if there is one).
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None takes the accelerator's, or the one that
            ``accelerate launch`` was told.

    Attributes:
        device: of this process.
        precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        count: number of processes.
        index: of this process.
        main: whether this is the one that selects and writes.

    Raises:
        OptionError: if the precision is unknown, or accelerate is set up to split the model over processes.
    """

    def __init__(self, accelerator: Any, mixed_precision: str | None) -> None:
        library = require("accelerate", PURPOSE)
        if accelerator is None:
            # Not an Accelerator: that would fix its precision for all that the user makes afterwards.
            on_cpu = require("accelerate.utils", PURPOSE).parse_flag_from_env("ACCELERATE_USE_CPU")
            accelerator = library.PartialState(cpu=on_cpu)
        kind = accelerator.distributed_type.value
        if kind not in WHOLE_MODEL:
            raise OptionError(f"expected processes that each hold the whole model, accelerate is set up for {kind}")
        inherited = getattr(accelerator, "mixed_precision", os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
        self.precision: str = inherited if mixed_precision is None else mixed_precision
        if self.precision != "no" and self.precision not in DTYPES:
            raise OptionError(f"expected mixed_precision to be 'no', 'fp16' or 'bf16', got {self.precision!r}")
        self.device: torch.device = accelerator.device
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        self.main: bool = accelerator.is_main_process
        self._accelerator = accelerator

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which forward passes run."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def plain(self) -> AbstractContextManager[object]:
        """Context in which backward passes run: autograd repeats forward's precision by itself."""
        return nullcontext() if self.precision == "no" else torch.autocast(self.device.type, enabled=False)

    def share(self, loader: Iterable[Any], *, even: bool) -> Iterable[Any]:
        """This process's part of a loader.

        Args:
            loader: the whole; it has to be a torch ``DataLoader`` if there are several processes.
            even: give each process as many batches as any other, by repeating some samples.

        Raises:
            OptionError: if it is something else.
        """
        if self.count == 1:
            return loader
        if not isinstance(loader, DataLoader):
            raise OptionError(f"expected a torch DataLoader for several processes, got {type(loader).__name__}")
        shared: Iterable[Any] = require("accelerate.data_loader", PURPOSE).prepare_data_loader(
            loader,
            self.device,
            num_processes=self.count,
            process_index=self.index,
            put_on_device=True,
            rng_types=["generator"],
            even_batches=even,
        )
        return shared

    def take_mains(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's values of these tensors, in place."""
        if self.count > 1:
            require("accelerate.utils", PURPOSE).broadcast([tensor.detach() for tensor in tensors])

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.count > 1:
            reduce = require("accelerate.utils", PURPOSE).reduce
            for parameter in parameters:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = reduce(own, reduction="mean")

    def add_up(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, by name."""
        total: dict[str, float] = {}
        for part in self.from_all(dict(sums)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def from_main(self, value: Any) -> Any:
        """The main process's value of anything, in every process."""
        if self.count == 1:
            return value
        return require("accelerate.utils", PURPOSE).broadcast_object_list([value])[0]

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the processes."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = require("accelerate.utils", PURPOSE).gather_object([value])
        return gathered

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self._accelerator.wait_for_everyone()
