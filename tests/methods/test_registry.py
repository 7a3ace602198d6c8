import pytest
import torch
from torch import nn

import adabet
from adabet.errors import ActivationError, DataError, LayerError, OptionError, SelectionError, UnknownNameError
from adabet.methods import METHODS, Dynamic, Moment, find_method, rank, select, start
from adabet.methods.registry import optimizer_outside_a_run
from adabet.ranking import Ranking
from tests.cases.models import SMALL, small_images, small_net, state_of

BATCHES = small_images(40, size=8).split(8)
LABELLED = [(batch, torch.arange(8) % 5) for batch in BATCHES]
NAMES = ("adabet", "full", "head", "last-k", "random", "size")


def names(ranked):
    return [item.layer.name for item in ranked]


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_is_described(self, name):
        method = find_method(name)
        assert method.name == name
        assert method.summary
        assert not method.summary.endswith(".")
        assert method.needs
        assert method.source

    def test_ranks_every_layer_and_comes_back_from_json(self, name):
        ranking = rank(small_net(), BATCHES, method=name)
        assert ranking.method == name
        assert names(ranking.layers) == ["conv1", "norm1", "conv2", "norm2", "hidden", "norm3"]
        assert [layer.name for layer in ranking.head] == ["head"]
        assert Ranking.from_json(ranking.to_json()) == ranking

    def test_selects_what_fits_the_model(self, name):
        model = small_net()
        chosen = select(name, model, BATCHES, layer_ratio=0.5)
        chosen.check(model)
        assert chosen.method == name
        assert len(chosen.layers) == {"full": 6, "head": 0}.get(name, 3)
        assert chosen.head == ("head.weight", "head.bias")
        assert chosen == rank(model, BATCHES, method=name).select(layer_ratio=0.5)

    def test_changes_nothing(self, name):
        model = small_net().train()
        before = state_of(model)
        rank(model, BATCHES, method=name)
        assert state_of(model) == before

    def test_takes_the_head_as_a_candidate(self, name):
        ranking = rank(small_net(), BATCHES, method=name, head_as_candidate=True)
        assert names(ranking.layers)[-1] == "head"
        assert ranking.head == ()
        if name == "head":
            with pytest.raises(SelectionError, match="no head to train"):
                ranking.select()
        else:
            ranking.select(layer_ratio=0.2).check(small_net())

    def test_takes_the_options_of_all(self, name):
        ranking = rank(small_net(), BATCHES, method=name, seed=3, head="hidden", tie_norm=True)
        assert names(ranking.layers) == ["conv1", "conv2", "norm3", "head"]
        assert [layer.name for layer in ranking.head] == ["hidden"]
        assert names(rank(small_net(), BATCHES, method=name, blocks=["conv?"]).layers) == names(
            rank(small_net(), BATCHES, method=name).layers
        )

    def test_uses_the_given_forward(self, name):
        ran = []

        def forward(model, batch):
            ran.append(1)
            return model(batch["pixels"])

        rank(small_net(), [{"pixels": batch} for batch in BATCHES], method=name, forward=forward)
        assert ran

    @pytest.mark.parametrize("batches", [[], iter(())])
    def test_refuses_an_empty_loader(self, name, batches):
        with pytest.raises((DataError, ActivationError), match="expected"):
            rank(small_net(), batches, method=name)

    def test_refuses_a_model_with_nothing_trainable(self, name):
        with pytest.raises(LayerError, match="nothing can train"):
            rank(nn.Sequential(nn.Flatten()), BATCHES, method=name)

    def test_refuses_options_that_it_does_not_know(self, name):
        with pytest.raises(OptionError, match=f"'{name}' takes no option 'sampels'; it takes .*seed"):
            rank(small_net(), BATCHES, method=name, sampels=3)

    @pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
    def test_refuses_ratios_that_are_none(self, name, ratio):
        with pytest.raises(OptionError, match="layer_ratio from 0 to 1"):
            select(name, small_net(), BATCHES, layer_ratio=ratio)


def test_registry():
    assert set(NAMES) <= set(METHODS)
    with pytest.raises(UnknownNameError, match="unknown method 'last'; did you mean 'last-k'"):
        rank(small_net(), BATCHES, method="last")
    with pytest.raises(UnknownNameError, match="'adabet'"):
        select("adabett", small_net(), BATCHES)


