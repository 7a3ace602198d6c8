import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import adabet
from adabet.errors import OptionError, SelectionError
from adabet.freezing.slices import change, slice_module
from adabet.lean import lean
from tests.lean.against_stock import kept_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # stock's own

MODULES = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 8, bias=False), (5, 6)),
    "linear on tokens": (lambda: nn.Linear(6, 8), (2, 5, 6)),
    "linear on a vector": (lambda: nn.Linear(6, 8), (6,)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2), (2, 6, 9, 9)),
    "conv2d without bias": (lambda: nn.Conv2d(6, 8, 3, bias=False), (2, 6, 9, 9)),
    "conv2d, one image": (lambda: nn.Conv2d(6, 8, 3), (6, 9, 9)),
    "conv2d, same padding": (lambda: nn.Conv2d(6, 8, 4, padding="same"), (2, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 8, 2), (2, 6, 4, 4, 4)),
    "pointwise": (lambda: nn.Conv2d(6, 8, 1), (2, 6, 5, 5)),
    "strided pointwise": (lambda: nn.Conv2d(6, 8, 1, stride=2), (2, 6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), (2, 6, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 9, 9)),
    "depthwise, two outputs each": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1), (2, 6, 5, 5)),
    "grouped transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, groups=2), (2, 6, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 8, 3), (2, 6, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(6).eval(), (2, 6, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 5, 5)),
}
CHANNELS = [4, 0, 1]


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module, torch.randn(shape, requires_grad=True)


def gradients(module: nn.Module, *, in_lean: bool, x: Tensor, **wanted: Tensor) -> dict[str, Tensor]:
    """Gradients of the input and of whatever else is named, for the same random gradient of the output."""
    with lean() if in_lean else nullcontext():
        y = module(x)
    torch.manual_seed(1)
    wanted = {"x": x, **wanted}
    return dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), torch.randn_like(y)), strict=True))


def weights_of_channel(module: nn.Module, weight: Tensor, axis: str, channel: int) -> Tensor:
    """Brute force: the entries of a weight that belong to one channel of the whole layer."""
    if weight.dim() == 1 or not hasattr(module, "groups"):
        return weight[channel] if axis == "out" or weight.dim() == 1 else weight[:, channel]
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
    if (axis == "out") != transposed:
        return weight[channel]
    per_group, rows = weight.shape[1], weight.shape[0] // module.groups
    group, local = divmod(channel, per_group)
    return weight[group * rows : (group + 1) * rows, local]


@pytest.mark.parametrize("in_lean", [False, True])
@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", MODULES)
def test_gradient_is_that_of_the_full_weight_at_the_slice(name: str, axis: str, in_lean: bool) -> None:
    module, x = build(name)
    parameters = dict(module.named_parameters())
    stock = gradients(module, in_lean=False, x=x, **parameters)
    y = module(x)
    handle = slice_module(module, CHANNELS, axis=axis)

    assert handle.channels == (0, 1, 4)
    with lean() if in_lean else nullcontext():
        torch.testing.assert_close(module(x), y)
    mine = gradients(module, in_lean=in_lean, x=x, **handle.parameters)
    torch.testing.assert_close(mine["x"], stock["x"])
    rows = [weights_of_channel(module, stock["weight"], axis, channel) for channel in (0, 1, 4)]
    torch.testing.assert_close(mine["weight"], torch.stack(rows))
    if "bias" in stock:
        sliced = axis == "out" or stock["weight"].dim() == 1
        torch.testing.assert_close(mine["bias"], stock["bias"][[0, 1, 4]] if sliced else stock["bias"])


