"""LoRA: where adapters go, what they compute, and that runs, deltas and selections find them again."""

import pytest
import torch
from torch import nn

import adabet
from adabet.errors import CheckpointError, LayerError, OptionError, SelectionError
from adabet.methods import find_method, start
from adabet.methods.lora import adapted_layers, inject, remove
from adabet.selection import Selection
from adabet.training import load_delta
from tests.methods.block_nets import HEAD, Residual, Text, images, made, moment, texts
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import KillAt

pytest.importorskip("peft")

ABLE = ("stem", "units.0.conv", "units.1.conv", "down", "deep.0.conv")


def select(model, **options):
    return adabet.select("lora", model, images(12), **options)


def test_all_layers_that_can():
    model = made(Residual)
    selection = select(model, where="all", rank=2)
    assert adapted_layers(model) == ABLE
    adapters = {f"{path}.{part}.adabet.weight" for path in ABLE for part in ("lora_A", "lora_B")}
    assert set(selection.parameters) == adapters | HEAD
    # A: rank x in x kernel, B: out x rank; by hand for the stem, two units, down and the deep unit, and the head
    assert selection.parameter_count == 18 + 8 + 2 * (72 + 8) + 8 + 12 + 108 + 12 + 21
    with adabet.apply(model, selection):
        assert {name for name, value in model.named_parameters() if value.requires_grad} == adapters | HEAD
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("where", ["adabet", "last-k", "size"])
@pytest.mark.parametrize(("ratio", "count"), [(0.0, 1), (0.4, 2), (1.0, 5)])
def test_the_best_layers_of_a_ranking(where, ratio, count):
    ranking = adabet.rank(made(Residual), images(12), method=where)
    order = [ranked.layer.name for ranked in ranking.order if ranked.layer.name in ABLE]
    model = made(Residual)
    select(model, where=where, layer_ratio=ratio)
    assert set(adapted_layers(model)) == set(order[:count])


def test_the_first_outputs_are_the_models_and_later_ones_follow_the_formula():
    model, base = made(Residual).eval(), made(Residual).eval()
    select(model, where="all", rank=2, alpha=6.0)
    inputs = images()[0][0]
    assert torch.equal(model(inputs), base(inputs))
    down = model.down
    with torch.no_grad():
        down.lora_B["adabet"].weight.normal_()
        features = torch.randn(2, 4, 5, 5)
        weight = down.lora_B["adabet"].weight.flatten(1) @ down.lora_A["adabet"].weight.flatten(1) * (6 / 2)
        expected = base.down(features) + torch.einsum("oc,bchw->bohw", weight, features)
        torch.testing.assert_close(down(features), expected)


def test_merging_keeps_what_it_computes_and_removing_gives_the_model_back():
    model, base = made(Residual).eval(), made(Residual)
    select(model, where="all")
    with torch.no_grad():
        for path in ABLE:
            model.get_submodule(path).lora_B["adabet"].weight.normal_()
    inputs = images()[0][0]
    adapted = model(inputs)
    remove(model, merge=True)
    assert list(model.state_dict()) == list(base.state_dict())
    torch.testing.assert_close(model(inputs), adapted)
    again = made(Residual)
    select(again, where="all")
    remove(again)
    assert same(weights_of(again), weights_of(base))
    assert not hasattr(again, "peft_config")
    select(again, where="all")


def test_a_saved_selection_finds_its_adapters():
    model, other = made(Residual), made(Residual)
    selection = Selection.from_json(select(model, where="all").to_json())
    with pytest.raises(SelectionError, match="lora_A"):
        adabet.apply(other, selection)
    state = torch.get_rng_state()
    inject(other, selection)
    assert same(weights_of(other), weights_of(model))
    assert torch.equal(torch.get_rng_state(), state)
    inject(other, selection)
    with adabet.apply(other, selection):
        pass
    foreign = made(Text)
    with pytest.raises(SelectionError, match="another model"):
        inject(foreign, selection)
    assert adapted_layers(foreign) == ()
    wider = made(Residual)
    wider.down, wider.deep[0].conv = nn.Conv2d(4, 7, 1), nn.Conv2d(7, 7, 1)
    with pytest.raises(SelectionError, match="another model"):
        inject(wider, selection)
    assert adapted_layers(wider) == ()


