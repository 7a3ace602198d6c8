"""Two processes of the real Trainer (gloo) against one with the double batch."""

import pytest
import torch
from safetensors.torch import load_file

import adabet
from adabet.integrations.transformers import DELTA, AdaBetCallback
from tests.integrations.trainers import SAVING, Texts, bert, collate_texts, make_trainer, same, weights_of
from tests.two_processes import run_two

PLAIN = {"optim": "sgd", "learning_rate": 0.1, "average_tokens_across_devices": False}
"""Adam would blow up rounding where a gradient is zero in truth; and averaging over tokens has the stock trainer
multiply a classifier's loss, which is none over tokens, by the number of processes."""

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

PROGRAM = """
import os, sys
from pathlib import Path
from safetensors.torch import save_file
from adabet.errors import OptionError, SelectionError
from adabet.integrations.distributed import choose_once
from adabet.integrations.transformers import AdaBetCallback
from tests.integrations.test_transformers_processes import NO_DROPOUT, PLAIN, choose
from tests.integrations.trainers import SAVING, bert, make_trainer

folder = Path(sys.argv[1])
model = bert(**NO_DROPOUT)
options = dict(SAVING, **PLAIN, ddp_backend="gloo", ddp_find_unused_parameters=False, per_device_train_batch_size=4)
try:
    make_trainer(folder, model, AdaBetCallback(), **options)
except OptionError as error:
    assert "expected a selection with 2 processes" in str(error), error
else:
    raise SystemExit("a callback without a selection was not refused")
try:
    make_trainer(folder, model, AdaBetCallback(choose(model, 0.3 + 0.3 * int(os.environ["RANK"]))), **options)
except SelectionError as error:
    assert "expected one selection in all processes" in str(error), error
else:
    raise SystemExit("different selections were not refused")
trainer = make_trainer(folder, model, AdaBetCallback(choose_once(lambda: choose(model))), **options)
trainer.train()
assert trainer.args.world_size == 2
assert all(parameter.requires_grad for parameter in model.parameters())
state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
save_file(state, folder / f"{os.environ['RANK']}.safetensors")
"""


def choose(model, layer_ratio=0.3):
    batch = collate_texts([Texts()[index] for index in range(32)])
    return adabet.select("adabet", model, [batch], layer_ratio=layer_ratio)


@pytest.mark.slow
def test_act_as_one_with_the_double_batch(tmp_path):
    run_two(PROGRAM, str(tmp_path))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    model = bert(**NO_DROPOUT)
    before = weights_of(model)
    selection = choose(model)
    make_trainer(tmp_path / "one", model, AdaBetCallback(selection), **SAVING, **PLAIN).train()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(first[name], tensor)
    assert {name for name in first if not torch.equal(first[name], before[name])} == set(selection.parameters)
    adapted = bert(**NO_DROPOUT)
    adabet.load_delta(adapted, tmp_path / "checkpoint-8" / DELTA)
    assert same(weights_of(adapted), first)
