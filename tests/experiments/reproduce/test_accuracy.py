"""Table 2, the curves and MeDyate's table: published numbers against each other, ours with a pool that runs nothing."""

import csv
import statistics

import pytest

from adabet.errors import OptionError
from adabet.experiments.reproduce import Task, ablations, accuracy, find_reproduction, medyate, ratios, reproduce
from adabet.experiments.reproduce.local import DEMO
from adabet.experiments.reproduce.medyate_published import ACCURACIES, AVERAGES, DATA, UNITS
from adabet.experiments.reproduce.published import AVERAGES as TABLE_2
from adabet.experiments.reproduce.published import DATA as SETS
from adabet.experiments.reproduce.published import METHODS, MODELS, learning_rate
from adabet.experiments.reproduce.table2 import averages
from adabet.experiments.specs import DataSpec, ModelSpec
from tests.experiments.grids import FakePool, scored

pytest.importorskip("matplotlib")

SCORES = {"adabet": 0.9, "full": 0.8, "head": 0.5, "trady": 0.7, "medyate": 0.75}


@pytest.fixture
def pools(monkeypatch):
    """Every pool that is made, answering by a score for each method."""
    made = []

    def make(*arguments, **options):
        made.append(FakePool(scored(lambda cell: SCORES.get(cell.method.method, 0.6)), workers=1))
        return made[-1]

    monkeypatch.setattr(accuracy, "LocalPool", make)
    return made


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ACCURACIES)
def test_published_averages_are_those_of_the_published_cells(method):
    means = [mean for mean, _ in ACCURACIES[method]]
    assert len(means) == len(DATA)
    # the papers average numbers before they round them
    assert statistics.fmean(means) == pytest.approx(AVERAGES[method], abs=0.01)


def test_every_method_of_table_2_has_a_published_average():
    assert {method.label for method in METHODS} == set(TABLE_2)


def test_the_papers_learning_rates():
    rates = {(model.label, data.label): learning_rate(model, data) for model in MODELS for data in SETS}
    assert len(rates) == 16
    assert rates["MobileNetV2", "Oxford-IIIT Pets"] == 1e-4
    assert rates["ResNet50", "CUB-200"] == 1e-2
    assert rates["ViT-B16", "Stanford Dogs"] == 1e-3


def test_averages_only_where_every_pair_has_a_result():
    rows = [
        {"model": "m", "data": data, "method": method, "seeds": 3, "accuracy": value}
        for method, values in {"AdaBet": (60.0, 80.0), "Fisher": (50.0, None)}.items()
        for data, value in zip("ab", values, strict=True)
    ]
    adabet, fisher = averages(rows)
    assert (adabet["accuracy"], adabet["published"], adabet["problem"]) == (70.0, 76.26, "")
    assert (fisher["accuracy"], fisher["published"], fisher["problem"]) == (None, 59.40, "1 without a result")


def test_table_2_of_ones_own(tmp_path, pools):
    data = (DataSpec("photos"), DataSpec("drawings"))
    written = reproduce(find_reproduction("table2"), Task(tmp_path, (ModelSpec("demo"),), data))
    rows = read(written.table)
    assert len(rows) == 2 * len(METHODS) + len(METHODS)
    of = {(row["data"], row["method"]): row for row in rows}
    assert float(of["photos", "AdaBet"]["accuracy"]) == pytest.approx(90)
    assert of["photos", "AdaBet"]["seeds"] == "3"
    assert float(of["photos", "AdaBet"]["std"]) == 0
    assert of["photos", "AdaBet"]["published"] == ""
    assert float(of["2 pairs", "Full training"]["accuracy"]) == pytest.approx(80)
    assert of["2 pairs", "Full training"]["published"] == "71.8"
    cells = [job.cell for pool in pools for job in pool.seen]
    assert {cell.settings.epochs for cell in cells} == {50}
    assert {str(cell.share) for cell in cells if cell.method.method == "fisher"} == {"0.1"}
    assert len({cell.learning_rate for cell in cells}) > 1


def test_the_papers_pairs_train_at_the_papers_rates(tmp_path, pools, monkeypatch):
    from adabet.experiments.reproduce import local

    monkeypatch.setattr(local, "load_model", lambda *arguments, **options: None)
    monkeypatch.setattr(local, "load_data", lambda *arguments, **options: None)
    written = reproduce(find_reproduction("table2"), Task(tmp_path))
    cells = [job.cell for pool in pools for job in pool.seen]
    assert len(cells) == 16 * len(METHODS) * 3
    assert all(cell.learning_rate == learning_rate(cell.model, cell.data) for cell in cells)
    assert all(cell.model.pretrained for cell in cells)
    published = {row["data"]: row["published"] for row in read(written.table) if row["published"]}
    assert published["Stanford Dogs"] == "14.37"
    assert len([row for row in read(written.table) if row["model"] != "average" and row["published"]]) == 4


