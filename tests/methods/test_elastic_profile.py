import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import CheckpointError, OptionError, TrainingError
from adabet.methods.elastic_graph import walk
from adabet.methods.elastic_profile import Profile, TensorTime, Timer, count_macs, profile_backward
from tests.cases.models import SMALL, small_images, small_net, state_of


def labelled(inputs, count, classes):
    labels = torch.arange(count) % classes
    return {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)


def macs_of(model, batch, **options):
    profile = profile_backward(model, batch, unit="macs", samples=99, **options)
    return {tensor.name: (tensor.t_dw, tensor.t_dy) for tensor in profile.tensors}


class TestMacs:
    """Worked by hand: products, and one for an element of whatever else is computed."""

    def test_linear_layers(self):
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        loss = 4 * 3 + 4 * 3  # log-softmax, and picking the label's entry
        assert macs_of(model, (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))) == {
            "0.weight": (4 * 6 * 5, 0),
            "0.bias": (0, 4 * 5),  # the ReLU behind it
            "2.weight": (4 * 5 * 3, 4 * 5 * 3),
            "2.bias": (0, loss),
        }

    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_convolutions_of_groups(self, groups):
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.Conv2d(6, 12, 3, stride=2, groups=groups), nn.Flatten()
        )
        found = macs_of(model, (torch.randn(2, 2, 9, 9), torch.zeros(2, dtype=torch.long)))
        second = 2 * 12 * 3 * 3 * (6 // groups) * 9
        # only the first weight needs what the second layer passes on
        assert found["0.weight"] == (2 * 6 * 7 * 7 * 2 * 9 + second, 0)
        assert found["1.weight"] == (second, 0)

    def test_transposed_convolutions(self):
        model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten())
        found = macs_of(model, (torch.randn(2, 4, 5, 5), torch.zeros(2, dtype=torch.long)))
        assert found["0.weight"] == (2 * 4 * 5 * 5 * 3 * 9, 0)

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
    def test_a_norm_is_charged_to_its_shift(self, norm):
        model = nn.Sequential(nn.Conv2d(2, 4, 1), norm, nn.ReLU(), nn.Flatten())
        found = macs_of(model, (torch.randn(2, 2, 3, 3), torch.zeros(2, dtype=torch.long)))
        assert found["1.weight"] == (0, 0)
        size = 2 * 4 * 3 * 3
        # the norm, the ReLU and the loss
        assert found["1.bias"] == (0, pytest.approx(4 * size, abs=8))
        assert found["0.bias"] == (0, 0)

    def test_scores_of_attention_are_charged_to_the_last_projection(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.out, self.value, self.key, self.query = (nn.Linear(8, 8) for _ in range(4))

            def forward(self, tokens: Tensor) -> Tensor:
                query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
                return self.out((query @ key.transpose(1, 2)).softmax(-1) @ value).mean(1)

        found = macs_of(Attention(), (torch.randn(3, 5, 8), torch.tensor([0, 1, 2])))
        places, scores = 3 * 5 * 8, 3 * 5 * 5
        # in the order of use, not of definition
        assert [name for name in found if name.endswith("weight")] == [
            "query.weight",
            "key.weight",
            "value.weight",
            "out.weight",
        ]
        assert found["value.bias"] == (0, 4 * scores * 8 + scores)
        assert found["query.weight"] == (places * 8, 0)
        assert found["out.weight"] == (places * 8, places * 8)

    def test_sums_of_gradients_are_charged_too(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, inputs: Tensor) -> Tensor:
                features = self.first(inputs)
                return features + self.second(features)

        found = macs_of(Residual(), (torch.randn(4, 6), torch.zeros(4, dtype=torch.long)))
        # both ways back meet at the first layer's output; which of them comes second is the walk's choice
        assert found["second.weight"][1] + found["second.bias"][1] == 4 * 6 * 6 + 4 * 6 + 2 * 4 * 6

    def test_same_at_each_call(self):
        batch = (small_images(4, size=8), torch.arange(4))
        assert profile_backward(small_net(), batch, unit="macs") == profile_backward(small_net(), batch, unit="macs")


class TestWalk:
    @pytest.mark.parametrize("case", SMALL, ids=str)
    def test_gives_every_gradient_and_counts_all_tensors(self, case):
        """Whatever the layers, the pieces add up to the whole backward pass: they give the same gradients."""
        model = case.build().eval()
        inputs = case.batch(2)
        with torch.random.fork_rng():
            output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        loss = (output if isinstance(output, Tensor) else output.logits).square().mean()
        parameters = dict(model.named_parameters())
        names = list(parameters)
        expected = dict(
            zip(
                names, torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True), strict=True
            )
        )
        found: dict[tuple[int, ...], list[Tensor]] = {}

        def meter(piece, incoming):
            gradients = piece()
            for gradient in gradients:
                if gradient is not None:
                    found.setdefault(tuple(gradient.shape), []).append(gradient)
            return 1.0, gradients

        times = walk(loss, parameters, (), meter)
        assert sorted(times) == sorted(name for name in names if expected[name] is not None)
        for name, gradient in expected.items():
            if gradient is not None:
                near = [torch.allclose(other, gradient, rtol=1e-4, atol=1e-7) for other in found[tuple(gradient.shape)]]
                assert any(near), name

    def test_a_function_in_python_is_counted_once(self):
        class Product(torch.autograd.Function):
            @staticmethod
            def forward(context, left, right):
                context.save_for_backward(left, right)
                return left * right

            @staticmethod
            def backward(context, gradient):
                left, right = context.saved_tensors
                return gradient * right, gradient * left

        first, second, third = (torch.ones(3, requires_grad=True) for _ in range(3))
        loss = Product.apply(first + second, third).sum()

        def meter(piece, incoming):
            gradients = piece()
            return 0.0 if gradients[0].numel() == 1 else 6.0, gradients

        times = walk(loss, {"a.w": first, "b.w": second, "c.w": third}, (), meter)
        # the sum is passed on to the product, whose halves are charged 3 each; the addition is charged once
        assert times == {"a.w": (6.0, 0.0), "b.w": (0.0, 0.0), "c.w": (3.0, 3.0 + 6.0)}

    def test_a_function_in_python_with_spare_outputs_and_arguments(self):
        class Halves(torch.autograd.Function):
            @staticmethod
            def forward(context, values, factor, shift):
                return values * factor + shift, values.sum() * factor

            @staticmethod
            def backward(context, gradient, spare):
                assert spare.shape == ()
                return gradient * 2 + spare, None, gradient.sum_to_size(3)

        first, shift = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        seen = []

        def meter(piece, incoming):
            found = piece()
            seen.extend(gradient.tolist() for gradient in found if gradient.shape == (3,))
            return 1.0, found

        loss = Halves.apply(first * 5, 2, shift)[0].sum()
        assert list(walk(loss, {"first": first, "shift": shift}, (), meter)) == ["first", "shift"]
        # ones from the sum, then the function's two gradients, then that of the factor before it
        assert seen == [[1.0] * 3, [2.0] * 3, [1.0] * 3, [10.0] * 3]

    def test_unused_and_shared_tensors(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused, self.twice = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.twice(self.twice(inputs).relu())

        profile = profile_backward(Net(), (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)), unit="macs")
        assert profile.names == ("twice.weight",)


