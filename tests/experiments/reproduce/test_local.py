"""What stands in where nothing can be fetched."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from adabet.demo.digits import load_part, user_conditions
from adabet.errors import DataError, ModelError
from adabet.experiments.reproduce import Task, local
from adabet.experiments.reproduce.local import DEMO, find_place, smaller, write_digits
from adabet.experiments.reproduce.published import DATA, MODELS
from adabet.experiments.specs import DataSpec, ModelSpec


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be fetched; what was tried."""
    tried = []

    def no_model(name, **options):
        tried.append(name)
        raise ModelError(f"the weights of {name} cannot be fetched from the hub: check the network, or so")

    def no_data(name, **options):
        tried.append(name)
        raise DataError(f"{name} cannot be fetched: check the network, or put it there")

    monkeypatch.setattr(local, "load_model", no_model)
    monkeypatch.setattr(local, "load_data", no_data)
    monkeypatch.delenv("ADABET_DATA", raising=False)
    return tried


@pytest.fixture
def bundled(monkeypatch):
    """Few digits, so that writing them takes no time."""
    pytest.importorskip("sklearn")
    few = {"train": 10, "val": 10, "test": 10}
    monkeypatch.setattr(local, "COUNTS", few)
    monkeypatch.setattr(local, "QUICK_COUNTS", few)


def test_what_is_given_is_taken(tmp_path, offline):
    models, data = (ModelSpec("timm/resnet18"),), (DataSpec("photos"),)
    place = find_place(Task(tmp_path, models, data))
    assert (place.models, place.data, place.notes, offline) == (models, data, (), [])
    assert not place.published


def test_offline_the_bundled_model_and_digits_stand_in_and_it_says_so(tmp_path, offline, bundled):
    place = find_place(Task(tmp_path))
    assert place.models == (DEMO,)
    assert place.data[0].label == "digits of a new user"
    assert not place.published
    # one attempt for all models, one for all data: the next would fail as slowly
    assert offline == [MODELS[0].name, DATA[0].name]
    assert place.notes[0] == "ResNet50 cannot be had: the weights of timm/resnet50 cannot be fetched from the hub"
    assert "in place of the paper's" in place.notes[1]


def test_what_the_hub_says_of_each_attempt_is_kept_from_the_reader(tmp_path, bundled, monkeypatch, caplog):
    def no_model(name, **options):
        logging.getLogger("huggingface_hub").error("retrying")
        raise ModelError("cannot be fetched")

    monkeypatch.setattr(local, "load_model", no_model)
    find_place(Task(tmp_path, data=(DataSpec("photos"),)))
    assert caplog.text == ""
    logging.getLogger("huggingface_hub").error("afterwards it is heard again")
    assert "afterwards" in caplog.text


def test_quickly_nothing_is_tried(tmp_path, offline, bundled):
    assert find_place(Task(tmp_path, quick=True)).models == (DEMO,)
    assert offline == []


def test_local_weights_and_images_stand_in_before_the_bundled_ones(tmp_path, offline, monkeypatch):
    for name in ("images/shoes/train", "images/hats/train", "images/unsorted", "weights"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "weights/mobilenetv2_100.safetensors").touch()
    monkeypatch.setenv("ADABET_DATA", str(tmp_path))
    place = find_place(Task(tmp_path / "made"))
    assert [model.name for model in place.models] == ["timm/mobilenetv2_100"]
    assert "de-quantised int8" in place.models[0].label
    assert [data.label for data in place.data] == ["hats", "shoes"]


def test_all_that_the_paper_has_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "load_model", lambda *arguments, **options: None)
    monkeypatch.setattr(local, "load_data", lambda *arguments, **options: None)
    place = find_place(Task(tmp_path))
    assert place.published
    assert (place.models, place.data, place.notes) == (MODELS, DATA, ())


def test_digits_are_those_of_the_demo(tmp_path):
    pytest.importorskip("sklearn")
    folder = write_digits(tmp_path, {"train": 30, "val": 10, "test": 20})
    found = {split: sorted((folder / split).rglob("*.png"), key=lambda path: path.stem) for split in ("train", "test")}
    assert {split: len(paths) for split, paths in found.items()} == {"train": 30, "test": 20}
    test = load_part("test")
    assert [int(path.parent.name) for path in found["test"]] == test.labels[:20].tolist()
    pixels = torch.from_numpy(np.asarray(Image.open(found["test"][3])).copy())
    assert torch.allclose(pixels / 255, user_conditions(test.images[3:4])[0, 0], atol=0.5 / 255 + 1e-6)
    before = found["train"][0].stat().st_mtime_ns
    write_digits(tmp_path, {"train": 30, "val": 10, "test": 20})
    assert found["train"][0].stat().st_mtime_ns == before


def test_a_smaller_place_keeps_limits_that_were_given(tmp_path):
    place = find_place(Task(tmp_path, (DEMO,), (DataSpec("a", max_train=5), DataSpec("b"))))
    assert [data.max_train for data in smaller(place, max_train=9).data] == [5, 9]
