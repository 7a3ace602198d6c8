"""Where a run computes, on accelerate: device, precision, and several processes that act as one."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adabet.errors import OptionError
from adabet.extras import require
from adabet.training.weights import stored_tensors

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

PLAIN_KINDS = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"}
"""Kinds of accelerate in which every process holds the whole model."""


class Processes:
    """The processes of a run and what they share.

    Gradients are averaged here and not by torch's DistributedDataParallel: that one fixes at its start which
    parameters train, and a method may select again while training. Autocast is torch's own, since accelerate
    keeps one precision for the life of a process.

    Args:
        accelerator: the user's, or None for accelerate's default (the first GPU if there is one).
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None takes the accelerator's.

    Raises:
        OptionError: if the precision is unknown, or accelerate is set up to split the model over processes.
    """

    def __init__(self, accelerator: Any, mixed_precision: str | None) -> None:
        library = require("accelerate", "training")
        self.accelerator = library.Accelerator() if accelerator is None else accelerator
        kind = self.accelerator.distributed_type.value
        if kind not in PLAIN_KINDS:
            raise OptionError(f"expected processes that each hold the whole model, accelerate is set up for {kind}")
        precision = self.accelerator.mixed_precision if mixed_precision is None else mixed_precision
        if precision != "no" and precision not in DTYPES:
            raise OptionError(f"expected mixed_precision to be 'no', 'fp16' or 'bf16', got {precision!r}")
        self.precision: str = precision
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.main: bool = self.accelerator.is_main_process

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which forward passes run."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def plain(self) -> AbstractContextManager[object]:
        """Context in which backward passes run: autograd repeats forward's precision by itself."""
        return torch.autocast(self.device.type, enabled=False) if self.precision != "no" else nullcontext()

    def share(self, loader: Iterable[Any], *, even: bool) -> Iterable[Any]:
        """This process's part of a loader.

        Args:
            loader: the whole; it has to be a torch ``DataLoader`` if there are several processes.
            even: give each process as many batches as any other, by repeating some samples.
        """
        if self.count == 1:
            return loader
        if not isinstance(loader, DataLoader):
            raise OptionError(f"expected a torch DataLoader for several processes, got {type(loader).__name__}")
        former = self.accelerator.even_batches
        self.accelerator.even_batches = even
        try:
            shared: Iterable[Any] = self.accelerator.prepare_data_loader(loader)
        finally:
            self.accelerator.even_batches = former
        return shared

    def same_weights(self, model: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.count > 1:
            tensors = [tensor.detach() for tensor in stored_tensors(model).values()]
            require("accelerate.utils", "training").broadcast(tensors)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.count > 1:
            for parameter in parameters:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(own, reduction="mean")

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
        return require("accelerate.utils", "training").broadcast_object_list([value])[0]

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the processes."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = require("accelerate.utils", "training").gather_object([value])
        return gathered

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.accelerator.wait_for_everyone()
