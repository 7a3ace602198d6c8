"""What a tracker hears is what the run folder says."""

import json

import pytest

from adabet.errors import MissingExtraError, OptionError, UnknownNameError
from adabet.training import fit
from adabet.training.tracking import open_tracker
from tests.training.nets import choose_last, make_loaders, make_net

tracking = pytest.importorskip("accelerate.tracking")


class Notebook(tracking.GeneralTracker):
    """Remembers what it is told."""

    name, requires_logging_directory = "notebook", False

    def __init__(self):
        super().__init__()
        self.told = []

    @property
    def tracker(self):
        return self.told

    def start(self):
        self.told.append("start")

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step=None, **kwargs):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finish")


def test_a_tracker_hears_every_step_and_epoch():
    model, notebook = make_net(), Notebook()
    loaders = make_loaders()
    result = fit(model, *loaders, choose_last(model), lr=0.05, epochs=2, tracker=notebook)
    start, options, *told, finish = notebook.told
    assert (start, finish) == ("start", "finish")
    assert options["lr"] == 0.05
    assert options["epochs"] == 2
    steps = len(loaders[0])
    losses = [(step, values) for step, values in told if "step_loss" in values]
    epochs = [(step, values) for step, values in told if "epoch" in values]
    assert [step for step, _ in losses] == list(range(1, 2 * steps + 1))
    assert [step for step, _ in epochs] == [steps, 2 * steps]
    for (_, values), record in zip(epochs, result.history, strict=True):
        assert values == {name: value for name, value in record.to_dict().items() if value is not None}


def test_goes_on_counting_where_a_run_is_resumed(tmp_path):
    model, notebook = make_net(), Notebook()
    loaders, chosen = make_loaders(), choose_last(model)
    options = {"lr": 0.05, "epochs": 3, "run_dir": tmp_path / "run"}

    class Stop(Notebook):
        def log(self, values, step=None, **kwargs):
            if values.get("epoch") == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_net(), *loaders, chosen, **options, tracker=Stop())
    fit(make_net(), *make_loaders(), chosen, **options, tracker=notebook, resume=True)
    steps = len(loaders[0])
    assert [step for step, values in notebook.told[2:-1] if "step_loss" in values] == list(
        range(2 * steps + 1, 3 * steps + 1)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_hold_the_metrics_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make_net()
    fit(model, *make_loaders(), choose_last(model), lr=0.05, epochs=2, run_dir=tmp_path / "run", tracker="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_unknown_names_get_a_hint():
    with pytest.raises(UnknownNameError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        open_tracker("tensorbord", None)


def test_one_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(MissingExtraError, match=r"needs tensorboard, .*pip install 'adabet\[tracking\]'"):
        open_tracker("tensorboard", "run")
    with pytest.raises(MissingExtraError, match=r"needs wandb, .*pip install wandb"):
        open_tracker("wandb", "run")


def test_one_that_writes_files_asks_for_the_run_folder():
    pytest.importorskip("tensorboard")
    with pytest.raises(OptionError, match="expected run_dir"):
        open_tracker("tensorboard", None)
