"""ONNX Runtime, torch.export and merged weights against the adapted model itself."""

import sys
import warnings

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

import adabet
from adabet.errors import CheckpointError, MissingExtraError, ModelError, OptionError, StorageError
from adabet.export import export_onnx, export_program, merge_delta
from adabet.methods.lora import adapted_layers
from tests.cases.models import state_of
from tests.training.nets import make_loaders, make_net, same, weights_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Float32 in other kernels and another order."""

# of the exporters' own parts, about each other
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def images(count, channels=1, size=6, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def in_onnx_runtime(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    outputs = session.run(None, {name: put.numpy() for name, put in zip(names, inputs, strict=True)})
    return [torch.from_numpy(output) for output in outputs]


@torch.no_grad()
def in_eval(model, inputs):
    training = model.training
    outputs = model.eval()(inputs)
    model.train(training)
    return getattr(outputs, "logits", outputs)


def adapted(tmp_path, method="last-k", *, epochs=2, **options):
    """A small net after a run with batch-norms that moved, and the folder of the run."""
    model = make_net()
    given = {"layer_ratio": 0.5, "lr": 0.1, "epochs": epochs, "batch_norm": "train", "keep": "last"} | options
    adabet.fit(model, *make_loaders(), method=method, run_dir=tmp_path / "run", **given)
    return model, tmp_path / "run" / "last.safetensors"


def nothing_beside(path):
    return not [entry for entry in path.parent.iterdir() if entry.name.endswith(".tmp")]


def tiny_vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3))


def tiny_cnn():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


@pytest.mark.parametrize(("build", "size"), [(tiny_cnn, 64), (tiny_vit, 32)])
def test_libraries_models_give_the_same_in_onnx_runtime_and_torch_export(tmp_path, build, size):
    """Trained for a step on a selection of theirs first; any number of samples."""
    model, batch = build(), images(4, 3, size)
    selection = adabet.select("last-k", model, [batch], layer_ratio=0.3)
    labels = torch.tensor([0, 1, 2, 0])
    with adabet.apply(model, selection), adabet.lean():
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        outputs = model.train()(batch)
        nn.functional.cross_entropy(getattr(outputs, "logits", outputs), labels).backward()
        optimizer.step()
    before = state_of(model)
    example = {"pixel_values": batch, "labels": labels} if build is tiny_vit else (batch, labels)
    path = export_onnx(model, tmp_path / "model.onnx", example)
    program = export_program(model, example)
    assert state_of(model) == before
    for count in (1, 3, 7):
        fresh = images(count, 3, size, seed=count)
        expected = in_eval(model, fresh)
        torch.testing.assert_close(in_onnx_runtime(path, fresh)[0], expected, **CLOSE)
        again = program.module()(pixel_values=fresh).logits if build is tiny_vit else program.module()(fresh)
        torch.testing.assert_close(again, expected, **CLOSE)
    file = onnx.load(path)
    onnx.checker.check_model(file)
    assert [output.name for output in file.graph.output] == ["logits" if build is tiny_vit else "output"]
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_text_goes_in_by_name_and_with_its_mask(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=3)).eval()
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"attention_mask": mask, "input_ids": torch.randint(50, (4, 7)), "labels": torch.zeros(4, dtype=torch.long)}
    path = export_onnx(model, tmp_path / "model.onnx", batch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {name: batch[name][:3].numpy() for name in ("input_ids", "attention_mask")}
    expected = model(input_ids=batch["input_ids"][:3], attention_mask=mask[:3]).logits
    torch.testing.assert_close(torch.from_numpy(session.run(["logits"], given)[0]), expected.detach(), **CLOSE)


class TestDelta:
    def test_merged_gives_what_the_adapted_model_does(self, tmp_path):
        model, delta = adapted(tmp_path)
        base = make_net()
        path = export_onnx(base, tmp_path / "model.onnx", images(1), delta=delta)
        expected = in_eval(model, images(5))
        torch.testing.assert_close(in_onnx_runtime(path, images(5))[0], expected, **CLOSE)
        assert same(weights_of(base), weights_of(make_net())), "the base model has to stay the base"
        assert not torch.allclose(in_eval(base, images(5)), expected, atol=1e-3), "the test must tell"

    def test_apart_fits_the_exported_program(self, tmp_path):
        model, delta = adapted(tmp_path)
        export_program(make_net(), images(2), path=tmp_path / "base.pt2")
        module = torch.export.load(tmp_path / "base.pt2").module()
        adabet.load_delta(module, delta)
        torch.testing.assert_close(module(images(5)), in_eval(model, images(5)), **CLOSE)

    def test_for_another_model_is_refused_and_nothing_is_written(self, tmp_path):
        _, delta = adapted(tmp_path)
        (tmp_path / "model.onnx").write_text("a former file")
        for model in (make_net(seed=3), make_net(classes=7)):
            with pytest.raises(CheckpointError, match=r"made on other base weights|of shape"):
                export_onnx(model, tmp_path / "model.onnx", images(2), delta=delta)
            with pytest.raises(CheckpointError, match=r"made on other base weights|of shape"):
                export_program(model, images(2), delta=delta, path=tmp_path / "model.pt2")
        assert (tmp_path / "model.onnx").read_text() == "a former file"
        assert not (tmp_path / "model.pt2").exists()
        assert nothing_beside(tmp_path / "model.onnx")


class TestWhatMethodsLeaveInAModel:
    def test_slices_of_a_selection_that_is_still_applied(self, tmp_path):
        model = make_net()
        selection = adabet.rank(model, [images(8)], channels=0.6).select(layer_ratio=0.5, channel_ratio=0.5)
        with adabet.apply(model, selection):
            for parameter in model.parameters():
                parameter.data += 0.1 * parameter.requires_grad
            expected = in_eval(model, images(3))
            path = export_onnx(model, tmp_path / "model.onnx", images(2))
            program = export_program(model, images(2))
            assert any("parametrizations" in name for name, _ in model.named_parameters()), "still applied"
        torch.testing.assert_close(in_onnx_runtime(path, images(3))[0], expected, **CLOSE)
        torch.testing.assert_close(program.module()(images(3)), expected, **CLOSE)
        assert set(program.state_dict) == set(make_net().state_dict())

    def test_adapters_are_merged(self, tmp_path):
        model, delta = adapted(tmp_path, "lora", batch_norm="eval", method_options={"where": "all"})
        assert adapted_layers(model)
        expected = in_eval(model, images(3))
        path = export_onnx(model, tmp_path / "model.onnx", images(2))
        from_delta = export_onnx(make_net(), tmp_path / "delta.onnx", images(2), delta=delta)
        for file in (path, from_delta):
            torch.testing.assert_close(in_onnx_runtime(file, images(3))[0], expected, **CLOSE)
        assert adapted_layers(model), "those of the model itself stay"
        assert not torch.allclose(expected, in_eval(make_net(), images(3)), atol=1e-3), "the test must tell"

    def test_adapters_of_peft_itself_are_merged(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(make_net(), peft.LoraConfig(target_modules=["conv2"], init_lora_weights=False))
        expected = in_eval(model, images(3))
        path = export_onnx(model, tmp_path / "model.onnx", images(2))
        torch.testing.assert_close(in_onnx_runtime(path, images(3))[0], expected, **CLOSE)

    def test_channels_that_are_gone(self, tmp_path):
        options = {"penalty_ratio": 0.9, "interval": 1, "threshold": 0.2}
        model, delta = adapted(tmp_path, "prune-train", epochs=3, batch_norm="eval", method_options=options)
        assert model.conv1.out_channels < 8, "the test must tell"
        expected = in_eval(model, images(3))
        small = export_onnx(model, tmp_path / "small.onnx", images(2))
        whole = export_onnx(make_net(), tmp_path / "whole.onnx", images(2), delta=delta)
        for file in (small, whole):
            torch.testing.assert_close(in_onnx_runtime(file, images(3))[0], expected, **CLOSE)
        assert small.stat().st_size < whole.stat().st_size

    def test_a_compiled_model(self, tmp_path):
        model = make_net()
        path = export_onnx(torch.compile(model, backend="eager"), tmp_path / "model.onnx", images(2))
        torch.testing.assert_close(in_onnx_runtime(path, images(3))[0], in_eval(model, images(3)), **CLOSE)


class TestOnnx:
    def test_with_a_fixed_batch_takes_only_that(self, tmp_path):
        model = make_net()
        path = export_onnx(model, tmp_path / "model.onnx", images(1), dynamic_batch=False)
        torch.testing.assert_close(in_onnx_runtime(path, images(1))[0], in_eval(model, images(1)), **CLOSE)
        with pytest.raises(Exception, match=r"(?i)invalid dimensions"):
            in_onnx_runtime(path, images(2))

    def test_what_fixes_its_batch_says_so(self, tmp_path):
        class Fixed(nn.Module):
            def forward(self, x):
                return x.reshape(2, 36) * self.scale

            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(36))

        with pytest.raises(ModelError, match=r"Fixed cannot be exported: .*dynamic_batch=False"):
            export_onnx(Fixed(), tmp_path / "model.onnx", images(2))
        with pytest.raises(ModelError, match=r"Fixed cannot be exported: .*dynamic_batch=False"):
            export_program(Fixed(), images(2), path=tmp_path / "model.pt2")
        assert not list(tmp_path.iterdir())
        export_onnx(Fixed(), tmp_path / "model.onnx", images(2), dynamic_batch=False)

    def test_a_file_that_computes_something_else_is_not_written(self, tmp_path, monkeypatch):
        """An exporter that goes wrong is played by one that exports another model."""
        real, other = torch.onnx.export, make_net()
        other.head.bias.data += 1
        program = export_program(other, images(2))
        monkeypatch.setattr(torch.onnx, "export", lambda _, **keywords: real(program, **keywords))
        with pytest.raises(ModelError, match=r"Net gives other outputs in ONNX Runtime, off by 1 "):
            export_onnx(make_net(), tmp_path / "model.onnx", images(2))
        assert not list(tmp_path.iterdir())
        assert export_onnx(make_net(), tmp_path / "model.onnx", images(2), check=False).exists()

    def test_what_onnx_runtime_cannot_run_is_not_written(self, tmp_path):
        model = nn.Linear(4, 3).to(torch.bfloat16)
        with pytest.raises(ModelError, match=r"ONNX Runtime cannot run the file of Linear: .*try model\.float\(\)"):
            export_onnx(model, tmp_path / "model.onnx", torch.zeros(2, 4, dtype=torch.bfloat16))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
    def test_without_its_extra_says_how_to_get_it(self, tmp_path, monkeypatch, library):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=rf"needs {library}, .* pip install 'adabet\[export\]'"):
            export_onnx(make_net(), tmp_path / "model.onnx", images(2))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["model.pt", "model"])
    def test_another_suffix_is_refused(self, tmp_path, name):
        with pytest.raises(OptionError, match=r"ends in \.onnx"):
            export_onnx(make_net(), tmp_path / name, images(2))
        with pytest.raises(OptionError, match=r"ends in \.pt2"):
            export_program(make_net(), images(2), path=tmp_path / name)

    def test_a_path_that_cannot_be_written_is_refused_before_the_work(self, tmp_path, monkeypatch):
        def never(*_, **__):
            pytest.fail("it went to work first")

        monkeypatch.setattr(torch.onnx, "export", never)
        monkeypatch.setattr(torch.export, "export", never)
        with pytest.raises(StorageError, match="No such file or directory"):
            export_onnx(make_net(), tmp_path / "nowhere" / "model.onnx", images(2))
        with pytest.raises(StorageError, match="No such file or directory"):
            export_program(make_net(), images(2), path=tmp_path / "nowhere" / "model.pt2")


class TestMergeDelta:
    def test_is_the_adapted_model_whole(self, tmp_path):
        model, delta = adapted(tmp_path)
        save_file(make_net().state_dict(), tmp_path / "base.safetensors", {"format": "pt", "of": "the base"})
        out = merge_delta(tmp_path / "base.safetensors", delta, tmp_path / "whole.safetensors")
        assert same(load_file(out), weights_of(model))
        with safe_open(out, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "of": "the base"}

    def test_takes_a_base_with_another_head_and_without_counters(self, tmp_path):
        model, delta = adapted(tmp_path)
        base = {name: t for name, t in make_net().state_dict().items() if not name.endswith("num_batches_tracked")}
        base |= {"head.weight": torch.zeros(1000, 8), "head.bias": torch.zeros(1000)}
        save_file(base, tmp_path / "base.safetensors")
        out = load_file(merge_delta(tmp_path / "base.safetensors", delta, tmp_path / "whole.safetensors"))
        expected = weights_of(model)
        assert {name: t for name, t in expected.items() if name in out}.keys() == out.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in out.items())

    @pytest.mark.parametrize("case", ["weights", "names", "damaged", "no delta", "adapters", "no base"])
    def test_what_does_not_fit_is_refused_and_nothing_is_written(self, tmp_path, case):
        _, delta = adapted(tmp_path, "lora" if case == "adapters" else "last-k", batch_norm="eval")
        base = tmp_path / "base.safetensors"
        tensors = make_net(seed=int(case == "weights")).state_dict()
        if case == "names":
            tensors = {f"net.{name}": tensor for name, tensor in tensors.items()}
        save_file(tensors, base)
        if case == "damaged":
            delta.write_bytes(delta.read_bytes()[:-3])
        if case == "no base":
            base.unlink()
        out = tmp_path / "whole.safetensors"
        out.write_text("a former file")
        texts = {
            "weights": "made on other base weights than",
            "names": r"holds \S+ as .* float32, which .* does not have",
            "damaged": "not a whole file",
            "no delta": "not one that adabet wrote",
            "adapters": r"adapters, which only the model can merge",
            "no base": "which is no file",
        }
        with pytest.raises(CheckpointError, match=texts[case]):
            merge_delta(base, base if case == "no delta" else delta, out)
        assert out.read_text() == "a former file"

    def test_does_not_overwrite_what_it_reads(self, tmp_path):
        _, delta = adapted(tmp_path, epochs=1)
        save_file(make_net().state_dict(), tmp_path / "base.safetensors")
        for out in (tmp_path / "base.safetensors", delta):
            before = out.read_bytes()
            with pytest.raises(StorageError, match="another file to write than those to read"):
                merge_delta(tmp_path / "base.safetensors", delta, out)
            assert out.read_bytes() == before
        with pytest.raises(StorageError, match="No such file or directory"):
            merge_delta(tmp_path / "base.safetensors", delta, tmp_path / "nowhere" / "whole.safetensors")


def test_warnings_of_the_exporters_stay_inside(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(make_net(), tmp_path / "model.onnx", images(2))
