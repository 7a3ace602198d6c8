"""PEFT: adapters go exactly where a ranking or selection says, and cost no second copy of what they read."""

from contextlib import nullcontext

import peft
import pytest
import timm
import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import adabet
from adabet.errors import AdabetWarning, LayerError, OptionError, SelectionError, UnknownNameError
from adabet.integrations.peft import target_modules
from adabet.lean import lean
from tests.cases.models import SMALL, small_images, small_net, small_words
from tests.methods.block_nets import Residual, Text, images, made, texts

# PEFT asks transformers in a way that is on its way out
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BERT = next(case for case in SMALL if case.name == "hf-bert")
GPT2 = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 90, "n_positions": 16, "pad_token_id": 0}


def wrapped(model, config, **options):
    """What PEFT makes of it."""
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, **config, **options}))


def adapted(model) -> set[str]:
    """Paths of the modules with adapters, as PEFT itself tells."""
    return {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}


def bare(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in adapted(model)}


def asked_for(config) -> set[str]:
    """Paths in what `target_modules` gave; a text has them as alternatives of a pattern."""
    targets = config["target_modules"]
    return {part.replace("\\", "") for part in targets.split("|")} if isinstance(targets, str) else set(targets)


def bert(seed: int = 0):
    model = BERT.build()
    batches = [BERT.batch(8, seed=number) for number in range(5)]
    return model, adabet.rank(model, batches, seed=seed)


