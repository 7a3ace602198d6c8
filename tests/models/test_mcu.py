"""The three nets of Sparse Update: their sizes as published, their weights and clips from files, real photos."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import adabet
from adabet.cli import app
from adabet.data import transforms
from adabet.errors import ModelError, UnknownNameError
from adabet.layers import find_layers
from adabet.models import load_model, new_head
from adabet.models.mcu import NETS

# convolutions, backbone parameters, inputs of the classifier: methods.md 4.4 and the weights' own listing
PUBLISHED = {
    "mbv2-w0.35": (51, 244_448, 112),
    "mcunet-5fps": (42, 469_224, 160),
    "proxyless-w0.3": (60, 326_232, 96),
}
FOOTWEAR = {502, 514, 630, 770, 774}
"""ImageNet's clog, cowboy boot, loafer, running shoe and sandal."""


def image(side=128, count=2):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def description(model):
    """What the json beside the weights says, from the modules themselves."""

    def part(convolution, clip=None):
        return {
            "in_channels": convolution.in_channels,
            "out_channels": convolution.out_channels,
            "kernel_size": convolution.kernel_size[0],
            "stride": convolution.stride[0],
            "padding": convolution.padding[0],
            "groups": convolution.groups,
            **({} if clip is None else {"clip": [0.0, clip]}),
        }

    blocks = []
    for block in model.blocks:
        parts = {"pointwise1": part(block.pointwise1, 4.5)} if block.widens else {}
        parts |= {"depthwise": part(block.depthwise, 5.5), "pointwise2": part(block.pointwise2)}
        blocks.append({**parts, "residual": block.residual})
    return {"first_conv": part(model.first_conv, 6.0), "blocks": blocks}


@pytest.fixture
def files(tmp_path):
    """A weights file of random weights, laid out like the published ones, with its json beside it."""
    torch.manual_seed(0)
    model = load_model("mcu/mbv2-w0.35").model
    tensors = model.state_dict()
    tensors["classifier.weight"] = tensors["classifier.weight"][:, :, None, None].contiguous()
    safetensors.torch.save_file(tensors, tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps(description(model)))
    return tmp_path / "net.safetensors"


def twin(images, tensors, text):
    """The net as plain function calls, from the json alone."""

    def run(features, name, part):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        features = F.conv2d(features, weight, bias, part["stride"], part["padding"], groups=part["groups"])
        return features.clamp(*part["clip"]) if "clip" in part else features

    features = run(images, "first_conv", text["first_conv"])
    for index, block in enumerate(text["blocks"]):
        before = features
        for name in ("pointwise1", "depthwise", "pointwise2"):
            if name in block:
                features = run(features, f"blocks.{index}.{name}", block[name])
        features = features + before if block["residual"] else features
    return F.conv2d(F.adaptive_avg_pool2d(features, 1), tensors["classifier.weight"], tensors["classifier.bias"])


@pytest.mark.parametrize("name", NETS)
class TestEachNet:
    def test_is_as_large_as_published(self, name):
        loaded = load_model(f"mcu/{name}")
        convolutions, backbone, features = PUBLISHED[name]
        layers = find_layers(loaded.model, image())
        assert [layer.kind for layer in layers] == ["convolution"] * convolutions
        assert sum(layer.parameter_count for layer in layers) == backbone
        assert loaded.model.classifier.weight.shape == (1000, features)
        assert loaded.head == ("classifier",)
        assert loaded.data_config.input_size == (3, 128, 128)

    def test_random_weights_keep_the_signal_alive(self, name):
        torch.manual_seed(0)
        model = load_model(f"mcu/{name}").model
        logits = model(image())
        assert 1e-3 < (logits[0] - logits[1]).std() < 1e3

    def test_gets_a_new_head(self, name):
        model = load_model(f"mcu/{name}", num_classes=7).model
        assert model(image(64)).shape == (2, 7)
        assert new_head(model, 3) == ("classifier",)
        assert model(image(64)).shape == (2, 3)
        assert model.num_classes == 3

    def test_trains_lean_with_the_gradients_of_stock_autograd(self, name):
        torch.manual_seed(0)
        model = load_model(f"mcu/{name}", num_classes=5).model.double()
        batch = image(64).double(), torch.tensor([1, 3])
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        stock = {key: parameter.grad for key, parameter in model.named_parameters()}
        model.zero_grad()
        with adabet.lean():
            loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, stock[key])


