import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from adabet.lean.keeping import recipe
from tests.lean.against_stock import compare, kept_bytes, run

SHAPES = {
    "vectors": (6, 4),
    "one dimension": (3, 4, 5),
    "images": (2, 4, 5, 3),
    "many channels": (2, 40, 3, 3),
    "more than a slice": (2, 40, 60, 60),
    "pixels": (4, 20, 1, 1),
    "volumes": (2, 4, 2, 3, 2),
    "no samples": (0, 4, 3, 3),
}
TRAINS = [(True, True, True), (True, False, False), (False, True, True), (True, True, False), (True, False, True)]


def image(shape: tuple[int, ...], *, trains: bool = True, channels_last: bool = False, dtype=torch.float32) -> Tensor:
    torch.manual_seed(4)
    x = torch.randn(shape, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(trains)


def batch_norm_of(channels: int, *, trains: tuple[bool, bool], training: bool, dtype=torch.float32):
    """A function of an image, and the parameters and statistics that it uses."""
    torch.manual_seed(5)
    weight = (torch.rand(channels, dtype=dtype) + 0.5).requires_grad_(trains[0])
    bias = torch.randn(channels, dtype=dtype).requires_grad_(trains[1])
    mean, variance = torch.randn(channels, dtype=dtype), torch.rand(channels, dtype=dtype) + 0.1

    def normalize(x: Tensor) -> Tensor:
        running = (mean, variance) if not training else (mean.clone(), variance.clone())
        return F.batch_norm(x, *running, weight, bias, training)

    return normalize, [weight, bias, mean, variance]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("trains", TRAINS)
def test_batch_norm(shape, training: bool, trains) -> None:
    if training and 0 in shape:
        pytest.skip("stock refuses to take statistics of nothing")
    normalize, parameters = batch_norm_of(shape[1], trains=trains[1:], training=training)
    x = image(shape, trains=trains[0])
    stock, thin = compare(normalize, x, parameters=parameters)
    frozen = not training and not trains[1]
    assert thin == 0 if frozen else thin <= stock
    assert thin >= 0 if frozen else thin >= x.numel() * 4


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 40, 3, 3), (3, 37, 30, 30), (4, 20, 1, 1)])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("trains", TRAINS)
def test_batch_norm_of_channels_last(shape, training: bool, trains) -> None:
    normalize, parameters = batch_norm_of(shape[1], trains=trains[1:], training=training)
    compare(normalize, image(shape, trains=trains[0], channels_last=True), parameters=parameters)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("parameter_type", [torch.float32, torch.bfloat16])
def test_batch_norm_in_bfloat16(training: bool, trains, parameter_type) -> None:
    normalize, parameters = batch_norm_of(4, trains=trains[1:], training=training, dtype=parameter_type)
    x = image((2, 4, 5, 3), trains=trains[0], dtype=torch.bfloat16)
    compare(normalize, x, parameters=parameters)


def test_batch_norm_in_float64() -> None:
    normalize, parameters = batch_norm_of(4, trains=(False, False), training=False, dtype=torch.float64)
    assert compare(normalize, image((2, 4, 5, 3), dtype=torch.float64), parameters=parameters)[1] == 0


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_batch_norm_without_affine(training: bool) -> None:
    mean, variance = torch.randn(4), torch.rand(4) + 0.1

    def normalize(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean.clone(), variance.clone(), training=training)

    _, thin = compare(normalize, image((2, 4, 5, 3)))
    assert thin == (2 * 4 * 5 * 3 * 4 + 2 * 4 * 4 if training else 4 * 4)


def test_batch_norm_without_running_statistics() -> None:
    compare(lambda x: F.batch_norm(x, None, None, training=True), image((2, 4, 5, 3)))
    with lean(), pytest.raises(RuntimeError):
        F.batch_norm(image((2, 4, 5, 3)), None, None)


def test_torch_batch_norm() -> None:
    mean, variance = torch.randn(4), torch.rand(4) + 0.1

    def normalize(x: Tensor) -> Tensor:
        return torch.batch_norm(x, None, None, mean, variance, False, 0.1, 1e-5, True)

    assert compare(normalize, image((2, 4, 5, 3)), parameters=[mean, variance])[1] == 0


