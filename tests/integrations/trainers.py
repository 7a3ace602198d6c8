"""Small models of transformers, data for them, and trainers; and a program that trains and kills itself (SIGKILL).

python -m tests.integrations.trainers OUTPUT_DIR STEP; step 0: live to the end.
"""

import os
import signal
import sys
from functools import partial

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from adabet.integrations.transformers import AdaBetCallback
from adabet.memory import measure_peak

CLASSES = 4
WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(**changes) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**WORDS, **SIZES, num_labels=CLASSES, max_position_embeddings=32, **changes)
    return transformers.BertForSequenceClassification(config)


def gpt2(**changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(**WORDS, **sizes, num_labels=CLASSES, **changes)
    return transformers.GPT2ForSequenceClassification(config)


def vit(**changes) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=CLASSES, **SIZES, **changes)
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES, layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config)


class Texts(Dataset):
    """Sequences of different lengths; the first word tells the class."""

    def __init__(self, count: int = 32, *, seed: int = 1, lengths: tuple[int, int] = (4, 12)) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
        self.rows = [torch.randint(5, 50, (size,), generator=generator) for size in sizes]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return {"input_ids": self.rows[index], "labels": int(self.rows[index][0]) % CLASSES}


class Images(Dataset):
    """Noise whose mean tells the class."""

    def __init__(self, count: int = 32, *, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.pixels = torch.randn(count, 3, 16, 16, generator=generator) + self.labels.view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}


def collate_texts(rows):
    """Pads to the longest of the batch."""
    ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


KINDS = {
    "bert": (bert, Texts, collate_texts),
    "gpt2": (gpt2, Texts, collate_texts),
    "vit": (vit, Images, None),
    "resnet": (resnet, Images, None),
}


def make_trainer(output_dir, model, *callbacks, kind="bert", data=None, trainer=Trainer, collate=None, **arguments):
    """A trainer of four steps an epoch, two epochs, on a CPU, that is silent and saves nothing."""
    _, data_class, collator = KINDS[kind]
    settings = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **arguments,
    }
    made = trainer(
        model,
        TrainingArguments(output_dir=str(output_dir), **settings),
        train_dataset=data_class() if data is None else data,
        eval_dataset=data_class(16, seed=2),
        data_collator=collate or collator,
        callbacks=list(callbacks),
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class MeasuringTrainer(Trainer):
    """Counts the bytes that each step allocates at its peak beside what there is before it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.bytes = []

    def training_step(self, *arguments, **options):
        losses = []
        step = partial(super().training_step, *arguments, **options)
        self.bytes.append(measure_peak(lambda: losses.append(step())))
        return losses[0]


class Stop(Exception):
    pass


def stop():
    raise Stop


def frozen_by_hand(model, selection):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selection.parameters)
    return model


def trained(folder, kind, *callbacks, model=None, **options):
    model = KINDS[kind][0]() if model is None else model
    trainer = make_trainer(folder, model, *callbacks, kind=kind, **options)
    trainer.train()
    return trainer


def checkpointing(**options):
    """The trainer's arguments for it, under the name that the installed version has."""
    name = "activation_checkpointing"
    if name not in transformers.TrainingArguments.__dataclass_fields__:
        name = "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False, **options}}


class At(TrainerCallback):
    """Does something just before a step."""

    def __init__(self, step: int, do) -> None:
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == self.step:
            self.do()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KilledAt = partial(At, do=kill)
SAVING = {"save_strategy": "steps", "save_steps": 3}


if __name__ == "__main__":
    folder, at = sys.argv[1], int(sys.argv[2])
    trainer = make_trainer(folder, bert(), AdaBetCallback(layer_ratio=0.3), KilledAt(at), **SAVING)
    trainer.train()
