"""Micro-batches against one backward pass over the whole batch."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import OptionError, TrainingError
from adabet.step import labels_of, logits_of, train_step

CLASSES = 4


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, CLASSES)).double()


def images(samples: int) -> Tensor:
    return torch.randn(samples, 6, dtype=torch.float64)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def reference(model: nn.Module, compute: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by one plain backward pass; leaves the model without gradients."""
    loss = compute()
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    return loss.detach(), found


def assert_same(model: nn.Module, value: Tensor, expected: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(value, expected[0])
    assert not value.requires_grad
    torch.testing.assert_close(gradients(model), expected[1])


def mask(labels: Tensor) -> Tensor:
    """Ignore some labels, unevenly over the batch."""
    masked = labels.clone()
    masked[::3] = -100
    return masked


WEIGHTS = torch.tensor([0.1, 2.0, 0.7, 1.3], dtype=torch.float64)
INTEGER_LOSSES: dict[str, Any] = {
    "default": None,
    "function": F.cross_entropy,
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "class weights, label smoothing": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "another ignored label": nn.CrossEntropyLoss(ignore_index=2),
    "margin with class weights": nn.MultiMarginLoss(weight=WEIGHTS),
}


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7, 50])
@pytest.mark.parametrize("name", INTEGER_LOSSES)
def test_slices_give_the_gradient_of_the_batch(name: str, micro_batch: int) -> None:
    loss, model = INTEGER_LOSSES[name], classifier()
    x, y = images(7), torch.tensor([0, 1, 2, 3, 1, 1, 2])
    expected = reference(model, lambda: (loss or F.cross_entropy)(model(x), y))
    assert_same(model, train_step(model, (x, y), loss, micro_batch=micro_batch), expected)


@given(samples=st.integers(2, 9), micro_batch=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_ignored_labels_do_not_count(samples: int, micro_batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = classifier(), images(samples)
    y = torch.randint(CLASSES, (samples,))
    y[torch.rand(samples) < 0.4] = -100
    y[0] = 1
    expected = reference(model, lambda: F.cross_entropy(model(x), y))
    assert_same(model, train_step(model, (x, y), micro_batch=micro_batch), expected)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        nn.L1Loss(reduction="sum"),
        nn.KLDivLoss(reduction="batchmean"),
    ],
    ids=str,
)
def test_losses_of_real_targets(loss: nn.Module) -> None:
    model, x, y = classifier(), images(5), torch.rand(5, CLASSES, dtype=torch.float64)
    expected = reference(model, lambda: loss(model(x), y))
    assert_same(model, train_step(model, (x, y), loss, micro_batch=2), expected)


