"""The page of a run says what its folder holds, whole or not."""

import json
import shutil

import pytest

from adabet.errors import CheckpointError, StorageError
from adabet.methods import rank
from adabet.report import write_report
from adabet.report.task import Task, keep_task
from adabet.sizes import format_size
from adabet.training import fit
from tests.report.reading import plain, read, rows_of
from tests.training.nets import choose_last, make_loaders, make_net

HOSTILE = '</title><script>alert("1")</script>&amp;'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run as `adabet tune` leaves it, with a class of an awkward name."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model, loaders = make_net(), make_loaders()
    ranking = rank(model, [batch[0] for batch in loaders[0]], method="adabet", samples=16)
    task = Task("demo", {"image_size": 6}, "photos", ("cat", HOSTILE), {"train": 44, "val": 30, "test": 30})
    keep_task(folder, task, ranking)
    fit(model, *loaders, ranking.select(layer_ratio=0.5), lr=0.05, epochs=3, run_dir=folder)
    (folder / "test.json").write_text(json.dumps({"loss": 0.5, "accuracy": 0.8125}))
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """The run's folder, to be damaged."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))


def page_of(folder):
    return read(write_report(folder).read_text(encoding="utf-8"))


def test_the_verdict_is_that_of_the_files(run):
    result = json.loads((run / "result.json").read_text())
    memory = json.loads((run / "memory.json").read_text())["training"]
    peak = sum(value for name, value in memory.items() if name != "resident")
    share = 100 * result["trained_parameters"] / result["model_parameters"]
    assert plain(page_of(run).one("p", class_="verdict")) == (
        f"adabet trained 2 of 4 layers and the head, {share:.1f} % of the parameters, and reached 81.2 % accuracy on "
        f"30 test images, with a measured peak of {format_size(peak)} for a training step."
    )


def test_loads_nothing_and_runs_nothing(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = read(text)
    assert not page.all("script")
    assert not page.all("iframe")
    for element in page.all():
        for name in ("src", "href", "data", "action", "srcset"):
            value = element.attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (element.name, value)
        assert not any(name.startswith("on") for name in element.attributes)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(#pattern" in text
    assert "@import" not in text


def test_what_comes_from_outside_is_text(run):
    page = page_of(run)
    (classes,) = [
        item.one("dd").text for item in page.all("div") if item.all("dt") and item.one("dt").text == "2 classes"
    ]
    assert classes == f"cat, {HOSTILE}"


def test_headings_landmarks_and_links_fit_together(run):
    page = page_of(run)
    assert page.one("html").attributes["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    assert [item.text for item in page.all("h2")] == [item.text for item in page.one("nav").all("a")]


def test_every_drawing_has_a_text(run):
    drawings = page_of(run).all("svg", role="img")
    assert len(drawings) > 5
    for drawing in drawings:
        assert drawing.one("title").text
        assert drawing.one("desc").text


def test_plots_have_their_numbers_under_them(run):
    page = page_of(run)
    rows = rows_of(page.one("section", id="curves").one("table"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row[:4] for row in rows[1:]] == [
        [str(line["epoch"]), *(f"{line[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy"))]
        for line in lines
    ]
    memory = rows_of(page.one("section", id="memory").all("table")[0])
    assert memory[1][-1] == format_size(
        sum(
            value
            for name, value in json.loads((run / "memory.json").read_text())["training"].items()
            if name != "resident"
        )
    )


def test_the_ranking_is_best_first_with_the_chosen_marked(run):
    rows = rows_of(page_of(run).one("section", id="ranking").one("table"))
    ranking = json.loads((run / "ranking.json").read_text())["layers"]
    order = sorted(ranking, key=lambda item: -item["score"] / item["cost"])
    assert [row[0] for row in rows[1:]] == [item["layer"]["name"] for item in order]
    chosen = [choice["layer"] for choice in json.loads((run / "selection.json").read_text())["choices"]]
    assert [row[0] for row in rows[1:] if row[2] == "yes"] == [
        name for name in (row[0] for row in rows[1:]) if name in chosen
    ]


def test_the_strip_fills_the_chosen_layers(run):
    section = page_of(run).one("section", id="layers")
    strip = section.all("svg", class_="strip")[0]
    assert len(strip.all("rect", class_="track")) == 5
    assert len(strip.all("rect", class_="heat")) == 3
    assert strip.one("title").text == "adabet: 2 of 4 layers"


def test_is_the_same_each_time(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_another_output(run, tmp_path):
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert read((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_a_page_that_cannot_be_written_leaves_the_former_one(copy, monkeypatch):
    page = write_report(copy)
    former = page.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adabet.files._flush", full)
    with pytest.raises(StorageError, match="No space left"):
        write_report(copy)
    assert page.read_bytes() == former
    assert not list(copy.glob(".report*"))


def test_a_run_that_was_stopped_is_reported_as_far_as_it_went(copy):
    for name in ("result.json", "last.safetensors", "test.json"):
        (copy / name).unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:2]))
    page = page_of(copy)
    assert "has not finished: the folder was left after 2 of 3 epochs" in page.one("p", class_="notice").text
    assert len(rows_of(page.one("section", id="curves").one("table"))) == 3
    best = max(json.loads(line)["val_accuracy"] for line in lines[:2])
    assert f"reached {100 * best:.1f} % accuracy on validation" in plain(page.one("p", class_="verdict"))
    assert "the best epoch so far" in page.one("section", id="delta").text


def test_a_run_that_was_stopped_at_its_very_start(copy):
    for file in copy.iterdir():
        if file.name != "config.json":
            file.unlink()
    page = page_of(copy)
    assert "left before the end of its first epoch" in page.one("p", class_="notice").text
    assert [item.text for item in page.all("h2")] == ["What was asked"]


def test_a_run_in_python_needs_neither_task_nor_ranking(tmp_path):
    model = make_net()
    fit(model, make_loaders()[0], None, choose_last(model), lr=0.05, epochs=1, run_dir=tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "reached a training loss of" in plain(page.one("p", class_="verdict"))
    assert "does not tell where the other 2 of 4 layers lie" in page.one("section", id="layers").text
    assert "adabet.load_delta(model, " in page.one("section", id="delta").text


def test_a_method_that_selects_again_has_a_strip_for_each_selection(tmp_path):
    options = {"method": "lisa", "layer_ratio": 0.5, "epochs": 3, "lr": 0.01}
    fit(make_net(), *make_loaders(), **options, method_options={"interval": 6}, run_dir=tmp_path / "run")
    turns = [json.loads(line) for line in (tmp_path / "run" / "turns.jsonl").read_text().splitlines()]
    assert len(turns) > 1
    page = page_of(tmp_path / "run")
    names = [item.one("title").text.partition(":")[0] for item in page.all("svg", class_="strip")]
    assert names == ["lisa", *(f"epoch {turn['epoch']}, step {turn['step']}" for turn in turns)]
    assert f"in {len(turns)} selections one after the other" in plain(page.one("p", class_="verdict"))


def test_a_plan_tells_the_budget_and_what_training_everything_would_take(tmp_path):
    fit(make_net(), *make_loaders(), memory="80kB", epochs=1, run_dir=tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    told = plain(page_of(tmp_path / "run").one("p", class_="verdict"))
    assert f"of the budget of {format_size(plan['budget'])}" in told
    assert f"of the {format_size(plan['full'])} that training everything at once would take" in told


FILES = (
    "config.json",
    "selection.json",
    "memory.json",
    "metrics.jsonl",
    "result.json",
    "task.json",
    "ranking.json",
    "test.json",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["", "[]", "{", '{"kind": "adabet/other", "version": 1}', "7"])
def test_a_damaged_file_is_named_in_one_line(copy, name, content):
    if name in ("metrics.jsonl", "test.json") and content in ("", '{"kind": "adabet/other", "version": 1}', "[]"):
        content = '{"epoch": "one"' if name == "metrics.jsonl" else '{"accuracy": "high"}'
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        write_report(copy)
    assert "\n" not in str(caught.value)
    assert not (copy / "report.html").exists()


def test_a_file_of_another_version_says_so(copy):
    values = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(CheckpointError, match=r"result\.json cannot be used: expected version 1 .* got 99"):
        write_report(copy)


def test_a_folder_that_holds_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a run folder, .* has no config\.json"):
        write_report(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        write_report(tmp_path / "nowhere")


def test_the_task_of_a_run_that_is_there_is_left_alone(copy):
    former = (copy / "task.json").read_text()
    keep_task(copy, Task("other", {}, "other", (), {}), None)
    assert (copy / "task.json").read_text() == former
    assert (copy / "ranking.json").exists()
