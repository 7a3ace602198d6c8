"""`load_model` on timm, torchvision, folders and the demo; transformers has its own file."""

import json
import subprocess
import sys

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from adabet.errors import AdabetError, ModelError, OptionError, UnknownNameError
from adabet.models import from_torchvision, load_model

SMALL = "timm/test_resnet"


def state_of(name, **arguments):
    torch.manual_seed(7)
    return timm.create_model(name.removeprefix("timm/"), **arguments).state_dict()


@pytest.fixture
def weights(tmp_path):
    """A file with all of the small model's weights, head of 1000 classes included."""
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state_of(SMALL), path)
    return path


def equal_tensors(first, second):
    return {name for name in first if name in second and torch.equal(first[name], second[name])}


def test_weights_with_their_head(weights):
    loaded = load_model(SMALL, weights=weights)
    assert equal_tensors(state_of(SMALL), loaded.model.state_dict()) == set(loaded.model.state_dict())
    assert loaded.head == ("fc",)
    assert loaded.notes == ()


def test_another_number_of_classes_leaves_out_the_head_alone(weights):
    loaded = load_model(SMALL, weights=weights, num_classes=5)
    expected = {name for name in state_of(SMALL) if not name.startswith("fc.")}
    assert equal_tensors(state_of(SMALL), loaded.model.state_dict()) == expected
    assert loaded.model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert loaded.notes == ("the weights' head 'fc' of 1000 classes was left out: the model's is new",)
    assert "1000 classes" in str(loaded)


def test_the_same_number_of_classes_keeps_the_head(tmp_path):
    path = tmp_path / "five.safetensors"
    safetensors.torch.save_file(state_of(SMALL, num_classes=5), path)
    for loaded in (load_model(SMALL, weights=path, num_classes=5), load_model(SMALL, weights=path)):
        assert loaded.model.fc.out_features == 5
        assert torch.equal(loaded.model.fc.weight, state_of(SMALL, num_classes=5)["fc.weight"])


def test_weights_without_a_head_need_a_number_of_classes(tmp_path):
    path = tmp_path / "body.safetensors"
    body = {name: tensor for name, tensor in state_of(SMALL).items() if not name.startswith("fc.")}
    safetensors.torch.save_file(body, path)
    assert load_model(SMALL, weights=path, num_classes=5).notes == (
        "the weights have no head 'fc': the model's is new",
    )
    with pytest.raises(ModelError, match=r"2 missing \(fc.weight, fc.bias\); give num_classes"):
        load_model(SMALL, weights=path)


def test_counters_of_batch_norms_may_be_missing(tmp_path):
    path = tmp_path / "old.safetensors"
    state = {name: tensor for name, tensor in state_of(SMALL).items() if "num_batches" not in name}
    safetensors.torch.save_file(state, path)
    load_model(SMALL, weights=path)


def test_a_misfit_names_the_first_and_counts_the_rest(tmp_path):
    state = state_of(SMALL)
    first_block = [name for name in state if name.startswith("layer1")]
    for name in first_block:
        del state[name]
    state["extra"] = torch.zeros(1)
    state["conv1.0.weight"] = torch.zeros(3, 3)
    path = tmp_path / "misfit.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(ModelError) as caught:
        load_model(SMALL, weights=path, num_classes=5)
    message = str(caught.value)
    counters = sum("num_batches" in name for name in first_block)
    missing = [name for name in first_block if "num_batches" not in name]
    assert f"{len(first_block) - counters} missing ({', '.join(missing[:3])} and {len(missing) - 3} more)" in message
    assert "1 unexpected (extra)" in message
    assert "1 of another shape (conv1.0.weight 3x3 instead of " in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    path = tmp_path / name
    torch.save(state_of(SMALL), path)
    with pytest.raises(ModelError, match=r"safetensors.torch.save_file\(torch.load\("):
        load_model(SMALL, weights=path)


@pytest.mark.parametrize("content", [b"", b"no tensors at all", b"\x08\0\0\0\0\0\0\0{}}}}}}}"])
def test_broken_files(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_model(SMALL, weights=path)


def test_missing_files(tmp_path):
    with pytest.raises(ModelError, match="is no file"):
        load_model(SMALL, weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm/mobilenet2_100", "timm/mobilenetv2_100"),
        ("mobilenetv2_100", "timm/mobilenetv2_100"),
        ("torchvision/resnet5O", "torchvision/resnet50"),
        ("torchvison/vgg16", "torchvision/vgg16"),
        ("dem", "demo"),
    ],
)
def test_unknown_names_offer_the_nearest(name, near):
    with pytest.raises(UnknownNameError, match=f"did you mean '{near}'"):
        load_model(name)


def test_a_name_like_no_other_lists_the_forms_not_all_models():
    with pytest.raises(
        UnknownNameError, match=r"known: a folder, audio/NAME, demo, hf/NAME, mcu/NAME, timm/NAME, torchvision/NAME$"
    ):
        load_model("§§§")


