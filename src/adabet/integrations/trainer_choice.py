"""What a trainer trains: chosen on the batches that its own collator makes."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from adabet.errors import DataError, OptionError
from adabet.layers.batches import device_of, inputs_of, sample_count, tensors_of
from adabet.methods import find_method, select
from adabet.planning import Plan, plan
from adabet.selection import Selection
from adabet.sizes import parse_size
from adabet.training.random_state import random_state_kept

SAMPLES = 40
"""Samples that a method looks at if it is not told otherwise, as in the paper."""


@dataclass(frozen=True)
class Wish:
    """What a user wants chosen; the arguments are those of `adabet.fit`.

    Raises:
        OptionError: if the method chooses again while training, or a ratio is out of range.
        UnknownNameError: if there is no such method.
    """

    method: str = "adabet"
    layer_ratio: float | None = None
    channel_ratio: float = 1.0
    memory: str | float | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if find_method(self.method).kind == "selects again" or self.method_options.get("every") is not None:
            raise OptionError(
                f"expected a method that chooses once, before training; {self.method!r} chooses again and again: "
                "use adabet.fit for it"
            )
        if self.layer_ratio is not None and not 0 <= self.layer_ratio <= 1:
            raise OptionError(f"expected a layer_ratio from 0 to 1, got {self.layer_ratio}")
        if not 0 < self.channel_ratio <= 1:
            raise OptionError(f"expected a channel_ratio above 0 and up to 1, got {self.channel_ratio}")
        if self.memory is not None:
            parse_size(self.memory)

    def choose(
        self, model: nn.Module, loader: Any, optimizer: Optimizer, *, batch_size: int, accumulated: bool, seed: int
    ) -> Selection | Plan:
        """Let the method choose, or plan for the memory.

        Args:
            model: on its device; left as it was.
            loader: the trainer's, for its data and its collator; it is not iterated, and no random generator moves.
            optimizer: the trainer's: a plan counts the state of one like it.
            batch_size: samples that the trainer has in memory at once.
            accumulated: whether it adds up the gradients of several such batches.
            seed: of the draw of samples and of the method.
        """
        planned = self.memory is not None and not find_method(self.method).budget
        with random_state_kept([], device_of(model)):
            batches = batches_like(loader, batch_size * (2 if planned and accumulated else 1), seed=seed)
            if planned:
                return self._plan(model, batches, optimizer, batch_size=batch_size, seed=seed)
            return select(
                self.method,
                model,
                batches,
                layer_ratio=0.1 if self.layer_ratio is None else self.layer_ratio,
                channel_ratio=self.channel_ratio,
                memory=None if self.memory is None else parse_size(self.memory),
                seed=seed,
                optimizer=partial(optimizer_like, optimizer),
                **self.method_options,
            )

    def _plan(
        self, model: nn.Module, batches: Iterable[Any], optimizer: Optimizer, *, batch_size: int, seed: int
    ) -> Plan:
        held, count = [], 0
        for batch in batches:
            held.append(batch)
            count += sample_count(inputs_of(batch))
            if count >= self.method_options.get("samples", SAMPLES):
                break
        # the first is tried: the longest
        held.sort(key=lambda batch: -tensors_of(inputs_of(batch))[0].numel())
        return plan(
            model,
            held,
            memory=self.memory or 0,
            method=self.method,
            layer_ratio=1.0 if self.layer_ratio is None else self.layer_ratio,
            optimizer=partial(optimizer_like, optimizer),
            micro_batch=batch_size,
            seed=seed,
            **self.method_options,
        )


def batches_like(loader: Any, batch_size: int, *, seed: int) -> DataLoader[Any]:
    """Random batches of a loader's data, made by its collator, that leave the loader alone.

    Args:
        loader: a torch ``DataLoader``, or one of accelerate's.
        batch_size: samples of a batch, unless the data comes in batches already.
        seed: of the order; data that can only be iterated comes in its own.

    Raises:
        DataError: if it is no loader of that kind.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"expected a torch DataLoader to choose samples from, the trainer has a {type(loader).__name__}; choose "
            "before training, with adabet.select, and give the callback the selection"
        )
    generator = torch.Generator().manual_seed(seed)
    ordered = isinstance(loader.dataset, IterableDataset)
    return DataLoader(
        loader.dataset,
        batch_size=None if loader.batch_sampler is None else batch_size,
        sampler=None if ordered else RandomSampler(loader.dataset, generator=generator),  # type: ignore[arg-type]
        collate_fn=loader.collate_fn,
        generator=generator,
    )


def optimizer_like(optimizer: Optimizer, parameters: Iterable[Any]) -> Optimizer:
    """Another optimizer of the same class with the same options.

    Examples:
        >>> made = optimizer_like(torch.optim.SGD([torch.zeros(1)], lr=0.5, momentum=0.9), [torch.ones(2)])
        >>> made.defaults["lr"], made.defaults["momentum"]
        (0.5, 0.9)
    """
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters
    return kind(parameters, **{name: value for name, value in optimizer.defaults.items() if name in accepted})
