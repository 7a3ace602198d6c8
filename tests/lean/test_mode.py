import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adabet.errors import LeanError
from adabet.lean import lean
from adabet.lean.rules import RULES, autocast_dtype, first_order, is_spare
from tests.lean.against_stock import kept_bytes


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    for parameter in net[:3].parameters():
        parameter.requires_grad_(False)
    return net


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8, requires_grad=True)


def gradients(net: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    x = images()
    return list(torch.autograd.grad(forward(x).sum(), [x, *(p for p in net.parameters() if p.requires_grad)]))


def assert_same_gradients(net: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    for mine, stock in zip(gradients(net, forward), gradients(net, net), strict=True):
        torch.testing.assert_close(mine, stock)


def test_rules_are_registered_for_what_a_mode_sees() -> None:
    assert {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear, F.batch_norm, F.relu} <= set(RULES)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_everything_is_stock(guard: Callable[[], Any], monkeypatch: ...) -> None:
    net, x = network(), images()
    monkeypatch.setitem(RULES, torch.conv2d, None)  # would raise if it were called
    with guard(), lean():
        torch.testing.assert_close(net(x), net(x))


def test_saves_less_and_computes_the_same() -> None:
    net, x = network(), images()
    parameters = [*net.parameters(), *net.buffers(), x]
    _, stock = kept_bytes(lambda: net(x), parameters)
    with lean():
        _, mine = kept_bytes(lambda: net(x), parameters)
    assert mine < stock
    assert_same_gradients(net, lambda x: _inside(net, x))


def _inside(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with lean():
        return function(x)


def test_nested_modes() -> None:
    net = network()
    assert_same_gradients(net, lambda x: _inside(lambda x: _inside(net, x), x))


def test_a_selection_that_changes_while_training() -> None:
    net = network()
    for layer in (0, 3, 5):
        net.requires_grad_(False)
        net[layer].requires_grad_(True)
        assert_same_gradients(net, lambda x: _inside(net, x))


def test_other_threads_are_left_alone() -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    kept = []
    x = images() * 1

    def measure() -> None:
        kept.append(kept_bytes(lambda: layer(x), [layer.weight])[1])

    with lean():
        measure()
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
    assert kept == [0, x.numel() * 4]


def test_double_backward_is_refused_and_a_first_one_is_not() -> None:
    net, x = network(), images()
    loss = _inside(net, x).sum()
    with pytest.raises(LeanError, match=r"second derivatives.*adabet\.lean"):
        torch.autograd.grad(loss, x, create_graph=True)
    (gradient,) = torch.autograd.grad(_inside(net, x).sum(), x)
    assert not gradient.requires_grad


def test_a_graph_can_be_used_again_if_it_is_retained() -> None:
    net, x = network(), images()
    loss = _inside(net, x).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_checkpoint_with_the_mode_in_its_second_pass() -> None:
    net = network()

    def forward(x: Tensor) -> Tensor:
        with lean():
            return checkpoint(net, x, use_reentrant=False, context_fn=lambda: (nullcontext(), lean()))

    assert_same_gradients(net, forward)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch does itself
def test_functional_transforms_go_through_stock() -> None:
    net, x = network(), images()
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights, (image.unsqueeze(0),)).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    stock = each(weights, x)
    with lean():
        mine = each(weights, x)
        _, tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))
    for name, gradient in stock.items():
        torch.testing.assert_close(mine[name], gradient)
    torch.testing.assert_close(tangent, torch.func.jvp(net, (x,), (torch.ones_like(x),))[1])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch does itself
