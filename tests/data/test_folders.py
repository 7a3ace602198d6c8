import os
from collections import Counter

import pytest

from adabet.data.folders import list_folder
from adabet.errors import DataError

from .making import write_classes, write_image


def counts(listing, samples):
    return Counter(listing.classes[sample.label] for sample in samples)


def test_three_splits(tmp_path):
    write_classes(tmp_path / "train", {"hat": 3, "shoe": 2})
    write_classes(tmp_path / "validation", {"hat": 1, "shoe": 1})
    write_classes(tmp_path / "test", {"shoe": 2, "hat": 1})
    listing = list_folder(tmp_path)
    assert listing.classes == ("hat", "shoe")
    assert counts(listing, listing.train) == {"hat": 3, "shoe": 2}
    assert counts(listing, listing.val) == {"hat": 1, "shoe": 1}
    assert counts(listing, listing.test) == {"hat": 1, "shoe": 2}
    assert [sample.path.parent.name for sample in listing.train] == ["hat"] * 3 + ["shoe"] * 2
    assert (listing.ignored, listing.notes) == (0, ())


def test_one_folder_of_classes(tmp_path):
    write_classes(tmp_path, {"10": 2, "2": 2})
    listing = list_folder(tmp_path)
    assert listing.classes == ("10", "2")
    assert listing.val is None
    assert listing.test is None


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, {"bus": 2, "train": 3})
    listing = list_folder(tmp_path)
    assert counts(listing, listing.train) == {"bus": 2, "train": 3}


def test_images_deep_in_a_class_and_in_linked_classes(tmp_path):
    write_classes(tmp_path / "elsewhere" / "a", {"deep": 2})
    write_classes(tmp_path / "data", {"b": 1})
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere" / "a", target_is_directory=True)
    listing = list_folder(tmp_path / "data")
    assert counts(listing, listing.train) == {"a": 2, "b": 1}


def test_what_is_no_image_is_ignored_and_counted(tmp_path):
    write_classes(tmp_path / "train", {"hat": 2, "shoe": 2})
    write_image(tmp_path / "train" / ".ipynb_checkpoints" / "copy.png")
    write_image(tmp_path / "train" / "hat" / ".thumbnails" / "small.png")
    for name in ("notes.txt", "hat/.DS_Store", "hat/._000.png", "shoe/labels.csv"):
        (tmp_path / "train" / name).write_text("x")
    listing = list_folder(tmp_path)
    assert len(listing.train) == 4
    assert listing.ignored == 4


def test_a_class_that_is_not_tested_is_noted(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1})
    write_classes(tmp_path / "test", {"a": 1, "b": 0})
    assert list_folder(tmp_path).notes == ("test has no images of 4 classes (b, c, d and 1 more)",)


def test_a_split_without_class_folders_is_noted(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    write_image(tmp_path / "test" / "1.png")
    listing = list_folder(tmp_path)
    assert listing.test is None
    assert listing.notes == ("test has no class folders and was ignored",)


def test_a_split_of_empty_folders_is_none(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "val", {"a": 0, "b": 0})
    listing = list_folder(tmp_path)
    assert listing.val is None
    assert listing.notes == ("val has no images of 2 classes (a, b)",)


def test_an_empty_class(tmp_path):
    write_classes(tmp_path / "train", {"hat": 2, "shoe": 2, "sock": 0})
    with pytest.raises(DataError, match=r"1 class folders to train on hold no images \(sock\): add images"):
        list_folder(tmp_path)


def test_a_class_to_test_on_that_is_not_trained(tmp_path):
    write_classes(tmp_path / "train", {"hat": 2, "shoe": 2})
    write_classes(tmp_path / "test", {"hat": 2, "sock": 2})
    with pytest.raises(DataError, match=r"test has classes that train lacks \(sock\): add images"):
        list_folder(tmp_path)


def test_one_class(tmp_path):
    write_classes(tmp_path, {"hat": 2})
    with pytest.raises(DataError, match=r"at least two classes, .* has 1 \(hat\)"):
        list_folder(tmp_path)


def test_no_train(tmp_path):
    write_classes(tmp_path / "test", {"hat": 2, "shoe": 2})
    with pytest.raises(DataError, match="has test but no train folder; expected FOLDER/train/CLASS/IMAGE"):
        list_folder(tmp_path)


def test_no_images(tmp_path):
    with pytest.raises(DataError, match="has no images; expected FOLDER/train/CLASS/IMAGE"):
        list_folder(tmp_path)
    write_image(tmp_path / "loose.png")
    with pytest.raises(DataError, match="has 1 images outside class folders"):
        list_folder(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere is missing"):
        list_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        list_folder(write_image(tmp_path / "image.png"))


@pytest.mark.parametrize("where", ["", "train", "train/shoe", "train/shoe/deep"])
def test_an_unreadable_folder(tmp_path, monkeypatch, where):
    write_classes(tmp_path / "train", {"hat": 2, "shoe/deep": 2})
    closed = str(tmp_path / where).rstrip("/")
    scan = os.scandir

    def refuse(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"the folder {closed} cannot be read .Permission denied.: check"):
        list_folder(tmp_path)