@pytest.mark.parametrize("name", [name for name in MODULES if "vector" not in name and "norm" not in name])
def test_an_input_channels_rows_are_all_that_read_it(name: str) -> None:
    module, x = build(name)
    channel_dim = -1 if isinstance(module, nn.Linear) else (0 if x.dim() == 3 and "image" in name else 1)
    alone = torch.zeros_like(x)
    alone.select(channel_dim, 4).copy_(x.detach().select(channel_dim, 4))
    alone.requires_grad_()
    full = gradients(module, in_lean=False, x=alone, weight=module.weight)["weight"]
    handle = slice_module(module, CHANNELS, axis="in")

    part = gradients(module, in_lean=True, x=alone, weight=handle.parameters["weight"])["weight"]

    assert not part[:2].any()
    torch.testing.assert_close(part[2].flatten().sort()[0], full[full != 0].sort()[0])


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    groups=st.integers(1, 4),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    axis=st.sampled_from(["in", "out"]),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    channels_last=st.booleans(),
)
def test_any_slice_of_any_grouped_convolution(
    data: st.DataObject,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    axis: str,
    transposed: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = make(inputs * groups, outputs * groups, kernel, stride=stride, groups=groups, dtype=dtype)
    count = groups * (inputs if axis == "in" else outputs)
    channels = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    x = torch.randn(2, inputs * groups, 6, 7, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    stock = gradients(module, in_lean=False, x=x, weight=module.weight)
    handle = slice_module(module, channels, axis=axis)

    mine = gradients(module, in_lean=True, x=x, weight=handle.parameters["weight"])

    rows = [weights_of_channel(module, stock["weight"], axis, channel) for channel in channels]
    torch.testing.assert_close(mine["weight"], torch.stack(rows))
    torch.testing.assert_close(mine["x"], stock["x"])


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", ["linear", "grouped", "transposed", "depthwise", "batch norm"])
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0),
    ],
)
def test_training_equals_training_the_full_weight_with_the_rest_held(name: str, axis: str, make_optimizer: ...) -> None:
    module, x = build(name)
    module, x = module.double(), x.double()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    reference = copy.deepcopy(module)
    handle = slice_module(module, CHANNELS, axis=axis)
    optimizer = make_optimizer(handle.parameters.values())
    reference_optimizer = make_optimizer(reference.parameters())
    for _ in range(3):
        for model, steps in ((module, optimizer), (reference, reference_optimizer)):
            steps.zero_grad()
            with lean():
                loss = model(x).square().mean()
            loss.backward()
            steps.step()
        with torch.no_grad():  # hold what the slice leaves out
            for key, parameter in reference.named_parameters():
                held = before[key].clone()
                if key == "weight" or axis == "out" or held.shape == before["weight"].shape:
                    for channel in CHANNELS:
                        mine = weights_of_channel(reference, held, axis, channel)
                        mine.copy_(weights_of_channel(reference, parameter, axis, channel))
                    parameter.copy_(held)
    sizes = {state.shape for entry in optimizer.state.values() for state in entry.values() if state.dim()}
    assert sizes == {parameter.shape for parameter in handle.parameters.values()}
    handle.remove()
    for key, parameter in reference.named_parameters():
        torch.testing.assert_close(module.get_parameter(key), parameter)
        assert not torch.equal(parameter, before[key])


def test_remove_gives_back_the_same_parameters_with_the_trained_values() -> None:
    module, _ = build("grouped")
    kind, parameters, keys = type(module), list(module.parameters()), list(module.state_dict())
    module.bias.requires_grad_(False)
    handle = slice_module(module, CHANNELS, axis="out")
    with torch.no_grad():
        handle.parameters["weight"].fill_(7)

    handle.remove()

    assert type(module) is kind
    assert all(mine is its for mine, its in zip(module.parameters(), parameters, strict=True))
    assert list(module.state_dict()) == keys == ["weight", "bias"]
    assert [parameter.requires_grad for parameter in parameters] == [True, False]
    assert (module.weight[[0, 1, 4]] == 7).all()
    assert not (module.weight[[2, 3, 5, 6, 7]] == 7).any()
    assert not list(module.children())
    handle.remove()


def test_a_whole_bias_trains_with_input_channels_and_is_restored() -> None:
    module, _ = build("conv2d")
    module.bias.requires_grad_(False)
    handle = slice_module(module, CHANNELS, axis="in")
    assert handle.parameters["bias"] is module.bias
    assert module.bias.requires_grad
    handle.remove()
    assert not module.bias.requires_grad


def test_only_the_named_parameters_are_sliced() -> None:
    module, _ = build("conv2d")
    handle = slice_module(module, CHANNELS, axis="out", parameters=["weight"])
    assert list(handle.parameters) == ["weight"]
    assert module.bias.shape == (8,)
    assert module.bias.requires_grad


def test_state_dict_is_that_of_the_plain_module() -> None:
    module, _ = build("batch norm")
    net = nn.Sequential(nn.Conv2d(6, 6, 1), module)
    plain = {key: value.clone() for key, value in net.state_dict().items()}
    handle = slice_module(module, CHANNELS, axis="out")
    with torch.no_grad():
        handle.parameters["weight"].fill_(7)
        plain["1.weight"][[0, 1, 4]] = 7

    state = net.state_dict()

    assert list(state) == list(plain)
    for key, value in plain.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    assert not state["1.weight"].requires_grad


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_takes_the_plain_modules(assign: bool) -> None:
    source, x = build("grouped")
    target, _ = build("grouped")
    with torch.no_grad():
        source.weight.add_(1)
        source.bias.add_(1)
    handle = slice_module(target, CHANNELS, axis="in")

    result = target.load_state_dict(source.state_dict(), assign=assign)

    assert not result.missing_keys + result.unexpected_keys
    torch.testing.assert_close(target(x), source(x))
    torch.testing.assert_close(handle.parameters["weight"][2], weights_of_channel(source, source.weight, "in", 4))
    handle.remove()
    torch.testing.assert_close(target.weight, source.weight)


