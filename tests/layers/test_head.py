import pytest
import torch
from torch import nn

from adabet.errors import LayerError
from adabet.layers import find_head, find_layers
from tests.cases.models import SmallNet, small_images


class Timm(nn.Module):
    """Knows its classifier, as timm's models do; another module has a usual name."""

    def __init__(self, answer):
        super().__init__()
        self.fc, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.twin = nn.Linear(3, 2)
        self.answer = answer

    def get_classifier(self):
        return self.answer(self)


@pytest.mark.parametrize(
    ("answer", "head"),
    [
        (lambda model: model.last, ("last",)),
        (lambda model: (model.last, model.twin), ("last", "twin")),
        (lambda model: nn.Identity(), ("fc",)),
        (lambda model: None, ("fc",)),
        (lambda model: nn.Linear(3, 2), ("fc",)),
    ],
)
def test_the_model_is_asked_first(answer, head):
    assert find_head(Timm(answer)) == head


@pytest.mark.parametrize("name", ["classifier", "head", "fc", "score", "lm_head", "qa_outputs"])
def test_usual_names(name):
    model = nn.Module()
    model.body, model.norm = nn.Linear(3, 3), nn.LayerNorm(3)
    setattr(model, name, nn.Linear(3, 2))
    assert find_head(model) == (name,)


def test_of_a_sequential_the_last_linear_layer():
    model = nn.Module()
    model.classifier = nn.Sequential(
        nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.Linear(3, 2)), nn.Softmax()
    )
    assert find_head(model) == ("classifier.2.1",)


def test_where_none_is_named_the_last_part_is_one_if_it_is_linear():
    """As most networks that people write themselves have it."""
    model = nn.Module()
    model.conv1, model.fc1, model.fc2, model.fc3 = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    model.dropout = nn.Dropout()
    assert find_head(model) == ("fc3",)
    assert find_head(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()))) == ("1.0",)
    assert find_head(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))) == ()
    assert find_head(nn.Sequential(nn.Linear(3, 3), SmallNet())) == ()


def test_what_is_last_by_its_place_alone_is_none_if_others_run_after_it():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.embed = nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            return self.norm(self.embed(x))

    assert find_layers(Encoder(), torch.zeros(1, 3)).head == ()
    layers = find_layers(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 3))
    assert [layer.name for layer in layers.head] == ["2"]


def test_a_head_without_parameters_is_none():
    model = nn.Module()
    model.body, model.head = nn.Linear(3, 2), nn.Identity()
    assert find_head(model) == ()


def test_no_head():
    assert find_head(nn.Sequential(nn.Linear(3, 2))) == ()
    assert find_head(SmallNet(), None) == ()


@pytest.mark.parametrize("head", ["hidden", ("hidden",), ["hidden", "head"]])
def test_override(head):
    layers = find_layers(SmallNet(), small_images(1, size=8), head=head)
    assert [layer.name for layer in layers.head] == ([head] if isinstance(head, str) else list(head))
    assert not {layer.name for layer in layers.head} & {layer.name for layer in layers}


@pytest.mark.parametrize("head", ["nowhere", "drop", ["head", "nowhere"], ""])
def test_override_that_is_none(head):
    with pytest.raises(LayerError, match="path of a module with parameters"):
        find_head(SmallNet(), head)


def test_all_inside_a_head_is_head():
    model = nn.Module()
    model.body = nn.Linear(3, 3)
    model.tail = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model.tailor = nn.Linear(2, 2)
    model.forward = lambda x: model.tailor(model.tail(model.body(x)))
    layers = find_layers(model, small_images(2, size=3), head="tail")
    assert [layer.name for layer in layers.head] == ["tail.0", "tail.1", "tail.2"]
    assert [layer.name for layer in layers] == ["body", "tailor"]
    assert layers.head_parameters[:2] == ("tail.0.weight", "tail.0.bias")
