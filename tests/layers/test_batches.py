from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from adabet.errors import ActivationError
from adabet.layers import forward_call, inputs_of, join_samples, sample_count, take_samples

IMAGES, LABELS = torch.arange(24.0).reshape(4, 6), torch.ones(4)
Pair = namedtuple("Pair", "images labels")


@pytest.mark.parametrize(
    "batch", [IMAGES, (IMAGES, LABELS), [IMAGES, LABELS], Pair(IMAGES, LABELS), (IMAGES,), [[IMAGES], LABELS]]
)
def test_the_first_element_is_the_input(batch):
    assert inputs_of(batch) is IMAGES


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("key", ["labels", "label", "label_ids", "target", "targets"])
def test_labels_of_a_mapping_are_dropped(kind, key):
    assert list(inputs_of(kind({key: LABELS, "x": IMAGES}))) == ["x"]
    assert list(inputs_of((kind({"x": IMAGES, key: LABELS}), LABELS))) == ["x"]


@pytest.mark.parametrize("batch", ["abcd", b"abcd", 4, None, (), [], object()])
def test_no_batch(batch):
    with pytest.raises(ActivationError, match=f"expected a batch .*got {type(batch).__name__}|expected"):
        sample_count(inputs_of(batch))


@pytest.mark.parametrize("inputs", [torch.tensor(1.0), {}, {"x": "text"}, [3]])
def test_no_samples(inputs):
    with pytest.raises(ActivationError, match="first axis counts the samples"):
        sample_count(inputs)


class TestTakingAndJoining:
    def test_taking_is_a_view(self):
        part = take_samples(IMAGES, 1, 3)
        assert torch.equal(part, IMAGES[1:3])
        assert part.data_ptr() == IMAGES[1:3].data_ptr()

    def test_what_does_not_count_samples_stays_whole(self):
        inputs = {"x": IMAGES, "table": torch.zeros(9, 2), "scale": torch.tensor(2.0), "name": "text"}
        part = take_samples(inputs, 0, 1)
        assert part["x"].shape == (1, 6)
        assert part["table"] is inputs["table"]
        assert (part["scale"], part["name"]) == (inputs["scale"], "text")

    def test_joining_undoes_taking(self):
        inputs = {"x": IMAGES, "pair": [IMAGES + 1, IMAGES[:, :2]]}
        joined = join_samples([take_samples(inputs, start, start + 2) for start in (0, 2)])
        assert torch.equal(joined["x"], IMAGES)
        assert torch.equal(joined["pair"][1], IMAGES[:, :2])

    def test_other_shapes_are_refused(self):
        with pytest.raises(ActivationError, match=r"one shape, got \(3, 8, 8\) and \(3, 9, 8\)"):
            join_samples([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 9, 8)])

    def test_other_keys_are_refused(self):
        with pytest.raises(ActivationError, match="same keys"):
            join_samples([{"x": IMAGES}, {"y": IMAGES}])


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x, *, more=0):
        return x * self.weight + more


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IMAGES, IMAGES),
        ((IMAGES, LABELS), IMAGES),
        ({"x": IMAGES, "labels": LABELS}, IMAGES),
        ({"x": IMAGES, "more": 1}, IMAGES + 1),
    ],
)
def test_forward_call(batch, expected):
    assert torch.equal(forward_call(Adding(), batch), expected)


def test_forward_call_moves_inputs_to_the_model():
    assert forward_call(Adding().to("meta"), IMAGES).is_meta
