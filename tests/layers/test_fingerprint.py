from torch import nn

from adabet.layers import fingerprint
from tests.cases.models import SmallNet, small_net

HEAD = ("head.weight", "head.bias")


def test_values_do_not_count():
    assert fingerprint(SmallNet()) == fingerprint(small_net())


def test_the_head_does_not_count():
    assert fingerprint(SmallNet(5), HEAD) == fingerprint(SmallNet(9), HEAD)
    assert fingerprint(SmallNet(5)) != fingerprint(SmallNet(9))


def test_shapes_and_names_count():
    plain = fingerprint(nn.Sequential(nn.Linear(4, 6)))
    assert fingerprint(nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(1, 6, bias=False))) != plain
    assert fingerprint(nn.Sequential(nn.Identity(), nn.Linear(4, 6))) != plain
    assert fingerprint(nn.Sequential(nn.Linear(6, 4))).digest != plain.digest


def test_numbers():
    found = fingerprint(SmallNet(), HEAD)
    parameters = [parameter for name, parameter in SmallNet().named_parameters() if name not in HEAD]
    assert (found.model, found.tensors) == ("SmallNet", len(parameters))
    assert found.parameters == sum(parameter.numel() for parameter in parameters)
    assert str(found).startswith(f"SmallNet ({len(parameters)} tensors, ")
