"""The picture of memory by category."""

import sys
from pathlib import Path

import pytest

from adabet.errors import MissingExtraError, OptionError
from adabet.memory import MemoryReport, Peak
from adabet.report import memory_plot
from adabet.report.memory_plot import draw_memory

pytest.importorskip("matplotlib")


def report(training: Peak, *, inference: Peak | None = None, lean: bool = True) -> MemoryReport:
    return MemoryReport(
        model="Net",
        device="cpu",
        batch_size=8,
        micro_batch=8,
        lean=lean,
        recompute=False,
        optimizer="sgd momentum",
        trainable=100,
        training=training,
        inference=inference,
        saved=0,
        layers={},
    )


PEAK = Peak(10_000_000, 200_000, 3_000_000, 4_000_000, 50_000_000, 6_000_000)
REPORTS = {
    "everything": report(PEAK, inference=Peak(10_000_000, 200_000, 0, 0, 0, 7_000_000)),
    "a name that is too long to stand beside its bar in one line": report(PEAK, lean=False),
}


@pytest.mark.parametrize(("name", "start"), [("bars.png", b"\x89PNG"), ("bars.svg", b"<?xml"), ("bars.PDF", b"%PDF")])
def test_a_picture_is_written(tmp_path: Path, name: str, start: bytes) -> None:
    draw_memory(REPORTS, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_bars_stack_to_the_peak_and_say_so() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_axes((0, 0, 1, 1))
    memory_plot._draw_rows(axes, [PEAK, Peak(1_000_000, 0, 0, 0, 0, 0)])
    first = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [bar.get_width() for bar in first] == [10e6, 0.2e6, 3e6, 4e6, 50e6, 6e6]
    assert max(bar.get_x() + bar.get_width() for bar in first) == PEAK.total
    texts = [text.get_text() for text in axes.texts]
    assert "73.2 MB" in texts
    assert "50 MB" in texts
    assert "200 kB" not in texts, "too narrow a part for its label"


def test_only_what_all_reports_share_is_their_setting() -> None:
    assert memory_plot._setting(REPORTS) == "batch 8, sgd momentum, cpu"


def test_colours_are_told_apart_in_grey_and_by_hue() -> None:
    assert list(memory_plot.COLOURS) == list(memory_plot.CATEGORIES)
    assert len(set(memory_plot.COLOURS.values())) == len(memory_plot.COLOURS)


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="got 0 and"):
        draw_memory({}, tmp_path / "bars.png")
    with pytest.raises(OptionError, match=r"ends in \.pdf, \.png, \.svg"):
        draw_memory(REPORTS, tmp_path / "bars.gif")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"adabet\[plots\]"):
        draw_memory(REPORTS, tmp_path / "bars.png")
    assert list(tmp_path.iterdir()) == []
