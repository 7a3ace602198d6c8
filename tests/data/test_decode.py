import threading

import numpy as np
import pytest
from PIL import Image

from adabet.data.decode import find_unreadable, read_image
from adabet.errors import DataError

from .making import write_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_colours(mode="RGB", size=(8, 4)):
    """Left half red, right half green."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, size[0], size[1]))
    return image.convert(mode)


def pixel(image, *place):
    value = image.getpixel(place)
    return np.array(value)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".png"), ("P", ".png"), ("P", ".gif"), ("CMYK", ".jpg"), ("RGBA", ".png"), ("RGB", ".webp")],
)
def test_colours_survive_every_mode(tmp_path, mode, suffix):
    path = tmp_path / f"image{suffix}"
    two_colours(mode, size=(32, 32)).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.abs(pixel(image, 4, 16) - RED).max() < 8
    assert np.abs(pixel(image, 28, 16) - GREEN).max() < 8


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_becomes_equal_channels(tmp_path, mode):
    Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "image.png", channels=1).mode == "L"


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", channels=1)
    assert np.asarray(image).tolist() == [[0, 1, 128, 255]]


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(DataError, match="floating-point pixels"):
        read_image(tmp_path / "image.tiff")


def test_transparency_is_put_on_white(tmp_path):
    image = two_colours("RGBA")
    image.putpixel((0, 0), (*RED, 0))
    image.save(tmp_path / "rgba.png")
    read = read_image(tmp_path / "rgba.png")
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 0)) == RED
    palette = two_colours("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    read = read_image(tmp_path / "palette.png")
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(pixel(read, 7, 0) - GREEN).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, orientation):
    upright = two_colours(size=(64, 32))
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "photo.jpg")
    assert image.size == (64, 32)
    assert np.abs(pixel(image, 8, 16) - RED).max() < 16
    assert np.abs(pixel(image, 56, 16) - GREEN).max() < 16


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixel(read_image(tmp_path / "moving.gif"), 0, 0) - RED).max() < 8


def broken_files(folder):
    """Files that cannot be read, each in another way, by name."""
    whole = write_image(folder / "whole.jpg", size=(64, 64)).read_bytes()
    lossless = write_image(folder / "whole.png", size=(64, 64)).read_bytes()
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "half.jpg": whole[: len(whole) // 2],
        "half.png": lossless[: len(lossless) // 2],
        "header.png": lossless[:40],
        "flipped.png": lossless[:200] + bytes(200) + lossless[400:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_broken_files_are_told_with_a_reason(tmp_path):
    for path in [*broken_files(tmp_path), tmp_path / "missing.jpg"]:
        with pytest.raises(DataError, match=f"{path.name} cannot be read as an image: .+") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_unreadable_files_are_found_in_threads(tmp_path):
    paths = [*broken_files(tmp_path), tmp_path / "whole.jpg", tmp_path / "whole.png"]
    read, done = set(), []
    lock = threading.Lock()

    def look(position, path):
        read_image(path)
        with lock:
            read.add(position)

    found = find_unreadable(paths, look, progress=lambda *numbers: done.append(numbers))
    assert found.keys() == {0, 1, 2, 3, 4, 5}
    assert found[1] == "no known image format"
    assert "truncated" in found[2]
    assert read == {6, 7}
    assert done == [(number, 8) for number in range(1, 9)]


def test_other_errors_are_not_hidden(tmp_path):
    def fail(position, path):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find_unreadable([tmp_path] * 3, fail)
