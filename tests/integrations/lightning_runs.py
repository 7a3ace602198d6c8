"""A LightningModule, fits of it, and a program that trains in two processes and then kills itself.

python -m tests.integrations.lightning_runs DIR
"""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, DistributedSampler

import adabet
from adabet.integrations.lightning import AdaBetFinetuning
from tests.training.nets import make_data, make_net

EPOCHS, BATCH = 3, 8


def module_class(base: type) -> type:
    """A LightningModule as people write them, for either name of the package."""

    class Module(base):
        def __init__(self, optimizer: str = "sgd", filtered: bool = True) -> None:
            super().__init__()
            self.network = net_without_dropout()
            self.kind, self.filtered = optimizer, filtered
            self.saved = 0

        def training_step(self, batch, batch_idx):
            images, labels = batch
            seen = {}

            def pack(tensor):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = nn.functional.cross_entropy(self.network(images), labels)
            self.saved = sum(seen.values())
            return loss

        def configure_optimizers(self):
            given = [parameter for parameter in self.parameters() if parameter.requires_grad or not self.filtered]
            if self.kind == "adam":
                return torch.optim.Adam(given, lr=0.01)
            return torch.optim.SGD(given, lr=0.05, momentum=0.9)

    return Module


def net_without_dropout():
    net = make_net()
    net.drop.p = 0.0
    return net


def loader(batch_size: int = BATCH) -> DataLoader:
    """Shuffled by the epoch's number."""
    data = make_data(40)
    return DataLoader(data, batch_size, sampler=DistributedSampler(data, num_replicas=1, rank=0, seed=3))


class KillAt(pl.Callback):
    """Ends this process as ``kill -9`` does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)


Module = module_class(pl.LightningModule)


def fit(folder, callback, *, module=None, data=None, ckpt_path=None, callbacks=(), epochs=EPOCHS, api=pl, **options):
    """A fit that checkpoints every epoch; returns module and trainer."""
    module = Module() if module is None else module
    checkpoints = api.callbacks.ModelCheckpoint(folder, save_last=True, save_top_k=1)
    trainer = api.Trainer(
        accelerator="cpu",
        callbacks=[callback, checkpoints, *callbacks],
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=epochs,
        **options,
    )
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return module, trainer


def by_hand(selection, epochs: int = EPOCHS, batches=None) -> nn.Module:
    """The same training without Lightning and without lean."""
    net = net_without_dropout().train()
    with adabet.apply(net, selection):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        for epoch in range(epochs):
            data = loader()
            data.sampler.set_epoch(epoch)
            for images, labels in data if batches is None else batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
    return net


def callback_of(folder: Path, **options) -> AdaBetFinetuning:
    chosen = {"layer_ratio": 0.5, "samples": 20, "channel_ratio": 0.5}
    return AdaBetFinetuning(**{**chosen, **options}, delta=folder / "delta")


def train_in_two_processes(folder: Path) -> None:
    """Leaves the weights and the delta."""
    data = DataLoader(make_data(40), BATCH // 2)
    module, _ = fit(folder, callback_of(folder, channel_ratio=1.0), data=data, epochs=1, devices=2, strategy="ddp_fork")
    torch.save(module.network.state_dict(), folder / "two.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_in_two_processes(Path(sys.argv[1]) / "two")
    killed = Path(sys.argv[1]) / "killed"
    fit(killed, callback_of(killed), module=Module("adam"), callbacks=[KillAt()])
