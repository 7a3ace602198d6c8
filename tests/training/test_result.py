"""What a run reports, in words and in JSON."""

import dataclasses
import json

import pytest

from adabet.errors import CheckpointError, OptionError
from adabet.training import EpochRecord, FitResult
from adabet.training.result import best_record, last_improvement


def record(epoch, accuracy, loss, **values):
    plain = {"train_loss": 1.0, "learning_rate": 0.1, "seconds": 2.0, "peak_memory": None} | values
    return EpochRecord(epoch=epoch, val_loss=loss, val_metrics={"accuracy": accuracy}, **plain)


HISTORY = (record(1, 0.5, 0.9), record(2, 0.7, 0.8), record(3, 0.7, 0.6), record(4, 0.7, 0.6), record(5, 0.6, 0.5))

RESULT = FitResult(
    method="adabet",
    layers=("conv2", "norm2"),
    trained_parameters=636,
    model_parameters=7320,
    monitor="accuracy",
    history=HISTORY,
    kept="best",
    stopped_early=True,
    run_dir="runs/one",
)


def test_the_best_is_by_score_then_by_loss_then_the_earliest():
    assert RESULT.best.epoch == 3
    assert dataclasses.replace(RESULT, monitor="loss").best.epoch == 5
    assert last_improvement(HISTORY, "accuracy") == 2
    without = tuple(dataclasses.replace(item, val_loss=None, train_loss=item.epoch % 3) for item in HISTORY)
    assert best_record(without, "loss").epoch == 3


def test_an_unknown_monitor():
    with pytest.raises(OptionError, match="expected monitor to be one of loss, accuracy; got 'f1'"):
        best_record(HISTORY, "f1")


def test_in_words():
    assert str(dataclasses.replace(RESULT, history=(*HISTORY[:4], record(5, 0.6, 0.5, peak_memory=2_000_000)))) == (
        "adabet: 2 layers, 636 of 7,320 parameters (8.7 %) trained for 5 epochs in 10 s\n"
        "best epoch 3: accuracy 0.7000, validation loss 0.6000, training loss 1.0000\n"
        "last epoch 5: accuracy 0.6000, validation loss 0.5000, training loss 1.0000\n"
        "stopped early: accuracy did not improve after epoch 2\n"
        "peak memory 2 MB\n"
        "run folder runs/one"
    )


def test_json_and_back():
    assert FitResult.from_json(RESULT.to_json()) == RESULT
    first = json.loads(RESULT.to_json())["history"][0]
    assert first["val_accuracy"] == 0.5
    assert first["val_loss"] == 0.9


def test_json_that_is_no_result():
    with pytest.raises(CheckpointError, match="expected a file of kind 'adabet/result', got None"):
        FitResult.from_json("{}")
    values = json.loads(RESULT.to_json())
    del values["layers"]
    with pytest.raises(CheckpointError, match="lacks or misnames a field: 'layers'"):
        FitResult.from_json(json.dumps(values))
    values = json.loads(RESULT.to_json())
    del values["history"][0]["seconds"]
    with pytest.raises(CheckpointError, match="it lacks seconds"):
        FitResult.from_json(json.dumps(values))