def test_what_can_take_no_adapter():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 2, dilation=2),
        nn.Conv2d(4, 4, 1, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    model(torch.zeros(1, 1, 5, 5))
    start("lora", model, images(), where="all", head="5").turn(moment(1))
    assert adapted_layers(model) == ("0",)
    # torch's own transformer layers read the weights of their parts
    text = made(Text)
    start("lora", text, texts(), where="all").turn(moment(1))
    assert adapted_layers(text) == ("embed",)
    with pytest.raises(LayerError, match="that can take adapters"):
        start("lora", nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(25, 3)), images(), head="2")


def test_an_embedding_and_its_adapter():
    model, base = made(Text).eval(), made(Text).eval()
    tokens = texts()[0][0]
    selection = adabet.select("lora", model, texts(), where="all", rank=2)
    assert [choice.parameter_count for choice in selection.choices] == [2 * 11 + 8 * 2, 18]
    torch.testing.assert_close(model(tokens), base(tokens))
    with torch.no_grad():
        model.embed.lora_embedding_A["adabet"].normal_()
    rows = model.embed.lora_embedding_A["adabet"].t() @ model.embed.lora_embedding_B["adabet"].t()
    torch.testing.assert_close(model.embed(tokens), (base.embed.weight + rows)[tokens])
    adapted = model(tokens)
    remove(model, merge=True)
    torch.testing.assert_close(model(tokens), adapted)


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"where": "lisa"}, {"layer_ratio": 2.0}]
)
def test_options(options):
    with pytest.raises(OptionError, match=f"expected (a )?{next(iter(options))}"):
        start("lora", made(Residual), images(), **options)
    with pytest.raises(OptionError, match="that orders layers"):
        start("lora", made(Residual), images(), where="full").turn(moment(1))


def test_a_model_that_has_adapters():
    model = made(Residual)
    select(model)
    with pytest.raises(LayerError, match="without adapters"):
        select(model)


def test_it_selects_again_in_the_registry_but_only_once_in_a_run():
    assert find_method("lora").kind == "selects again"
    method = start("lora", made(Residual), images(12))
    assert [at for at in range(1, 5) if method.due(moment(at))] == [1]


def test_state_round_trips():
    model, other = made(Residual), made(Residual)
    first = start("lora", model, images(12), layer_ratio=0.5)
    first.load_state_dict(first.state_dict())
    selection = first.turn(moment(1)).selection
    second = start("lora", other, images(12), layer_ratio=0.5)
    second.load_state_dict(first.state_dict())
    assert same(weights_of(other), weights_of(model))
    assert second.state_dict() == first.state_dict()
    selection.check(other)
    with pytest.raises(CheckpointError, match="another method"):
        second.load_state_dict({})


class Stop(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


def run(folder, at=(0, 0), **options):
    model = make_net()
    adabet.fit(
        model,
        *make_loaders(),
        method="lora",
        layer_ratio=1.0,
        method_options={"dropout": 0.1, "rank": 2},
        epochs=3,
        lr=0.1,
        run_dir=folder,
        progress=Stop(*at),
        **options,
    )
    return model


@pytest.mark.parametrize("at", [(1, 2), (3, 2)])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, at):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", at)
    resumed = run(tmp_path / "stopped", resume=True)
    assert same(weights_of(resumed), weights_of(whole))


def test_a_delta_holds_adapters_and_head_and_fits_the_bare_model(tmp_path):
    model, bare = run(tmp_path / "run"), make_net()
    base = weights_of(bare)
    load_delta(bare, tmp_path / "run" / "best.safetensors")
    assert same(weights_of(bare), weights_of(model))
    frozen = {
        name.replace(".base_layer", "") for name in weights_of(model) if "lora" not in name and "head" not in name
    }
    remove(model)
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, base[name])}
    assert not moved & frozen
    other = make_net(seed=3)
    before = weights_of(other)
    with pytest.raises(CheckpointError, match="other base weights"):
        load_delta(other, tmp_path / "run" / "best.safetensors")
    assert same(weights_of(other), before)


def test_a_vision_transformer_adapts_whole_attention_blocks():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    names = {f"blocks.{block}.{part}" for block in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    result = adabet.fit(
        model, batches, method="lora", method_options={"where": "all"}, epochs=1, recompute=True, micro_batch=2
    )
    assert set(adapted_layers(model)) == names | {"patch_embed.proj"}
    assert set(result.layers) == names | {"patch_embed.proj", "head"}