def inside(ranking, count: int) -> list[str]:
    """By hand: the linear and embedding modules of the best layers that are not norms."""
    parts = {"attention": ["attention.self.query", "attention.self.key", "attention.self.value"]}
    parts["attention"].append("attention.output.dense")
    best = [item.layer for item in ranking.order if item.layer.kind != "norm"][:count]
    found = []
    for layer in best:
        block = layer.name.rpartition(".attention")[0]
        found += [f"{block}.{part}" for part in parts["attention"]] if layer.kind == "attention" else [layer.name]
    return found


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_the_best_layers_and_whole_attention_blocks(ratio):
    model, ranking = bert()
    candidates = [item for item in ranking.layers if item.layer.kind != "norm"]
    found = target_modules(model, ranking, layer_ratio=ratio)
    expected = inside(ranking, max(1, int(ratio * len(candidates))))
    assert set(found["target_modules"]) == set(expected)
    assert set(found) == {"target_modules", "modules_to_save"}
    model = wrapped(model, found, task_type="SEQ_CLS")
    assert bare(model) == set(expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert any("classifier" in name for name in trained)


def test_a_selection_and_named_layers():
    model, ranking = bert()
    selection = ranking.select(layer_ratio=1.0)
    with pytest.warns(AdabetWarning, match=r"can take no adapters and are left out: .*LayerNorm"):
        every = target_modules(model, selection)
    assert set(every["target_modules"]) == set(target_modules(model, ranking, layer_ratio=1.0)["target_modules"])
    block = "bert.encoder.layer.1.attention"
    parts = ("self.query", "self.key", "self.value", "output.dense")
    for chosen in (ranking, selection):
        found = target_modules(model, chosen, layers=[block], head=False)
        assert found == {"target_modules": [f"{block}.{part}" for part in parts]}
        with pytest.raises(UnknownNameError, match="unknown layer"):
            target_modules(model, chosen, layers=["nowhere"])


def test_only_modules_of_a_name():
    model, ranking = bert()
    found = target_modules(model, ranking, layer_ratio=1.0, modules=["query", "self.value"])
    expected = {f"bert.encoder.layer.{block}.attention.self.{name}" for block in (0, 1) for name in ("query", "value")}
    assert set(found["target_modules"]) == expected
    half = target_modules(model, ranking, layer_ratio=0.5, modules=["query"])
    assert len(half["target_modules"]) == 1  # of the two layers that have one
    with pytest.raises(LayerError, match="that can take adapters"):
        target_modules(model, ranking, modules=["nothing"])


def test_blocks_by_their_numbers_reach_the_same_modules():
    model, ranking = bert()
    names = [item.layer.name for item in ranking.layers if item.layer.kind == "attention"]
    plain = target_modules(model, ranking, layers=names)
    short = target_modules(model, ranking, layers=names, by_index=True)
    assert short["layers_to_transform"] == [0, 1]
    assert short["layers_pattern"] == ["bert.encoder.layer"]
    assert len(short["target_modules"]) == 4
    assert bare(wrapped(model, short)) == bare(wrapped(bert()[0], plain)) == set(plain["target_modules"])
    # of block 0 the attention, of block 1 another layer: no numbers say that
    model, ranking = bert()
    mixed = [names[0], "bert.encoder.layer.1.output.dense"]
    assert target_modules(model, ranking, layers=mixed, by_index=True) == target_modules(model, ranking, layers=mixed)


def test_ranks_by_score():
    model, ranking = bert()
    config = target_modules(model, ranking, layer_ratio=1.0, rank=4, alpha=16)
    model = wrapped(model, config, r=4, lora_alpha=16)
    scores = {item.layer.name: item.score for item in ranking.layers}
    assert len(set(scores.values())) > 1
    modules = {path: module for path, module in model.base_model.model.named_modules() if path in bare(model)}
    layer_of = {
        path: next(name for name in scores if path == name or path.startswith(name.removesuffix(".self") + "."))
        for path in modules
    }
    mean = sum(scores[layer_of[path]] for path in modules) / len(modules)
    for path, module in modules.items():
        full = min(module.base_layer.weight.shape)
        assert module.r["default"] == max(1, min(full, round(4 * scores[layer_of[path]] / mean))), path
        assert module.scaling["default"] == pytest.approx(16 / 4)
    assert len({module.r["default"] for module in modules.values()}) > 1


def test_equal_scores_need_no_patterns():
    model = made(Residual)
    ranking = adabet.rank(model, images(12), method="last-k")
    flat = type(ranking)(**{**vars(ranking), "layers": tuple(type(i)(i.layer, 0.0) for i in ranking.layers)})
    assert set(target_modules(model, flat, rank=3, layer_ratio=1.0)) == {"target_modules", "modules_to_save"}


@pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, GPT2LMHeadModel])
def test_transposed_layers_and_tied_embeddings(kind):
    model = kind(GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)).eval()
    ranking = adabet.rank(model, [small_words(8, seed=number) for number in range(5)])
    found = target_modules(model, ranking, layer_ratio=1.0)
    assert found["fan_in_fan_out"]
    tied = kind is GPT2LMHeadModel
    blocks = {
        f"transformer.h.{block}.{part}"
        for block in range(3)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    embeddings = {"transformer.wpe"} if tied else {"transformer.wpe", "transformer.wte"}
    assert set(found["target_modules"]) == blocks | embeddings
    before = model(**small_words(2)).logits
    model = wrapped(model, found)
    assert bare(model) == blocks | embeddings
    torch.testing.assert_close(model(**small_words(2)).logits, before)


class Ends(nn.Module):
    """Paths that end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 6), "head": nn.Linear(6, 6)})
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.block["head"](torch.relu(self.block["fc"](torch.relu(self.fc(x))))))


def test_paths_with_the_same_end():
    model = Ends()
    ranking = adabet.rank(model, torch.randn(5, 8, 6))
    found = target_modules(model, ranking, layers=["fc"], head=False)
    assert bare(wrapped(model, found)) == {"fc"}
    ranked = target_modules(Ends(), ranking, layers=["fc", "block.fc"], rank=2, head=False)
    assert all(key.startswith("^") for key in ranked.get("rank_pattern", {}))
    with pytest.warns(AdabetWarning, match=r"trains whole, what is named like it: block\.head"):
        found = target_modules(Ends(), ranking, layer_ratio=1.0)
    model = wrapped(Ends(), found)
    assert bare(model) == {"fc", "block.fc"}
    whole = {name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name}
    assert {name.split(".modules_to_save")[0] for name in whole} == {
        f"base_model.model.{n}" for n in ("head", "block.head")
    }


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.filterwarnings("ignore:PEFT takes for the head.* pre_classifier:adabet.errors.AdabetWarning")
def test_every_adapter_of_every_model_learns(case):
    model = case.build()
    ranking = adabet.rank(model, [case.batch(8)], samples=8)
    found = target_modules(model, ranking, layer_ratio=1.0)
    model = wrapped(model, found, init_lora_weights=False).train()
    assert bare(model) == asked_for(found)
    weights = dict(case.build().named_modules())
    kinds = {type(weights[path]).__name__ for path in bare(model)}
    assert kinds <= {"Linear", "Conv2d", "Embedding"}
    batch = case.batch(4)
    with lean():
        outputs = model(**batch) if isinstance(batch, dict) else model(batch)
    getattr(outputs, "logits", outputs).square().sum().backward()
    assert not [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]


def conv_net(act=nn.ReLU):
    """Two convolutions of 8 channels behind a frozen stem, with batch-norms."""
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


SIDE, COUNT = 16, 4
ACTIVATION = COUNT * 8 * SIDE * SIDE * 4
LOW_RANK = ACTIVATION // 4  # rank 2 of 8 channels
BITS = ACTIVATION // 32


def saved(kind: str, *, dropout: float = 0.0, act=nn.ReLU, autocast=False, casts=True, stock=False) -> dict[str, int]:
    """Bytes that autograd keeps, by module, with the two convolutions trained or adapted."""
    model = conv_net(act)
    ranking = adabet.rank(model, [small_images(8, size=SIDE, seed=number) for number in range(5)], head="11")
    if kind == "adapters":
        model = wrapped(model, target_modules(model, ranking, layers=["3", "6"]), r=2, lora_dropout=dropout)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in ("3", "6", "11"))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = small_images(COUNT, size=SIDE), torch.zeros(COUNT, dtype=torch.long)
    cast = nullcontext() if casts else disable_input_dtype_casting(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), cast:
        report = adabet.measure_memory(model, batch, lean=not stock, inference=False)
    names = {name.replace("base_model.model.", ""): size for name, size in report.layers.items()}
    return {name: size for name, size in names.items() if size > BITS // 4} | {"": report.saved}


def test_adapters_keep_the_input_once():
    trained, adapters = saved("weights"), saved("adapters")
    assert trained["3"] == trained["6"] == ACTIVATION
    kept = {"3.lora_A.default": ACTIVATION, "3.lora_B.default": LOW_RANK, "8": BITS}
    kept |= {"6.lora_A.default": ACTIVATION, "6.lora_B.default": LOW_RANK}
    assert {name: size for name, size in adapters.items() if name} == kept
    # nothing but what the low rank adds over training the weights themselves
    assert adapters[""] - trained[""] == 2 * LOW_RANK
    assert saved("adapters", stock=True)[""] > 2 * adapters[""]


def test_dropout_adds_bits_and_no_copy():
    plain, dropped = saved("adapters"), saved("adapters", dropout=0.1)
    # of each of the two inputs: the draws, and the ReLU's bits, which the plain one tells from the input that is kept
    assert 0 < dropped[""] - plain[""] <= 3 * BITS
    assert saved("adapters", dropout=0.1, stock=True)[""] - saved("adapters", stock=True)[""] >= 2 * ACTIVATION


def test_an_input_that_can_be_made_again_is_not_kept_twice():
    trained, adapters = saved("weights", act=nn.SiLU), saved("adapters", act=nn.SiLU)
    assert adapters[""] - trained[""] == 2 * LOW_RANK
    assert "6.lora_A.default" not in adapters  # SiLU's own input stands for it


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_autocast_without_pefts_cast_keeps_half_as_much(act):
    half = saved("adapters", act=act, autocast=True, casts=False)[""]
    assert half - saved("weights", act=act, autocast=True)[""] == LOW_RANK
    assert half < saved("adapters", act=act)[""] * 0.55


def test_gradients_are_those_of_stock_autograd():
    def gradients(mode):
        model = timm.create_model("resnet18", num_classes=3)
        torch.manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
        ranking = adabet.rank(model, [small_images(8, seed=number) for number in range(5)])
        model = wrapped(model, target_modules(model, ranking, layer_ratio=0.5), init_lora_weights=False).eval()
        with mode:
            loss = model(small_images(2)).square().sum()
        loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    mine, its = gradients(lean()), gradients(nullcontext())
    assert mine.keys() == its.keys()
    assert any("lora_A" in name for name in mine)
    for name in its:
        torch.testing.assert_close(mine[name], its[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_what_peft_saves_it_finds_again(tmp_path, by_index):
    model, ranking = bert()
    names = [item.layer.name for item in ranking.layers if item.layer.kind == "attention"]
    config = target_modules(model, ranking, layers=names, rank=4, by_index=by_index)
    model = wrapped(model, config, init_lora_weights=False).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bert()[0], tmp_path).eval()
    assert bare(again) == bare(model)
    batch = BERT.batch(3)
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_torchs_own_attention_and_depthwise_convolutions_get_none():
    model = made(Text)
    ranking = adabet.rank(model, texts(12))
    assert target_modules(model, ranking, layer_ratio=1.0)["target_modules"] == ["embed"]
    net = small_net()
    ranking = adabet.rank(net, [small_images(8, size=8, seed=number) for number in range(5)])
    assert set(target_modules(net, ranking, layer_ratio=1.0)["target_modules"]) == {"conv1", "hidden"}
    with pytest.warns(AdabetWarning, match="conv2"), pytest.raises(LayerError, match="got conv2"):
        target_modules(net, ranking, layers=["conv2"])


def test_wrong_use():
    model = made(Residual)
    ranking = adabet.rank(model, images(12))
    selection = ranking.select(layer_ratio=0.5)
    for options in ({"layer_ratio": 0.5}, {"rank": 4}):
        with pytest.raises(OptionError, match="a selection has no scores"):
            target_modules(model, selection, **options)
    with pytest.raises(OptionError, match="got both"):
        target_modules(model, ranking, layers=["down"], layer_ratio=0.5)
    with pytest.raises(OptionError, match="list of names"):
        target_modules(model, ranking, layers="down")
    with pytest.raises(OptionError, match="of at least 1"):
        target_modules(model, ranking, rank=0)
    with pytest.raises(OptionError, match="from 0 to 1"):
        target_modules(model, ranking, layer_ratio=1.5)
    with pytest.raises(SelectionError, match="another model"):
        target_modules(made(Text), ranking)
    with pytest.raises(OptionError, match="of adapters"):
        target_modules(model, adabet.select("lora", model, images(12)))


def test_the_method_and_pefts_own_model_adapt_the_same_modules():
    model = made(Residual)
    ranking = adabet.rank(model, images(12))
    found = target_modules(model, ranking, layer_ratio=0.6)
    adabet.select("lora", model, images(12), layer_ratio=0.6)
    assert set(adabet.methods.lora.adapted_layers(model)) == set(found["target_modules"])
