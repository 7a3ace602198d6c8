import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from adabet.errors import ModelError, OptionError
from adabet.models import new_head


def tiny_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, num_labels=5, **sizes)
    return transformers.BertForSequenceClassification(config)


def tiny_roberta():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(vocab_size=20, num_labels=5, **sizes)
    return transformers.RobertaForSequenceClassification(config)


def tiny_llama():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(vocab_size=20, num_labels=5, pad_token_id=0, **sizes)
    return transformers.LlamaForSequenceClassification(config)


IMAGES = torch.zeros(2, 3, 64, 64)
TOKENS = torch.ones(2, 4, dtype=torch.long)

CASES = {
    "timm": (lambda: timm.create_model("test_resnet"), IMAGES, ("fc",)),
    "timm vit": (lambda: timm.create_model("test_vit", img_size=64), IMAGES, ("head",)),
    "torchvision fc": (lambda: torchvision.models.shufflenet_v2_x0_5(), IMAGES, ("fc",)),
    "torchvision classifier": (lambda: torchvision.models.mobilenet_v3_small(), IMAGES, ("classifier.3",)),
    "torchvision 1x1 convolution": (lambda: torchvision.models.squeezenet1_1(), IMAGES, ("classifier.1",)),
    "bert": (tiny_bert, TOKENS, ("classifier",)),
    "roberta": (tiny_roberta, TOKENS, ("classifier.out_proj",)),
    "llama": (tiny_llama, TOKENS, ("score",)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_head_alone_is_replaced(case):
    build, inputs, paths = CASES[case]
    model = build().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert new_head(model, 7) == paths
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(paths)}
    output = model(inputs)
    assert getattr(output, "logits", output).shape == (2, 7)


def test_transformers_loss_knows_the_new_number_of_classes():
    model = tiny_bert().eval()
    new_head(model, 7)
    assert model(TOKENS, labels=torch.tensor([6, 0])).loss.isfinite()


def test_the_new_head_is_where_the_old_one_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    assert new_head(model, 2, head="1") == ("1",)
    assert model[1].weight.dtype == torch.float64
    assert model[1].bias is None


def test_no_head_is_found():
    with pytest.raises(ModelError, match="no classifier found in Sequential"):
        new_head(nn.Sequential(nn.Linear(4, 3)), 2)


def test_a_head_without_a_linear_layer():
    with pytest.raises(ModelError, match="holds no linear layer"):
        new_head(nn.Sequential(nn.BatchNorm1d(4)), 2, head="0")


def test_no_classes():
    with pytest.raises(OptionError, match="num_classes of at least 1, got 0"):
        new_head(nn.Sequential(nn.Linear(4, 3)), 0, head="0")