def test_batch_norm_of_a_slice() -> None:
    normalize, parameters = batch_norm_of(4, trains=(False, False), training=False)
    compare(lambda x: normalize(x[:, ::2]), image((2, 8, 5, 3)), parameters=parameters)
    normalize, parameters = batch_norm_of(4, trains=(True, True), training=True)
    compare(lambda x: normalize(x[:, ::2]), image((2, 8, 5, 3)), parameters=parameters)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_running_statistics_move_as_in_stock(momentum: float | None) -> None:
    torch.manual_seed(6)
    modules = [nn.BatchNorm2d(4, momentum=momentum) for _ in range(2)]
    for _ in range(3):
        x = torch.randn(2, 4, 5, 3)
        modules[0](x).sum().backward()
        with lean():
            modules[1](x).sum().backward()
    for mine, its in zip(modules[1].state_dict().values(), modules[0].state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_a_batch_of_one_value_is_refused_as_in_stock() -> None:
    with lean(), pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm1d(4)(torch.randn(1, 4))


def test_frozen_batch_norm_notices_a_change_of_its_statistics() -> None:
    norm = nn.BatchNorm2d(4).eval().requires_grad_(False)
    with lean():
        y = norm(image((2, 4, 5, 3)))
    norm.running_var.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_frozen_batch_norm_leaves_a_gradient_alone_that_others_need() -> None:
    norm = nn.BatchNorm2d(4).eval().requires_grad_(False)
    norm.running_var.uniform_(0.5, 2)
    compare(lambda x: norm(x) + (x + 0), image((2, 4, 5, 3)))
    compare(lambda x: norm(y := x + 0) + y, image((2, 4, 5, 3)))


@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.silu, lambda x: F.relu(x, inplace=True)])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_what_follows_a_trainable_batch_norm_is_made_from_its_input(activation, training: bool) -> None:
    normalize, parameters = batch_norm_of(4, trains=(True, True), training=training)
    weight = torch.randn(6, 4, 1, 1, requires_grad=True)
    x = image((2, 4, 5, 3))
    stock = run(
        lambda x: F.conv2d(activation(normalize(x)), weight), [x], in_lean=False, parameters=[weight, *parameters]
    )
    thin = run(
        lambda x: F.conv2d(activation(normalize(x)), weight), [x], in_lean=True, parameters=[weight, *parameters]
    )
    whole = x.numel() * 4
    assert stock.kept >= 2 * whole
    assert whole <= thin.kept < 1.2 * whole
    for mine, its in zip(thin.gradients, stock.gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


NORMS = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (6,), w, b),
    "torch.layer_norm": lambda x, w, b: torch.layer_norm(x, (6,), w, b),
    "layer_norm of two dimensions": lambda x, w, b: F.layer_norm(x, (4, 6), w.expand(4, 6), b.expand(4, 6), 1e-6),
    "group_norm": lambda x, w, b: F.group_norm(x, 2, w[:4], b[:4]),
    "torch.group_norm": lambda x, w, b: torch.group_norm(x, 4, w[:4], b[:4]),
    "rms_norm": lambda x, w, b: F.rms_norm(x, (6,), w, 1e-6),
    "torch.rms_norm": lambda x, w, b: torch.rms_norm(x, (6,), w),
    "layer_norm without affine": lambda x, w, b: F.layer_norm(x, (6,)),
    "group_norm without affine": lambda x, w, b: F.group_norm(x, 2),
    "rms_norm without weight": lambda x, w, b: F.rms_norm(x, (6,)),
}


