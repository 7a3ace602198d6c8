"""`load_model("hf/...")` on small folders that transformers writes itself."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from adabet.data import transforms
from adabet.errors import ModelError, OptionError
from adabet.models import load_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def vit(tmp_path):
    """A folder with a tiny vision transformer of five classes."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=5, **SIZES)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def saved(folder):
    return transformers.ViTForImageClassification.from_pretrained(folder).state_dict()


def test_a_folder_with_its_head(vit):
    for name in (f"hf/{vit}", str(vit)):
        loaded = load_model(name)
        state = saved(vit)
        assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.model.state_dict().items())
        assert loaded.head == ("classifier",)
        assert loaded.data_config.input_size == (3, 32, 32)
        assert loaded.notes == ()


def test_another_number_of_classes_leaves_out_the_head_alone(vit, capfd):
    loaded = load_model(f"hf/{vit}", num_classes=7)
    state = saved(vit)
    differing = {key for key, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, state[key])}
    assert differing == {"classifier.weight", "classifier.bias"}
    assert loaded.model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 7)
    assert loaded.notes == ("the weights' head was left out: the model's is new",)


def test_nothing_is_printed(vit, capfd):
    capfd.readouterr()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    load_model(f"hf/{vit}", num_classes=7)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled() == bars


def test_weights_stand_in_for_the_hub(vit):
    loaded = load_model("hf/google/vit-base-patch16-224", weights=vit)
    assert torch.equal(loaded.model.classifier.weight, saved(vit)["classifier.weight"])


def test_weights_of_another_body(vit):
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=5, **SIZES | {"num_hidden_layers": 2})
    config.save_pretrained(vit)
    with pytest.raises(ModelError, match=r"do not fit: \d+ missing \(vit.*and \d+ more\)$"):
        load_model(f"hf/{vit}")


def test_pickled_weights_are_refused(vit):
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"found pytorch_model.bin; save the model again with save_pretrained"):
        load_model(f"hf/{vit}")


def test_a_configuration_alone_gives_random_weights_but_no_weights_asked_for(vit):
    (vit / "model.safetensors").unlink()
    assert load_model(f"hf/{vit}", num_classes=3).model.config.num_labels == 3
    with pytest.raises(ModelError, match="found no weights"):
        load_model("hf/google/vit-base-patch16-224", weights=vit)


def test_arguments_replace_values_of_the_configuration(vit):
    assert load_model(f"hf/{vit}", hidden_dropout_prob=0.25).model.config.hidden_dropout_prob == 0.25
    with pytest.raises(ModelError, match="takes no argument 'colour'"):
        load_model(f"hf/{vit}", colour=1)


def test_text(tmp_path):
    config = transformers.BertConfig(vocab_size=20, num_labels=5, **SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    loaded = load_model(f"hf/{tmp_path}", num_classes=4)
    assert loaded.data_config is None
    assert loaded.model(torch.ones(2, 3, dtype=torch.long)).logits.shape == (2, 4)
    with pytest.raises(OptionError, match="reads no images"):
        load_model(f"hf/{tmp_path}", image_size=32)


def test_what_classifies_nothing(tmp_path):
    transformers.EncodecConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a encodec: expected one that classifies images or text"):
        load_model(f"hf/{tmp_path}")


def test_no_network(monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"no configuration for hf/some/model \(We couldn't connect to the hub\)"):
        load_model("hf/some/model", pretrained=True)


PROCESSORS = {
    "squashed": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "cropped by a share": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.5),
    "squashed when large": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.5),
    "cropped by a size": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32}
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_the_models_own_processor_does(vit, case):
    processor = PROCESSORS[case]()
    processor.save_pretrained(vit)
    ramp = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    image = Image.fromarray(ramp)
    config = load_model(f"hf/{vit}").data_config
    ours = transforms(config, train=False)(image)
    theirs = torch.as_tensor(np.array(processor(image, return_tensors="np")["pixel_values"][0]))
    assert ours.shape == theirs.shape
    # Resized by different libraries: pixels differ by rounding, at most two levels of 255.
    assert (ours - theirs).abs().max() <= 2.1 / 255 / min(config.std)
