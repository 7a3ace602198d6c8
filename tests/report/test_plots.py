"""Plots say what the data say: values are read back from the drawings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.report.markup import Markup
from adabet.report.plots.axis import linear, logarithmic
from adabet.report.plots.curves import Curve, draw_curves
from adabet.report.plots.frame import line
from adabet.report.plots.labels import WIDTHS, label_places
from adabet.report.plots.rows import BarRow, StripRow, draw_bars, draw_strips
from adabet.report.plots.scatter import WIDE, Point, draw_scatter, frontier
from tests.report.reading import read

finite = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


class TestAxes:
    @given(st.lists(finite, min_size=1, max_size=8))
    def test_a_linear_axis_holds_its_values_and_some_round_ticks(self, values):
        axis = linear(values, "{:g}".format)
        assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
        assert 2 <= len(axis.ticks) <= 7
        steps = {
            round((b - a) / (axis.ticks[1] - axis.ticks[0]), 6)
            for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)
        }
        assert steps == {1.0}

    @given(st.lists(st.floats(1e3, 1e10), min_size=1, max_size=8))
    def test_a_logarithmic_axis_puts_equal_factors_at_equal_distances(self, values):
        values = [*values, WIDE * max(values)]
        axis = logarithmic(values, "{:g}".format)
        assert all(0 < axis.place(value) < 1 for value in values)
        middle = math.sqrt(axis.low * axis.high)
        assert axis.place(middle) == pytest.approx(0.5)
        assert 2 <= len(axis.ticks) <= 10

    def test_a_bound_is_kept(self):
        assert linear([0.95, 0.999], "{:g}".format).high > 1.0
        assert linear([0.95, 0.999], "{:g}".format, high=1.0).high == 1.0
        assert linear([1.0, 1.0], "{:g}".format, high=1.0).high == 1.0
        assert linear([0.2, 0.4], "{:g}".format, low=0.0).low == 0.0


def points_of(markup):
    polyline = read(markup).one("polyline")
    return [tuple(map(float, pair.split(","))) for pair in polyline.attributes["points"].split()]


class TestCurves:
    def test_a_line_goes_through_its_values(self):
        values = [(1, 0.9), (2, 0.4), (3, 0.55)]
        across, up = linear([1, 3], str, low=1, high=3), linear([0.4, 0.9], str)
        for (x, y), (epoch, value) in zip(
            points_of(line(values, across, up, class_="a", height=200)), values, strict=True
        ):
            assert x / 1000 * (across.high - across.low) + across.low == pytest.approx(epoch)
            assert up.high - y / 200 * (up.high - up.low) == pytest.approx(value, abs=1e-4)

    def test_tell_their_ends_and_the_best_epoch(self):
        drawn = read(draw_curves("loss", [Curve("train", [(1, 0.9), (2, 0.5)]), Curve("val", [(1, 0.8), (2, 0.6)])],
                                 text="{:.1f}".format, name="loss", best=2))  # fmt: skip
        told = drawn.one("svg", role="img").one("desc").text
        assert told == "Over 2 epochs: train from 0.9 to 0.5; val from 0.8 to 0.6. The best epoch is 2."
        assert [item.text for item in drawn.one("ul", class_="key").all("li")] == ["train", "val"]

    @pytest.mark.parametrize("epochs", [1, 2, 7, 30, 300])
    def test_the_first_and_the_last_epoch_are_named(self, epochs):
        drawn = draw_curves("a", [Curve("a", [(n + 1, 0.5) for n in range(epochs)])], text=str, name="a")
        texts = [item.text for item in read(drawn).all("text") if item.attributes.get("text-anchor") == "middle"]
        assert texts[0] == "1"
        assert texts[-1] == str(epochs)
        assert len(texts) <= 7

    def test_values_that_are_not_finite_are_left_out(self):
        drawn = draw_curves("a", [Curve("a", [(1, 0.5), (2, math.nan), (3, 0.7)])], text=str, name="a")
        assert len(points_of(Markup(drawn))) == 2


class TestBars:
    def test_parts_are_as_wide_as_they_are_large(self):
        rows = [BarRow("small", {"a": 10, "b": 15}), BarRow("large", {"a": 60, "b": 40})]
        drawn = read(draw_bars(rows, text="{:g}".format))
        widths = [float(part.attributes["width"].rstrip("%")) for part in drawn.all("rect", class_="part")]
        # the first two are swatches of the key
        assert widths[2:] == pytest.approx([10, 15, 60, 40])
        assert [item.one("title").text for item in drawn.all("svg", role="img")] == ["small: 25", "large: 100"]

    def test_a_part_has_the_same_look_in_every_row(self):
        drawn = read(draw_bars([BarRow("x", {"a": 1, "b": 1}), BarRow("y", {"b": 1})], text=str))
        looks = [part.attributes["class"] for part in drawn.all("rect", class_="part")][2:]
        assert looks == ["part fill-1", "part fill-2", "part fill-2"]

    def test_a_limit_beyond_the_bars_is_still_in_the_plot(self):
        drawn = read(draw_bars([BarRow("x", {"a": 50})], text=str, limit=100))
        assert drawn.one("line").attributes["x1"] == "100.000%"
        assert drawn.one("rect", class_="part").attributes["width"] == "50.000%"


class TestStrips:
    def test_cells_are_filled_as_high_as_their_share(self):
        drawn = read(draw_strips([StripRow("x", [0, 0.5, 1, 0], 1.0, "3 of 4", "Trains b, c.")]))
        tracks, filled = drawn.all("rect", class_="track"), drawn.all("rect", class_="heat")
        assert len(tracks) == 5
        whole = float(tracks[0].attributes["height"])
        assert [float(cell.attributes["height"]) / whole for cell in filled] == [0.5, 1, 1]
        # the second layer, the third, and the head at the end
        places = [float(cell.attributes["x"].rstrip("%")) for cell in filled]
        assert places[:2] == [float(track.attributes["x"].rstrip("%")) for track in tracks[1:3]]
        assert places[2] > 97


gains = st.tuples(st.integers(1, 6), st.integers(1, 6))


class TestFrontier:
    @given(st.lists(gains, min_size=1, max_size=9))
    def test_holds_what_nobody_beats(self, values):
        points = [Point(str(index), cost, gain) for index, (cost, gain) in enumerate(values)]
        kept = frontier(points)
        assert kept
        for point in points:
            beaten = any(
                (other.cost < point.cost and other.gain >= point.gain)
                or (other.cost <= point.cost and other.gain > point.gain)
                for other in points
            )
            assert (point in kept) == (not beaten)

    def test_its_points_are_filled_and_told(self):
        points = [Point("cheap", 1e6, 0.7), Point("best", 3e6, 0.9), Point("worse", 4e6, 0.8)]
        drawn = read(
            draw_scatter("t", points, cost="memory", gain="accuracy", cost_text="{:.0f}".format,
                         gain_text="{:.1f}".format, reference="best")
        )  # fmt: skip
        told = drawn.one("svg", role="img").one("desc").text
        assert (
            told
            == "On the frontier, from the least memory: cheap 0.7 at 1000000; best 0.9 at 3000000. 1 more lie below it."
        )
        marks = drawn.one("svg", role="img").all("path", class_="mark")
        assert sorted("hollow" in mark.attributes["class"] for mark in marks) == [False, False, True]
        assert len(drawn.one("ol").all("li")) == 3

    def test_labels_lie_apart(self):
        places = [(0.2, 100.0), (0.23, 104.0), (0.5, 50.0), (0.52, 52.0), (1.0, 10.0)]
        offsets = label_places(places)
        for width in WIDTHS:
            middles = [(x * width + dx, y + dy) for (x, y), (dx, dy) in zip(places, offsets, strict=True)]
            for index, one in enumerate(middles):
                assert all(max(abs(one[0] - other[0]), abs(one[1] - other[1])) > 10 for other in middles[:index])
