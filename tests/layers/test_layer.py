import dataclasses
import json

import pytest

from adabet.layers import Layer, find_layers
from tests.cases.models import SMALL, small_images, small_net


@pytest.mark.parametrize("case", SMALL[::3], ids=str)
def test_round_trip_through_json(case):
    for layer in find_layers(case.build(), case.batch(1)):
        assert Layer.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer


def test_unknown_fields_are_passed_over():
    layer = next(iter(find_layers(small_net(), small_images(1, size=8))))
    assert Layer.from_dict(layer.to_dict() | {"later": 1}) == layer


def test_layers_are_a_frozen_collection_of_candidates():
    layers = find_layers(small_net(), small_images(1, size=8))
    assert len(layers) == len(list(layers)) == len(layers.candidates) == 6
    assert layers.head_parameters == ("head.weight", "head.bias")
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers.head = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers.candidates[0].name = "other"
