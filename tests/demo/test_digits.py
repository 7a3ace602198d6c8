"""The demo's data: disjoint parts, and conditions that never change."""

import math

import pytest
import torch

from adabet.demo.digits import load_part, split, user_conditions, warp
from adabet.errors import UnknownNameError

PARTS = ("pretraining", "unlabelled", "labelled", "test")


def test_no_sample_is_in_two_parts():
    everything = torch.cat(list(split().values()))
    assert len(everything.unique()) == len(everything) == 1797 - 9


def test_all_adaptation_comes_after_the_forms_of_pretraining():
    parts = split()
    last = parts.pop("pretraining").max()
    assert all(indices.min() > last for indices in parts.values())


def test_pretraining_ends_where_a_form_begins():
    # Every form starts 0..9, 0..9, 0..9 (one lacks its first 0), then 0, 9, 5, 5.
    from sklearn.datasets import load_digits

    labels = load_digits().target.tolist()
    start = split()["pretraining"].max() + 1
    assert labels[start : start + 34] == [*range(1, 10), *range(10), *range(10), 0, 9, 5, 5, 6]


def test_no_picture_of_pretraining_is_met_again():
    known = {image.numpy().tobytes() for image in load_part("pretraining").images}
    for part in PARTS[1:]:
        assert not known & {image.numpy().tobytes() for image in load_part(part).images}


@pytest.mark.parametrize("part", PARTS)
def test_images_are_grey_24_by_24_with_all_digits(part):
    digits = load_part(part)
    assert digits.images.shape == (len(split()[part]), 1, 24, 24)
    assert digits.images.dtype == torch.float32
    assert digits.images.min() == 0
    assert digits.images.max() == 1
    assert digits.labels.unique().tolist() == list(range(10))


def test_unknown_part_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'labelled'"):
        load_part("labeled")


def test_the_users_conditions_are_the_same_for_a_sample_whatever_its_batch():
    images = load_part("unlabelled").images
    seen = user_conditions(images)
    assert torch.equal(seen, user_conditions(images))
    assert torch.equal(seen[5:7], user_conditions(images[5:7]))


def test_the_users_conditions_thin_tilt_and_fade():
    page = torch.ones(1, 1, 24, 24)
    seen = user_conditions(page)[0, 0]
    assert seen[12, 2] > seen[12, 12] > seen[12, 21], "ink fades to the right"
    assert seen[2, 12] > seen[12, 12] > seen[21, 12], "and downwards"
    assert seen[0, 0] == 0, "a tilted page leaves its corners empty"
    assert user_conditions(0.45 * page).max() < 1e-6, "faint ink is lost"


def test_a_turn_by_a_right_angle_is_exact():
    images = load_part("unlabelled").images
    turned = warp(images, degrees=torch.full((len(images),), 90.0))
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-4)


def test_moving_by_half_a_width_moves_pixels_left_and_up():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = warp(images, degrees=torch.zeros(2), shift=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(moved[0, :, :, :4], images[0, :, :, 4:], atol=1e-5)
    assert torch.allclose(moved[1, :, :4], images[1, :, 4:], atol=1e-5)


def test_scale_above_one_makes_digits_smaller():
    images = load_part("unlabelled").images
    smaller = warp(images, degrees=torch.zeros(40), scale=torch.full((40,), 2.0))
    assert math.isclose(smaller.sum() / images.sum(), 0.25, rel_tol=0.02)
