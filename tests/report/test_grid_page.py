"""The page of a comparison says what its results file holds, and no more than its seeds can tell."""

import sqlite3
from statistics import fmean, stdev

import pytest
from scipy import stats

from adabet.errors import CheckpointError
from adabet.report import write_report
from adabet.report.grid_tables import TUNE_OPTIONS
from tests.report.grids import PEAK, TEST, make_grid, write_results
from tests.report.reading import plain, read, rows_of


def page_of(path, **values):
    return read(write_report(write_results(path / "grid.db", **values), path / "page.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("grid"))


def test_the_verdict_gives_accuracy_peak_and_share_of_training_everything(page):
    told = plain(page.one("p", class_="verdict"))
    mean = {method: f"{100 * fmean(values):.1f} %" for method, values in TEST.items()}
    assert told.startswith(
        f"adabet reached {mean['adabet']} test accuracy with a peak of 2 MB, 25 % of what training everything takes; "
        f"the head alone reached {mean['head']}."
    )


def test_the_verdict_calls_noise_what_a_paired_t_test_cannot_tell(page):
    p = {name: stats.ttest_rel(TEST[name], TEST["adabet"]).pvalue for name in ("head", "full")}
    assert 2 * min(p.values()) < 0.05 < max(p.values())  # Holm's correction of two; both cases are met
    told = plain(page.one("p", class_="verdict"))
    assert "Worse: head, −10.0 points." in told
    assert "Within noise of it: full, +1.0 points." in told
    assert "more seeds tell more" in plain(page.one("header"))


def test_the_table_is_best_first_with_mean_spread_and_peak(page):
    rows = rows_of(page.one("section", id="results").one("table"))
    assert [row[0] for row in rows] == ["method", "full", "adabet", "head"]
    values = TEST["adabet"]
    assert rows[2][1] == f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f} %"
    assert rows[2][rows[0].index("peak")] == "2 MB"
    assert rows[3][rows[0].index("against adabet")].startswith("−10.0 ± ")


def test_the_frontier_holds_all_three(page):
    drawn = page.one("section", id="frontier").one("svg", role="img")
    assert "hollow" not in " ".join(mark.attributes["class"] for mark in drawn.all("path", class_="mark"))
    assert plain(drawn.one("desc")).startswith(
        "On the frontier, from the least peak memory of a training step: head 82.0 %"
    )


def test_the_strips_show_where_each_method_trains(page):
    section = page.one("section", id="layers")
    strips = {drawing.one("title").text: drawing for drawing in section.all("svg", class_="strip")}
    assert list(strips) == ["adabet: 2 of 4 layers", "head: 0 of 4 layers", "full: 4 of 4 layers"]
    # the second layer trains with two of three seeds, the fourth and the head with all
    heights = [float(cell.attributes["height"]) for cell in strips["adabet: 2 of 4 layers"].all("rect", class_="heat")]
    assert heights[0] / heights[1] == pytest.approx(2 / 3, abs=0.01)
    rows = rows_of(section.one("table"))
    assert rows[2] == ["block1", "66.7 %", "", "66.7 %"]
    assert rows[-1] == ["head", "always", "always", "always"]


def test_memory_is_by_category_from_the_least(page):
    rows = rows_of(page.one("section", id="memory").one("table"))
    assert [row[0] for row in rows[1:]] == ["head", "adabet", "full"]
    assert [row[-1] for row in rows[1:]] == ["1 MB", "2 MB", "8 MB"]
    assert sorted(PEAK.values()) == [1_000_000, 2_000_000, 8_000_000]


def test_every_curve_is_in_the_table_under_it(page):
    rows = rows_of(page.one("section", id="curves").one("table"))
    assert rows[1] == ["adabet", "0", "89.0 %", "90.0 %"]
    assert len(rows) == 10


def test_commands_train_the_frontier_again(page):
    commands = [block.text for block in page.one("section", id="delta").all("code")]
    assert commands[0].startswith("adabet tune demo photos --method adabet --layer-ratio 0.1 --lr 0.01 --epochs 2")
    assert {command.split()[5] for command in commands} == {"adabet", "head", "full"}


def test_commands_take_only_options_that_the_command_has():
    import inspect

    from adabet.cli import tune

    known = inspect.signature(tune.command).parameters
    assert known.keys() >= TUNE_OPTIONS
    assert known.keys() >= {
        "method",
        "layer_ratio",
        "memory",
        "lr",
        "epochs",
        "batch_size",
        "seed",
        "weights",
        "option",
    }
    assert known.keys() >= {"image_size", "mean", "std", "max_train", "pretrained", "model_arg"}


def test_a_comparison_that_is_not_complete_says_so(tmp_path):
    page = page_of(tmp_path, results={"adabet": TEST["adabet"], "head": TEST["head"][:1]})
    notice = page.one("p", class_="notice").text
    assert notice.startswith("This comparison is not complete: ")
    rows = rows_of(page.one("section", id="results").one("table"))
    assert rows[3][:2] == ["full", "not yet"]


def test_runs_that_failed_are_told_with_their_reason(tmp_path):
    page = page_of(tmp_path, results=TEST | {"full": ("out of <memory>",) * 3})
    # with one learning rate all three seeds belong to the table's line
    assert page.one("p", class_="notice").text.endswith("failed; the results below say why.")
    assert "full: out of <memory>" in page.one("section", id="results").one("ul").text


def test_nothing_has_run_yet(tmp_path):
    page = page_of(tmp_path, results={})
    assert page.one("p", class_="verdict").text == "No training run has ended yet, so there is nothing to tell."
    assert not page.all("svg", role="img")


def test_without_measured_memory_there_is_no_scatter(tmp_path):
    page = page_of(tmp_path, memory=False)
    assert not page.all("section", id="frontier")
    assert "peak" not in rows_of(page.one("section", id="results").one("table"))[0]


def test_one_seed_tells_no_difference(tmp_path):
    page = page_of(tmp_path, grid=make_grid(seeds=1))
    assert "no difference can be told from noise" in plain(page.one("header"))
    assert "Better" not in plain(page.one("p", class_="verdict"))


def test_several_models_and_data_have_headings_of_their_own(tmp_path):
    page = page_of(tmp_path, grid=make_grid(data=["photos", "<drawings>"]))
    names = [item.text for item in page.one("section", id="results").all("h3")]
    assert names == ["demo on photos", "demo on <drawings>"]
    assert len(page.all("p", class_="verdict")) == 2


def test_each_share_of_the_reference_has_its_own_differences(tmp_path):
    page = page_of(tmp_path, grid=make_grid(layer_ratios=[0.1, 0.5]))
    verdicts = [plain(item) for item in page.all("p", class_="verdict")]
    assert [told.partition(" reached")[0] for told in verdicts] == ["adabet (0.1)", "adabet (0.5)"]
    assert all("head, −10.0 points" in told for told in verdicts)
    rows = rows_of(page.one("section", id="results").one("table"))
    head = next(row for row in rows if row[0] == "head")
    assert head[rows[0].index("against adabet")].count("−10.0") == 2


def test_a_results_file_of_another_version_is_refused(tmp_path):
    path = write_results(tmp_path / "grid.db")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CheckpointError, match="holds results of version 99"):
        write_report(path)
    assert not (tmp_path / "grid.html").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0 and then nothing of the kind"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "grid.db"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"grid\.db"):
        write_report(path)
