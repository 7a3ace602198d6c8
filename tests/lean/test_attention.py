import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import compare, kept_bytes, run

B, HEADS, LENGTH, WIDTH = 2, 3, 6, 8
PART = B * HEADS * LENGTH * WIDTH * 4
ROWS = B * HEADS * LENGTH * 4
WEIGHTS = B * HEADS * LENGTH * LENGTH * 4
RANDOM_STATE = torch.get_rng_state().numel()

TRAINS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, True, True)]


def parts(trains=(True, True, True), dtype=torch.float32, heads: int = HEADS) -> list[Tensor]:
    torch.manual_seed(9)
    shapes = ((B, HEADS, LENGTH, WIDTH), (B, heads, LENGTH, WIDTH), (B, heads, LENGTH, WIDTH))
    return [torch.randn(s, dtype=dtype).requires_grad_(train) for s, train in zip(shapes, trains, strict=True)]


def allowed() -> Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


FUSED = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask of booleans": {"attn_mask": allowed()},
    "mask of numbers": {"attn_mask": torch.linspace(-1, 1, LENGTH * LENGTH).view(LENGTH, LENGTH)},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("trains", TRAINS)
def test_fused_attention_is_left_to_stock(options, trains) -> None:
    stock, thin = compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), *parts(trains))
    assert thin == stock
    assert stock >= 4 * PART + ROWS


@pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("trains", TRAINS)
def test_dropped_attention_keeps_query_key_and_value(options, trains) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, **options)

    _, thin = compare(attend, *parts(trains))
    mask = options.get("attn_mask")
    assert thin == 3 * PART + RANDOM_STATE + (0 if mask is None else mask.numel() * mask.element_size())


def test_dropped_attention_keeps_less_than_stock() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)

    longer = [torch.randn(B, HEADS, 64, WIDTH, requires_grad=True) for _ in range(3)]
    stock, thin = compare(attend, *longer)
    assert stock > 3 * B * HEADS * 64 * 64 * 4
    assert thin == 3 * B * HEADS * 64 * WIDTH * 4 + RANDOM_STATE


def test_attention_with_a_bias_that_trains() -> None:
    bias = torch.randn(1, HEADS, LENGTH, LENGTH, requires_grad=True)
    stock, thin = compare(F.scaled_dot_product_attention, *parts(), bias)
    assert thin == 3 * PART + HEADS * LENGTH * LENGTH * 4
    assert thin < stock


def test_grouped_queries_with_dropout() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, enable_gqa=True)

    _, thin = compare(attend, *parts(heads=1))
    assert thin == PART + 2 * PART // HEADS + RANDOM_STATE


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types(dropout: float, dtype) -> None:
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), *parts(dtype=dtype))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast(dropout: float) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    compare(attend, *parts())


def test_without_heads() -> None:
    compare(lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0], dropout_p=0.3), *parts())
    compare(lambda q, k, v: F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]), *parts())


def test_random_numbers_go_on_as_in_stock() -> None:
    q, k, v = parts()
    torch.manual_seed(1)
    F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with lean():
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    assert torch.equal(torch.rand(3), expected)
    state = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("operation", [F.softmax, torch.softmax, Tensor.softmax, F.log_softmax])
@pytest.mark.parametrize("trains", [True, False])
def test_softmax_keeps_its_output_once(operation, trains: bool) -> None:
    def attend(scores: Tensor, value: Tensor) -> Tensor:
        return operation(scores, dim=-1) @ value

    scores, value = torch.randn(4, 5, requires_grad=True), torch.randn(5, 3, requires_grad=trains)
    stock, thin = compare(attend, scores, value)
    assert thin == stock == 4 * 5 * 4 + 5 * 3 * 4


def module(**options) -> nn.MultiheadAttention:
    torch.manual_seed(10)
    return nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.3}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 6}]
)
@pytest.mark.parametrize("trains", [False, True])
def test_multi_head_attention(need_weights: bool, options, trains: bool) -> None:
    attention = module(**options).requires_grad_(trains)

    def attend(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(x, key, value, need_weights=need_weights)[0]

    inputs = [torch.randn(B, LENGTH, width, requires_grad=True) for width in (8, 8, options.get("vdim", 8))]
    stock, thin = compare(attend, *inputs, parameters=list(attention.parameters()))
    assert thin <= stock + RANDOM_STATE


def test_multi_head_attention_of_a_norm_keeps_the_norm_s_input() -> None:
    attention, norm = module(batch_first=False), nn.LayerNorm(8)
    parameters = [*attention.parameters(), *norm.parameters()]

    def attend(x: Tensor) -> Tensor:
        y = norm(x)
        return attention(y, y, y, need_weights=False)[0]

    stock, thin = compare(attend, torch.randn(B, LENGTH, 8, requires_grad=True), parameters=parameters)
    assert thin < stock


def test_multi_head_attention_refuses_what_stock_refuses() -> None:
    x = torch.randn(B, LENGTH, 7, requires_grad=True)
    with pytest.raises(AssertionError) as stock:
        module()(x, x, x)
    with lean(), pytest.raises(AssertionError, match=str(stock.value)):
        module()(x, x, x)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_transformer_layer(dropout: float) -> None:
    torch.manual_seed(11)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True, activation="gelu", norm_first=True)
    x = torch.randn(B, 40, 8, requires_grad=True)
    stock, thin = (run(layer, [x], in_lean=in_lean, parameters=list(layer.parameters())) for in_lean in (False, True))
    assert torch.equal(thin.output, stock.output)
    for mine, its in zip(thin.gradients, stock.gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    assert thin.kept < 0.8 * stock.kept


def test_double_backward_is_refused() -> None:
    q, k, v = parts()
    with lean():
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), q, create_graph=True)


def test_nothing_is_kept_without_gradients() -> None:
    with lean():
        inputs = parts((False, False, False))
        assert kept_bytes(lambda: F.scaled_dot_product_attention(*inputs, dropout_p=0.3))[1] == 0


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    heads=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.2]),
    trains=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    causal=st.booleans(),
)
def test_any_attention(lengths, widths, heads, dropout, trains, causal) -> None:
    shapes = [(2, heads, lengths[0], widths[0]), (2, heads, lengths[1], widths[0]), (2, heads, lengths[1], widths[1])]
    inputs = [torch.randn(shape).requires_grad_(train) for shape, train in zip(shapes, trains, strict=True)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)

    compare(attend, *inputs)
