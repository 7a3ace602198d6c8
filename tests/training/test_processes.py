"""Precision and processes on accelerate."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from adabet.errors import OptionError
from adabet.training import fit
from tests.training.nets import choose_last, make_loaders, make_net, same, weights_of
from tests.two_processes import run_two


def dtypes_while_training(mixed_precision):
    model, seen = make_net(), set()
    selection = choose_last(model)
    model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    fit(
        model,
        *make_loaders(),
        selection,
        lr=0.05,
        epochs=1,
        batch_norm="train",
        mixed_precision=mixed_precision,
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    return seen, weights_of(model)


def test_fits_of_different_precision_in_one_process():
    plain, weights = dtypes_while_training(None)
    assert plain == {torch.float32}
    assert dtypes_while_training("bf16")[0] == {torch.bfloat16}
    assert dtypes_while_training("fp16")[0] == {torch.float16}
    again, same_weights = dtypes_while_training("no")
    assert again == {torch.float32}
    assert same(weights, same_weights)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_low_precision_is_resumed_to_the_same_bits(tmp_path, precision):
    class Stop(KeyboardInterrupt):
        pass

    class StopInEpoch2:
        def start(self, **_): ...
        def step(self, *, epoch, step, loss):
            if epoch == 2:
                raise Stop

        def epoch(self, record): ...
        def stop(self): ...

    options = {"lr": 0.05, "epochs": 3, "mixed_precision": precision, "keep": "last"}
    whole, stopped, resumed = make_net(), make_net(), make_net()
    fit(whole, *make_loaders(), choose_last(whole), **options)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, *make_loaders(), choose_last(stopped), **options, run_dir=folder, progress=StopInEpoch2())
    fit(resumed, *make_loaders(), choose_last(resumed), **options, run_dir=folder, resume=True)
    assert same(weights_of(whole), weights_of(resumed))


def test_the_users_accelerator_is_used():
    model = make_net()
    accelerator = Accelerator(cpu=True)
    fit(model, *make_loaders(), choose_last(model), epochs=1, accelerator=accelerator)
    assert model.head.weight.device == accelerator.device
    assert type(model.forward.__func__) is type(nn.Module.forward), "accelerate must not wrap forward"


def test_an_accelerator_that_splits_the_model_is_refused():
    class Sharded:
        class distributed_type:
            value = "FSDP"

    with pytest.raises(OptionError, match="each hold the whole model, accelerate is set up for FSDP"):
        fit(make_net(), *make_loaders(), accelerator=Sharded())


PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from accelerate import Accelerator
from adabet.training import evaluate, fit
from tests.training.nets import make_data, make_net

folder, resume = Path(sys.argv[1]), len(sys.argv) > 2
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
model = make_net(seed=rank)
model.drop.p = 0.0
data = make_data(48)
val_loader = DataLoader(make_data(27, seed=2), 4)
result = fit(
    model, DataLoader(data, 4), val_loader, method="random", layer_ratio=0.6, lr=0.05, epochs=3, keep="last",
    seed=rank, accelerator=accelerator, run_dir=folder / "run", resume=resume,
)
assert accelerator.num_processes == 2
measured = evaluate(model, val_loader)
assert abs(measured["loss"] - result.last.val_loss) < 1e-6, (measured, result.last)
assert measured["accuracy"] == result.last.val_metrics["accuracy"]
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / f"{rank}.safetensors")
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_act_as_one_with_the_double_batch(tmp_path):
    """Heads drawn differently, seeds different: the main process's count; the step is that of the joint batch."""
    run_two(PROGRAM, str(tmp_path), ACCELERATE_USE_CPU="true")
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert same(first, second)

    from torch.utils.data import DataLoader

    from tests.training.nets import make_data

    model = make_net()
    model.drop.p = 0.0
    fit(
        model,
        DataLoader(make_data(48), 8),
        method="random",
        layer_ratio=0.6,
        lr=0.05,
        epochs=3,
    )
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(first[name], tensor)

    run_two(PROGRAM, str(tmp_path), "resume", ACCELERATE_USE_CPU="true")
    assert same(load_file(tmp_path / "1.safetensors"), first)
