"""Our transforms against timm's and torchvision's for the same configuration, pixel by pixel."""

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image

from adabet.data import transforms
from adabet.errors import OptionError
from adabet.models import DataConfig, load_model

IMAGES = {
    "wide": Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)),
    "tall": Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 180, 3), dtype=np.uint8)),
    "thin": Image.fromarray(np.random.default_rng(2).integers(0, 256, (10, 200, 3), dtype=np.uint8)),
}

CONFIGS = {
    "center": DataConfig((3, 96, 96)),
    "rounded down": DataConfig((3, 64, 64), crop_pct=0.95, interpolation="bilinear"),
    "squash": DataConfig((3, 64, 64), crop_pct=0.9, crop_mode="squash"),
    "border": DataConfig((3, 64, 64), crop_pct=1.0, crop_mode="border"),
    "not square": DataConfig((3, 64, 96), crop_pct=0.9),
    "own normalization": DataConfig((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("case", CONFIGS)
def test_evaluation_is_timms(case, image):
    config = CONFIGS[case]
    reference = timm.data.create_transform(
        input_size=config.input_size,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    ours = transforms(config, train=False)(IMAGES[image])
    assert ours.shape == config.input_size
    torch.testing.assert_close(ours, reference(IMAGES[image]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_evaluation_is_torchvisions(name):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    config = load_model(f"torchvision/{name}").data_config
    ours = transforms(config, train=False)(IMAGES["tall"])
    torch.testing.assert_close(ours, preset(IMAGES["tall"]), rtol=0, atol=1e-6)


def test_every_torchvision_configuration_resizes_as_its_preset():
    for name in torchvision.models.list_models(module=torchvision.models):
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        assert int(crop / (crop / resize)) == resize, name


def test_training_flips_every_second_image():
    config = CONFIGS["center"]
    evaluated = transforms(config, train=False)(IMAGES["wide"])
    train = transforms(config, train=True)
    torch.manual_seed(0)
    drawn = [train(IMAGES["wide"]) for _ in range(100)]
    flipped = sum(torch.equal(image, evaluated.flip(2)) for image in drawn)
    assert flipped + sum(torch.equal(image, evaluated) for image in drawn) == 100
    assert 30 < flipped < 70


def test_a_random_crop_moves_over_the_resized_image():
    config = DataConfig((3, 32, 32), crop_pct=0.5)
    train = transforms(config, train=True, crop="random")
    torch.manual_seed(0)
    first, second = train(IMAGES["tall"]), train(IMAGES["tall"])
    assert first.shape == second.shape == (3, 32, 32)
    assert not torch.equal(first, second)
    assert not train.prepares_like(transforms(config, train=False))
    assert transforms(config, train=False, crop="random").prepares_like(transforms(config, train=True))


def test_the_halves_make_the_whole():
    transform = transforms(CONFIGS["center"], train=False)
    pixels = transform.prepare(IMAGES["wide"])
    assert pixels.dtype == torch.uint8
    assert torch.equal(transform.finish(pixels), transform(IMAGES["wide"]))


def test_gray():
    config = DataConfig((1, 24, 24), mean=(0.0,), std=(1.0,), crop_pct=1.0)
    image = transforms(config, train=False)(IMAGES["wide"].convert("L"))
    assert image.shape == (1, 24, 24)
    assert 0 <= image.min() < image.max() <= 1


def test_unknown_crop():
    with pytest.raises(OptionError, match="crop center or random, got 'left'"):
        transforms(CONFIGS["center"], train=True, crop="left")