def test_load_state_dict_names_what_is_missing_or_misshapen() -> None:
    net = nn.Sequential(build("linear")[0])
    slice_module(net[0], CHANNELS, axis="out")
    state = net.state_dict()
    weight = state.pop("0.weight")
    assert net.load_state_dict(state, strict=False).missing_keys == ["0.weight"]
    torch.testing.assert_close(net[0].weight, weight)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"0.weight\""):
        net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict({**state, "0.weight": weight[1:]})


def test_a_copy_trains_by_itself() -> None:
    module, x = build("conv2d")
    slice_module(module, CHANNELS, axis="in")
    twin = copy.deepcopy(module)
    twin(x).sum().backward()
    assert module.parametrizations.weight.original.grad is None
    with torch.no_grad():
        twin.parametrizations.weight.original.zero_()
    assert list(twin.state_dict()) == ["weight", "bias"]
    assert not torch.equal(twin.state_dict()["weight"], module.state_dict()["weight"])


def test_moves_with_the_module() -> None:
    module, x = build("conv2d")
    handle = slice_module(module, CHANNELS, axis="out")
    module.double()
    assert module(x.double()).dtype is torch.float64
    assert handle.parameters["weight"].dtype is torch.float64


def test_assigning_a_full_weight_sets_slice_and_rest() -> None:
    module, _ = build("linear")
    handle = slice_module(module, CHANNELS, axis="in")
    module.weight = torch.ones(8, 6)
    assert (handle.parameters["weight"] == 1).all()
    assert (module.weight == 1).all()


def test_tied_weights_stay_tied() -> None:
    embedding, head = nn.Embedding(8, 6), nn.Linear(6, 8, bias=False)
    head.weight = embedding.weight
    handle = slice_module(head, CHANNELS, axis="out")
    with torch.no_grad():
        handle.parameters["weight"].fill_(7)
    head(torch.randn(1, 6))
    assert (embedding.weight[4] == 7).all()
    handle.remove()
    assert head.weight is embedding.weight


@pytest.mark.parametrize("in_lean", [False, True])
def test_a_layer_used_twice_in_one_graph(in_lean: bool) -> None:
    layer = nn.Linear(6, 6)
    twice = nn.Sequential(layer, layer)
    x = torch.randn(5, 6, requires_grad=True)
    stock = gradients(twice, in_lean=False, x=x, weight=layer.weight)
    handle = slice_module(layer, CHANNELS, axis="out")
    mine = gradients(twice, in_lean=in_lean, x=x, weight=handle.parameters["weight"])
    torch.testing.assert_close(mine["weight"], stock["weight"][[0, 1, 4]])


@pytest.mark.parametrize("in_lean", [False, True])
def test_a_slice_changed_before_backward_is_refused_as_any_parameter_would_be(in_lean: bool) -> None:
    module, x = build("conv2d")
    handle = slice_module(module, CHANNELS, axis="out")
    with lean() if in_lean else nullcontext():
        loss = module(x).sum()
    with torch.no_grad():
        handle.parameters["weight"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode() -> None:
    module, x = build("conv2d")
    y = module(x)
    slice_module(module, CHANNELS, axis="out")
    with torch.inference_mode():
        torch.testing.assert_close(module(x), y.detach())
    module(x).sum().backward()


@pytest.mark.parametrize(("axis", "kept"), [("in", 0.1), ("out", 1.0)])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(40, 40, 3, padding=1), (2, 40, 8, 8)),
        (nn.Conv2d(40, 40, 3, padding=1, groups=4), (2, 40, 8, 8)),
        (nn.Linear(40, 40), (2, 64, 40)),
    ],
)
def test_lean_keeps_the_slices_share_of_the_input(module: nn.Module, shape: tuple, axis: str, kept: float) -> None:
    module = copy.deepcopy(module)
    x = torch.randn(shape, requires_grad=True) * 1
    slice_module(module, [3, 13, 23, 33], axis=axis)
    with lean():
        _, size = kept_bytes(lambda: module(x), list(module.parameters()))
    assert size == kept * x.numel() * x.element_size()


