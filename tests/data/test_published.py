"""The papers' datasets, on small archives of their layout that a local server publishes."""

import itertools
import re
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torchvision

from adabet.data import PUBLISHED, load_data, transforms
from adabet.errors import DataError, UnknownNameError
from adabet.models import DataConfig

from .making import write_image
from .test_archives import remote

CONFIG = DataConfig((3, 8, 8))
OPTIONS = {"transform_train": transforms(CONFIG, train=True), "transform_eval": transforms(CONFIG, train=False)}


def pets(source):
    lines = {"trainval": [], "test": []}
    for number, (breed, species) in enumerate([("Abyssinian", 1), ("american_bulldog", 2)], start=1):
        for image in range(6):
            name = f"{breed}_{image}"
            write_image(source / "images" / f"{name}.jpg", seed=image)
            lines["test" if image < 2 else "trainval"].append(f"{name} {number} {species} 1\n")
    (source / "annotations").mkdir()
    for split, text in lines.items():
        (source / "annotations" / f"{split}.txt").write_text("".join(text))
    return {"pets-images.tar.gz": ["images"], "pets-annotations.tar.gz": ["annotations"]}


def flowers(source):
    for number in range(1, 13):
        write_image(source / "jpg" / f"image_{number:05d}.jpg", seed=number)
    scipy.io.savemat(source / "imagelabels.mat", {"labels": np.array([[1, 2] * 6])})
    splits = {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [[7, 8, 9, 10, 11, 12]]}
    scipy.io.savemat(source / "setid.mat", {name: np.array(numbers) for name, numbers in splits.items()})
    return {"102flowers.tgz": ["jpg"], "imagelabels.mat": [], "setid.mat": []}


def dogs(source):
    paths = {
        label: [f"n0208{label}-{breed}/n0208{label}_{image}.jpg" for image in range(6)]
        for label, breed in ((1, "Chihuahua"), (2, "Japanese_spaniel"))
    }
    for path in itertools.chain(*paths.values()):
        write_image(source / "Images" / path)
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        chosen = [(path, label) for label in paths for path in paths[label][part]]
        scipy.io.savemat(
            source / f"{split}_list.mat",
            {
                "file_list": np.array([[path] for path, _ in chosen], dtype=object),
                "labels": np.array([[label] for _, label in chosen]),
            },
        )
    return {"dogs-images.tar": ["Images"], "dogs-lists.tar": ["train_list.mat", "test_list.mat"]}


def birds(source):
    folder = source / "CUB_200_2011"
    lines = {"images": "", "image_class_labels": "", "train_test_split": ""}
    number = 0
    for label, species in ((1, "Black_footed_Albatross"), (2, "Laysan_Albatross")):
        for image in range(6):
            number += 1
            path = f"{label:03d}.{species}/{species}_{image:04d}.jpg"
            write_image(folder / "images" / path, seed=number)
            lines["images"] += f"{number} {path}\n"
            lines["image_class_labels"] += f"{number} {label}\n"
            lines["train_test_split"] += f"{number} {int(image < 4)}\n"
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text(text)
    (source / "attributes.txt").write_text("1 has_bill\n")
    return {"CUB_200_2011.tgz": ["attributes.txt", "CUB_200_2011"]}


EXPECTED = {
    "pets": (pets, ("Abyssinian", "american bulldog"), {"train": 7, "val": 1, "test": 4}),
    "flowers": (flowers, ("pink primrose", "hard-leaved pocket orchid"), {"train": 4, "val": 2, "test": 6}),
    "dogs": (dogs, ("Chihuahua", "Japanese spaniel"), {"train": 7, "val": 1, "test": 4}),
    "cub": (birds, ("Black footed Albatross", "Laysan Albatross"), {"train": 7, "val": 1, "test": 4}),
}


@pytest.fixture(params=EXPECTED)
def name(request, server, tmp_path, monkeypatch):
    """The name of a dataset whose files are small ones on a local server."""
    folder, _ = server
    source = tmp_path / "source"
    source.mkdir()
    archives = EXPECTED[request.param][0](source)
    for archive, members in archives.items():
        if members:
            with tarfile.open(folder / archive, "w:gz" if archive.endswith("gz") else "w") as tar:
                for member in members:
                    tar.add(source / member, arcname=member)
        else:
            (source / archive).rename(folder / archive)
    dataset = PUBLISHED[request.param]
    files = tuple(remote(server, file.name, into=file.into) for file in dataset.files)
    monkeypatch.setitem(PUBLISHED, request.param, replace(dataset, files=files))
    return request.param


def test_the_official_split(name, tmp_path):
    _, classes, counts = EXPECTED[name]
    for _ in range(2):
        splits = load_data(name, root=tmp_path / "root", **OPTIONS)
        assert splits.classes == classes
        assert splits.report.counts == counts
        assert splits.report.left_out == ()
        assert Counter(splits.test.labels) == {0: counts["test"] // 2, 1: counts["test"] // 2}
        assert {sample.path.suffix for sample in splits.train.samples} == {".jpg"}
    assert [path.name for path in (tmp_path / "root").iterdir()] == [PUBLISHED[name].folder]


def test_lists_that_are_broken(name, tmp_path):
    load_data(name, root=tmp_path / "root", **OPTIONS)
    lists = [path for path in (tmp_path / "root").rglob("*") if path.suffix in (".mat", ".txt")]
    for path in lists:
        if path.name == "attributes.txt":
            continue
        before = path.read_bytes()
        path.write_bytes(b"\x00\x01 nothing of the kind \xff")
        with pytest.raises(DataError, match="remove the dataset's folder to fetch it again"):
            load_data(name, root=tmp_path / "root", **OPTIONS)
        path.write_bytes(before)


def test_a_missing_image_is_left_out(name, tmp_path):
    splits = load_data(name, root=tmp_path / "root", **OPTIONS)
    gone = splits.train.samples[0].path
    gone.unlink()
    report = load_data(name, root=tmp_path / "root", **OPTIONS).report
    assert [image.path for image in report.left_out] == [gone]


def test_where_published_datasets_are_kept(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_data(name, **OPTIONS)
    assert (tmp_path / "cache" / "adabet" / PUBLISHED[name].folder).is_dir()


def test_every_file_is_pinned():
    for dataset in PUBLISHED.values():
        for file in dataset.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.size > 0
            assert file.url.startswith(("https://", "http://vision.stanford.edu/"))


def test_folders_are_those_of_torchvision(tmp_path):
    for name, dataset in (("pets", "OxfordIIITPet"), ("flowers", "Flowers102")):
        folder = getattr(torchvision.datasets, dataset).__new__(getattr(torchvision.datasets, dataset))
        with pytest.raises(RuntimeError, match="not found"):
            folder.__init__(tmp_path, download=False)
        assert folder._base_folder.name == PUBLISHED[name].folder


@pytest.mark.parametrize(("wrong", "near"), [("pet", "pets"), ("flower102", "flowers"), ("cubs", "cub")])
def test_unknown_names_offer_the_nearest(wrong, near):
    with pytest.raises(UnknownNameError, match=f"unknown dataset or folder '{wrong}'; did you mean '{near}'"):
        load_data(wrong, **OPTIONS)