class TestFiles:
    def test_weights_and_clips_come_from_the_files(self, files):
        loaded = load_model("mcu/mbv2-w0.35", weights=files)
        text = json.loads(files.with_suffix(".json").read_text())
        tensors = safetensors.torch.load_file(files)
        expected = twin(image() * 9, tensors, text).flatten(1)
        torch.testing.assert_close(loaded.model(image() * 9), expected)
        assert loaded.notes == ()

    def test_without_the_json_the_clips_are_those_of_relu6(self, files):
        with_clips = load_model("mcu/mbv2-w0.35", weights=files).model
        files.with_suffix(".json").unlink()
        loaded = load_model("mcu/mbv2-w0.35", weights=files)
        assert loaded.notes == (
            "no net.json beside the weights: the activations are clipped at 6, the default of ReLU6",
        )
        assert loaded.model.blocks[3].clip1.max_val == 6
        assert not torch.allclose(loaded.model(image() * 9), with_clips(image() * 9))

    def test_the_head_is_left_out_for_another_number_of_classes(self, files):
        loaded = load_model("mcu/mbv2-w0.35", weights=files, num_classes=4)
        assert loaded.notes == ("the weights' head 'classifier' of 1000 classes was left out: the model's is new",)
        assert loaded.model(image(64)).shape == (2, 4)

    def test_weights_of_another_net(self, files):
        with pytest.raises(ModelError, match=r"do not fit mcu/mcunet-5fps: 18 unexpected"):
            load_model("mcu/mcunet-5fps", weights=files)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("blocks", 2, "depthwise", "kernel_size"), 5, "kernel_size 3 of blocks.2.depthwise, got 5"),
            (("blocks", 2, "pointwise1"), None, "in_channels 8 of blocks.2.pointwise1, got None"),
            (("blocks", 2, "residual"), False, "residual True of block 2, got False"),
            (("blocks",), [], "expected 17 blocks, got 0"),
            (("blocks",), None, "expected 17 blocks, got none"),
            (("first_conv", "clip"), [0, 7], r"expected clip \[0, up to 6\] of first_conv in .*, got \[0, 7\]"),
            (("first_conv", "clip"), "six", "got six"),
            (("first_conv", "clip"), [1, 6], r"got \[1, 6\]"),
        ],
    )
    def test_a_json_that_tells_otherwise(self, files, path, value, message):
        text = json.loads(files.with_suffix(".json").read_text())
        place = text
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        files.with_suffix(".json").write_text(json.dumps(text))
        with pytest.raises(ModelError, match=message) as caught:
            load_model("mcu/mbv2-w0.35", weights=files)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "[1]", "3", '{"blocks'])
    def test_a_json_that_is_none(self, files, text):
        files.with_suffix(".json").write_text(text)
        with pytest.raises(ModelError, match=r"cannot be read as json|describes another net"):
            load_model("mcu/mbv2-w0.35", weights=files)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'mcu/mcunet-5fps'"):
        load_model("mcu/mcunet")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pretrained": True}, "has no weights to fetch"), ({"width": 2}, "cannot be built with width=2")],
)
def test_what_they_do_not_take(options, message):
    with pytest.raises(ModelError, match=message):
        load_model("mcu/mcunet-5fps", **options)


@pytest.mark.data
@pytest.mark.parametrize("name", NETS)
class TestRealWeights:
    def photos(self, shared_data: Path, config, kind="shoes", count=24):
        files = sorted((shared_data / "images/clothing/test" / kind).iterdir())[:count]
        transform = transforms(config, train=False)
        return torch.stack([transform(Image.open(file).convert("RGB")) for file in files])

    def test_equals_a_plain_twin_on_photos(self, shared_data, name):
        path = shared_data / "weights" / f"{name}.safetensors"
        loaded = load_model(f"mcu/{name}", weights=path)
        assert loaded.notes == ()
        photos = self.photos(shared_data, loaded.data_config, count=4)
        text = json.loads(path.with_suffix(".json").read_text())
        with torch.no_grad():
            expected = twin(photos, safetensors.torch.load_file(path), text).flatten(1)
            torch.testing.assert_close(loaded.model(photos), expected, atol=1e-5, rtol=1e-5)

    def test_sees_shoes_in_photos_of_shoes(self, shared_data, name):
        loaded = load_model(f"mcu/{name}", weights=shared_data / "weights" / f"{name}.safetensors")
        with torch.no_grad():
            best = loaded.model(self.photos(shared_data, loaded.data_config)).topk(3).indices
        seen = sum(bool(FOOTWEAR & set(row.tolist())) for row in best)
        assert seen >= 0.6 * len(best)


@pytest.mark.data
def test_from_the_command_line(shared_data):
    result = CliRunner().invoke(
        app,
        [
            "rank",
            "mcu/mcunet-5fps",
            str(shared_data / "images/clothing/test"),
            *("--weights", str(shared_data / "weights/mcunet-5fps.safetensors")),
            *("--samples", "8", "--image-size", "64", "--method", "size", "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["ranking"]["layers"]) == 42
