import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adabet.errors import OptionError, TrainingError
from adabet.methods.elastic_probe import find_importance, probing
from tests.cases.models import small_images, small_net, state_of

BATCH = (small_images(6, size=8), torch.tensor([0, 1, 2, 3, 4, 0]))


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(list(parameters.values()), lr=lr, momentum=0.9)


def by_hand(model, batch, optimizer_kind, steps=0, **options):
    """Steps on the batch, and what the last of them does for the loss, all by stock autograd on a copy."""
    model = copy.deepcopy(model)
    optimizer = optimizer_kind(model.parameters(), **options)
    for _ in range(steps + 1):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    values = {
        name: -float((parameter.grad.double() * (parameter.detach() - before[name]).double()).sum())
        for name, parameter in model.named_parameters()
    }
    largest = max(map(abs, values.values()))
    return {name: value / largest for name, value in values.items()}


class TestUpdate:
    def test_is_what_a_step_does_for_the_loss(self):
        model = small_net().eval()
        expected = by_hand(model, BATCH, torch.optim.SGD, lr=0.1, momentum=0.9)
        found = find_importance(model, BATCH, sgd)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert max(map(abs, found.values())) == 1

    def test_signs_and_sizes_worked_by_hand(self):
        """For a loss of w^2 / 2 + 2 v^2 a step of 0.3 takes w to 0.7 w, g1 = 0.7 w; v to -0.2 v, g1 = -0.8 v."""

        class Quadratic(nn.Module):
            def __init__(self):
                super().__init__()
                self.w, self.v = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))

            def forward(self, inputs):
                return (self.w**2 / 2 + 2 * self.v**2).expand(len(inputs))

        def plain(parameters):
            return torch.optim.SGD(list(parameters.values()), lr=0.3)

        found = find_importance(Quadratic(), (torch.zeros(2, 1), torch.zeros(2)), plain, loss=lambda out, _: out.mean())
        gain, overshoot = 0.7 * 0.3, -0.8 * 1.2
        assert found == pytest.approx({"w": gain / abs(overshoot), "v": -1.0})

    @pytest.mark.parametrize(
        ("kind", "options"),
        [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.Adam, {"lr": 0.01})],
    )
    def test_step_goes_on_from_the_state_so_far(self, kind, options):
        fresh = small_net().eval()
        trained = copy.deepcopy(fresh)
        former = kind(trained.parameters(), **options)
        for _ in range(2):
            former.zero_grad()
            F.cross_entropy(trained(BATCH[0]), BATCH[1]).backward()
            former.step()
        former.zero_grad()

        def carrying(parameters):
            made = kind(list(parameters.values()), **options)
            made.load_state_dict(former.state_dict())
            return made

        expected = by_hand(fresh, BATCH, kind, steps=2, **options)
        assert find_importance(trained, BATCH, carrying) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        anew = find_importance(trained, BATCH, lambda parameters: kind(list(parameters.values()), **options))
        assert anew != pytest.approx(expected, rel=1e-2, abs=1e-4)

    def test_micro_batches_change_nothing(self):
        whole = find_importance(small_net(), BATCH, sgd)
        assert find_importance(small_net(), BATCH, sgd, micro_batch=2) == pytest.approx(whole, rel=1e-3, abs=1e-6)

    def test_in_train_mode_uses_the_batch_and_drops_the_same_units_twice(self):
        model = small_net()
        first, again, other = (find_importance(model, BATCH, sgd, mode="train", seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert first != pytest.approx(find_importance(model, BATCH, sgd), rel=1e-2)


class TestAblations:
    def test_magnitude(self):
        model = small_net()
        sums = {name: float(parameter.detach().abs().sum()) for name, parameter in model.named_parameters()}
        found = find_importance(model, BATCH, sgd, kind="magnitude")
        assert found == pytest.approx({name: value / max(sums.values()) for name, value in sums.items()})

    def test_gradient(self):
        model = small_net().eval()
        gradients = torch.autograd.grad(F.cross_entropy(model(BATCH[0]), BATCH[1]), list(model.parameters()))
        sums = [float(gradient.abs().sum()) for gradient in gradients]
        found = find_importance(model, BATCH, sgd, kind="gradient")
        expected = [value / max(sums) for value in sums]
        assert list(found.values()) == pytest.approx(expected, rel=1e-4, abs=1e-8)

    def test_sparse_gradients(self):
        def build(*, sparse):
            torch.manual_seed(0)
            return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=sparse), nn.Linear(4, 3))

        batch = (torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 2]))

        def plain(parameters):
            return torch.optim.SGD(list(parameters.values()), lr=0.1)

        for kind in ("update", "gradient"):
            dense, sparse = (find_importance(build(sparse=flag), batch, plain, kind=kind) for flag in (False, True))
            assert sparse == pytest.approx(dense, rel=1e-5)

    def test_unused_tensors_are_worth_nothing(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

            def forward(self, inputs):
                return self.used(inputs)

        batch = (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        for kind in ("update", "gradient"):
            found = find_importance(Net(), batch, sgd, kind=kind)
            assert found["unused.weight"] == 0
            assert found["used.weight"] != 0


class TestLeavesNoTrace:
    @pytest.mark.parametrize("mode", ["eval", "train"])
    @pytest.mark.parametrize("kind", ["update", "magnitude", "gradient"])
    def test_bit_for_bit(self, mode, kind):
        model = small_net().train()
        model.norm1.eval()
        model.conv1.weight.requires_grad_(False)
        model.head.weight.grad = torch.ones_like(model.head.weight)
        kept = model.head.weight.grad
        before = state_of(model)
        find_importance(model, BATCH, sgd, kind=kind, mode=mode)
        assert state_of(model) == before
        assert model.head.weight.grad is kept

    def test_after_an_error(self):
        model = small_net().train()
        before = state_of(model)
        with pytest.raises(TrainingError, match=r"conv1\.weight.*lower the learning rate"):
            find_importance(model, BATCH, lambda parameters: sgd(parameters, lr=math.inf), mode="train")
        assert state_of(model) == before
        with pytest.raises(TrainingError, match="finite"):
            find_importance(model, (BATCH[0] * math.nan, BATCH[1]), sgd)
        assert state_of(model) == before

    def test_probing_gives_what_can_have_a_gradient(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
        with torch.no_grad(), probing(model) as parameters:
            assert list(parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
            assert all(parameter.requires_grad for parameter in parameters.values())
            assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"), [({"kind": "random"}, "update, magnitude, gradient"), ({"mode": "test"}, "eval, train")]
)
def test_refuses(options, message):
    with pytest.raises(OptionError, match=message):
        find_importance(small_net(), BATCH, sgd, **options)


def test_needs_labels():
    with pytest.raises(OptionError, match="labels"):
        find_importance(small_net(), BATCH[0], sgd)
