"""Every random generator that a training run draws from, as JSON, and put back."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adabet.errors import CheckpointError
from adabet.training.tensor_file import bytes_of

LOADER_PARTS = ("generator", "synchronized_generator", "sampler", "batch_sampler")
"""Attributes of loaders and samplers that are generators or lead to one."""


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random_state(loaders: Iterable[Any], device: torch.device) -> dict[str, Any]:
    """The state of the global generators and of the loaders' own, ready for JSON.

    Args:
        loaders: data loaders; their generators are found through their samplers as well.
        device: where the model trains; its generator counts beside the CPU's.
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": _to_text(torch.get_rng_state()),
        "device": None if device.type == "cpu" else _to_text(torch.get_device_module(device).get_rng_state()),
        "loaders": [_to_text(generator.get_state()) for generator in _generators_of(loaders)],
    }


def restore_random_state(state: dict[str, Any], loaders: Iterable[Any], device: torch.device) -> None:
    """Put back what `capture_random_state` took.

    Raises:
        CheckpointError: if the state does not fit the generators that are here.
    """
    generators = _generators_of(loaders)
    if len(generators) != len(state["loaders"]):
        raise CheckpointError(
            f"the run's loaders had {len(state['loaders'])} random generators of their own, these have "
            f"{len(generators)}; resume with loaders made in the same way"
        )
    try:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        numpy_state = state["numpy"]
        words = np.asarray(numpy_state["state"]["key"], dtype=np.uint32)
        np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": words}})
        torch.set_rng_state(_to_tensor(state["torch"]))
        if device.type != "cpu" and state["device"] is not None:
            torch.get_device_module(device).set_rng_state(_to_tensor(state["device"]))
        for generator, text in zip(generators, state["loaders"], strict=True):
            generator.set_state(_to_tensor(text))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random state cannot be used: {error}") from error


@contextmanager
def random_state_kept(loaders: Iterable[Any], device: torch.device) -> Iterator[None]:
    """Let the block draw as it likes; afterwards everything is as before it."""
    loaders = list(loaders)
    state = capture_random_state(loaders, device)
    try:
        yield
    finally:
        restore_random_state(state, loaders, device)


def _generators_of(loaders: Iterable[Any]) -> list[torch.Generator]:
    """Generators that hang on loaders and their samplers, each once, in a fixed order."""
    found: dict[int, torch.Generator] = {}
    seen: set[int] = set()

    def walk(part: Any) -> None:
        if part is None or id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, torch.Generator):
            found[id(part)] = part
            return
        for name in LOADER_PARTS:
            walk(getattr(part, name, None))

    for loader in loaders:
        walk(loader)
    return list(found.values())


def _to_text(state: Tensor) -> str:
    return bytes_of(state).hex()


def _to_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
