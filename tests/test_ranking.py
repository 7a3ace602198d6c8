import dataclasses
import json
import math
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import CheckpointError, OptionError, SelectionError
from adabet.layers import Fingerprint, Layer
from adabet.ranking import RankedLayer, Ranking
from adabet.selection import Selection

FINGERPRINT = Fingerprint("Net", 4, 100, "0123456789abcdef")


def layer(name, *, kind="convolution", channels=10, head=False):
    return Layer(
        name=name,
        kind=kind,
        parameters=(f"{name}.weight", f"{name}.bias"),
        parameter_count=40 * channels,
        input_size=5,
        output_size=7,
        in_channels=2 * channels,
        out_channels=channels,
        channel_axis=-3,
        macs=9,
        calls=1,
        output_module=name,
        input_shape=(1, 5),
        output_shape=(1, 7),
        head=head,
    )


HEAD = layer("head", kind="linear", head=True)


def ranking_of(scores, **values):
    ranked = tuple(RankedLayer(layer(f"l{index}"), float(score)) for index, score in enumerate(scores))
    return Ranking(**{"method": "test", "layers": ranked, "head": (HEAD,), "fingerprint": FINGERPRINT, **values})


finite = st.floats(-1e9, 1e9)
layers = st.builds(
    Layer,
    name=st.text(max_size=8),
    kind=st.sampled_from(["convolution", "norm", "attention"]),
    parameters=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    parameter_count=st.integers(0, 2**40),
    input_size=st.integers(0, 2**40),
    output_size=st.integers(0, 2**40),
    in_channels=st.none() | st.integers(1, 9999),
    out_channels=st.none() | st.integers(1, 9999),
    channel_axis=st.none() | st.integers(-4, -1),
    macs=st.integers(0, 2**60),
    calls=st.integers(1, 9),
    output_module=st.text(max_size=8),
    input_shape=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    output_shape=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    head=st.booleans(),
)
rankings = st.builds(
    Ranking,
    method=st.text(max_size=8),
    layers=st.lists(
        st.builds(
            RankedLayer,
            layer=layers,
            score=finite,
            cost=st.floats(0.1, 1e9),
            spread=finite,
            channel_scores=st.none() | st.lists(finite, max_size=4).map(tuple),
        ),
        max_size=5,
    ).map(tuple),
    head=st.lists(layers, max_size=2).map(tuple),
    fingerprint=st.builds(Fingerprint, st.text(max_size=5), st.integers(0), st.integers(0), st.text(max_size=5)),
    unranked=st.lists(layers, max_size=2).map(tuple),
    samples=st.integers(0, 999),
    agreement=st.just(math.nan) | st.floats(-1, 1),
    score_agreement=st.just(math.nan) | st.floats(-1, 1),
    notes=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    options=st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
    fixed_ratio=st.none() | st.floats(0, 1),
    channel_axis=st.sampled_from([None, "out", "in"]),
)


class TestOrder:
    def test_best_first(self):
        assert [ranked.layer.name for ranked in ranking_of([1, 5, 3]).order] == ["l1", "l2", "l0"]

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    def test_ties_go_to_the_earlier_layer(self, scores):
        ranking = ranking_of(scores)
        expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        assert [ranked.layer.name for ranked in ranking.order] == [f"l{index}" for index in expected]

    def test_priority_is_score_over_cost(self):
        cheap = RankedLayer(layer("cheap"), 2.0, cost=1.0)
        dear = RankedLayer(layer("dear"), 9.0, cost=10.0)
        ranking = ranking_of([], layers=(dear, cheap))
        assert [ranked.priority for ranked in ranking.order] == [2.0, 0.9]


