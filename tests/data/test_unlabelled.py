import numpy as np
import pytest
import torch
from PIL import Image

from adabet.data import unlabelled_batches
from adabet.errors import ActivationError, DataError, OptionError


def save(path, value, *, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), value).save(path)
    return path


def to_tensor(image):
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    """Twenty images in nested folders; each is known by its shade."""
    for shade in range(20):
        save(tmp_path / f"class {shade % 3}" / ("deep" if shade % 2 else ".") / f"{shade}.png", (shade, shade, shade))
    return tmp_path


def shades(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch]


def test_batches_of_eight_from_wherever_they_lie(folder):
    batches, left_out = unlabelled_batches(folder, to_tensor)
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 4, 6), (8, 3, 4, 6), (4, 3, 4, 6)]
    assert sorted(shades(batches)) == list(range(20))
    assert left_out == []


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"), [(5, 8, [5]), (8, 8, [8]), (7, 3, [3, 3, 1]), (99, 20, [20])]
)
def test_as_many_as_asked_for(folder, samples, batch_size, sizes):
    batches, _ = unlabelled_batches(folder, to_tensor, samples=samples, batch_size=batch_size)
    assert list(map(len, batches)) == sizes
    assert len(set(shades(batches))) == sum(sizes)


def test_a_random_choice_that_follows_the_seed(folder):
    draws = [shades(unlabelled_batches(folder, to_tensor, samples=6, seed=seed)[0]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != sorted(draws[0])


def test_only_the_training_images_of_splits(folder, tmp_path):
    for part in ("train", "val", "test"):
        for shade in range(4):
            save(tmp_path / "splits" / part / "a" / f"{shade}.png", (100 if part == "train" else 200,) * 3)
    batches, _ = unlabelled_batches(tmp_path / "splits", to_tensor)
    assert shades(batches) == [100] * 4


def test_what_cannot_be_read_is_named_and_replaced(folder):
    broken = [folder / f"{name}.jpg" for name in ("one", "two")]
    for path in broken:
        path.write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image at all")
    batches, left_out = unlabelled_batches(folder, to_tensor, samples=20)
    assert sorted(shades(batches)) == list(range(20))
    assert {image.path for image in left_out} <= set(broken)
    batches, left_out = unlabelled_batches(folder, to_tensor, samples=22)
    assert sorted(image.path for image in left_out) == broken
    assert all(image.reason for image in left_out)
    assert not any(str(image.path) in image.reason for image in left_out)


def test_only_the_chosen_are_read(folder):
    read = []
    unlabelled_batches(folder, lambda image: read.append(image) or to_tensor(image), samples=5)
    assert len(read) == 5


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_channels(tmp_path, channels, mode):
    save(tmp_path / "gray.png", 7, mode="L")
    save(tmp_path / "palette.gif", 7, mode="P")
    modes = []
    unlabelled_batches(tmp_path, lambda image: modes.append(image.mode) or to_tensor(image), channels=channels)
    assert modes == [mode] * 2


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["broken.png"]])
def test_no_image(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=f"expected images in .*found {len([n for n in content if '.png' in n])} files"):
        unlabelled_batches(tmp_path, to_tensor)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"expected images in .*nowhere"):
        unlabelled_batches(tmp_path / "nowhere", to_tensor)


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": -2}, {"batch_size": 0}])
def test_nothing_asked_for(folder, options):
    with pytest.raises(OptionError, match="samples and batch_size of at least 1"):
        unlabelled_batches(folder, to_tensor, **options)


def test_images_of_unequal_size_that_a_transform_leaves_so(folder):
    Image.new("RGB", (9, 9)).save(folder / "large.png")
    with pytest.raises(ActivationError, match=r"one shape, got \(3, 4, 6\) and \(3, 9, 9\)"):
        unlabelled_batches(folder, to_tensor)