class Clock:
    """Time that only passes where it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


class Slow(nn.Module):
    """Takes time forward and backward."""

    def __init__(self, clock, forward, backward):
        super().__init__()

        class Wait(torch.autograd.Function):
            @staticmethod
            def forward(context, inputs):
                clock.now += forward
                return inputs.view_as(inputs)

            @staticmethod
            def backward(context, gradient):
                clock.now += backward
                return gradient

        self.wait = Wait.apply

    def forward(self, inputs):
        return self.wait(inputs)


class TestSeconds:
    def test_times_what_runs(self):
        clock = Clock()
        model = nn.Sequential(
            nn.Linear(3, 4), Slow(clock, 1, 2), nn.Linear(4, 4), nn.ReLU(), Slow(clock, 10, 20), nn.Linear(4, 2)
        )
        batch = (torch.randn(9, 3), torch.zeros(9, dtype=torch.long))
        profile = profile_backward(model, batch, clock=clock)
        assert (profile.unit, profile.samples, profile.device) == ("seconds", 4, "cpu")
        assert (profile.forward, profile.backward) == (11, 22)
        taken = {tensor.name: (tensor.t_dw, tensor.t_dy) for tensor in profile.tensors}
        assert {name: times for name, times in taken.items() if times != (0, 0)} == {
            "0.bias": (0, 2),
            "2.bias": (0, 20),
        }
        assert profile.total == profile.backward

    def test_the_fastest_of_the_runs_that_count(self):
        clock = Clock()
        durations = iter([1, 1, 3, 2, 100])

        def piece():
            clock.now += next(durations)
            return (None,)

        assert Timer(torch.device("cpu"), 2, 3, clock)(piece, ()) == (2, (None,))

    def test_what_the_engine_takes_by_itself_is_taken_off(self):
        """Every reading of the clock is a second after the one before: all that is measured apart is overhead."""
        ticks = itertools.count()
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        batch = (torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
        profile = profile_backward(model, batch, clock=lambda: float(next(ticks)))
        taken = {tensor.name: (tensor.t_dw, tensor.t_dy) for tensor in profile.tensors}
        # one transpose of each weight, and the two nodes of the loss
        assert taken == {"0.weight": (1, 0), "0.bias": (0, 0), "1.weight": (1, 0), "1.bias": (0, 2)}

    def test_on_the_real_clock(self):
        profile = profile_backward(small_net(), (small_images(4, size=8), torch.arange(4)), warm_up=0, repeats=1)
        assert profile.forward > 0
        assert profile.backward > 0
        assert profile.total > 0
        assert min(*profile.t_dw, *profile.t_dy) >= 0
        assert profile.names == tuple(name for name, _ in small_net().named_parameters())


class TestProfile:
    @pytest.mark.parametrize("unit", ["seconds", "macs"])
    @pytest.mark.parametrize("train", [False, True])
    def test_changes_nothing(self, unit, train):
        model = small_net().train()
        model.conv1.weight.requires_grad_(False)
        model.head.weight.grad = torch.ones_like(model.head.weight)
        before = state_of(model)
        batch = (small_images(4, size=8), torch.arange(4))
        profile = profile_backward(model, batch, unit=unit, train=train, warm_up=0, repeats=1)
        assert state_of(model) == before
        assert "conv1.weight" in profile.names

    def test_takes_the_users_loss(self):
        batch = (torch.randn(4, 6), torch.randn(4, 2))
        assert macs_of(nn.Linear(6, 2), batch, loss=F.mse_loss)["weight"] == (4 * 6 * 2, 0)

    def test_json(self):
        profile = Profile((TensorTime("a.weight", 1.0, 2.0),), "seconds", 4, "cpu", 1.0, 3.0)
        assert Profile.from_json(profile.to_json()) == profile
        with pytest.raises(CheckpointError, match="kind"):
            Profile.from_json("{}")
        with pytest.raises(CheckpointError, match="lacks"):
            Profile.from_json(profile.to_json().replace('"t_dw"', '"own"'))

    def test_text(self):
        profile = Profile((TensorTime("a.weight", 1.0, 0.0), TensorTime("a.bias", 0.0, 3.0)), "macs", 4, "cpu")
        assert str(profile).splitlines() == [
            "backward pass over 4 samples on cpu: 4 macs",
            "tensor    own gradient  passing on",
            "a.weight        25.00%       0.00%",
            "a.bias           0.00%      75.00%",
        ]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"unit": "hours"}, "seconds, macs"), ({"samples": 0}, "at least 1"), ({"warm_up": -1}, "0")],
    )
    def test_refuses(self, options, message):
        with pytest.raises(OptionError, match=message):
            profile_backward(nn.Linear(2, 2), (torch.randn(2, 2), torch.arange(2)), **options)

    def test_needs_labels(self):
        with pytest.raises(OptionError, match="labels"):
            profile_backward(nn.Linear(2, 2), torch.randn(2, 2))

    def test_needs_a_loss_that_depends_on_something(self):
        with pytest.raises(TrainingError, match="trainable"):
            profile_backward(nn.Linear(2, 2), (torch.randn(2, 2), torch.arange(2)), loss=lambda *_: torch.zeros(()))


def test_counting_takes_views_as_free():
    value = torch.ones(3, 4)
    assert count_macs(lambda: (value.t(),), (value,))[0] == 0
    assert count_macs(lambda: (value * 2,), (value,))[0] == 12
    assert count_macs(lambda: (value @ value.t(),), (value,))[0] == 36
    assert count_macs(lambda: (None,), (value,))[0] == 0