class TestCount:
    @given(st.floats(0, 1), st.integers(1, 500))
    def test_is_at_least_one_and_rounded_down(self, ratio, total):
        found = ranking_of([0] * total).count(ratio)
        assert 1 <= found <= total
        assert found in {max(1, math.floor(ratio * total)), max(1, math.floor(ratio * total + 1e-9))}

    @given(st.integers(1, 400), st.integers(0, 400))
    def test_of_a_fraction_is_its_numerator(self, total, count):
        count = min(count, total)
        assert ranking_of([0] * total).count(count / total) == max(1, count)

    @pytest.mark.parametrize(
        ("ratio", "total", "count"), [(0.29, 100, 29), (0.1, 106, 10), (0.1, 9, 1), (0, 9, 1), (1, 9, 9)]
    )
    def test_examples(self, ratio, total, count):
        assert ranking_of([0] * total).count(ratio) == count

    @pytest.mark.parametrize("ratio", [-0.1, 1.0001, math.nan, math.inf, -math.inf])
    def test_of_no_ratio(self, ratio):
        for act in (lambda ranking: ranking.count(ratio), lambda ranking: ranking.select(layer_ratio=ratio)):
            with pytest.raises(OptionError, match="layer_ratio from 0 to 1, got"):
                act(ranking_of([1, 2]))

    @pytest.mark.parametrize("fixed", [0.0, 1.0])
    def test_of_methods_that_take_a_fixed_share(self, fixed):
        assert ranking_of([1] * 7, fixed_ratio=fixed).count(0.5) == fixed * 7


class TestSelect:
    def test_takes_the_best_in_order_of_the_forward_pass(self):
        selection = ranking_of([1, 9, 3, 8, 2]).select(layer_ratio=0.6)
        assert selection.layers == ("l1", "l2", "l3")
        assert selection.head == HEAD.parameters
        assert selection.parameters[-2:] == HEAD.parameters
        assert selection.candidates == 5
        assert selection.options["layer_ratio"] == 0.6

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_ratio_takes_more_of_the_same(self, scores, left, right):
        small, large = sorted((left, right))
        ranking = ranking_of(scores)
        assert set(ranking.select(layer_ratio=small).layers) <= set(ranking.select(layer_ratio=large).layers)

    def test_the_head_always_trains(self):
        for ratio in (0, 0.5, 1):
            assert [
                choice.layer for choice in ranking_of([3, 2, 1]).select(layer_ratio=ratio).choices if choice.head
            ] == ["head"]

    def test_without_a_head_there_is_none(self):
        assert ranking_of([1, 2], head=()).select(layer_ratio=0.5).head == ()

    def test_only_full_takes_what_has_no_output(self):
        token = layer("", kind="parameter")
        assert "" in ranking_of([1, 2], unranked=(token,), fixed_ratio=1.0).select().layers
        assert "" not in ranking_of([1, 2], unranked=(token,)).select(layer_ratio=1).layers

    def test_nothing_at_all(self):
        with pytest.raises(SelectionError, match="'test' selects nothing: the model has no head"):
            ranking_of([1, 2], head=(), fixed_ratio=0.0).select()


