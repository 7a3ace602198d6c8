"""Lightning: the callback trains what adabet chose and nothing else, and a killed fit goes on as if it had not been."""

import dataclasses
import signal
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import adabet
from adabet.errors import (
    AdabetWarning,
    CheckpointError,
    DataError,
    LayerError,
    OptionError,
    SelectionError,
    UnknownNameError,
)
from adabet.integrations.lightning import AdaBetFinetuning, find_network
from adabet.lean import adding, linear
from tests.integrations.lightning_runs import (
    BATCH,
    EPOCHS,
    Module,
    by_hand,
    callback_of,
    fit,
    loader,
    module_class,
    net_without_dropout,
)
from tests.training.nets import choose_last, make_data, make_net, same, weights_of

IGNORED = (
    "ignore:.*isinstance.treespec, LeafSpec.. is deprecated",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:Found .* in eval mode at the start of training",  # frozen batch-norms are
    "ignore:Checkpoint directory .* exists and is not empty",
)
pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


@pytest.mark.parametrize("channel_ratio", [1.0, 0.5])
def test_a_fit_is_the_training_that_one_writes_by_hand(tmp_path, channel_ratio):
    options = {"layer_ratio": 0.5, "channel_ratio": channel_ratio, "samples": 20}
    callback = AdaBetFinetuning(**options, delta=tmp_path / "delta.safetensors")
    module, _ = fit(tmp_path, callback)
    chosen = adabet.select("adabet", net_without_dropout(), loader(), seed=0, **options)
    assert callback.selection == chosen
    assert any(choice.channels for choice in chosen.choices) == (channel_ratio < 1)
    expected = by_hand(chosen)
    for name, value in weights_of(module.network).items():
        torch.testing.assert_close(value, weights_of(expected)[name], rtol=1e-4, atol=1e-6)
    base = weights_of(net_without_dropout())
    moved = {name for name, value in weights_of(module.network).items() if not torch.equal(value, base[name])}
    assert moved == set(chosen.parameters)
    bare = net_without_dropout()
    assert adabet.load_delta(bare, tmp_path / "delta.safetensors") == chosen
    assert same(weights_of(bare), weights_of(module.network))


def test_the_model_is_given_back(tmp_path):
    module = Module()
    before = list(vars(module))
    fit(tmp_path, AdaBetFinetuning(channel_ratio=0.5, samples=20), module=module, epochs=1)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert type(module.network.conv1) is nn.Conv2d
    assert "training_step" not in vars(module)
    assert list(vars(module)) == before or "training_step" not in before
    fails = Module()
    fails.configure_optimizers = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, AdaBetFinetuning(samples=20), module=fails, epochs=1)
    assert all(parameter.requires_grad for parameter in fails.parameters())
    assert "training_step" not in vars(fails)


def test_steps_are_lean(tmp_path):
    kept = {}
    for lean in (True, False):
        module = Module()
        fit(tmp_path / str(lean), AdaBetFinetuning(layer_ratio=0.5, samples=20, lean=lean), module=module, epochs=1)
        kept[lean] = module.saved
    activation = BATCH * 8 * 6 * 6 * 4
    # the first convolution trains: the input of the second, frozen one goes, and that of its batch-norm
    assert kept[False] - kept[True] >= 2 * activation


