"""Whole runs of the real Trainer with the callback: budgets, recomputation, kill and resume, deltas."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import adabet
from adabet.errors import (
    BudgetError,
    CheckpointError,
    OptionError,
    SelectionError,
)
from adabet.integrations.transformers import DELTA, AdaBetCallback
from tests.integrations.trainers import (
    KINDS,
    SAVING,
    At,
    MeasuringTrainer,
    Stop,
    Texts,
    bert,
    checkpointing,
    collate_texts,
    make_trainer,
    same,
    stop,
    trained,
    weights_of,
)

ROOT = Path(__file__).parents[2]


class TestBudget:
    def test_the_trainer_runs_what_was_planned(self, tmp_path):
        data = Texts(40, lengths=(12, 12))
        batch = collate_texts([data[index] for index in range(8)])
        head = adabet.select("head", bert(), [batch])
        least, most = (
            adabet.measure_memory(bert(), batch, selection, optimizer="adamw", inference=False).training.total
            for selection in (head, adabet.select("full", bert(), [batch]))
        )
        counts = []
        for budget in (least + (most - least) // 3, most):
            callback = AdaBetCallback(memory=budget)
            trained(tmp_path, "bert", callback, data=data)
            assert (callback.plan.micro_batch, callback.plan.batch_size) == (8, 8)
            took = adabet.measure_memory(
                bert(), batch, callback.selection, optimizer="adamw", recompute=callback.plan.recompute, inference=False
            )
            assert took.training.total <= budget
            assert abs(took.training.total - callback.plan.measured) < 2000
            counts.append(callback.selection.parameter_count)
        assert head.parameter_count < counts[0] < counts[1]

    def test_with_accumulated_gradients_the_step_has_those_beside_it(self, tmp_path):
        data = Texts(40, lengths=(12, 12))
        callback = AdaBetCallback(memory="1MB", layer_ratio=0.5)
        trained(tmp_path, "bert", callback, data=data, gradient_accumulation_steps=2, max_steps=2)
        assert (callback.plan.micro_batch, callback.plan.batch_size) == (8, 16)

    def test_too_small_for_the_head(self, tmp_path):
        with pytest.raises(BudgetError, match="with 8 samples at a time; give at least that"):
            trained(tmp_path, "bert", AdaBetCallback(memory="10kB"))

    def test_a_plan_for_smaller_batches(self, tmp_path):
        batch = collate_texts([Texts()[index] for index in range(8)])
        plan = adabet.plan(bert(), [batch] * 5, memory="300kB", micro_batch=2)
        callback = AdaBetCallback(plan)
        with pytest.raises(OptionError, match=r"per_device_train_batch_size=\d and gradient_accumulation_steps=\d"):
            trained(tmp_path, "bert", callback, per_device_train_batch_size=16)
        size = callback.plan.micro_batch
        trained(tmp_path, "bert", callback, per_device_train_batch_size=size, max_steps=1)
        assert callback.selection == plan.selection


class TestRecomputation:
    @pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
    def test_keeps_less_and_ends_with_the_same_weights(self, kind, tmp_path):
        first = AdaBetCallback(layer_ratio=0.6)
        plain = trained(tmp_path, kind, first, trainer=MeasuringTrainer)
        again = AdaBetCallback(layer_ratio=0.6)
        caching = {"use_cache": True} if "use_cache" in transformers.TrainingArguments.__dataclass_fields__ else {}
        made = trained(tmp_path, kind, again, trainer=MeasuringTrainer, **checkpointing(), **caching)
        assert again.selection == first.selection
        assert same(weights_of(made.model), weights_of(plain.model))
        assert made.bytes[0] < plain.bytes[0]

    def test_leaves_frozen_embeddings_frozen(self, tmp_path):
        seen = []
        model = bert()
        model.bert.embeddings.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
        trained(tmp_path, "bert", AdaBetCallback(method="head"), model=model, **checkpointing())
        assert set(seen) == {False}

    def test_with_a_budget_the_plan_decides(self, tmp_path):
        with pytest.raises(OptionError, match="expected gradient_checkpointing=False with a budget"):
            make_trainer(tmp_path, bert(), AdaBetCallback(memory="1MB"), **checkpointing())

    def test_options_that_would_be_lost(self, tmp_path):
        with pytest.raises(OptionError, match="expected gradient checkpointing without determinism_check"):
            make_trainer(tmp_path, bert(), AdaBetCallback(), **checkpointing(determinism_check="none"))

    def test_without_lean_it_is_transformers_own(self, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.6, lean=False)
        model = bert()
        made = trained(tmp_path, "bert", callback, model=model, **checkpointing())
        plain = trained(tmp_path, "bert", AdaBetCallback(layer_ratio=0.6, lean=False))
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        assert same(weights_of(made.model), weights_of(plain.model))


class TestResuming:
    def test_after_a_kill_ends_with_the_weights_of_an_uninterrupted_run(self, tmp_path):
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        command = [sys.executable, "-m", "tests.integrations.trainers", str(killed), "5"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        first = AdaBetCallback(layer_ratio=0.3)
        uninterrupted = trained(whole, "bert", first, **SAVING)
        # other arguments: would choose other layers, if it chose
        resumed = AdaBetCallback(method="last-k", layer_ratio=0.1)
        trainer = make_trainer(killed, bert(), resumed, **SAVING)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 8
        assert resumed.selection == first.selection
        assert same(weights_of(trainer.model), weights_of(uninterrupted.model))

    @pytest.mark.parametrize("options", [{"channel_ratio": 0.5}, {"memory": "1MB"}], ids=["channels", "plan"])
    def test_of_slices_and_plans(self, options, tmp_path):
        data = Texts(32, lengths=(8, 8))
        whole = trained(tmp_path / "a", "bert", AdaBetCallback(layer_ratio=0.5, **options), data=data, **SAVING)
        with pytest.raises(Stop):
            trained(
                tmp_path / "b", "bert", AdaBetCallback(layer_ratio=0.5, **options), At(5, stop), data=data, **SAVING
            )
        resumed = make_trainer(tmp_path / "b", bert(), AdaBetCallback(layer_ratio=0.5, **options), data=data, **SAVING)
        resumed.train(resume_from_checkpoint=True)
        assert same(weights_of(resumed.model), weights_of(whole.model))

    def test_with_callbacks_that_transformers_makes_anew(self, tmp_path):
        whole = trained(tmp_path / "a", "bert", AdaBetCallback(layer_ratio=0.3), **SAVING)
        with pytest.raises(Stop):
            trained(tmp_path / "b", "bert", AdaBetCallback(layer_ratio=0.3), At(5, stop), **SAVING)
        again = {**SAVING, "restore_callback_states_from_checkpoint": True}
        resumed = make_trainer(tmp_path / "b", bert(), AdaBetCallback(method="head"), **again)
        resumed.train(resume_from_checkpoint=True)
        assert same(weights_of(resumed.model), weights_of(whole.model))

    def test_of_a_run_without_the_callback(self, tmp_path):
        trained(tmp_path, "bert", max_steps=3, **SAVING)
        with pytest.raises(CheckpointError, match="the one of step 3 knows no selection"):
            make_trainer(tmp_path, bert(), AdaBetCallback(), **SAVING).train(resume_from_checkpoint=True)

    def test_with_another_selection(self, tmp_path):
        trained(tmp_path, "bert", AdaBetCallback(method="last-k", layer_ratio=0.2), **SAVING)
        other = AdaBetCallback(adabet.select("head", bert(), [collate_texts([Texts()[0]])]))
        with pytest.raises(SelectionError, match=r"got another \(the head\); leave it out, or start anew"):
            make_trainer(tmp_path, bert(), other, **SAVING).train(resume_from_checkpoint=True)


class TestDeltas:
    @pytest.mark.parametrize("kind", ["bert", "resnet"])
    def test_make_a_checkpoint_of_the_base(self, kind, tmp_path):
        trainer = trained(tmp_path, kind, AdaBetCallback(layer_ratio=0.3, batch_norm="train"), **SAVING)
        for step in (3, 6, 8):
            folder = tmp_path / f"checkpoint-{step}"
            adapted = KINDS[kind][0]()
            adabet.load_delta(adapted, folder / DELTA)
            saved = type(trainer.model).from_pretrained(folder)
            assert same(weights_of(adapted), weights_of(saved)), step

    def test_of_channels(self, tmp_path):
        data = Texts(lengths=(8, 8))
        trained(tmp_path, "bert", AdaBetCallback(layer_ratio=0.5, channel_ratio=0.5), data=data, **SAVING)
        adapted = bert()
        adabet.load_delta(adapted, tmp_path / "checkpoint-8" / DELTA)
        saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
        assert same(weights_of(adapted), weights_of(saved))

    def test_the_trainers_own_state_is_json(self, tmp_path):
        trained(tmp_path, "bert", AdaBetCallback(layer_ratio=0.3), **SAVING)
        state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
        kept = state["stateful_callbacks"]["AdaBetCallback"]
        assert kept["args"]["layer_ratio"] == 0.3
        assert adabet.Selection.from_json(kept["attributes"]["chosen"]["selection"]).method == "adabet"
