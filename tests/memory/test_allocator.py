"""The recorder against what was really allocated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from adabet.errors import TrainingError
from adabet.memory import measure_peak, record_allocations

FLOATS = 4


def start_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3)), min_size=1, max_size=25))
@settings(max_examples=40, deadline=None)
def test_peak_of_any_order_of_allocations_and_releases(actions: list[tuple[int, int]]) -> None:
    held: list[torch.Tensor] = []
    level = peak = 0
    with record_allocations() as recording:
        for elements, releases in actions:
            held.append(torch.empty(elements, dtype=torch.uint8))
            level += elements
            peak = max(peak, level)
            for _ in range(min(releases, len(held))):
                level -= held.pop(0).numel()
    found, alive = recording.peak()
    assert found == peak
    assert sum(block.size for block in alive) == peak
    assert sum(block.size for block in recording.blocks if block.stop is None) == level


def test_intermediate_results_count() -> None:
    def chain() -> torch.Tensor:
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        return torch.cat([second, second])

    assert measure_peak(chain) == (2000 + 4000) * FLOATS


def test_released_memory_of_before_is_no_credit() -> None:
    before = [torch.empty(100_000)]

    def replace() -> None:
        before.clear()
        before.append(torch.empty(10))

    assert measure_peak(replace) == 10 * FLOATS


def test_scratch_inside_a_kernel_counts() -> None:
    # In double precision the convolution unfolds its input: 3 channels x 9 taps a position, beside 4 outputs.
    x, weight = torch.randn(2, 3, 10, 10, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    positions = 2 * 8 * 8
    assert measure_peak(lambda: F.conv2d(x, weight)) == positions * (3 * 9 + 4) * 8


def test_a_region_inside_another_sees_only_its_own_part() -> None:
    with record_allocations() as outer:
        first = torch.empty(100)
        with record_allocations() as inner:
            second = torch.empty(20)
            del first
        third = torch.empty(3)
    assert [block.size for block in outer.blocks] == [400, 80, 12]
    assert [block.size for block in inner.blocks] == [80]
    assert outer.peak()[0] == 480
    assert inner.peak()[0] == 80
    assert second.numel() + third.numel() == 23


def test_marks_name_the_block_of_their_moment_not_a_later_one_at_the_same_address() -> None:
    labels = [str(number) for number in range(30)]
    with record_allocations() as recording:
        for label in labels:
            block = torch.empty(1000)
            recording.mark(label, [start_of(block)])
            recording.mark("late", [start_of(block)])
            del block
    assert [block.label for block in recording.blocks] == labels
    assert len({block.address for block in recording.blocks}) < 30, "no address was used again"


def test_memory_of_before_the_region_cannot_be_marked() -> None:
    before = torch.empty(10)
    with record_allocations() as recording:
        recording.mark("mine", [start_of(before)])
    assert recording.blocks == []


def test_blocks_can_be_left_out_of_the_peak() -> None:
    with record_allocations() as recording:
        copy = torch.empty(1000)
        recording.mark("copy", [start_of(copy)])
        kept = torch.empty(10)
    assert recording.peak(lambda block: block.label != "copy")[0] == kept.nbytes


def test_the_same_step_gives_the_same_bytes() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    x = torch.randn(4, 3, 16, 16)

    def step() -> None:
        model(x).sum().backward()
        model.zero_grad()

    step()
    assert measure_peak(step) == measure_peak(step) > 0


def test_an_error_inside_ends_the_region() -> None:
    def fail() -> None:
        torch.empty(5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_peak(fail)
    assert measure_peak(lambda: torch.empty(2)) == 2 * FLOATS


def test_another_profiler_is_refused_and_left_running() -> None:
    with torch.autograd.profiler.profile(use_kineto=True) as other:
        with pytest.raises(TrainingError, match="no other torch profiler"):
            measure_peak(lambda: torch.empty(2))
        torch.ones(3)
    assert any(event.name == "aten::ones" for event in other.function_events)
    assert measure_peak(lambda: torch.empty(2)) == 2 * FLOATS


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    measure_peak(lambda: torch.empty(2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_events_and_statistics_agree() -> None:
    def work() -> torch.Tensor:
        x = torch.randn(1 << 20, device="cuda", requires_grad=True)
        (x.sin() * x).sum().backward()
        return x

    work()
    with record_allocations("cuda") as recording:
        work()
    assert recording.statistics is not None
    assert recording.peak()[0] == recording.statistics.bytes == measure_peak(work, device="cuda")
