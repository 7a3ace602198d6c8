"""Micro-batches whose gradients are added up in place, against one backward pass over the whole batch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adabet
from adabet.errors import LeanError
from adabet.freezing.trained import trained_parameters
from adabet.lean import lean
from adabet.step import train_step

WORDS, WIDTH, CLASSES = 40, 6, 4


class Reader(nn.Module):
    """An embedding, a hidden layer, and a head that may share the embedding's table."""

    def __init__(self, *, tied: bool = False, padding: int | None = None, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=padding, **options)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS if tied else CLASSES)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.embedding(words)).tanh().mean(1))
        return logits


def texts(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (samples, 5), generator=generator)
    return words, torch.randint(0, CLASSES, (samples,), generator=generator)


def made(**options: Any) -> Reader:
    torch.manual_seed(0)
    return Reader(**options).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Stock autograd's gradients of the batch; leaves the model without."""
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    found = gradients(model)
    model.zero_grad()
    return found


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(2, 7),
    micro_batch=st.integers(1, 6),
    tied=st.booleans(),
    padding=st.sampled_from([None, 0, 7, -1]),
)
def test_sum_to_the_gradient_of_the_batch(samples: int, micro_batch: int, tied: bool, padding: int | None) -> None:
    model, batch = made(tied=tied, padding=padding), texts(samples)
    expected = whole(model, batch)
    train_step(model, batch, micro_batch=micro_batch)
    assert gradients(model).keys() == expected.keys()
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"scale_grad_by_freq": True}])
def test_unusual_embeddings_are_stocks(options: dict[str, Any]) -> None:
    batch = texts(4)
    found = []
    for thin in (True, False):
        model = made(**options)
        train_step(model, batch, micro_batch=2, lean=thin)
        found.append(gradients(model))
    torch.testing.assert_close(*found)


def test_sparse_gradients_stay_sparse() -> None:
    model = made(sparse=True)
    train_step(model, texts(4), micro_batch=2)
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.is_sparse


CONVOLUTIONS: dict[str, Any] = {
    "pointwise": {"kernel_size": 1},
    "pointwise with a stride": {"kernel_size": 1, "stride": 2},
    "as large as the input": {"kernel_size": 4},
    "larger than the input": {"kernel_size": 6, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 3},
    "grouped": {"kernel_size": 1, "groups": 2},
    "usual": {"kernel_size": 3, "padding": 1},
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, layout: torch.memory_format, first: bool) -> None:
    torch.manual_seed(0)
    stem = nn.Identity() if first else nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(stem, nn.Conv2d(4, 6, **CONVOLUTIONS[name]), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = model.double().to(memory_format=layout)
    batch = torch.randn(5, 4, 4, 4, dtype=torch.double).to(memory_format=layout), torch.arange(5)
    expected = whole(model, batch)
    for micro_batch in (1, 2):
        train_step(model, batch, micro_batch=micro_batch)
        torch.testing.assert_close(gradients(model), expected)
        model.zero_grad()


@pytest.mark.parametrize("kernel", [1, 4])
def test_convolutions_take_the_memory_of_one_gradient(kernel: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(300, 400, kernel), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch = torch.randn(4, 300, 4, 4), torch.zeros(4, dtype=torch.long)
    own, stock = (peak(model, batch, micro_batch=1, lean=lean) for lean in (True, False))
    assert own + 0.8 * 4 * 300 * 400 * kernel**2 < stock


def test_the_mixed_types_of_autocast() -> None:
    model, batch = made().float(), texts(6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole(model, batch)
        train_step(model, batch, micro_batch=2)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    torch.testing.assert_close(gradients(model), expected, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_slices(axis: str) -> None:
    batch = texts(6)
    found = []
    for micro_batch in (None, 2):
        model = made()
        selection = adabet.select("adabet", model, [texts(30)], layer_ratio=1.0, channel_ratio=0.5, axis=axis)
        with adabet.apply(model, selection):
            train_step(model, batch, micro_batch=micro_batch)
            parts = trained_parameters(model, ["hidden.weight", "hidden.bias", "embedding.weight"])
            found.append([part.parameter.grad.clone() for part in parts.values()])
    assert found[0][0].numel() == WIDTH * WIDTH / 2
    torch.testing.assert_close(*found)


def peak(model: nn.Module, batch: tuple[Tensor, Tensor], **options: Any) -> int:
    return adabet.measure_memory(model, batch, optimizer="sgd", **options).training.total


def test_take_the_memory_of_one_gradient() -> None:
    """Autograd alone has the sum and one new gradient of the largest weight in memory at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5000, 40), nn.Flatten(), nn.Linear(200, 3000), nn.Tanh(), nn.Linear(3000, 4))
    batch = torch.randint(0, 5000, (8, 5)), torch.zeros(8, dtype=torch.long)
    largest = 4 * 3000 * 200
    at_once, one = peak(model, batch), peak(model, batch, micro_batch=1)
    stock = peak(model, batch, micro_batch=1, lean=False)
    assert one < at_once + largest / 10
    assert stock > one + 4 * 5000 * 40 * 0.9


class TestLeavesAlone:
    """What waits for a gradient of its own gets it."""

    def test_hooks(self) -> None:
        model, batch = made(), texts(4)
        expected = whole(model, batch)
        seen: list[Tensor] = []
        model.hidden.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
        after: list[Tensor] = []
        model.embedding.weight.register_post_accumulate_grad_hook(
            lambda parameter: after.append(parameter.grad.clone())  # type: ignore[union-attr]
        )
        train_step(model, batch, micro_batch=1)
        assert len(seen) == len(after) == 4
        torch.testing.assert_close(sum(seen), expected["hidden.weight"])
        torch.testing.assert_close(after[-1], expected["embedding.weight"])

    def test_gradients_that_are_taken_out(self) -> None:
        model, batch = made(), texts(4)
        weights = list(model.parameters())
        expected = list(whole(model, batch).values())
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        taken: list[tuple[Tensor, ...]] = []
        train_step(model, batch, micro_batch=2, backward=lambda loss: taken.append(torch.autograd.grad(loss, weights)))
        torch.testing.assert_close([a + b for a, b in zip(*taken, strict=True)], expected)
        assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in weights if weight.grad is not None)

    def test_checkpointed_blocks(self) -> None:
        model, batch = made(), texts(4)
        expected = whole(model, batch)

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, words: Tensor) -> Tensor:
                logits: Tensor = checkpoint(self.inner, words, use_reentrant=False)
                return logits

        train_step(Checkpointed(), batch, micro_batch=1)
        torch.testing.assert_close(gradients(model), expected)

    def test_outside_of_micro_batches(self) -> None:
        weight = torch.ones(3, 2, requires_grad=True)
        weight.grad = torch.ones(3, 2)
        with lean():
            loss = F.linear(torch.ones(1, 2), weight).sum()
        (gradient,) = torch.autograd.grad(loss, [weight])
        assert torch.equal(gradient, torch.ones(3, 2))


def test_second_derivatives_are_refused() -> None:
    weight = torch.ones(5, 2, requires_grad=True)
    with lean(into_grad=True):
        loss = F.embedding(torch.tensor([1, 2]), weight).pow(2).sum()
    with pytest.raises(LeanError, match="second derivatives"):
        torch.autograd.grad(loss, [weight], create_graph=True)