def test_a_depthwise_slice_keeps_its_channels_on_either_axis() -> None:
    for axis in ("in", "out"):
        module = nn.Conv2d(40, 40, 3, groups=40)
        x = torch.randn(2, 40, 8, 8, requires_grad=True) * 1
        slice_module(module, range(4), axis=axis)
        with lean():
            _, size = kept_bytes(lambda: module(x), list(module.parameters()))  # noqa: B023 - called at once
        assert size == 0.1 * x.numel() * x.element_size()


def test_change_keeps_values_objects_and_tells_which_rows_stayed() -> None:
    module, x = build("grouped")
    handle = slice_module(module, [1, 2, 5], axis="out")
    weight, bias = handle.parameters["weight"], handle.parameters["bias"]
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand_as(weight))
    module(x).sum().backward()
    before = module.weight.detach().clone()

    rows = change(handle, [7, 5, 0, 1])

    assert rows == (-1, 0, 2, -1)
    assert handle.channels == (0, 1, 5, 7)
    assert handle.parameters["weight"] is weight
    assert handle.parameters["bias"] is bias
    assert weight.grad is None
    assert weight.shape[0] == bias.shape[0] == 4
    assert (weight[1] == 1).all()
    assert (weight[2] == 3).all()
    torch.testing.assert_close(module.weight, before)
    module(x).sum().backward()
    assert weight.grad.shape == weight.shape
    handle.remove()
    torch.testing.assert_close(module.weight, before)
    with pytest.raises(SelectionError, match="removed"):
        change(handle, [1])


REFUSED = {
    "attention": (
        nn.MultiheadAttention(4, 2),
        ["in_proj_weight"],
        r"no clear channel axis in in_proj_weight \(12",
    ),
    "embedding": (nn.Embedding(4, 4), ["weight"], "no clear channel axis"),
    "bilinear": (nn.Bilinear(4, 4, 4), ["weight", "bias"], "no clear channel axis"),
    "container": (nn.Sequential(nn.Linear(4, 4)), ["weight"], "Sequential has no parameter 'weight'; it owns none"),
    "unknown": (nn.Linear(4, 4), ["gamma"], "Linear has no parameter 'gamma'; it owns weight, bias"),
    "none": (nn.BatchNorm2d(4, affine=False), ["weight", "bias"], "BatchNorm2d has none of the parameters"),
    "norm with a plane": (nn.LayerNorm([4, 4]), ["weight", "bias"], "no clear channel axis"),
    "weight norm": (parametrizations.weight_norm(nn.Linear(4, 4)), ["weight"], "parametrized already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_layers_without_clear_channels(name: str) -> None:
    module, parameters, message = REFUSED[name]
    before = list(module.state_dict())
    with pytest.raises(SelectionError, match=message):
        slice_module(module, [0, 1], axis="out", parameters=parameters)
    assert list(module.state_dict()) == before


@pytest.mark.parametrize("channels", [[], [1, 1], [-1], [8]])
def test_refuses_channels_that_do_not_exist(channels: list[int]) -> None:
    module, _ = build("linear")
    with pytest.raises(SelectionError, match="expected distinct channels between 0 and 7 of Linear"):
        slice_module(module, channels, axis="out")


def test_refuses_a_second_slice_and_another_axis() -> None:
    module, _ = build("linear")
    with pytest.raises(OptionError, match="'out' or 'in'"):
        slice_module(module, [0], axis="both")
    slice_module(module, [0], axis="out")
    with pytest.raises(SelectionError, match="sliced or parametrized already"):
        slice_module(module, [1], axis="out")


def test_the_gradient_of_a_slice_is_made_once():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.head = nn.Conv2d(64, 256, 7), nn.Linear(256, 4)

        def forward(self, images):
            return self.head(self.wide(images).flatten(1))

    model, batch = Wide(), (torch.randn(2, 64, 7, 7), torch.tensor([0, 1]))
    full = adabet.select("full", model, batch[:1])
    (whole, head) = full.choices
    half = replace(whole, channels=tuple(range(128)))
    reports = [
        adabet.measure_memory(model, batch, replace(full, choices=choices), micro_batch=1, inference=False)
        for choices in ((head,), (half, head))
    ]
    # a kernel's copy of the weight in the forward pass, or of the slice's gradient, which is half of that
    assert reports[1].training.workspace <= 1.01 * reports[0].training.workspace