class TestChannels:
    def ranking(self, scores, *, axis="out", kind="convolution"):
        size = len(scores) if axis == "out" else len(scores) // 2
        ranked = RankedLayer(layer("conv", kind=kind, channels=size), 5.0, channel_scores=tuple(map(float, scores)))
        return ranking_of([], layers=(ranked,), channel_axis=axis)

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.001, 1))
    def test_best_first_and_ties_to_the_lower_index(self, scores, ratio):
        (choice, _) = self.ranking(scores).select(layer_ratio=1, channel_ratio=ratio).choices
        if ratio == 1:
            assert choice.channels is None
            return
        count = max(1, math.floor(ratio * len(scores) + 1e-9))
        expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]
        assert choice.channels == tuple(sorted(expected))
        assert choice.axis == "out"
        assert choice.parameter_count == 40 * count

    def test_of_the_inputs(self):
        (choice, _) = self.ranking([1, 4, 2, 3], axis="in").select(layer_ratio=1, channel_ratio=0.5, axis="in").choices
        assert (choice.channels, choice.axis) == ((1, 3), "in")

    def test_the_head_trains_whole(self):
        selection = self.ranking([1, 4, 2, 3]).select(layer_ratio=1, channel_ratio=0.5)
        assert selection.choices[-1].head
        assert selection.choices[-1].channels is None

    @pytest.mark.parametrize("kind", ["attention", "embedding", "recurrent", "parameter", "other"])
    def test_other_kinds_train_whole(self, kind):
        assert self.ranking([1, 2], kind=kind).select(channel_ratio=0.5).choices[0].channels is None

    @pytest.mark.parametrize(("scored", "asked"), [("out", "in"), ("in", "out")])
    def test_of_the_other_axis_are_not_there(self, scored, asked):
        with pytest.raises(SelectionError, match=f"no scores for the {asked}put channels of 'conv'"):
            self.ranking([1, 4, 2, 3], axis=scored).select(channel_ratio=0.5, axis=asked)

    def test_that_were_not_looked_at(self):
        with pytest.raises(SelectionError, match="rank by 'adabet' with axis='out' and channels="):
            ranking_of([1, 2]).select(channel_ratio=0.5)

    @pytest.mark.parametrize("ratio", [0, -0.5, 1.5, math.nan])
    def test_of_no_ratio(self, ratio):
        with pytest.raises(OptionError, match="channel_ratio above 0 and up to 1, got"):
            ranking_of([1]).select(channel_ratio=ratio)

    def test_of_no_axis(self):
        with pytest.raises(OptionError, match="axis of 'out' or 'in', got 'up'"):
            ranking_of([1]).select(axis="up")


class TestJson:
    @given(rankings)
    def test_round_trip(self, ranking):
        text = ranking.to_json()
        again = Ranking.from_json(text)
        assert again == ranking
        assert again.to_json() == text
        json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON

    @given(st.data())
    def test_what_is_damaged_is_refused_or_read_but_never_crashes(self, data):
        values = json.loads(ranking_of([1, 2], unranked=(layer(""),)).to_json())
        place, path = values, []
        while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            path.append((place, key))
            place = place[key]
        inside, key = path[-1]
        junk = st.none() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([[1]])
        if data.draw(st.booleans()):
            inside[key] = data.draw(junk)
        else:
            del inside[key]
        with suppress(CheckpointError):
            Ranking.from_json(json.dumps(values))

    def test_another_kind(self):
        with pytest.raises(CheckpointError, match="kind 'adabet/ranking', got 'adabet/selection'"):
            Ranking.from_json(ranking_of([1]).select().to_json())

    def test_an_unknown_field(self):
        values = json.loads(ranking_of([1]).to_json())
        with pytest.raises(CheckpointError, match=r"lacks or misnames a field: .*later"):
            Ranking.from_json(json.dumps(values | {"later": 1}))

    def test_selects_the_same_afterwards(self):
        ranking = ranking_of([4, 4, 1, 9])
        assert Ranking.from_json(ranking.to_json()).select(layer_ratio=0.5) == ranking.select(layer_ratio=0.5)


def test_is_frozen():
    ranking = ranking_of([1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking.method = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking.layers[0].score = 3.0


def test_notes_are_added_to_a_copy():
    ranking = ranking_of([1], notes=("first",))
    assert ranking.with_note("second").notes == ("first", "second")
    assert ranking.notes == ("first",)


def test_prints_as_a_table():
    ranking = ranking_of([1, 12], samples=40, notes=("a note",), method="adabet")
    text = replace(
        ranking, layers=(*ranking.layers, RankedLayer(layer("last"), 20.0, cost=1e6, spread=2.345))
    ).__str__()
    assert text.splitlines() == [
        "adabet: 3 layers from 40 samples, best first",
        "layer  kind         score  spread   cost  priority",
        "l1     convolution     12     0.0      1        12",
        "l0     convolution      1     0.0      1         1",
        "last   convolution     20     2.3  1e+06     2e-05",
        "- a note",
    ]


def test_selections_are_selections():
    assert isinstance(ranking_of([1]).select(), Selection)