class TestBaselines:
    def test_full_takes_all_there_is(self):
        case = next(case for case in SMALL if case.name == "timm-vit")
        model = case.build()
        chosen = select("full", model, [case.batch(2)])
        assert sorted(chosen.parameters) == sorted(name for name, _ in model.named_parameters())
        assert chosen.parameter_count == sum(parameter.numel() for parameter in model.parameters())

    def test_head_takes_the_head(self):
        chosen = select("head", small_net(), BATCHES, layer_ratio=1)
        assert chosen.parameters == ("head.weight", "head.bias")

    def test_last_k(self):
        assert select("last-k", small_net(), BATCHES, layer_ratio=0.34).layers == ("hidden", "norm3")

    def test_size_takes_the_smallest_outputs_and_the_earlier_of_equals(self):
        ranking = rank(small_net(), BATCHES, method="size")
        assert names(ranking.order) == ["hidden", "norm3", "conv1", "norm1", "conv2", "norm2"]

    def test_random_follows_the_seed(self):
        orders = [names(rank(small_net(), BATCHES, method="random", seed=seed).order) for seed in range(30)]
        assert orders == [names(rank(small_net(), BATCHES, method="random", seed=seed).order) for seed in range(30)]
        assert {order[0] for order in orders} == set(orders[0])

    @pytest.mark.parametrize("name", ["last-k", "random", "size"])
    def test_have_no_channels(self, name):
        with pytest.raises(SelectionError, match="rank by 'adabet'"):
            select(name, small_net(), BATCHES, channel_ratio=0.5)

    @pytest.mark.parametrize("name", ["full", "head"])
    def test_that_are_fixed_train_whole_layers(self, name):
        chosen = select(name, small_net(), BATCHES, channel_ratio=0.5)
        assert {choice.channels for choice in chosen.choices} == {None}

    def test_with_nothing_but_a_head(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        for name in ("head", "full", "last-k", "random", "size"):
            assert select(name, model, BATCHES, head="1").parameters == ("1.weight", "1.bias")
        with pytest.raises(LayerError, match="none; use the method 'head'"):
            select("adabet", model, BATCHES, head="1")


class TestAgain:
    """A method that ranks, asked again every so many epochs."""

    def moment(self, epoch, step=1):
        return Moment(epoch, step, 10, 7, optimizer_outside_a_run)

    def again(self, model, **options):
        found = start("fisher", model, LABELLED, **options)
        assert isinstance(found, Dynamic)
        return found

    @pytest.mark.parametrize(("every", "epochs"), [(1, list(range(1, 11))), (3, [1, 4, 7, 10]), (20, [1])])
    def test_is_due_at_the_start_of_every_so_many_epochs(self, every, epochs):
        again = self.again(small_net(), every=every)
        due = [(epoch, step) for epoch in range(1, 11) for step in (1, 2, 7) if again.due(self.moment(epoch, step))]
        assert due == [(epoch, 1) for epoch in epochs]

    def test_ranks_the_weights_of_the_moment(self):
        model = small_net()
        again = self.again(model, every=1, layer_ratio=0.34, channel_ratio=0.5)
        first = again.turn(self.moment(1)).selection
        assert first == select("fisher", model, LABELLED, layer_ratio=0.34, channel_ratio=0.5)
        with torch.no_grad():
            model.norm3.weight.zero_()  # no gradient comes past it
        second = again.turn(self.moment(2)).selection
        assert second == select("fisher", model, LABELLED, layer_ratio=0.34, channel_ratio=0.5)
        assert second.layers != first.layers

    def test_takes_the_method_s_own_options(self):
        turn = self.again(small_net(), every=2, mode="channel-sum").turn(self.moment(3))
        assert turn.selection.options["mode"] == "channel-sum"
        assert not turn.fresh
        assert turn.rates == {}

    def test_select_gives_what_it_begins_with(self):
        plain = select("fisher", small_net(), LABELLED, layer_ratio=0.5)
        assert select("fisher", small_net(), LABELLED, layer_ratio=0.5, every=3) == plain

    @pytest.mark.parametrize(("method", "every"), [("fisher", 0), ("fisher", -1), ("tinytl-bias", 1), ("tinytrain", 2)])
    def test_is_for_methods_that_rank_and_whole_epochs(self, method, every):
        with pytest.raises(OptionError, match=f"every={every} with '{method}'"):
            start(method, small_net(), LABELLED, every=every)

    def test_remembers_nothing(self):
        assert self.again(small_net(), every=1).state_dict() == {}


def test_public_functions_are_these():
    assert (adabet.rank, adabet.select) == (rank, select)