def test_forward_mode_goes_through_stock() -> None:
    net, x = network(), images()
    with lean(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(net(dual)).tangent is not None


class Marked(Tensor):
    """A tensor subclass that survives every operation."""


def test_tensor_subclasses_go_through_stock() -> None:
    net, x = network(), images().detach().as_subclass(Marked).requires_grad_()
    with lean():
        assert type(net(x)) is Marked


@pytest.mark.filterwarnings("ignore")  # deprecated, and says so at length
def test_tracing_goes_through_stock() -> None:
    net, x = network(), images()
    with lean():
        traced = torch.jit.trace(net, x)
    torch.testing.assert_close(traced(x * 2), net(x * 2))


@pytest.mark.slow
def test_compiled_code_decides_for_itself() -> None:
    net = network()
    compiled = torch.compile(net, backend="aot_eager")
    assert_same_gradients(net, lambda x: _inside(compiled, x))


def test_meta_tensors() -> None:
    layer = nn.Conv2d(3, 4, 3, device="meta").requires_grad_(False)
    x = torch.empty(1, 3, 5, 5, device="meta", requires_grad=True)
    _inside(layer, x).sum().backward()
    assert x.grad.shape == x.shape


def test_autocast_dtype() -> None:
    x = torch.zeros(2)
    assert autocast_dtype(x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(x) is torch.bfloat16
        assert autocast_dtype(x.half()) is torch.bfloat16
        assert autocast_dtype(x.double()) is None
        assert autocast_dtype(x.long()) is None
        assert autocast_dtype(torch.zeros(2, device="meta")) is None
        with torch.autocast("cpu", enabled=False):
            assert autocast_dtype(x) is None


class Scale(torch.autograd.Function):
    """Doubles; its backward pass notes whether it might have overwritten its gradient, and does so if it might."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, notes: list[bool]) -> Tensor:
        ctx.notes = notes
        return x * 2

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        spare = is_spare(gradient)
        ctx.notes.append(spare)
        return gradient.mul_(2) if spare else gradient * 2, None


def _keep_in(holder: list[Any]) -> Callable[[Any], None]:
    return lambda gradient: holder.append(gradient)


def spare_in(graph: Callable[[Callable[[Tensor], Tensor]], Tensor], gradient: Tensor | None = None) -> list[bool]:
    notes: list[bool] = []
    y = graph(lambda x: Scale.apply(x, notes))
    y.backward(torch.ones_like(y) if gradient is None else gradient)
    return notes


def test_a_gradient_that_nobody_else_sees_is_spare() -> None:
    x = torch.ones(4, requires_grad=True)
    assert spare_in(lambda scale: (scale(x) * 3).sum()) == [True]
    assert spare_in(lambda scale: (scale(scale(x)) * 3).sum()) == [True, True]
    torch.testing.assert_close(x.grad, torch.full((4,), 6.0 + 12))


def test_a_gradient_summed_from_two_is_spare() -> None:
    x = torch.ones(4, requires_grad=True)

    def twice(scale: Callable[[Tensor], Tensor]) -> Tensor:
        y = scale(x)
        return (y * 3 + y * 5).sum()

    assert spare_in(twice) == [True]
    torch.testing.assert_close(x.grad, torch.full((4,), 16.0))


def test_a_gradient_handed_to_both_terms_of_a_sum_is_spare_only_to_the_last() -> None:
    x = torch.ones(4, requires_grad=True)
    assert spare_in(lambda scale: ((scale(x) + scale(x)) * 3).sum()) == [False, True]
    torch.testing.assert_close(x.grad, torch.full((4,), 12.0))


def test_a_gradient_that_the_caller_holds_is_not_spare() -> None:
    x, mine = torch.ones(4, requires_grad=True), torch.ones(4)
    assert spare_in(lambda scale: scale(x), mine) == [False]
    assert torch.equal(mine, torch.ones(4))


@pytest.mark.parametrize("register", ["register_hook", "grad_fn.register_prehook"])
def test_a_gradient_that_a_hook_kept_is_not_spare(register: str) -> None:
    x, held = torch.ones(4, requires_grad=True), []

    def hooked(scale: Callable[[Tensor], Tensor]) -> Tensor:
        y = scale(x)
        target, name = (y, register) if register == "register_hook" else (y.grad_fn, "register_prehook")
        getattr(target, name)(_keep_in(held))
        return (y * 3).sum()

    assert spare_in(hooked) == [False]
    (kept,) = held[0] if isinstance(held[0], tuple) else held
    assert torch.equal(kept, torch.full((4,), 3.0))


def test_a_gradient_that_is_retained_stays_whole() -> None:
    x, held = torch.ones(4, requires_grad=True), []

    def retained(scale: Callable[[Tensor], Tensor]) -> Tensor:
        y = scale(x)
        y.retain_grad()
        held.append(y)
        return (y * 3).sum()

    spare_in(retained)
    assert torch.equal(held[0].grad, torch.full((4,), 3.0))


def test_a_gradient_that_is_asked_for_stays_whole() -> None:
    x, notes = torch.ones(4, requires_grad=True), []
    y = Scale.apply(x, notes)
    asked, _ = torch.autograd.grad((y * 3).sum(), [y, x])
    assert torch.equal(asked, torch.full((4,), 3.0))


def test_a_gradient_in_shared_memory_is_not_spare() -> None:
    x = torch.ones(4, requires_grad=True)
    assert spare_in(lambda scale: scale(x).sum()) == [False]  # expanded from one number
    assert spare_in(lambda scale: (torch.cat([scale(x), scale(x)]) * 3).sum()) == [False, False]
    assert spare_in(lambda scale: (scale(x).unsqueeze(1).expand(4, 2).unbind(1)[0] * 3).sum()) in ([False], [True])


def test_a_gradient_that_a_module_hook_kept_is_not_spare() -> None:
    x, held, notes = torch.ones(4, requires_grad=True), [], []

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Scale.apply(x, notes)

    layer = Layer()
    layer.register_full_backward_hook(lambda _module, _inputs, outputs: held.append(outputs[0]))
    (layer(x) * 3).sum().backward()
    assert notes == [False]
    assert torch.equal(held[0], torch.full((4,), 3.0))


def test_counting_references_leaves_the_engine_free_to_sum_in_place() -> None:
    """A look at a tensor's memory through its Python object would be one more reference to it."""
    x, notes = torch.ones(4, requires_grad=True), []
    h = Scale.apply(x, notes)
    y = Scale.apply(h, notes) + h
    with torch.profiler.profile() as profiler:
        (y * 3).sum().backward()
    names = [event.name for event in profiler.events() if event.name.startswith("aten::add")]
    assert names == ["aten::add_"]
    assert notes == [False, True]
    assert torch.equal(x.grad, torch.full((4,), 18.0))


def test_what_was_kept_goes_as_the_backward_pass_goes_on() -> None:
    x, weight = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    with lean():
        pre_activation = x * 1
        activation = F.silu(pre_activation)
        loss = (F.linear(activation, weight) * activation.sigmoid()).sum()
    kept = weakref.ref(pre_activation)
    del pre_activation, activation
    assert kept() is not None
    loss.backward()
    assert kept() is None


def test_checkpoint_of_an_activation_that_somebody_keeps() -> None:
    scale = nn.Parameter(torch.randn(8))

    def block(x: Tensor) -> Tensor:
        h = F.relu(x * 1)
        return F.silu(h) + h * scale

    x = images()
    with lean():
        y = checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), lean()))
    mine = torch.autograd.grad(y.sum(), [x, scale])
    for one, other in zip(mine, torch.autograd.grad(block(x).sum(), [x, scale]), strict=True):
        torch.testing.assert_close(one, other)
