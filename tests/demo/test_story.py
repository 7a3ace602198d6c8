"""The demo from end to end, with fewer runs than users see."""

import matplotlib.image
import pytest
import torch

from adabet.demo import DemoResult, story
from adabet.demo.story import run_demo
from adabet.errors import CheckpointError, OptionError, StorageError


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A demo with one seed, one epoch and one candidate rate, and what its progress was told."""
    said = []
    output = tmp_path_factory.mktemp("demo") / "picture.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "LEARNING_RATES", {"head": (0.3,), "adabet": (0.01,), "full": (0.001,)})
        result = run_demo(seeds=1, epochs=1, output=output, progress=lambda *words: said.append(words))
    return result, said, output


def test_picture_is_there_and_not_blank(told):
    result, _, output = told
    assert result.picture == str(output)
    pixels = matplotlib.image.imread(output)
    assert pixels.shape[:2] == (1350, 1500)
    assert pixels[:, :, :3].min() < 0.3
    assert (pixels[0, :, :3] == 1).all(), "a white margin: nothing is cut off"
    assert (pixels[:, -1, :3] == 1).all()


def test_result_comes_back_from_json(told):
    result, _, _ = told
    assert DemoResult.from_json(result.to_json()) == result


def test_a_tenth_of_the_layers_is_chosen_by_forty_digits(told):
    result, _, _ = told
    assert result.ranking.samples == 40
    assert len(result.ranking.layers) == 24
    assert len(result.selection.layers) == 2
    assert set(result.selection.layers) == {ranked.layer.name for ranked in result.ranking.order[:2]}


def test_methods_are_told_apart_by_what_they_train(told):
    head, adabet, full = told[0].methods
    assert [outcome.method for outcome in told[0].methods] == ["head", "adabet", "full"]
    assert (head.trained_layers, adabet.trained_layers, full.trained_layers) == (1, 3, 25)
    assert head.trained_parameters == 490
    assert full.trained_parameters == 67_978


def test_memory_is_what_training_more_costs(told):
    result, _, _ = told
    head, adabet, full = (outcome.memory for outcome in result.methods)
    assert result.inference_memory <= head <= adabet < 0.6 * full


def test_one_epoch_already_helps(told):
    result, _, _ = told
    assert result.clean >= 0.99
    assert 0.35 <= result.before <= 0.45
    assert all(outcome.accuracy > result.before + 0.2 for outcome in result.methods)


def test_readings_are_the_first_test_digits(told):
    result, _, _ = told
    test = story.load_part("test")
    assert [reading.digit for reading in result.readings] == test.labels[:14].tolist()
    wrong = sum(reading.before != reading.digit for reading in result.readings)
    assert wrong > sum(reading.after != reading.digit for reading in result.readings)


def test_progress_counts_every_training_run(told):
    _, said, _ = told
    assert [behind for _, behind, _ in said] == sorted(behind for _, behind, _ in said)
    assert {total for _, _, total in said} == {3}
    assert said[0][1] == 0
    assert said[-1][1] == 3


def test_text_marks_the_chosen_layers_and_names_the_picture(told):
    result, _, output = told
    text = str(result)
    assert {line.split()[1] for line in text.splitlines() if line.startswith("* ")} == set(result.selection.layers)
    assert str(output) in text
    assert f"{result.methods[1].accuracy:.1%}" in text


def test_threads_are_given_back(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(story, "_tell_story", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_demo(output=tmp_path / "picture.png")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("options", [{"seeds": 0}, {"epochs": 0}])
def test_nothing_to_do_is_refused(options, tmp_path):
    with pytest.raises(OptionError, match="at least 1, got 0"):
        run_demo(**options, output=tmp_path / "picture.png")


@pytest.mark.parametrize("place", ["missing/picture.png", "."])
def test_a_place_that_cannot_be_written_is_refused_before_training(place, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "_tell_story", lambda **_: pytest.fail("trained"))
    with pytest.raises(StorageError, match="folder that exists"):
        run_demo(output=tmp_path / place)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "adabet/ranking"}', '{"kind": "adabet/demo", "version": 1}']
)
def test_other_json_is_refused(text):
    with pytest.raises(CheckpointError):
        DemoResult.from_json(text)
