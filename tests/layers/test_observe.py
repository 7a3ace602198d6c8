import pytest
import torch

from adabet.layers import observing
from tests.cases.models import small_images, small_net, state_of


@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(fails):
    model = small_net().train()
    model.norm1.eval()
    before = state_of(model)
    ran = []
    try:
        with observing(model) as handles:
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            handles.append(model.conv1.register_forward_hook(lambda *_: ran.append(1)))
            model(small_images(2, size=8))
            torch.rand(3)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert ran == [1]
    assert state_of(model) == before


def test_gradients_stay_off_if_they_were():
    with torch.no_grad(), observing(small_net()):
        pass
    with torch.no_grad():
        with observing(small_net()):
            pass
        assert not torch.is_grad_enabled()
