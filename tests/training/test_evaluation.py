"""Means over samples, in eval mode, without a trace."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adabet.errors import DataError
from adabet.training import accuracy, evaluate
from tests.training.nets import make_data, make_net, same, weights_of


def whole(data):
    return [tensors.contiguous() for tensors in data.tensors]


def test_a_short_last_batch_counts_by_its_samples():
    model, data = make_net().double().eval(), make_data(21)
    images, labels = whole(data)
    batches = [(images[start : start + 8].double(), labels[start : start + 8]) for start in (0, 8, 16)]
    with torch.no_grad():
        logits = model(images.double())
    measured = evaluate(model, batches)
    assert measured["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    assert measured["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-15)


def test_slices_of_batches_give_the_same_means():
    model, loader, seen = make_net(), DataLoader(make_data(21), 8), []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    whole_batches = evaluate(model, loader)
    seen.clear()
    sliced = evaluate(model, loader, micro_batch=3)
    assert seen == [3, 3, 2, 3, 3, 2, 3, 2]
    assert sliced == pytest.approx(whole_batches, rel=1e-6)


def test_the_model_is_left_as_it_was():
    model = make_net().train()
    model.norm1.eval()
    before = weights_of(model)
    grads = []
    evaluate(
        model,
        DataLoader(make_data(), 8),
        loss=lambda outputs, labels: grads.append(outputs.requires_grad) or F.cross_entropy(outputs, labels),
    )
    assert model.training
    assert model.drop.training
    assert not model.norm1.training
    assert same(weights_of(model), before)
    assert set(grads) == {False}


def test_a_loss_that_is_a_sum_is_not_weighted_again():
    model, loader = make_net(), DataLoader(make_data(21), 8)
    mean = evaluate(model, loader, loss=nn.CrossEntropyLoss())["loss"]
    assert evaluate(model, loader, loss=nn.CrossEntropyLoss(reduction="sum"))["loss"] == pytest.approx(mean)


def test_metrics_by_name():
    measured = evaluate(
        make_net(),
        DataLoader(make_data(21), 8),
        metrics={"top2": lambda logits, labels: (logits.topk(2).indices == labels[:, None]).any(1).float().mean()},
    )
    assert set(measured) == {"loss", "top2"}
    assert 0 <= measured["top2"] <= 1


def test_regression_has_no_accuracy():
    batch = torch.randn(5, 3), torch.randn(5, 2)
    assert set(evaluate(nn.Linear(3, 2), [batch], loss=F.mse_loss)) == {"loss"}


def test_outputs_that_are_no_logits_need_no_metrics():
    class Boxes(nn.Module):
        def forward(self, images):
            return {"boxes": images.sum(1)}

    measured = evaluate(
        Boxes(), [(torch.ones(2, 3), torch.zeros(2))], loss=lambda outputs, labels: outputs["boxes"].mean()
    )
    assert measured == {"loss": 3.0}


def test_a_model_that_computes_its_loss_itself():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, features, labels=None):
            logits = self.head(features)
            return {"loss": 10 * F.cross_entropy(logits, labels), "logits": logits}

    model = WithLoss()
    features, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    measured = evaluate(model, [{"features": features, "labels": labels}])
    expected = F.cross_entropy(model.head(features), labels)
    assert measured["loss"] == pytest.approx(10 * expected.item(), rel=1e-6)
    assert measured["accuracy"] == accuracy(model.head(features), labels)


@pytest.mark.parametrize(("label", "shown"), [(4, "got 4"), (-1, "got -1")])
def test_labels_out_of_range(label, shown):
    batch = torch.randn(3, 1, 6, 6), torch.tensor([0, label, 1])
    with pytest.raises(DataError, match=f"expected labels from 0 to 3, .*tells 4 classes apart, {shown}"):
        evaluate(make_net(), [batch])


def test_ignored_labels_and_small_integers_are_fine():
    batch = torch.randn(3, 1, 6, 6), torch.tensor([0, -100, 1], dtype=torch.int32)
    assert evaluate(make_net(), [batch])["loss"] > 0


def test_soft_labels_are_fine():
    batch = torch.randn(3, 1, 6, 6), torch.full((3, 4), 0.25)
    assert set(evaluate(make_net(), [batch])) == {"loss"}


def test_an_empty_loader():
    with pytest.raises(DataError, match="expected at least one batch with a sample in it, the loader gave none"):
        evaluate(make_net(), [])


def test_batches_without_labels():
    with pytest.raises(DataError, match="expected batches with labels"):
        evaluate(make_net(), [torch.randn(3, 1, 6, 6)])


def test_batches_of_unequal_keys():
    images = torch.randn(2, 1, 6, 6)
    labels = torch.tensor([0, 1])

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, images, mask=None):
            return self.net(images)

    batches = [{"images": images, "labels": labels}, {"images": images, "mask": images, "labels": labels}]
    with pytest.raises(DataError, match="keys images, labels; number 2 has images, mask, labels"):
        evaluate(Keywords(), batches)
    with pytest.raises(DataError, match="the first is a dict and number 2 a tuple"):
        evaluate(Keywords(), [batches[0], (images, labels)])