def test_accumulated_gradients_are_summed_in_place(tmp_path, monkeypatch):
    weights, added = {}, []
    product = adding.product_gradient

    def watched(*arguments):
        gradient = product(*arguments)
        added.append(gradient is None)
        return gradient

    monkeypatch.setattr(linear, "product_gradient", watched)
    for lean in (True, False):
        callback = AdaBetFinetuning(method="full", lean=lean)
        module, _ = fit(tmp_path / str(lean), callback, epochs=1, accumulate_grad_batches=2)
        weights[lean] = weights_of(module)
    torch.testing.assert_close(weights[True], weights[False])
    assert added[:4] == [False, True, False, True]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_frozen_tensors_leave_the_optimizer(tmp_path, kind):
    selection = choose_last(make_net())
    with pytest.warns(AdabetWarning, match="gave 4 frozen tensors"):
        module, trainer = fit(
            tmp_path / "all", AdaBetFinetuning(selection=selection), module=Module(kind, filtered=False)
        )
    held = [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    assert {names[id(parameter)] for parameter in held} == set(selection.parameters)
    filtered, _ = fit(tmp_path / "some", AdaBetFinetuning(selection=selection), module=Module(kind))
    assert same(weights_of(filtered), weights_of(module))


def test_chosen_tensors_have_to_be_in_an_optimizer(tmp_path):
    module = Module()
    module.configure_optimizers = lambda: torch.optim.SGD(module.network.head.parameters(), lr=0.1)
    with pytest.raises(OptionError, match=r"4 tensors of the network are to train and in no optimizer, such as 'conv2"):
        fit(tmp_path, AdaBetFinetuning(selection=choose_last(make_net())), module=module)


class Late(Module):
    """Builds a part after the callback has looked."""

    def setup(self, stage):
        self.network.more = nn.Linear(4, 4)

    def configure_optimizers(self):
        known = [value for name, value in self.network.named_parameters() if not name.startswith("more")]
        return torch.optim.SGD(known, lr=0.1)


def test_networks_are_built_before(tmp_path):
    with pytest.raises(OptionError, match=r"such as 'more\.weight'; .* build no modules after __init__"):
        fit(tmp_path, AdaBetFinetuning(selection=choose_last(make_net())), module=Late())
    empty = Module()
    empty.network = nn.Identity()
    with pytest.raises(LayerError, match="build it in __init__"):
        fit(tmp_path, AdaBetFinetuning(), module=empty)


def test_which_network():
    module = Module()
    assert find_network(module) is module.network
    assert find_network(module, "network.conv1") is module.network.conv1
    module.loss = nn.CrossEntropyLoss()
    assert find_network(module) is module.network
    module.other = nn.Linear(2, 2)
    assert find_network(module) is module
    with pytest.raises(LayerError, match="has no 'body'"):
        find_network(module, "body")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a fit in two processes and of one that killed itself."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.integrations.lightning_runs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture
def one_thread():
    """As in the other processes: sums over threads have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_fit_goes_on_as_if_it_had_not_been(tmp_path, runs):
    folder = runs / "killed"
    early = adabet.load_delta(net_without_dropout(), folder / "delta")
    whole, trainer = fit(tmp_path / "whole", callback_of(tmp_path), module=Module("adam"))
    # what the checkpoint says counts, not what this callback would choose
    other = callback_of(folder, layer_ratio=1.0, channel_ratio=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(77)
        resumed, again = fit(folder, other, module=Module("adam"), ckpt_path=folder / "last.ckpt")
    assert other.selection == early
    assert again.global_step == trainer.global_step == EPOCHS * 5
    assert same(weights_of(resumed), weights_of(whole))
    bare = net_without_dropout()
    assert adabet.load_delta(bare, folder / "delta") == early
    assert same(weights_of(bare), weights_of(whole.network))


def test_a_checkpoint_without_a_selection(tmp_path):
    fit(tmp_path, pl.Callback(), epochs=1)
    with pytest.raises(CheckpointError, match="made without AdaBetFinetuning"):
        fit(tmp_path, AdaBetFinetuning(samples=20), ckpt_path=tmp_path / "last.ckpt")


def test_two_processes_train_like_one(runs):
    two = torch.load(runs / "two" / "two.pt")
    bare = net_without_dropout()
    selection = adabet.load_delta(bare, runs / "two" / "delta")
    assert same(weights_of(bare), two)
    data = make_data(40)
    # Lightning shares training data out so, and shuffles it
    shares = [list(DistributedSampler(data, num_replicas=2, rank=rank)) for rank in (0, 1)]
    half = BATCH // 2
    batches = [data[shares[0][at : at + half] + shares[1][at : at + half]] for at in range(0, 20, half)]
    for name, value in weights_of(by_hand(selection, epochs=1, batches=batches)).items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7)


class Data(pl.LightningDataModule):
    """Counts how often it is asked."""

    asked = 0

    def setup(self, stage):
        self.data = make_data(40)

    def train_dataloader(self):
        self.asked += 1
        return DataLoader(self.data, BATCH, shuffle=True)


def test_a_data_module_and_the_order_of_its_data(tmp_path):
    """Looking draws no random numbers: the order is that of a fit whose selection was given."""
    results = []
    for given in (None, "found"):
        callback = AdaBetFinetuning(selection=given and results[0][1], method="last-k" if given is None else "adabet")
        torch.manual_seed(5)
        module, _ = fit(tmp_path / str(given), callback, data=Data(), epochs=2)
        results.append((weights_of(module), callback.selection))
    assert same(results[0][0], results[1][0])


def test_batches_of_its_own_and_several_loaders(tmp_path):
    both = {"first": loader(), "second": loader()}

    class Both(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["first"], batch_idx)

    for data in (both, [loader(), loader()], pl.utilities.CombinedLoader(both)):
        with pytest.raises(DataError, match="expected one training dataloader"):
            fit(tmp_path, AdaBetFinetuning(), module=Both(), data=data)
    callback = AdaBetFinetuning(batches=list(loader()), method="last-k", layer_ratio=0.5)
    fit(tmp_path, callback, module=Both(), data=both, epochs=1)
    assert callback.selection == choose_last(make_net())


def test_the_other_name_of_the_package(tmp_path):
    callback = AdaBetFinetuning(selection=choose_last(make_net()))
    module = module_class(pytorch_lightning.LightningModule)()
    fit(tmp_path, callback, module=module, api=pytorch_lightning)
    expected, _ = fit(tmp_path / "new", AdaBetFinetuning(selection=choose_last(make_net())))
    assert same(weights_of(module), weights_of(expected))


def test_a_plan_says_how_the_network_trains(tmp_path):
    net = net_without_dropout()
    whole = adabet.measure_memory(net, next(iter(loader())), adabet.select("full", net, loader()), inference=False)
    plan = adabet.plan(net, loader(), memory=0.9 * whole.training.total, micro_batch=BATCH, samples=20)
    callback = AdaBetFinetuning(selection=plan)
    module, _ = fit(tmp_path, callback)
    assert callback.selection == plan.selection
    for name, value in weights_of(by_hand(plan.selection)).items():
        torch.testing.assert_close(weights_of(module.network)[name], value, rtol=1e-4, atol=1e-6)
    small = dataclasses.replace(plan, micro_batch=3)
    with pytest.raises(OptionError, match="gives 8: set its batch_size=3 and accumulate_grad_batches=3"):
        fit(tmp_path, AdaBetFinetuning(selection=small))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        return self.convolution(images).tanh()


def test_a_plan_that_recomputes_blocks(tmp_path):
    saved, finals = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = Module()
        blocks = [Block() for _ in range(4)]
        module.network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sequential(*blocks), nn.Flatten(), nn.Linear(128, 4))
        plan = adabet.plan(module.network, loader(), memory="1GB", micro_batch=BATCH, samples=20, head="3")
        fit(
            tmp_path,
            AdaBetFinetuning(selection=dataclasses.replace(plan, recompute=recompute)),
            module=module,
            epochs=1,
        )
        assert not any("forward" in vars(block) for block in blocks)
        saved.append(module.saved)
        finals.append(weights_of(module.network))
    assert saved[1] < 0.8 * saved[0]
    assert same(*finals)


def test_wrong_use(tmp_path):
    selection = choose_last(make_net())
    with pytest.raises(OptionError, match="selects once, 'lora' chooses again"):
        AdaBetFinetuning(method="lora")
    with pytest.raises(OptionError, match="selects once"):
        AdaBetFinetuning(every=2)
    with pytest.raises(UnknownNameError):
        AdaBetFinetuning(method="nothing")
    for options in ({"layer_ratio": 0.1}, {"channel_ratio": 0.5}, {"samples": 3}):
        with pytest.raises(OptionError, match="got both"):
            AdaBetFinetuning(selection=selection, **options)
    with pytest.raises(OptionError, match="expected a Selection or a Plan, got str"):
        AdaBetFinetuning(selection="all")
    with pytest.raises(OptionError, match="batch_norm"):
        AdaBetFinetuning(batch_norm="off")
    plan = adabet.plan(make_net(), [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 1]))], memory="1GB", method="size")
    with pytest.raises(OptionError, match="plans are measured that way"):
        AdaBetFinetuning(selection=plan, lean=False)
    with pytest.raises(SelectionError, match="another model"):
        fit(tmp_path, AdaBetFinetuning(selection=selection, network="network.conv1"))
    with pytest.raises(OptionError, match="takes no option 'sample'"):
        fit(tmp_path, AdaBetFinetuning(sample=3))


def test_sharded_models_are_refused(tmp_path):
    callback = AdaBetFinetuning()
    module, trainer = Module(), pl.Trainer(accelerator="cpu", logger=False, callbacks=[callback])

    class FSDPStrategy(type(trainer.strategy)):
        pass

    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(OptionError, match="FSDPStrategy shards; train with 'ddp'"):
        callback.setup(trainer, module, "fit")
