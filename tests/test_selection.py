import dataclasses
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adabet.errors import CheckpointError, SelectionError
from adabet.freezing import apply
from adabet.layers import Fingerprint, fingerprint
from adabet.methods import rank, select
from adabet.selection import Choice, Selection
from tests.cases.models import SmallNet, small_images, small_net

BATCHES = [small_images(8, size=8)]


def selection(model=None, method="last-k", **options):
    return select(method, model or small_net(), BATCHES, **{"layer_ratio": 0.5, **options})


choices = st.builds(
    Choice,
    layer=st.text(max_size=8),
    kind=st.sampled_from(["convolution", "norm"]),
    parameters=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    parameter_count=st.integers(0, 2**40),
    channels=st.none() | st.lists(st.integers(0, 99), max_size=4).map(tuple),
    axis=st.sampled_from(["out", "in"]),
    head=st.booleans(),
)
selections = st.builds(
    Selection,
    method=st.text(max_size=8),
    choices=st.lists(choices, max_size=4).map(tuple),
    fingerprint=st.builds(Fingerprint, st.text(max_size=5), st.integers(0), st.integers(0), st.text(max_size=5)),
    candidates=st.integers(0, 999),
    options=st.dictionaries(st.text(max_size=5), st.none() | st.floats(0, 1) | st.text(max_size=5), max_size=3),
)


class TestJson:
    @given(selections)
    def test_round_trip(self, chosen):
        text = chosen.to_json()
        again = Selection.from_json(text)
        assert again == chosen
        assert again.to_json() == text

    @given(st.data())
    def test_what_is_damaged_is_refused_or_read_but_never_crashes(self, data):
        values = json.loads(selection().to_json())
        place, path = values, []
        while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            path.append((place, key))
            place = place[key]
        inside, key = path[-1]
        inside[key] = data.draw(st.none() | st.integers() | st.text(max_size=3) | st.just([]) | st.just([[1]]))
        with suppress(CheckpointError):
            Selection.from_json(json.dumps(values))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "adabet/selection", "version": 1}'])
    def test_no_selection(self, text):
        with pytest.raises(CheckpointError):
            Selection.from_json(text)

    def test_a_newer_version(self):
        values = json.loads(selection().to_json())
        with pytest.raises(CheckpointError, match=r"version 1 .* got 2"):
            Selection.from_json(json.dumps(values | {"version": 2}))

    def test_fits_the_model_afterwards(self):
        Selection.from_json(selection().to_json()).check(small_net())


class TestParts:
    def test_parameters_are_those_of_the_layers_and_the_head(self):
        chosen = selection()
        assert chosen.layers == ("norm2", "hidden", "norm3")
        assert chosen.head == ("head.weight", "head.bias")
        assert chosen.parameters == (
            "norm2.weight",
            "norm2.bias",
            "hidden.weight",
            "hidden.bias",
            "norm3.weight",
            "norm3.bias",
            "head.weight",
            "head.bias",
        )
        sizes = {name: parameter.numel() for name, parameter in small_net().named_parameters()}
        assert chosen.parameter_count == sum(sizes[name] for name in chosen.parameters)

    def test_is_frozen(self):
        chosen = selection()
        with pytest.raises(dataclasses.FrozenInstanceError):
            chosen.method = "other"
        with pytest.raises(dataclasses.FrozenInstanceError):
            chosen.choices[0].layer = "other"


class TestCheck:
    def test_the_same_architecture_passes(self):
        selection().check(SmallNet())

    def test_another_number_of_classes_passes(self):
        selection(SmallNet(5)).check(SmallNet(77))

    def test_a_selection_without_a_head_holds_the_head_too(self):
        chosen = select("last-k", SmallNet(5), BATCHES, layer_ratio=0.1, head_as_candidate=True)
        chosen.check(SmallNet(5))
        with pytest.raises(SelectionError):
            select("size", SmallNet(5), BATCHES, layer_ratio=0.1, head=None).check(SmallNet(6))

    def test_a_missing_parameter_is_named(self):
        class Renamed(SmallNet):
            def __init__(self):
                super().__init__()
                self.other = self._modules.pop("hidden")

        with pytest.raises(
            SelectionError, match=r"trains 'hidden.weight', which Renamed does not have; .* SmallNet \("
        ):
            selection().check(Renamed())

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: setattr(model, "conv1", nn.Conv2d(3, 12, 5)),
            lambda model: setattr(model, "extra", nn.Linear(1, 1)),
            lambda model: setattr(model, "norm1", nn.Identity()),
            lambda model: setattr(model, "hidden", nn.Linear(13, 20)),
        ],
    )
    def test_another_architecture_is_refused_with_both(self, change):
        model = SmallNet()
        change(model)
        with pytest.raises(SelectionError, match=r"made for another model: expected SmallNet \(.*, got SmallNet \("):
            selection().check(model)

    def test_a_ranking_of_another_model_selects_for_that(self):
        ranking = rank(small_net(), BATCHES, method="size")
        assert ranking.select().fingerprint == fingerprint(small_net(), ("head.weight", "head.bias"))


def test_prints_as_a_table():
    lines = str(selection()).splitlines()
    trained = 24 + (12 * 20 + 20) + 40 + (20 * 5 + 5)
    everything = sum(parameter.numel() for parameter in small_net().parameters())
    assert lines[0] == f"last-k: 3 of 6 layers and the head, {trained} of {everything} parameters train"
    assert lines[1].split() == ["layer", "kind", "channels", "parameters"]
    assert [line.split() for line in lines[2:]] == [
        ["norm2", "norm", "all", "24"],
        ["hidden", "linear", "all", "260"],
        ["norm3", "norm", "all", "40"],
        ["head", "head", "all", "105"],
    ]


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("tie_norm", [False, True])
def test_parameter_count_of_slices_is_what_trains(axis, tie_norm):
    model = small_net()
    chosen = select(
        "adabet", model, [small_images(16, size=8)], layer_ratio=1, channel_ratio=0.5, axis=axis, tie_norm=tie_norm
    )
    with apply(model, chosen):
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert sum(map(torch.numel, trainable)) == chosen.parameter_count