def affine(*, trains: bool, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return (torch.rand(6, dtype=dtype) + 0.5).requires_grad_(trains), torch.randn(6, dtype=dtype).requires_grad_(trains)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(("x_trains", "affine_trains"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_keep_no_more_than_stock(norm, x_trains: bool, affine_trains: bool, dtype) -> None:
    parameters = affine(trains=affine_trains, dtype=dtype)
    x = image((3, 4, 6), trains=x_trains, dtype=dtype)
    if not norm(x, *parameters).requires_grad:
        return
    stock, thin = compare(lambda x: norm(x, *parameters), x, parameters=parameters)
    assert thin <= stock


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("affine_trains", [False, True])
def test_output_of_a_norm_costs_nothing_more(norm, affine_trains: bool) -> None:
    matrix = torch.randn(5, 6, requires_grad=True)
    parameters = [matrix, *affine(trains=affine_trains)]
    x = image((3, 4, 6))

    def layer(x: Tensor) -> Tensor:
        return F.linear(norm(x, *parameters[1:]), matrix)

    own = run(lambda x: norm(x, *parameters[1:]), [x], in_lean=True, parameters=parameters).kept
    stock, thin = compare(layer, x, parameters=parameters)
    assert thin == own < stock


def test_trainable_rms_norm_keeps_its_input_alone() -> None:
    weight, _ = affine(trains=True)
    x = image((3, 4, 6))
    stock, thin = compare(lambda x: F.rms_norm(x, (6,), weight), x, parameters=[weight])
    assert thin == x.numel() * 4
    assert stock == 2 * x.numel() * 4 + 3 * 4 * 4


def test_rms_norm_in_bfloat16_keeps_no_copy_in_float32() -> None:
    weight, _ = affine(trains=False, dtype=torch.bfloat16)
    x = image((3, 4, 6), dtype=torch.bfloat16)
    stock, thin = compare(lambda x: F.rms_norm(x, (6,), weight), x, parameters=[weight])
    assert thin == x.numel() * 2
    assert stock > x.numel() * 4


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_in_autocast(norm) -> None:
    parameters = affine(trains=True)

    def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return norm(x @ weight, *parameters)

    compare(in_bfloat16, image((3, 4, 6)), torch.randn(6, 6), parameters=parameters)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_batch_norm_in_autocast(trains: bool, training: bool) -> None:
    normalize, parameters = batch_norm_of(4, trains=(trains, trains), training=training)

    def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return normalize((x.mT @ weight).mT)

    compare(in_bfloat16, image((2, 4, 5, 3)), torch.randn(5, 5), parameters=parameters)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("trains", [False, True])
def test_double_backward_is_refused(training: bool, trains: bool) -> None:
    normalize, _ = batch_norm_of(4, trains=(trains, trains), training=training)
    x = image((2, 4, 5, 3))
    with lean():
        y = normalize(x)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_nothing_is_kept_without_gradients() -> None:
    norm = nn.BatchNorm2d(4).requires_grad_(False)
    with lean():
        assert kept_bytes(lambda: norm(torch.randn(2, 4, 3, 3)))[1] == 0
        assert kept_bytes(lambda: norm.eval()(torch.randn(2, 4, 3, 3)))[1] == 0


def test_function_transforms_go_through() -> None:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 2, 4, 5, 3)
    gradients = torch.func.vmap(torch.func.grad(lambda x: norm(x).square().sum()))
    with lean():
        thin = gradients(x)
    torch.testing.assert_close(thin, gradients(x))


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 40),
    plane=st.lists(st.integers(1, 7), max_size=3),
    trains=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    training=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_batch_norm(batch, channels, plane, trains, training, channels_last) -> None:
    shape = (batch, channels, *plane)
    if training and torch.Size(shape).numel() == channels:
        return
    normalize, parameters = batch_norm_of(channels, trains=trains[1:], training=training)
    x = image(shape, trains=trains[0], channels_last=channels_last and len(shape) == 4)
    stock, thin = compare(normalize, x, parameters=parameters)
    assert thin <= stock


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_batch_norm_in_train_mode_is_made_again_to_the_bit(
    channels_last: bool, dtype, affine: bool, mixed: bool
) -> None:
    torch.manual_seed(8)
    norm = nn.BatchNorm2d(19, affine=affine)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    norm.to(torch.float32 if mixed and dtype is torch.bfloat16 else dtype)
    x = (image((4, 19, 13, 11), channels_last=channels_last).detach() * 3 + 5).to(dtype).requires_grad_()
    with lean():
        y = norm(x)
        kept = recipe(y)
    assert kept is not None
    assert kept.tensors[0] is x
    assert torch.equal(kept.rebuild(*kept.tensors), y)
