"""The papers' datasets: where they are published, and how their files say what is what."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adabet.data.archives import RemoteFile
from adabet.data.images import Sample
from adabet.data.listing import Listing
from adabet.errors import DataError
from adabet.extras import require

PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
FLOWERS_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
DOGS_URL = "http://vision.stanford.edu/aditya86/ImageNetDogs"
BIRDS_URL = "https://data.caltech.edu/records/65de6-vp158/files"

REMEDY = "remove the dataset's folder to fetch it again"


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset that its authors publish.

    Attributes:
        title: its name in words, and its splits.
        folder: what its folder is called; Pets' and Flowers' are torchvision's.
        files: what is fetched into the folder.
        read: lists the images of the folder by the official split.
    """

    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    read: Callable[[Path], Listing]


def list_pets(folder: Path) -> Listing:
    """List Oxford-IIIT Pets by ``annotations/{trainval,test}.txt``: image, class from 1, species, breed."""
    classes: dict[int, str] = {}
    splits = []
    for split in ("trainval", "test"):
        samples = []
        for name, number, *_ in _fields(folder / "annotations" / f"{split}.txt"):
            label = int(number) - 1
            classes[label] = name.rpartition("_")[0].replace("_", " ")
            samples.append(Sample(folder / "images" / f"{name}.jpg", label))
        splits.append(tuple(samples))
    return Listing(_names(classes, folder), train=splits[0], test=splits[1])


def list_flowers(folder: Path) -> Listing:
    """List Flowers-102 by ``setid.mat`` (image numbers by split) and ``imagelabels.mat`` (classes from 1)."""
    sets = _matlab(folder / "setid.mat")
    labels = [int(label) - 1 for label in _matlab(folder / "imagelabels.mat")["labels"]]
    named: Sequence[str] = require("torchvision.datasets", "the names of Flowers-102").Flowers102.classes

    def samples(split: str) -> tuple[Sample, ...]:
        return tuple(
            Sample(folder / "jpg" / f"image_{int(number):05d}.jpg", labels[int(number) - 1]) for number in sets[split]
        )

    classes = _names({label: named[label] for label in set(labels)}, folder)
    return Listing(classes, train=samples("trnid"), val=samples("valid"), test=samples("tstid"))


def list_dogs(folder: Path) -> Listing:
    """List Stanford Dogs by ``{train,test}_list.mat``: paths below ``Images``, and classes from 1."""
    classes: dict[int, str] = {}
    splits = []
    for split in ("train", "test"):
        lists = _matlab(folder / f"{split}_list.mat")
        samples = []
        for path, number in zip(lists["file_list"], lists["labels"], strict=True):
            label = int(number) - 1
            classes[label] = str(path).partition("/")[0].partition("-")[2].replace("_", " ")
            samples.append(Sample(folder / "Images" / str(path), label))
        splits.append(tuple(samples))
    return Listing(_names(classes, folder), train=splits[0], test=splits[1])


def list_birds(folder: Path) -> Listing:
    """List CUB-200-2011 by its text files: image paths, classes from 1, and which images train."""
    birds = folder / "CUB_200_2011"
    labels = {image: int(number) - 1 for image, number in _fields(birds / "image_class_labels.txt")}
    trains = {image: flag == "1" for image, flag in _fields(birds / "train_test_split.txt")}
    classes: dict[int, str] = {}
    splits: dict[bool, list[Sample]] = {True: [], False: []}
    for image, path in _fields(birds / "images.txt"):
        label = labels[image]
        classes[label] = path.partition("/")[0].partition(".")[2].replace("_", " ")
        splits[trains[image]].append(Sample(birds / "images" / path, label))
    return Listing(_names(classes, folder), train=tuple(splits[True]), test=tuple(splits[False]))


def _fields(path: Path) -> Iterable[list[str]]:
    """The fields of each line of a text file, comments left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): {REMEDY}") from error
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def _matlab(path: Path) -> dict[str, Any]:
    """The arrays of a MATLAB file, without axes of length one."""
    load = require("scipy.io", "reading the dataset's lists").loadmat
    try:
        content: dict[str, Any] = load(path, squeeze_me=True)
    except Exception as error:  # scipy raises many things on a file that is no MATLAB file
        raise DataError(f"{path} cannot be read ({error}): {REMEDY}") from error
    return content


def _names(classes: dict[int, str], folder: Path) -> tuple[str, ...]:
    """Class names in the order of the labels, which must be all from 0 on."""
    if sorted(classes) != list(range(len(classes))) or not classes:
        raise DataError(f"the lists in {folder} leave out classes: {REMEDY}")
    return tuple(classes[label] for label in range(len(classes)))


# Checksums and sizes are those of TensorFlow Datasets' url_checksums (oxford_iiit_pet, oxford_flowers102,
# stanford_dogs, caltech_birds2011).
PUBLISHED = {
    "pets": PublishedDataset(
        title="Oxford-IIIT Pets: 37 breeds, 3680 photos to train and 3669 to test",
        folder="oxford-iiit-pet",
        files=(
            RemoteFile(
                url=f"{PETS_URL}/images.tar.gz",
                sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                size=791_918_971,
                name="pets-images.tar.gz",
            ),
            RemoteFile(
                url=f"{PETS_URL}/annotations.tar.gz",
                sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                size=19_173_078,
                name="pets-annotations.tar.gz",
            ),
        ),
        read=list_pets,
    ),
    "flowers": PublishedDataset(
        title="Oxford Flowers-102: 102 species, 1020 photos to train, 1020 to validate, 6149 to test",
        folder="flowers-102",
        files=(
            RemoteFile(
                url=f"{FLOWERS_URL}/102flowers.tgz",
                sha256="2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                size=344_862_509,
                name="102flowers.tgz",
            ),
            RemoteFile(
                url=f"{FLOWERS_URL}/imagelabels.mat",
                sha256="4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
                size=502,
                name="imagelabels.mat",
            ),
            RemoteFile(
                url=f"{FLOWERS_URL}/setid.mat",
                sha256="46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
                size=14_989,
                name="setid.mat",
            ),
        ),
        read=list_flowers,
    ),
    "dogs": PublishedDataset(
        title="Stanford Dogs: 120 breeds, 12000 photos to train and 8580 to test",
        folder="stanford-dogs",
        files=(
            RemoteFile(
                url=f"{DOGS_URL}/images.tar",
                sha256="a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
                size=793_579_520,
                name="dogs-images.tar",
            ),
            RemoteFile(
                url=f"{DOGS_URL}/lists.tar",
                sha256="34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
                size=481_280,
                name="dogs-lists.tar",
            ),
        ),
        read=list_dogs,
    ),
    "cub": PublishedDataset(
        title="CUB-200-2011: 200 birds, 5994 photos to train and 5794 to test",
        folder="cub-200-2011",
        files=(
            RemoteFile(
                url=f"{BIRDS_URL}/CUB_200_2011.tgz?download=1",
                sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                size=1_150_585_339,
                name="CUB_200_2011.tgz",
            ),
        ),
        read=list_birds,
    ),
}
"""Datasets by name."""
