"""The callback inside the real Trainer, against the stock Trainer on a model that was frozen by hand."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import Trainer

import adabet
from adabet.errors import (
    DataError,
    OptionError,
    SelectionError,
    UnknownNameError,
)
from adabet.integrations.transformers import DELTA, AdaBetCallback
from tests.integrations.trainers import (
    KINDS,
    SAVING,
    At,
    Images,
    MeasuringTrainer,
    Stop,
    Texts,
    bert,
    collate_texts,
    frozen_by_hand,
    gpt2,
    make_trainer,
    same,
    stop,
    trained,
    vit,
    weights_of,
)


class TestTraining:
    @pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
    def test_ends_with_the_weights_of_the_stock_trainer_on_a_model_frozen_by_hand(self, kind, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.3)
        ours = trained(tmp_path, kind, callback)
        by_hand = frozen_by_hand(KINDS[kind][0](), callback.selection)
        stock = trained(tmp_path, kind, model=by_hand)
        assert len(callback.selection.layers) >= 3
        assert same(weights_of(ours.model), weights_of(stock.model))
        assert not same(weights_of(ours.model), weights_of(KINDS[kind][0]()))

    @pytest.mark.parametrize(("kind", "share"), [("bert", 0.8), ("gpt2", 0.9), ("vit", 0.95)])
    def test_a_step_takes_less_than_stock(self, kind, share, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.7)
        ours = trained(tmp_path, kind, callback, trainer=MeasuringTrainer, max_steps=2)
        by_hand = frozen_by_hand(KINDS[kind][0](), callback.selection)
        stock = trained(tmp_path, kind, model=by_hand, trainer=MeasuringTrainer, max_steps=2)
        assert all(lean < share * plain for lean, plain in zip(ours.bytes, stock.bytes, strict=True))

    def test_without_lean_a_step_takes_what_it_takes_stock(self, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.7, lean=False)
        ours = trained(tmp_path, "bert", callback, trainer=MeasuringTrainer, max_steps=2)
        by_hand = frozen_by_hand(bert(), callback.selection)
        assert trained(tmp_path, "bert", model=by_hand, trainer=MeasuringTrainer, max_steps=2).bytes == ours.bytes

    def test_in_mixed_precision(self, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.3)
        ours = trained(tmp_path, "bert", callback, bf16=True)
        stock = trained(tmp_path, "bert", model=frozen_by_hand(bert(), callback.selection), bf16=True)
        # lean sums the gradients of biases in single precision, stock in half
        torch.testing.assert_close(weights_of(ours.model), weights_of(stock.model), rtol=0.01, atol=0.005)

    def test_accumulated_gradients(self, tmp_path):
        how = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        callback = AdaBetCallback(layer_ratio=0.3)
        ours = trained(tmp_path, "bert", callback, **how)
        stock = trained(tmp_path, "bert", model=frozen_by_hand(bert(), callback.selection), **how)
        torch.testing.assert_close(weights_of(ours.model), weights_of(stock.model))

    def test_accumulated_gradients_are_summed_in_place(self, tmp_path):
        how = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
        second = {}
        for lean in (True, False):
            model = bert()
            model.resize_token_embeddings(4000)
            callback = AdaBetCallback(method="full", lean=lean)
            second[lean] = trained(tmp_path, "bert", callback, model=model, trainer=MeasuringTrainer, **how).bytes[1]
        table = 4 * model.get_input_embeddings().weight.numel()
        assert second[False] > table > second[True]

    def test_the_optimizer_holds_what_trains_and_nothing_else(self, tmp_path):
        model, callback = bert(), AdaBetCallback(layer_ratio=0.2)
        held = []

        def look():
            groups = trainer.optimizer.param_groups
            held.append(({id(item) for group in groups for item in group["params"]}, len(groups)))

        trainer = make_trainer(tmp_path, model, callback, At(3, look))
        trainer.train()
        names = dict(model.named_parameters())
        expected = {id(names[name]) for name in callback.selection.parameters}
        assert held == [(expected, 2)]
        state = trainer.optimizer.state_dict()["state"]
        assert len(state) == len(expected)

    def test_leaves_model_and_optimizer_as_they_were(self, tmp_path):
        model = bert()
        trainer = trained(tmp_path, "bert", AdaBetCallback(), model=model)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(list(model.parameters()))

    def test_after_a_run_that_broke_off_restore_does_it(self, tmp_path):
        model, callback = bert(), AdaBetCallback()
        with pytest.raises(Stop):
            make_trainer(tmp_path, model, callback, At(1, stop)).train()
        assert not all(parameter.requires_grad for parameter in model.parameters())
        callback.restore()
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model._forward_hooks

    def test_trains_again_and_chooses_again(self, tmp_path):
        callback = AdaBetCallback(method="random", layer_ratio=0.3, seed=3)
        trainer = make_trainer(tmp_path, bert(), callback)
        trainer.train()
        first = callback.selection
        before = weights_of(trainer.model)
        trainer.train()
        assert callback.selection == first
        moved = {name for name, tensor in weights_of(trainer.model).items() if not torch.equal(tensor, before[name])}
        assert moved <= set(first.parameters)
        assert moved

    def test_evaluation_and_best_model(self, tmp_path):
        callback = AdaBetCallback(layer_ratio=0.3)
        trainer = trained(
            tmp_path, "bert", callback, **SAVING, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True
        )
        best = transformers.BertForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
        assert same(weights_of(trainer.model), weights_of(best))
        assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 3
        assert all(parameter.requires_grad for parameter in trainer.model.parameters())

    def test_batch_norms_that_do_not_train_keep_their_statistics(self, tmp_path):
        before = weights_of(KINDS["resnet"][0]())
        trainer = trained(tmp_path, "resnet", AdaBetCallback(layer_ratio=0.3))
        after = weights_of(trainer.model)
        assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)

    def test_the_frozen_part_does_not_move(self, tmp_path):
        callback, before = AdaBetCallback(layer_ratio=0.3), weights_of(bert())
        after = weights_of(trained(tmp_path, "bert", callback).model)
        assert {name for name in after if not torch.equal(after[name], before[name])} == set(
            callback.selection.parameters
        )


class TestChoosing:
    def test_is_that_of_adabet_on_the_trainers_data(self, tmp_path):
        # 40 samples of 40: whatever the order, the cloud is the same
        data = Texts(40)
        callback = AdaBetCallback(layer_ratio=0.4)
        trained(tmp_path, "bert", callback, data=data, max_steps=1)
        expected = adabet.select("adabet", bert(), [collate_texts([data[i] for i in range(40)])], layer_ratio=0.4)
        assert callback.selection.choices == expected.choices

    def test_looks_at_no_label(self, tmp_path):
        class Mislabelled(Texts):
            def __getitem__(self, index):
                return {**super().__getitem__(index), "labels": 0}

        callbacks = [AdaBetCallback(layer_ratio=0.4) for _ in range(2)]
        for callback, data in zip(callbacks, (Texts(), Mislabelled()), strict=True):
            trained(tmp_path, "bert", callback, data=data, max_steps=1)
        assert callbacks[0].selection == callbacks[1].selection

    def test_methods_that_need_labels_get_them(self, tmp_path):
        callback = AdaBetCallback(method="fisher", layer_ratio=0.3)
        trained(tmp_path, "bert", callback, max_steps=1)
        assert callback.selection.method == "fisher"

    def test_a_collator_that_draws_does_not_change_the_run(self, tmp_path):
        def noisy(rows):
            batch = collate_texts(rows)
            batch["input_ids"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.1, 3, batch["input_ids"])
            return batch

        callback = AdaBetCallback(layer_ratio=0.3)
        ours = trained(tmp_path, "bert", callback, collate=noisy)
        stock = trained(tmp_path, "bert", model=frozen_by_hand(bert(), callback.selection), collate=noisy)
        assert same(weights_of(ours.model), weights_of(stock.model))

    def test_data_that_can_only_be_iterated(self, tmp_path):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                yield from (Texts()[index] for index in range(32))

        callback = AdaBetCallback(layer_ratio=0.3)
        trained(tmp_path, "bert", callback, data=Stream(), max_steps=2)
        assert len(callback.selection.layers) >= 3

    def test_channels_of_equally_long_sequences(self, tmp_path):
        data, callback = Texts(lengths=(8, 8)), AdaBetCallback(layer_ratio=0.5, channel_ratio=0.5)
        before = weights_of(bert())
        after = weights_of(trained(tmp_path, "bert", callback, data=data).model)
        sliced = [choice for choice in callback.selection.choices if choice.channels is not None]
        assert sliced
        for choice in sliced:
            name = choice.parameters[0]
            moved = (after[name] != before[name]).reshape(len(after[name]), -1).any(1).nonzero().flatten().tolist()
            assert set(moved) <= set(choice.channels)
            assert moved

    def test_a_given_selection(self, tmp_path):
        model = bert()
        selection = adabet.select("last-k", model, [collate_texts([Texts()[0]])], layer_ratio=0.2)
        callback = AdaBetCallback(selection)
        trained(tmp_path, "bert", callback, model=model)
        assert callback.selection is selection

    def test_a_tied_head_trains_with_the_embedding(self, tmp_path):
        torch.manual_seed(0)
        config = gpt2().config
        model = transformers.GPT2LMHeadModel(config)

        def collate(rows):
            batch = collate_texts(rows)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

        callback = AdaBetCallback(layer_ratio=1.0)
        before = weights_of(model)
        trainer = trained(tmp_path, "gpt2", callback, model=model, collate=collate, **SAVING)
        assert "transformer.wte" in callback.selection.layers
        assert model.lm_head.weight is model.transformer.wte.weight
        assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
        base = transformers.GPT2LMHeadModel(config)
        base.load_state_dict(before)
        adabet.load_delta(base, Path(trainer.args.output_dir) / "checkpoint-8" / DELTA)
        assert same(weights_of(base), weights_of(model))


class TestWrongUse:
    @pytest.mark.parametrize("method", ["lisa", "elastic-trainer", "lora"])
    def test_methods_that_choose_again(self, method):
        with pytest.raises(OptionError, match=f"{method!r} chooses again and again: use adabet.fit"):
            AdaBetCallback(method=method)

    def test_choosing_again_every_so_many_epochs(self):
        with pytest.raises(OptionError, match="expected a method that chooses once"):
            AdaBetCallback(method_options={"every": 1})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer_ratio": 2}, "expected a layer_ratio from 0 to 1"),
            ({"channel_ratio": 0}, "expected a channel_ratio above 0"),
            ({"memory": "much"}, "expected a size such as"),
            ({"memory": "1MB", "lean": False}, "expected lean and batch_norm='eval' with a budget"),
            ({"batch_norm": "off"}, "expected batch_norm to be 'eval' or 'train'"),
            ({"method_options": {"head": torch.zeros(1)}}, "expected arguments that a checkpoint can hold as JSON"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(OptionError, match=message):
            AdaBetCallback(**options)

    def test_unknown_method(self):
        with pytest.raises(UnknownNameError, match="did you mean 'adabet'"):
            AdaBetCallback(method="adabett")

    def test_memory_beside_a_selection(self):
        selection = adabet.select("head", bert(), [collate_texts([Texts()[0]])])
        with pytest.raises(OptionError, match="expected memory without a selection"):
            AdaBetCallback(selection, memory="1MB")

    def test_a_selection_for_another_model(self, tmp_path):
        selection = adabet.select("head", bert(), [collate_texts([Texts()[0]])])
        with pytest.raises(SelectionError, match="made for another model"):
            trained(tmp_path, "vit", AdaBetCallback(selection), data=Images(), model=vit())

    def test_a_model_that_was_frozen_before(self, tmp_path):
        model = bert()
        model.bert.requires_grad_(False)
        with pytest.raises(OptionError, match="unfreeze the model before the optimizer is made"):
            trained(tmp_path, "bert", AdaBetCallback(layer_ratio=0.3), model=model)
        assert not any(parameter.requires_grad for parameter in model.bert.parameters())

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
    def test_adapters(self, tmp_path):
        model = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"]))
        with pytest.raises(OptionError, match="expected a model without adapters"):
            make_trainer(tmp_path, model, AdaBetCallback(), label_names=["labels"])

    def test_compiled_models(self, tmp_path):
        with pytest.raises(OptionError, match="expected lean=False with torch_compile=True"):
            make_trainer(tmp_path, bert(), AdaBetCallback(), torch_compile=True)

    def test_several_gpus_in_one_process(self, tmp_path):
        trainer = make_trainer(tmp_path, bert())
        trainer.add_callback(AdaBetCallback())
        trainer.args._n_gpu = 2
        with pytest.raises(OptionError, match="expected one GPU for each process"):
            trainer.callback_handler.on_init_end(trainer.args, trainer.state, trainer.control)

    def test_data_without_a_loader(self, tmp_path):
        class Own(Trainer):
            def get_train_dataloader(self):
                return [collate_texts([Texts()[index] for index in range(8)])] * 4

        trainer = make_trainer(tmp_path, bert(), AdaBetCallback(), trainer=Own, max_steps=1)
        with pytest.raises(
            DataError, match="expected a torch DataLoader to choose samples from, the trainer has a list"
        ):
            trainer.train()