def test_a_sum_by_a_plain_function_is_named() -> None:
    model, x, y = classifier(), images(5), torch.tensor([0, 1, 2, 3, 0])

    def total(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum")

    expected = reference(model, lambda: total(model(x), y))
    assert_same(model, train_step(model, (x, y), total, micro_batch=2, reduction="sum"), expected)


def test_terms_can_be_counted_by_the_user() -> None:
    model, x = classifier(), images(5)
    y = torch.tensor([[0, -1], [1, 2], [3, 3], [-1, -1], [2, 0]])

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        spread = outputs[:, None].expand(-1, 2, -1)
        return F.cross_entropy(spread[labels >= 0], labels[labels >= 0])

    expected = reference(model, lambda: loss(model(x), y))
    found = train_step(model, (x, y), loss, micro_batch=2, terms=lambda part: (labels_of(part) >= 0).sum())
    assert_same(model, found, expected)


def test_gradients_are_added_to_what_is_there() -> None:
    model, batch = classifier(), (images(4), torch.tensor([0, 1, 2, 3]))
    train_step(model, batch)
    once = gradients(model)
    train_step(model, batch, micro_batch=3)
    torch.testing.assert_close(gradients(model), [2 * gradient for gradient in once])


def test_lean_and_stock_agree() -> None:
    model, batch = classifier(), (images(4), torch.tensor([0, 1, 2, 3]))
    train_step(model, batch, lean=False)
    stock = gradients(model)
    model.zero_grad()
    train_step(model, batch, lean=True)
    torch.testing.assert_close(gradients(model), stock)


class TestBatchNorm:
    """Batch-norms mix the samples of a batch unless they use running statistics."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.BatchNorm1d(5)), nn.Linear(5, CLASSES)).double()

    batch = images(6), torch.tensor([0, 1, 2, 3, 0, 1])

    def test_in_train_mode_is_refused_by_name_before_it_changes(self) -> None:
        model = self.model()
        before = [buffer.clone() for buffer in model.buffers()]
        with pytest.raises(TrainingError, match=r"micro_batch=4 .* batch-norm '1.0' .* eval mode"):
            train_step(model, self.batch, micro_batch=4)
        assert all(torch.equal(now, old) for now, old in zip(model.buffers(), before, strict=True))
        assert not model[1][0]._forward_pre_hooks

    def test_without_running_statistics_is_refused_in_eval_mode_too(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, CLASSES)).double().eval()
        with pytest.raises(TrainingError, match="batch-norm '0'"):
            train_step(model, self.batch, micro_batch=4)

    def test_in_train_mode_may_see_the_whole_batch(self) -> None:
        model, (x, y) = self.model(), self.batch
        expected = reference(model, lambda: F.cross_entropy(model(x), y))
        assert_same(model, train_step(model, self.batch, micro_batch=6), expected)

    def test_in_eval_mode_is_exact(self) -> None:
        model, (x, y) = self.model().eval(), self.batch
        expected = reference(model, lambda: F.cross_entropy(model(x), y))
        assert_same(model, train_step(model, self.batch, micro_batch=4), expected)

    def test_put_into_eval_mode_by_a_hook_is_exact(self) -> None:
        model, (x, y) = self.model().train(), self.batch

        def settle(module: nn.Module, _: Any) -> None:
            module.training = False

        model[1][0].register_forward_pre_hook(settle)
        expected = reference(model, lambda: F.cross_entropy(model(x), y))
        model.train()
        assert_same(model, train_step(model, self.batch, micro_batch=4), expected)


class TestTransformers:
    """Mappings, and models that compute their own loss."""

    words = torch.randint(3, 30, (5, 7), generator=torch.Generator().manual_seed(0))

    @staticmethod
    def config(name: str, **options: Any) -> Any:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        return getattr(transformers, name)(**options)

    def bert(self, head: str) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = self.config(
            "BertConfig",
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model: nn.Module = getattr(transformers, head)(config)
        return model.double()

    def check(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        expected = reference(model, lambda: model(**batch).loss)
        assert_same(model, train_step(model, batch, micro_batch=2), expected)

    def test_a_class_each_sequence(self) -> None:
        labels = torch.tensor([0, 1, 2, 0, 1])
        self.check(self.bert("BertForSequenceClassification"), {"input_ids": self.words, "labels": labels})

    def test_a_class_each_token_with_some_ignored(self) -> None:
        labels = mask(self.words % 3)
        self.check(self.bert("BertForTokenClassification"), {"input_ids": self.words, "labels": labels})

    def test_each_token_predicts_the_next(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = self.config(
            "LlamaConfig",
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
        labels = mask(self.words)
        labels[1, :4] = -100
        model = transformers.LlamaForCausalLM(config).double()
        self.check(model, {"input_ids": self.words, "labels": labels})

    def test_a_decoder_that_reads_an_encoder(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = self.config(
            "T5Config", vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0
        )
        config.decoder_start_token_id = 0
        labels = self.words.clone()
        labels[1, 3:] = -100
        model = transformers.T5ForConditionalGeneration(config).double()
        self.check(model, {"input_ids": self.words, "labels": labels})

    def test_a_loss_of_the_users_gets_the_labels(self) -> None:
        model = self.bert("BertForSequenceClassification")
        batch = {"input_ids": self.words, "labels": torch.tensor([0, 1, 2, 0, 1])}

        def loss(outputs: Any, labels: Tensor) -> Tensor:
            return 3 * F.cross_entropy(outputs.logits, labels)

        expected = reference(model, lambda: 3 * model(**batch).loss)
        assert_same(model, train_step(model, batch, loss, micro_batch=2), expected)


def test_the_loop_is_told_of_each_slice() -> None:
    model, labels = classifier(), torch.tensor([0, 1, 2, 3, 0])
    told: list[Any] = []

    @contextmanager
    def accumulating() -> Any:
        told.append("quiet")
        yield
        told.append("loud")

    def backward(loss: Tensor) -> None:
        told.append("backward")
        loss.backward()

    def observe(logits: Tensor, seen: Tensor) -> None:
        assert not logits.requires_grad
        told.append((tuple(logits.shape), seen.tolist()))

    train_step(
        model,
        (images(5), labels),
        micro_batch=2,
        backward=backward,
        accumulating=accumulating,
        observe=observe,
    )
    slices = [((2, CLASSES), [0, 1]), ((2, CLASSES), [2, 3]), ((1, CLASSES), [0])]
    assert told == [
        *("quiet", slices[0], "backward", "loud"),
        *("quiet", slices[1], "backward", "loud"),
        *(slices[2], "backward"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"micro_batch": 0}, OptionError, "micro_batch of at least 1 sample, got 0"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, OptionError, "scalar, got one of shape"),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none"), "micro_batch": 2},
            OptionError,
            "a mean or a sum, got reduction='none'",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_step(classifier(), (images(4), torch.tensor([0, 1, 2, 3])), **options)


def test_no_labels() -> None:
    with pytest.raises(OptionError, match="batch with labels"):
        train_step(classifier(), images(4))
    model = classifier()
    train_step(model, images(4), lambda outputs, labels: outputs.square().mean(), micro_batch=3)
    assert len(gradients(model)) == len(list(model.parameters()))


def test_nothing_trains() -> None:
    with pytest.raises(TrainingError, match="depends on a trainable parameter"):
        train_step(classifier().requires_grad_(False), (images(4), torch.tensor([0, 1, 2, 3])))


def test_outputs_without_logits() -> None:
    with pytest.raises(OptionError, match="got dict"):
        logits_of({"boxes": torch.zeros(1)})
    assert logits_of((torch.ones(2), "more")).tolist() == [1, 1]
