import pytest

from adabet.errors import OptionError
from adabet.models import DataConfig


def test_replaced_keeps_what_is_not_given():
    config = DataConfig(input_size=(3, 224, 224), mean=(0.1, 0.2, 0.3), crop_pct=0.9, crop_mode="squash")
    assert config.replaced() == config
    changed = config.replaced(image_size=160, std=0.5, interpolation="bilinear", crop_pct=1.0)
    assert changed.input_size == (3, 160, 160)
    assert changed.mean == config.mean
    assert changed.std == (0.5, 0.5, 0.5)
    assert (changed.interpolation, changed.crop_pct, changed.crop_mode) == ("bilinear", 1.0, "squash")


def test_other_channels_average_the_models_values_but_not_the_users():
    gray = DataConfig(mean=(0.1, 0.2, 0.3)).replaced(channels=1)
    assert gray.input_size == (1, 224, 224)
    assert gray.mean == pytest.approx((0.2,))
    with pytest.raises(OptionError, match="mean of 3 channels, got 2"):
        DataConfig().replaced(mean=(0.1, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (4, 8, 8)}, "1 .gray. or 3 .RGB. channels, got 4"),
        ({"input_size": (3, 0, 8)}, "image_size of at least 1"),
        ({"std": (0.1, 0.0, 0.1)}, "std above zero"),
        ({"crop_pct": 1.5}, "crop_pct in"),
        ({"crop_mode": "stretch"}, "crop_mode center, squash, border"),
        ({"interpolation": "cubic"}, "interpolation nearest"),
    ],
)
def test_values_that_make_no_sense(change, message):
    with pytest.raises(OptionError, match=message):
        DataConfig(**change)