def test_curves_take_up_the_runs_of_table_2(tmp_path, pools):
    task = Task(tmp_path, (DEMO,), (DataSpec("photos"),), quick=True)
    reproduce(find_reproduction("table2"), task)
    before = sum(len(pool.seen) for pool in pools)
    written = reproduce(find_reproduction("curves"), task)
    assert before == len(METHODS) == sum(len(pool.seen) for pool in pools)
    rows = read(written.table)
    assert [row["epoch"] for row in rows] == ["1"] * len(METHODS)
    assert float(rows[0]["accuracy"]) == pytest.approx(90)
    assert {cell.settings.epochs for pool in pools for cell in [job.cell for job in pool.seen]} == {
        accuracy.QUICK_EPOCHS
    }


def test_medyates_methods_on_the_papers_network():
    units, methods, notes = medyate.methods_for(ModelSpec("mcu/mbv2-w0.35"), quick=False)
    assert units == UNITS
    assert [method.label for method in methods] == list(ACCURACIES)
    assert notes == []
    options = {method.label: dict(method.options) for method in methods}
    assert options["SU"] == {"scheme": "49kB"}
    assert options["LaRa MeDyate"] == {"units": UNITS, "variant": "lara-medyate"}
    # of the scheme's 28282 units, 22410 are weights: the kept input channels times output channels and kernel
    assert options["Velocity"] == {"parameters": 22_410}


def test_medyates_methods_on_another_network_get_the_same_share():
    units, methods, notes = medyate.methods_for(ModelSpec("demo"), quick=False)
    assert units == round(119_760 * 27_946 / 1_252_320)
    assert "SU" not in {method.label for method in methods}
    assert "no published scheme" in notes[0]


def test_medyates_table_has_the_papers_numbers_on_the_papers_data(tmp_path, pools):
    model = ModelSpec("mcu/mbv2-w0.35", label="MbV2-w0.35")
    data = (DataSpec("flowers", label="Flowers"), DataSpec("photos"))
    written = reproduce(find_reproduction("medyate"), Task(tmp_path, (model,), data))
    of = {(row["data"], row["method"]): row for row in read(written.table)}
    assert of["Flowers", "LaRa MeDyate"]["published"] == "80.31"
    assert of["Flowers", "LaRa MeDyate"]["published_std"] == "0.15"
    assert of["photos", "LaRa MeDyate"]["published"] == ""
    assert of["photos", "LaRa MeDyate"]["published_average"] == "75.4"
    assert float(of["photos", "TRaDy"]["accuracy"]) == pytest.approx(70)
    assert of["photos", "Baseline"]["units"] == ""
    settings = {(job.cell.data.label, job.cell.settings) for pool in pools for job in pool.seen}
    assert {(label, found.epochs) for label, found in settings} == {("Flowers", 200), ("photos", 50)}
    assert {(found.optimizer, found.momentum, found.batch_size) for _, found in settings} == {("sgd", 0.0, 32)}


def test_ratios_have_a_run_for_every_method_and_share_and_one_for_the_ends(tmp_path, pools):
    task = Task(tmp_path, (DEMO,), (DataSpec("photos"),))
    written = reproduce(find_reproduction("ratios"), task)
    rows = read(written.table)
    ranked = [row for row in rows if row["layer_ratio"]]
    assert len(ranked) == 4 * len(ratios.RATIOS)
    assert {row["method"] for row in rows if not row["layer_ratio"]} == set(ratios.ENDS)
    by_method = {row["method"]: float(row["accuracy"]) for row in rows}
    assert by_method["AdaBet"] == pytest.approx(90)
    assert by_method["everything"] == pytest.approx(80)
    assert {float(row["peak_mb"]) for row in rows} == {0.001}
    seeds = {(job.cell.method.label, job.cell.share, job.cell.seed) for pool in pools for job in pool.seen}
    assert len(seeds) == 3 * len(rows)


def test_ablations_change_one_thing_each():
    first, *others = ablations.VARIANTS
    assert dict(first.options) == {}
    assert all(len(variant.options) == 1 or variant.method == "size" for variant in others)
    assert len({(variant.method, str(variant.options)) for variant in ablations.VARIANTS}) == len(ablations.VARIANTS)


def test_ablations_as_a_whole(tmp_path, pools):
    written = reproduce(find_reproduction("ablations"), Task(tmp_path, (DEMO,), (DataSpec("photos"),), quick=True))
    rows = read(written.table)
    assert [row["variant"] for row in rows] == list(ablations.QUICK)
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([90, 90, 60, 90])
    assert {float(row["selection_seconds"]) for row in rows} == {0.5}


@pytest.mark.parametrize("name", ["figure3", "Figure 5", "fig7", "d8", "D.16", "figure-d9"])
def test_a_figure_that_is_not_made_by_its_number_names_what_shows_the_same(name):
    with pytest.raises(OptionError, match="expected one of ratios, ablations, curves, stability"):
        find_reproduction(name)
