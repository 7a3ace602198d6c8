"""timm: the groups that its own rules make of what trains, in the loop of its training script."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import adabet
from adabet.errors import OptionError, SelectionError
from adabet.integrations.timm import param_groups
from tests.cases.models import SMALL, small_images
from tests.training.nets import make_net, same, weights_of

TIMM = [case for case in SMALL if case.name.startswith("timm")]
VIT = next(case for case in TIMM if case.name == "timm-vit")


def batches(count: int = 3, classes: int = 7):
    draw = torch.Generator().manual_seed(0)
    return [(small_images(8, seed=at), torch.randint(classes, (8,), generator=draw)) for at in range(count)]


def chosen(model, ratio: float = 0.5):
    return adabet.select("random", model, batches(1), layer_ratio=ratio, seed=1)


def by_decay(groups, model) -> dict[float, set[str]]:
    """Names of tensors by their weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(item)] for item in group["params"])
    return found


@pytest.mark.parametrize("case", TIMM, ids=str)
@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_only_what_trains_and_no_decay_of_vectors(case, layer_decay):
    model = case.build()
    selection = chosen(model)
    sizes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    spared = getattr(model, "no_weight_decay", set)()
    with adabet.apply(model, selection):
        found = by_decay(param_groups(model, selection, weight_decay=0.1, layer_decay=layer_decay), model)
    assert set().union(*found.values()) == set(selection.parameters)
    vectors = {name for name in selection.parameters if sizes[name] < 2 or name in spared}
    assert found == {0.0: vectors, 0.1: set(selection.parameters) - vectors}


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_the_groups_are_those_that_timm_makes_of_the_model(layer_decay):
    model = VIT.build()
    selection = chosen(model)
    with adabet.apply(model, selection):
        groups = param_groups(model, selection, weight_decay=0.1, layer_decay=layer_decay)
        mine = create_optimizer_v2(groups, "adamw", lr=0.01)
        its = create_optimizer_v2(model, "adamw", lr=0.01, weight_decay=0.1, layer_decay=layer_decay)
    assert len(mine.param_groups) == len(its.param_groups) > 1
    for one, other in zip(mine.param_groups, its.param_groups, strict=True):
        assert [id(item) for item in one["params"]] == [id(item) for item in other["params"]]
        assert {name: value for name, value in one.items() if name != "params"} == {
            name: value for name, value in other.items() if name != "params"
        }


def test_depth_is_counted_in_the_whole_model():
    model = VIT.build()
    selection = adabet.select("head", model, batches(1))
    every = adabet.select("full", model, batches(1))
    scales = {}
    for chosen_, key in ((selection, "head"), (every, "full")):
        with adabet.apply(model, chosen_):
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            groups = param_groups(model, chosen_, layer_decay=0.5)
            scales[key] = {names[id(item)]: group["lr_scale"] for group in groups for item in group["params"]}
    assert scales["head"].items() <= scales["full"].items()
    # patches and positions; two blocks of two steps each (timm counts a half block as a step); norm and head
    depths = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "head.weight")
    values = [scales["full"][name] for name in depths]
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert values[0] < values[1] < values[2] < 1


def test_slices_of_channels():
    model = make_net()
    images = [torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(at)) for at in range(5)]
    selection = adabet.select("adabet", model, images, layer_ratio=1.0, channel_ratio=0.5)
    with adabet.apply(model, selection):
        groups = param_groups(model, selection, weight_decay=0.1)
        shapes = {group["weight_decay"]: sorted(tuple(item.shape) for item in group["params"]) for group in groups}
    # half the rows of two convolutions with biases and of two norms; the head trains whole
    assert shapes == {0.0: [(4,)] * 7, 0.1: [(4, 1, 3, 3), (4, 8), (4, 8, 3, 3)]}


def train(model, selection, optimizer, lean, scheduler=None, epochs=2):
    for epoch in range(epochs):
        model.train()
        for images, labels in batches():
            with lean:
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if scheduler is not None:
            scheduler.step(epoch + 1)


@pytest.mark.parametrize("name", ["timm-mobilenetv2", "timm-vit"])
def test_timms_training_script(name, tmp_path):
    """create_model, create_optimizer_v2, create_scheduler_v2 and the loop; against torch's own classes."""
    case = next(case for case in TIMM if case.name == name)
    model, other = case.build(), case.build()
    base = weights_of(model)
    selection = adabet.rank(model, batches()).select(layer_ratio=0.3)
    with adabet.apply(model, selection):
        groups = param_groups(model, selection, weight_decay=0.1, layer_decay=0.75)
        optimizer = create_optimizer_v2(groups, "adamw", lr=0.01)
        scheduler, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=2, warmup_epochs=0)
        rates = [[group["lr"] / group["lr_scale"] for group in optimizer.param_groups]]
        torch.manual_seed(0)
        train(model, selection, optimizer, adabet.lean(), scheduler, epochs)
        rates.append([group["lr"] / group["lr_scale"] for group in optimizer.param_groups])
    assert epochs == 2
    assert rates[0] == pytest.approx([0.01] * len(groups))
    assert rates[1] == pytest.approx([rates[1][0]] * len(groups))
    assert rates[1][0] < 0.01
    moved = {key for key, value in weights_of(model).items() if not torch.equal(value, base[key])}
    assert moved == set(selection.parameters)

    with adabet.apply(other, selection):
        named = {key: value for key, value in other.named_parameters() if value.requires_grad}
        scales = scale_of(groups, model)
        plain = torch.optim.AdamW(
            [
                {"params": [value], "lr": 0.01 * scales[key], "weight_decay": 0.1 if decays(other, key) else 0.0}
                for key, value in named.items()
            ]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(plain, 2)
        torch.manual_seed(0)
        for _ in range(2):
            train(other, selection, plain, torch.enable_grad(), epochs=1)
            schedule.step()
    for key, value in weights_of(model).items():
        torch.testing.assert_close(value, weights_of(other)[key], rtol=1e-3, atol=1e-5)

    adabet.save_delta(model, selection, tmp_path / "delta")
    bare = case.build()
    adabet.load_delta(bare, tmp_path / "delta")
    assert same(weights_of(bare), weights_of(model))


def decays(model, name: str) -> bool:
    return model.get_parameter(name).dim() > 1 and name not in getattr(model, "no_weight_decay", set)()


def scale_of(groups, model) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(item)]: group["lr_scale"] for group in groups for item in group["params"]}


def test_patterns_that_are_not_decayed():
    model = VIT.build()
    selection = adabet.select("full", model, batches(1))
    with adabet.apply(model, selection):
        found = by_decay(param_groups(model, selection, weight_decay=0.1, no_weight_decay=["blocks.*"]), model)
    assert not [name for name in found[0.1] if name.startswith("blocks")]
    assert "pos_embed" in found[0.1]


def test_wrong_use():
    model = timm.create_model("resnet18", num_classes=7)
    selection = chosen(model)
    with pytest.raises(SelectionError, match=r"nothing else, 62 do; make the groups inside `with adabet\.apply"):
        param_groups(model, selection)
    with adabet.apply(model, selection):
        for options in ({"weight_decay": -1.0}, {"layer_decay": 0.0}, {"layer_decay": 2.0}):
            with pytest.raises(OptionError, match=next(iter(options))):
                param_groups(model, selection, **options)
        with pytest.raises(SelectionError, match="nothing else"):
            param_groups(model, adabet.select("head", model, batches(1)))
    with pytest.raises(SelectionError, match="another model"):
        param_groups(make_net(), selection)
