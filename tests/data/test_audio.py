import re
import struct
import wave
from collections import Counter

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile
import torch

import adabet
from adabet.data import audio_transforms, load_audio, read_sound, unlabelled_batches
from adabet.data.log_mel import FLOOR, log_mel
from adabet.errors import DataError, OptionError
from adabet.models import AudioConfig, load_model, new_head

RATE = 8000
RAW = AudioConfig(sample_rate=RATE, seconds=0.25, mels=None)
MEL = AudioConfig(sample_rate=RATE, seconds=0.25, mels=10)


def write_sound(path, *, seed=0, seconds=0.25, rate=RATE, channels=1):
    """Random 16-bit PCM, written by the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(-9999, 9999, (round(seconds * rate), channels), dtype=np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return samples


def write_folder(folder, counts, **how):
    for seed, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write_sound(folder / name / f"{number:02d}.wav", seed=100 * seed + number, **how)
    return folder


class TestReadSound:
    @pytest.mark.parametrize("channels", [1, 2])
    def test_pcm_is_what_the_standard_library_wrote_with_channels_averaged(self, tmp_path, channels):
        samples = write_sound(tmp_path / "a.wav", channels=channels)
        expected = torch.from_numpy(samples.astype(np.float32).mean(1) / 2**15)
        torch.testing.assert_close(read_sound(tmp_path / "a.wav", sample_rate=RATE), expected)

    @pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 2**-6), ("int32", 1e-7), ("float32", 0)])
    def test_other_encodings_give_the_same_sound(self, tmp_path, dtype, tolerance):
        sound = np.sin(np.linspace(0, 50, 1000)).astype(np.float32) / 2
        stored = {"uint8": sound * 127 + 128, "int32": sound * 2**31, "float32": sound}[dtype].astype(dtype)
        scipy.io.wavfile.write(tmp_path / "a.wav", RATE, stored)
        found = read_sound(tmp_path / "a.wav", sample_rate=RATE)
        torch.testing.assert_close(found, torch.from_numpy(sound), atol=tolerance, rtol=1e-6)

    def test_flac_is_read_too(self, tmp_path):
        samples = write_sound(tmp_path / "a.wav")
        soundfile.write(tmp_path / "a.flac", samples, RATE)
        left, right = (read_sound(tmp_path / name, sample_rate=RATE) for name in ("a.wav", "a.flac"))
        assert torch.equal(left, right)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "the file is empty"),
            (b"a letter", "cannot be read as sound"),
            (b"RIFF" + struct.pack("<I", 4) + b"WAVE", "cannot be read as sound"),
        ],
    )
    def test_what_is_no_sound_is_refused_with_its_name(self, tmp_path, content, reason):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(DataError, match=f"a.wav.*{reason}"):
            read_sound(tmp_path / "a.wav", sample_rate=RATE)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read as sound"):
            read_sound(tmp_path / "a.wav", sample_rate=RATE)

    def test_another_rate_is_refused(self, tmp_path):
        write_sound(tmp_path / "a.wav", rate=16000)
        with pytest.raises(DataError, match="expected 8000 Hz, got 16000 Hz"):
            read_sound(tmp_path / "a.wav", sample_rate=RATE)

    @pytest.mark.parametrize("count", [0, 199])
    def test_less_than_a_window_is_refused(self, tmp_path, count):
        scipy.io.wavfile.write(tmp_path / "a.wav", RATE, np.ones(count, dtype=np.int16))
        with pytest.raises(DataError, match="expected at least 25 ms"):
            read_sound(tmp_path / "a.wav", sample_rate=RATE)

    def test_samples_that_are_not_finite_are_refused(self, tmp_path):
        scipy.io.wavfile.write(tmp_path / "a.wav", RATE, np.full(900, np.nan, dtype=np.float32))
        with pytest.raises(DataError, match="expected finite samples"):
            read_sound(tmp_path / "a.wav", sample_rate=RATE)


class TestLogMel:
    def test_is_what_scipy_and_plain_triangles_give(self):
        sound = np.random.default_rng(0).uniform(-1, 1, 2000)
        hertz, _, spectrum = scipy.signal.spectrogram(
            sound,
            RATE,
            window="hann",
            nperseg=200,
            noverlap=120,
            nfft=256,
            detrend=False,
            scaling="spectrum",
            mode="complex",
        )
        power = np.abs(spectrum * scipy.signal.get_window("hann", 200).sum()) ** 2
        corners = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), 12)
        expected = np.zeros((10, power.shape[1]))
        for band in range(10):
            low, middle, high = (700 * (10 ** (corner / 2595) - 1) for corner in corners[band : band + 3])
            for index, frequency in enumerate(hertz):
                weight = max(0, min((frequency - low) / (middle - low), (high - frequency) / (high - middle)))
                expected[band] += weight * power[index]
        found = log_mel(torch.from_numpy(sound), sample_rate=RATE, mels=10)
        torch.testing.assert_close(found, torch.from_numpy(np.log(expected)).float(), atol=1e-4, rtol=1e-4)

    def test_silence_is_at_the_floor(self):
        assert torch.equal(log_mel(torch.zeros(2, 800), sample_rate=RATE, mels=4), torch.full((2, 4, 8), FLOOR).log())

    def test_too_many_bands_are_refused(self):
        with pytest.raises(OptionError, match="expected fewer mels than 128 at 8000 Hz"):
            audio_transforms(AudioConfig(sample_rate=RATE, mels=128), train=False)


class TestTransform:
    @pytest.mark.parametrize("config", [RAW, MEL, AudioConfig(sample_rate=11025, seconds=0.3, mels=13)])
    def test_gives_what_the_configuration_says(self, config):
        assert audio_transforms(config, train=False)(torch.randn(3000)).shape == config.input_size

    @pytest.mark.parametrize("length", [1, 1999, 2000, 2001, 5000])
    def test_the_middle_stays_in_the_middle(self, length):
        sound = torch.arange(length) + 1.0
        prepared = audio_transforms(RAW, train=False).prepare(sound)
        assert len(prepared) == 2000
        kept = prepared[prepared > 0]
        assert torch.equal(kept, sound[(sound >= kept[0]) & (sound <= kept[-1])])
        before, behind = int(kept[0]) - 1, length - int(kept[-1])
        assert abs(before - behind) <= 1
        assert len(kept) == min(length, 2000)

    @pytest.mark.parametrize("config", [RAW, MEL])
    def test_loudness_does_not_count(self, config):
        sound = torch.randn(2000, generator=torch.Generator().manual_seed(0)) / 9
        quiet, loud = (audio_transforms(config, train=False)(sound * factor) for factor in (0.5, 1))
        torch.testing.assert_close(quiet, loud, atol=1e-4, rtol=1e-4)
        assert abs(float(loud.mean())) < 1e-4
        assert float(loud.std()) == pytest.approx(1, abs=1e-4)

    def test_silence_stays_finite(self):
        assert not audio_transforms(MEL, train=False)(torch.zeros(2000)).any()

    def test_training_moves_the_sound_in_time_by_torchs_generator(self):
        transform, sound = audio_transforms(RAW, train=True), torch.zeros(2000)
        sound[1000] = 1
        places = set()
        for seed in range(20):
            torch.manual_seed(seed)
            places.add(int(transform(sound).argmax()))
        assert len(places) > 10
        assert all(800 <= place <= 1200 for place in places)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sample_rate": 10}, "sample_rate of at least 1000 Hz"),
            ({"seconds": 0}, "seconds from 0.05"),
            ({"mels": 0}, "mels of at least 1"),
        ],
    )
    def test_senseless_configurations_are_refused(self, values, message):
        with pytest.raises(OptionError, match=message):
            AudioConfig(**values)


class TestLoadAudio:
    def test_class_folders_are_split_and_read(self, tmp_path):
        write_folder(tmp_path, {"hum": 20, "buzz": 10})
        splits = load_audio(tmp_path, MEL, val_share=0.2)
        assert splits.classes == ("buzz", "hum")
        assert [len(split) for split in (splits.train, splits.val, splits.test)] == [19, 5, 6]
        files = [sample.path for split in (splits.train, splits.val, splits.test) for sample in split.samples]
        assert len(set(files)) == 30
        sound, label = splits.test[0]
        assert sound.shape == MEL.input_size
        assert splits.test.samples[0].path.parent.name == splits.classes[label]
        assert "2 classes; train 19, val 5, test 6 recordings" in str(splits.report)

    def test_the_train_folder_is_taken_as_it_is(self, tmp_path):
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            write_folder(tmp_path / split, {"a": count, "b": count})
        assert load_audio(tmp_path, RAW).report.counts == {"train": 8, "val": 4, "test": 6}

    def test_from_memory_and_from_files_are_the_same(self, tmp_path):
        write_folder(tmp_path, {"a": 6, "b": 6})
        kept, read = (load_audio(tmp_path, MEL, cache=cache) for cache in (True, False))
        assert kept.train.in_memory
        assert not read.train.in_memory
        assert kept.report.cached == 12 * 2000 * 4
        pairs = [splits.loaders(batch_size=4, seed=3).train for splits in (kept, read)]
        for (left, ours), (right, theirs) in zip(*pairs, strict=True):
            assert torch.equal(left, right)
            assert torch.equal(ours, theirs)

    def test_random_changes_depend_on_the_seed_alone_and_leave_torchs_state(self, tmp_path):
        splits = load_audio(write_folder(tmp_path, {"a": 6, "b": 6}), RAW)
        state = torch.get_rng_state()
        first, again, other = (splits.train[0, seed][0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)
        evaluated = splits.unlabelled(samples=8, batch_size=4)
        assert [tuple(batch.shape) for batch in evaluated] == [(4, 1, 2000)] * 2

    def test_unreadable_recordings_are_left_out_and_told(self, tmp_path):
        write_folder(tmp_path, {"a": 6, "b": 6})
        (tmp_path / "a" / "broken.wav").write_bytes(b"")
        write_sound(tmp_path / "b" / "click.wav", seconds=0.01)
        (tmp_path / "b" / "notes.txt").write_text("no sound")
        for cache in (True, False):
            report = load_audio(tmp_path, RAW, cache=cache).report
            assert sum(report.counts.values()) == 12
            assert {item.path.name for item in report.left_out} == {"broken.wav", "click.wav"}
            assert report.ignored == 1
            assert "2 recordings cannot be read and were left out" in str(report)

    def test_different_rates_are_refused_not_left_out(self, tmp_path):
        write_folder(tmp_path, {"a": 6, "b": 6})
        write_folder(tmp_path, {"c": 6}, rate=16000)
        with pytest.raises(DataError, match=r"expected recordings of 8000 Hz, \d+ of 13 have 16000 Hz .*resample"):
            load_audio(tmp_path, RAW)

    def test_a_class_of_which_nothing_can_be_read_is_an_error(self, tmp_path):
        write_folder(tmp_path, {"a": 6})
        write_folder(tmp_path, {"b": 6}, seconds=0.01)
        with pytest.raises(DataError, match=r"no recording is left of 1 classes \(b\): 6 cannot be read"):
            load_audio(tmp_path, RAW)

    def test_a_folder_without_recordings_says_what_is_expected(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match=r"has no recordings; expected FOLDER/train/CLASS/RECORDING"):
            load_audio(tmp_path, RAW)

    @pytest.mark.parametrize("options", [{"val_share": 0}, {"test_share": 1.0}, {"max_train": 0}])
    def test_senseless_options_are_refused(self, tmp_path, options):
        with pytest.raises(OptionError):
            load_audio(tmp_path, RAW, **options)


class TestNames:
    PATTERN = r"(?P<label>[a-z]+)_(?P<speaker>[a-z]+)_(?P<take>\d+)"

    @pytest.fixture
    def folder(self, tmp_path):
        for label in ("one", "two"):
            for speaker in ("ann", "bob"):
                for take in range(4):
                    write_sound(tmp_path / f"{label}_{speaker}_{take}.wav", seed=take)
        write_sound(tmp_path / "test tone.wav")
        return tmp_path

    @staticmethod
    def split_of(match: re.Match[str]) -> str | None:
        if match["speaker"] == "bob":
            return None
        return {"0": "test", "1": "val"}.get(match["take"], "train")

    def test_say_class_and_split(self, folder):
        splits = load_audio(folder, RAW, pattern=self.PATTERN, split_of=self.split_of)
        assert splits.report.counts == {"train": 4, "val": 2, "test": 2}
        assert splits.classes == ("one", "two")
        assert {sample.path.name for sample in splits.test.samples} == {"one_ann_0.wav", "two_ann_0.wav"}
        assert all(splits.classes[sample.label] in sample.path.name for sample in splits.train.samples)
        assert splits.report.ignored == 9

    def test_without_a_rule_for_splits_they_are_set_aside(self, folder):
        splits = load_audio(folder, RAW, pattern=self.PATTERN, val_share=0.25, test_share=0.25)
        assert splits.report.counts == {"train": 9, "val": 3, "test": 4}
        assert Counter(splits.test.labels) == {0: 2, 1: 2}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pattern": r"(\w+)"}, "with a group"),
            ({"pattern": r"(?P<label>"}, "expected a regular expression"),
            ({"pattern": PATTERN, "split_of": lambda match: "exam"}, "train, val, test or None, got 'exam'"),
            ({"split_of": lambda match: "train"}, "expected a pattern"),
        ],
    )
    def test_senseless_rules_are_refused(self, folder, options, message):
        with pytest.raises(OptionError, match=message):
            load_audio(folder, RAW, **options)

    @pytest.mark.parametrize("pattern", [r"(?P<label>\d)", r"(?P<label>one)_.*"])
    def test_fewer_than_two_classes_are_refused(self, folder, pattern):
        with pytest.raises(DataError, match="at least two classes to train on"):
            load_audio(folder, RAW, pattern=pattern)

    def test_a_class_that_only_the_test_has_is_refused(self, folder):
        write_sound(folder / "three_ann_0.wav")
        with pytest.raises(DataError, match=r"test has classes that train lacks \(three\)"):
            load_audio(folder, RAW, pattern=self.PATTERN, split_of=self.split_of)


def test_unlabelled_recordings_come_from_any_folder(tmp_path):
    write_folder(tmp_path / "deep" / "down", {"a": 3, "b": 3})
    (tmp_path / "broken.wav").write_bytes(b"x")
    batches, left_out = unlabelled_batches(tmp_path, audio_transforms(MEL, train=False), batch_size=4)
    assert [tuple(batch.shape) for batch in batches] == [(4, *MEL.input_size), (2, *MEL.input_size)]
    assert [item.path.name for item in left_out] == ["broken.wav"]


@pytest.mark.parametrize("net", ["mel-cnn", "raw-cnn"])
class TestNets:
    def test_load_their_weights_by_name(self, tmp_path, net):
        from safetensors.torch import save_file

        torch.manual_seed(0)
        arguments = {"sample_rate": RATE, "seconds": 0.5, "width": 4}
        first = load_model(f"audio/{net}", num_classes=3, **arguments)
        save_file(first.model.state_dict(), tmp_path / "net.safetensors")
        again = load_model(f"audio/{net}", weights=tmp_path / "net.safetensors", **arguments)
        sound = torch.randn(2, *first.audio_config.input_size)
        assert torch.equal(first.model.eval()(sound), again.model.eval()(sound))
        assert again.head == ("classifier",)
        assert again.data_config is None
        assert "0.5 s of sound at 8000 Hz" in str(again)

    def test_go_through_every_verb_and_learn(self, tmp_path, net):
        arguments = {"sample_rate": RATE, "seconds": 0.2, "width": 12}
        for label, hertz in (("low", 200), ("high", 900)):
            for number in range(12):
                (tmp_path / label).mkdir(exist_ok=True)
                tone = np.sin(np.arange(1600) * (hertz + 3 * number) * 2 * np.pi / RATE + number) * 9999
                scipy.io.wavfile.write(tmp_path / label / f"{number:02d}.wav", RATE, tone.astype(np.int16))
        torch.manual_seed(0)
        loaded = load_model(f"audio/{net}", **arguments)
        new_head(loaded.model, 2)
        splits = load_audio(tmp_path, loaded.audio_config)
        loaders = splits.loaders(batch_size=8, seed=0)
        batch = next(iter(loaders.train))
        ranking = adabet.rank(loaded.model, splits.unlabelled(samples=16, batch_size=8), channels=0.5)
        assert len(ranking.layers) == 16
        selection = ranking.select(layer_ratio=0.5, channel_ratio=0.5)
        report = adabet.measure_memory(loaded.model, batch, selection)
        full = adabet.measure_memory(loaded.model, batch, adabet.select("full", loaded.model, [batch]))
        assert report.training.total < full.training.total
        plan = adabet.plan(loaded.model, loaders.train, memory=full.training.total // 2)
        result = adabet.fit(
            loaded.model, loaders.train, loaders.val, plan, epochs=4, lr=0.03, run_dir=tmp_path / "run", keep="last"
        )
        step = {"micro_batch": plan.micro_batch, "recompute": plan.recompute}
        found = adabet.measure_memory(loaded.model, batch, plan.selection, **step)
        assert found.training.total <= full.training.total // 2
        assert result.history[-1].train_loss < result.history[0].train_loss


def test_the_commands_take_sound_where_the_model_does(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from adabet.cli import app

    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        write_folder(tmp_path / "sound" / split, {"a": count, "b": count}, seconds=0.1)
    net = ["audio/mel-cnn", "sound", "--model-arg", f"sample_rate={RATE}", "--model-arg", "seconds=0.1"]
    net += ["--model-arg", "width=4"]
    for command in (["rank"], ["memory", "--methods", "head"], ["tune", "--epochs", "1"]):
        result = CliRunner().invoke(app, [command[0], *net, *command[1:]])
        assert result.exit_code == 0, result.stderr
    assert "on 4 recordings" in " ".join(result.stdout.split())
    assert (tmp_path / "runs" / "mel-cnn-sound-adabet" / "best.safetensors").exists()


def test_arguments_that_a_net_does_not_take_are_refused():
    with pytest.raises(adabet.errors.ModelError, match=r"audio/mel-cnn cannot be built: .*depth"):
        load_model("audio/mel-cnn", depth=3)
    with pytest.raises(adabet.errors.ModelError, match="audio/raw-cnn takes no mels"):
        load_model("audio/raw-cnn", mels=3)
    with pytest.raises(OptionError, match="reads sound: it takes no image_size"):
        load_model("audio/mel-cnn", image_size=64)
    with pytest.raises(adabet.errors.UnknownNameError, match="did you mean 'audio/mel-cnn'"):
        load_model("audio/mel-cn")


@pytest.mark.data
def test_real_recordings_load(shared_data):
    splits = load_audio(
        shared_data / "audio" / "fsdd",
        AudioConfig(sample_rate=RATE),
        pattern=r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)",
        split_of=lambda match: None if match["speaker"] != "theo" else "test" if int(match["take"]) < 5 else "train",
    )
    assert splits.report.counts == {"train": 405, "val": 45, "test": 50}
    assert splits.classes == tuple("0123456789")
    assert not splits.report.left_out
