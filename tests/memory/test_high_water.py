"""Marks that rise, and that regions can share."""

import sys

import pytest
import torch

from adabet.memory.high_water import RESIDENT, HighWater, resident_peak

MEGABYTE = 1_000_000


class Tank:
    """A level whose peak is followed, as the system follows that of memory."""

    def __init__(self) -> None:
        self.level = 10
        self.peak = 10
        self.mark = HighWater(lambda: self.peak, self.lower)

    def set(self, level: int) -> None:
        self.level, self.peak = level, max(self.peak, level)

    def lower(self) -> None:
        self.peak = self.level


def test_a_rise_counts_from_the_start_of_its_region() -> None:
    tank = Tank()
    tank.set(100)
    tank.set(20)
    with tank.mark.watch() as rise:
        tank.set(50)
        tank.set(5)
    assert rise.bytes == 30


def test_an_inner_region_does_not_hide_a_peak_from_the_outer_one() -> None:
    tank = Tank()
    with tank.mark.watch() as outer:
        tank.set(100)
        tank.set(10)
        with tank.mark.watch() as inner:
            tank.set(40)
        tank.set(20)
    assert (outer.bytes, inner.bytes) == (90, 30)


def test_nobody_tells() -> None:
    with HighWater(lambda: None, lambda: None).watch() as rise:
        pass
    assert rise.bytes is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can lower the mark")
def test_resident_memory_rises_with_what_is_written_and_counts_anew() -> None:
    for _ in range(2):
        with RESIDENT.watch() as rise:
            torch.ones(25 * MEGABYTE)
        assert rise.bytes is not None
        assert 0.9 * 100 * MEGABYTE < rise.bytes < 1.5 * 100 * MEGABYTE
    assert (resident_peak() or 0) > 100 * MEGABYTE
