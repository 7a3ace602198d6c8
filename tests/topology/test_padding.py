"""Padding does not count: activations of sequences against those of each sequence by itself."""

import pytest
import torch
import transformers

import adabet
from adabet.errors import ActivationError
from adabet.topology import Prober
from adabet.topology.padding import lengths_of, without_padding
from adabet.topology.pool import collect

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert(seed=0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES, num_labels=3, max_position_embeddings=64)
    return transformers.BertForSequenceClassification(config)


def gpt2(head="ForSequenceClassification"):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return getattr(transformers, f"GPT2{head}")(config)


MODELS = {"bert": bert, "gpt2": gpt2}


def sequences(count=24, *, lengths=(3, 12), seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
    return [torch.randint(5, 50, (size,), generator=generator) for size in sizes]


def padded(parts, *, extra=0, side="right", mask=torch.long):
    """One batch of the sequences, padded to the longest and ``extra`` places more."""
    width = max(map(len, parts)) + extra
    ids, seen = torch.zeros(len(parts), width, dtype=torch.long), torch.zeros(len(parts), width, dtype=mask)
    for row, part in enumerate(parts):
        places = slice(0, len(part)) if side == "right" else slice(width - len(part), width)
        ids[row, places], seen[row, places] = part, 1
    return {"input_ids": ids, "attention_mask": seen, "labels": torch.zeros(len(parts), dtype=torch.long)}


def batches_of(parts, size=8, **how):
    return [padded(parts[start : start + size], **how) for start in range(0, len(parts), size)]


def alone(model, layer, parts):
    """A layer's outputs for each sequence by itself, kept whole."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        for part in parts:
            model.eval()(input_ids=part[None], attention_mask=torch.ones_like(part[None]))
    handle.remove()
    return [output[0].double() for output in kept]


def between(points):
    return torch.cdist(points[None], points[None], compute_mode="donot_use_mm_for_euclid_dist")[0]


def same_ranking(first, second):
    return [(item.layer, item.score, item.spread) for item in first.layers] == [
        (item.layer, item.score, item.spread) for item in second.layers
    ]


class TestDifferentLengths:
    @pytest.mark.parametrize("layer", ["bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.0.output.dense"])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_distances_are_those_between_means_over_tokens(self, layer, side):
        model, parts = bert(), sequences()
        found = Prober(model, batches_of(parts, side=side), samples=24).probe().distances[layer]
        means = torch.stack([output.mean(0) for output in alone(model, layer, parts)])
        assert torch.allclose(found, between(means), rtol=1e-4, atol=1e-6)

    def test_layers_without_tokens_are_compared_whole(self):
        model, parts = bert(), sequences()
        found = Prober(model, batches_of(parts), samples=24).probe().distances["bert.pooler.dense"]
        assert torch.allclose(found, between(torch.stack(alone(model, "bert.pooler.dense", parts))), rtol=1e-4)

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        "how",
        [{"extra": 7}, {"extra": 30, "size": 24}, {"side": "left"}, {"size": 5, "side": "left", "extra": 3}],
        ids=["more", "one batch", "left", "other batches"],
    )
    def test_neither_amount_nor_side_of_padding_changes_the_ranking(self, name, how):
        parts = sequences()
        plain = adabet.rank(MODELS[name](), batches_of(parts), samples=24)
        assert len({item.score for item in plain.layers}) > 2
        assert same_ranking(adabet.rank(MODELS[name](), batches_of(parts, **how), samples=24), plain)

    @pytest.mark.parametrize("options", [{"samples_in_memory": 6}, {"samples_in_memory": 16}])
    def test_in_little_memory(self, options):
        batches = batches_of(sequences())
        expected = Prober(bert(), batches, samples=24).probe().distances
        for name, found in Prober(bert(), batches, samples=24, **options).probe().distances.items():
            assert torch.allclose(found, expected[name], rtol=1e-5, atol=1e-7), name

    def test_in_a_sketch(self):
        batches = batches_of(sequences())
        expected = Prober(bert(), batches, samples=24).probe().distances
        # means have at most 24 numbers, fewer than the sketch: nothing is estimated
        for name, found in Prober(bert(), batches, samples=24, sketch=64).probe().distances.items():
            assert torch.allclose(found, expected[name], rtol=1e-4, atol=1e-6), name

    def test_sizes_are_those_for_the_median_length(self):
        parts = sequences(7, lengths=(2, 9))
        median = sorted(map(len, parts))[3]
        layers = Prober(bert(), batches_of(parts, extra=9), samples=7).layers
        named = {layer.name: layer for layer in layers}
        assert named["bert.encoder.layer.0.intermediate.dense"].output_shape == (1, median, 24)

    def test_channels_cannot_be_ranked(self):
        with pytest.raises(ActivationError, match="expected sequences of one length to rank channels"):
            adabet.rank(bert(), batches_of(sequences()), channels=0.5)

    def test_half_precision_is_averaged_in_single(self):
        model, parts = bert().bfloat16(), sequences(8)
        layer = "bert.encoder.layer.0.intermediate.dense"
        found = Prober(model, batches_of(parts), samples=8).probe().distances[layer]
        means = torch.stack([output.mean(0) for output in alone(model, layer, parts)])
        assert torch.allclose(found, between(means), rtol=1e-3)


class TestOneLength:
    def test_tokens_are_compared_one_by_one(self):
        model, parts = bert(), sequences(lengths=(6, 6))
        layer = "bert.encoder.layer.1.intermediate.dense"
        found = Prober(model, batches_of(parts, extra=4), samples=24).probe().distances[layer]
        whole = torch.stack([output.flatten() for output in alone(model, layer, parts)])
        assert torch.allclose(found, between(whole), rtol=1e-4)

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_to_a_length_does_not_change_the_ranking(self, side):
        parts = sequences(lengths=(6, 6))
        plain = adabet.rank(bert(), batches_of(parts), samples=24, channels=0.3)
        assert any(item.channel_scores and sum(item.channel_scores) for item in plain.layers)
        more = adabet.rank(bert(), batches_of(parts, extra=5, side=side), samples=24, channels=0.3)
        assert same_ranking(more, plain)
        assert [item.channel_scores for item in more.layers] == [item.channel_scores for item in plain.layers]

    def test_several_run_at_once(self):
        pool = collect(batches_of(sequences(lengths=(6, 6)), extra=2), samples=24)
        assert (set(pool.sizes), pool.varied) == ({4}, False)


class TestMasks:
    def test_all_tensors_with_a_place_for_each_of_the_masks_lose_the_same(self):
        inputs = {
            "attention_mask": torch.tensor([[0, 1, 1], [1, 0, 1]]),
            "input_ids": torch.tensor([[0, 7, 8], [5, 0, 6]]),
            "boxes": torch.arange(12).view(2, 3, 2),
            "pixels": torch.zeros(2, 4, 4),
            "note": "text",
        }
        found = without_padding(inputs)
        assert found["input_ids"].tolist() == [[7, 8], [5, 6]]
        assert found["attention_mask"].tolist() == [[1, 1], [1, 1]]
        assert found["boxes"].tolist() == [[[2, 3], [4, 5]], [[6, 7], [10, 11]]]
        assert (found["pixels"].shape, found["note"]) == ((2, 4, 4), "text")

    @pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int32])
    def test_of_any_type(self, kind):
        assert lengths_of(padded(sequences(3), mask=kind)) == lengths_of(padded(sequences(3)))

    @pytest.mark.parametrize("mask", [torch.zeros(2, 1, 3, 3), torch.tensor([[0.0, -1e4], [0.0, 0.0]]), None])
    def test_what_is_no_mask_of_padding_is_left_alone(self, mask):
        assert lengths_of({"input_ids": torch.zeros(2, 3), "attention_mask": mask}) is None

    def test_a_sequence_without_tokens(self):
        batch = padded(sequences(8))
        batch["attention_mask"][3] = 0
        with pytest.raises(ActivationError, match="sample 3 of a batch has none"):
            adabet.rank(bert(), [batch])

    def test_only_some_batches_have_one(self):
        first, second = batches_of(sequences(16))
        del second["attention_mask"]
        with pytest.raises(ActivationError, match="all have an attention_mask"):
            adabet.rank(bert(), [first, second])

    def test_without_a_mask_different_lengths_stay_an_error(self):
        batches = [{"input_ids": batch["input_ids"]} for batch in batches_of(sequences())]
        with pytest.raises(ActivationError, match="expected activations of one size"):
            adabet.rank(bert(), batches)


class TestTiedHeads:
    def test_the_embedding_is_a_candidate_and_there_is_no_head(self):
        ranking = adabet.rank(gpt2("LMHeadModel"), batches_of(sequences()), samples=24)
        assert ranking.head == ()
        assert "transformer.wte" in {item.layer.name for item in ranking.layers}
        assert not any(item.layer.name == "lm_head" for item in ranking.layers)

    def test_the_head_trains_with_the_embedding(self):
        model = gpt2("LMHeadModel")
        selection = adabet.rank(model, batches_of(sequences()), samples=24).select(layer_ratio=1)
        with adabet.apply(model, selection):
            assert model.lm_head.weight.requires_grad
