import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import TensorWeakRef

from adabet.lean import keeping, lean
from adabet.lean.keeping import NOTHING, as_it_is, keep, recipe, remember, together


def test_a_tensor_without_a_recipe_is_kept_as_it_is() -> None:
    x = torch.randn(3, requires_grad=True)
    kept = keep(x)
    assert kept.is_itself
    assert kept.tensors == (x,)
    assert torch.equal(kept.rebuild(*kept.tensors), x)
    assert not NOTHING.tensors


def test_recipes_add_up() -> None:
    a, b = torch.randn(3), torch.randn(3)
    kept = together(torch.mul, as_it_is(a).then(torch.exp), as_it_is(b)).then(torch.neg)
    assert not kept.is_itself
    assert torch.equal(kept.rebuild(*kept.tensors), -(a.exp() * b))


def test_a_recipe_goes_with_the_tensor() -> None:
    x = torch.randn(3)
    y = x.exp()
    remember(y, as_it_is(x).then(torch.exp))
    assert recipe(y) is not None
    assert recipe(y.view(3)) is None
    assert recipe(y.detach()) is None


@pytest.mark.parametrize("changed", ["output", "source"])
def test_a_change_in_place_ends_a_recipe(changed: str) -> None:
    x = torch.randn(3)
    y = x.exp()
    remember(y, as_it_is(x).then(torch.exp))
    (y if changed == "output" else x).add_(1)
    assert recipe(y) is None
    assert keep(y).is_itself


def test_recipes_go_away_with_their_tensors() -> None:
    gc.collect()
    before = len(keeping._recipes), len(keeping._masks)
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4))
    with lean():
        model(torch.randn(2, 4)).sum().backward()
    gc.collect()
    assert (len(keeping._recipes), len(keeping._masks)) == before


class Block(nn.Module):
    """Everything that leaves or uses a recipe."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = F.dropout(F.silu(self.up(y)), 0.2) * self.gate(y)
        return F.relu(self.down(y))


def gradients(model: nn.Module, x: Tensor, run) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    run(model, x).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def stock(model: nn.Sequential, x: Tensor) -> Tensor:
    return model(x)


def in_lean(model: nn.Sequential, x: Tensor) -> Tensor:
    with lean():
        return model(x)


def checkpointed(model: nn.Sequential, x: Tensor) -> Tensor:
    with lean():
        for block in model:
            # The input of every block but the first has a recipe of its own from outside the checkpoint.
            x = checkpoint(block, F.gelu(x), use_reentrant=False, context_fn=lambda: (lean(), lean()))
        return x


def stock_with_gelu(model: nn.Sequential, x: Tensor) -> Tensor:
    for block in model:
        x = block(F.gelu(x))
    return x


def offloaded(model: nn.Sequential, x: Tensor) -> Tensor:
    with lean(), torch.autograd.graph.save_on_cpu():
        return model(x)


@pytest.mark.parametrize(("run", "reference"), [(in_lean, stock), (checkpointed, stock_with_gelu), (offloaded, stock)])
def test_gradients_with_recipes(run, reference) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(Block(), Block(), Block()), torch.randn(5, 4)
    for mine, its in zip(gradients(model, x, run), gradients(model, x, reference), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_that_begins_with_a_recipe() -> None:
    torch.manual_seed(2)
    norm, block = nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 2, 1))
    x = torch.randn(4, 3, 5, 5)
    parameters = [*norm.parameters(), *block.parameters()]
    expected = torch.autograd.grad(block(norm(x)).square().sum(), parameters)
    with lean():
        y = checkpoint(block, norm(x), use_reentrant=False, context_fn=lambda: (lean(), lean()))
    for mine, its in zip(torch.autograd.grad(y.square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


def test_what_a_recipe_is_made_of_goes_with_the_output() -> None:
    with lean():
        z = F.gelu(inner := torch.randn(8, requires_grad=True) + 0)
    reference = TensorWeakRef(inner)
    del inner
    z.sum().backward()
    del z
    gc.collect()
    assert reference() is None
