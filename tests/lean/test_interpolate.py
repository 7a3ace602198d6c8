import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean import lean
from tests.lean.against_stock import compare

AREAS = {
    "sequences": ((2, 3, 9), {"size": 4}),
    "images": ((2, 3, 8, 7), {"size": (3, 5)}),
    "images to one size": ((2, 3, 8, 7), {"size": 4}),
    "images to one pixel": ((2, 3, 8, 7), {"size": 1}),
    "images by a factor": ((2, 3, 8, 7), {"scale_factor": 0.5}),
    "images by factors": ((2, 3, 8, 7), {"scale_factor": (0.5, 2.0)}),
    "volumes": ((2, 3, 4, 6, 5), {"size": (2, 3, 2)}),
}
MODES = {
    "nearest": {},
    "nearest-exact": {},
    "bilinear": {"align_corners": True},
    "bicubic": {"antialias": True},
}


@pytest.mark.parametrize(("shape", "options"), AREAS.values(), ids=AREAS)
def test_area_keeps_nothing(shape, options) -> None:
    _, thin = compare(lambda x: F.interpolate(x, mode="area", **options), torch.randn(shape, requires_grad=True))
    assert thin == 0


@pytest.mark.parametrize(("mode", "options"), MODES.items(), ids=MODES)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_other_modes_keep_nothing_as_in_stock(mode: str, options, scale: float) -> None:
    def resize(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=scale, mode=mode, **options)

    stock, thin = compare(resize, torch.randn(2, 3, 8, 6, requires_grad=True))
    assert thin == stock == 0


def test_area_of_channels_last() -> None:
    x = torch.randn(2, 3, 8, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert compare(lambda x: F.interpolate(x, (3, 4), mode="area"), x)[1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 2, "scale_factor": 2.0},
        {"size": (2, 2, 2)},
        {"scale_factor": (2.0,)},
        {"size": 2, "align_corners": True},
        {"size": 2, "antialias": True},
        {"size": 2, "recompute_scale_factor": True},
    ],
)
def test_stock_refuses_what_it_refuses(options) -> None:
    x = torch.randn(2, 3, 8, 6, requires_grad=True)
    with pytest.raises((ValueError, RuntimeError)) as stock:
        F.interpolate(x, mode="area", **options)
    with lean(), pytest.raises(stock.type):
        F.interpolate(x, mode="area", **options)