@pytest.mark.parametrize("name", [SMALL, "torchvision/shufflenet_v2_x0_5"])
def test_unknown_arguments(name):
    with pytest.raises(ModelError, match=r"cannot be built with .*colour=3: .*'colour'$"):
        load_model(name, colour=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "x.safetensors", "pretrained": True}, "got both"),
        ({"num_classes": 0}, "num_classes of at least 1"),
        ({"image_size": 0}, "image_size of at least 1"),
        ({"mean": (0.5, 0.5)}, "mean of 3 channels"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        load_model(SMALL, **options)


def test_arguments_reach_the_constructor_and_overrides_the_images():
    loaded = load_model("timm/mobilenetv2_100", pad_type="same", image_size=160, mean=0.5, std=0.5, num_classes=3)
    assert type(loaded.model.conv_stem).__name__ == "Conv2dSame"
    assert loaded.data_config.input_size == (3, 160, 160)
    assert loaded.data_config.mean == loaded.data_config.std == (0.5, 0.5, 0.5)
    assert loaded.data_config.crop_pct == 0.875


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/vit_b_32"])
def test_transformers_are_built_for_the_image_size_and_their_weights_follow(name, tmp_path, monkeypatch):
    native = load_model(name)
    state = native.model.state_dict()
    if name.startswith("torchvision"):  # 350 MB need not go through the disk
        monkeypatch.setattr(from_torchvision, "read_weights", lambda path: dict(state))
        path = tmp_path / "weights.safetensors"
    else:
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(state, path)
    loaded = load_model(name, weights=path, image_size=64, num_classes=3)
    resized = {key for key in state if "pos_embed" in key}
    assert equal_tensors(state, loaded.model.state_dict()) == {
        key for key in state if key not in resized and not key.startswith(loaded.head)
    }
    with torch.no_grad():
        assert loaded.model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_gray_images():
    loaded = load_model(SMALL, in_chans=1)
    assert loaded.data_config.input_size[0] == len(loaded.data_config.mean) == 1


def test_second_classifiers_are_left_out(monkeypatch):
    full = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    monkeypatch.setattr(from_torchvision, "read_weights", lambda path: dict(full))
    loaded = load_model("torchvision/googlenet", weights="x.safetensors", num_classes=4)
    assert loaded.model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert torch.equal(loaded.model.conv1.conv.weight, full["conv1.conv.weight"])


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        (SMALL, "timm/test_resnet.r160_in1k"),
        # timm reads this one's original file in a way of its own; the hub's copy is like any other.
        ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    ],
)
def test_timms_own_weights_come_as_safetensors(name, repository, tmp_path, monkeypatch):
    asked = []
    safetensors.torch.save_file(state_of(name), tmp_path / "weights.safetensors")

    def download(*arguments):
        asked.append(arguments)
        return str(tmp_path / "weights.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = load_model(name, pretrained=True, num_classes=5)
    assert asked == [(repository, "model.safetensors")]
    expected = {key for key in state_of(name) if not key.startswith(loaded.head)}
    assert equal_tensors(state_of(name), loaded.model.state_dict()) == expected


def test_no_network(monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched .*Name or service not known.*give weights=FILE"):
        load_model(SMALL, pretrained=True)
    monkeypatch.setattr(torchvision.models.ShuffleNet_V2_X0_5_Weights, "get_state_dict", fail)
    with pytest.raises(ModelError, match="cannot be built: Name or service not known"):
        load_model("torchvision/shufflenet_v2_x0_5", pretrained=True)


def test_torchvisions_own_weights(monkeypatch):
    torch.manual_seed(3)
    state = torchvision.models.shufflenet_v2_x0_5().state_dict()
    enum = torchvision.models.ShuffleNet_V2_X0_5_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda self, *arguments, **keywords: dict(state))
    for classes, equal in ((None, set(state)), (6, {name for name in state if not name.startswith("fc.")})):
        loaded = load_model("torchvision/shufflenet_v2_x0_5", pretrained=True, num_classes=classes)
        assert equal_tensors(state, loaded.model.state_dict()) == equal
        assert loaded.model.fc.out_features == (classes or 1000)


def test_a_folder_that_timm_wrote(tmp_path):
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = state_of(SMALL, num_classes=5)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert equal_tensors(state, loaded.model.state_dict()) == set(state)
    assert loaded.data_config.mean == (0.5, 0.5, 0.5)
    assert load_model(str(tmp_path), num_classes=2).model.fc.out_features == 2


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"folder with config.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="which is none"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="give a model name, and weights=FILE"):
        load_model(tmp_path / "weights.safetensors")


def test_the_demo():
    loaded = load_model("demo")
    assert loaded.model(torch.zeros(2, *loaded.data_config.input_size)).shape == (2, 10)
    assert load_model("demo", num_classes=3).model(torch.zeros(2, 1, 24, 24)).shape == (2, 3)
    with pytest.raises(OptionError, match="comes with its weights"):
        load_model("demo", width=3)


def test_importing_costs_nothing():
    code = (
        "import sys, adabet.models, adabet.data;"
        "heavy = {'timm', 'torchvision', 'transformers', 'PIL', 'safetensors', 'scipy'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_are_of_one_family():
    assert issubclass(ModelError, AdabetError)
    assert issubclass(ModelError, ValueError)
