"""Figure 6, the stability of the ranking and figure 2, on the bundled model."""

import csv

import pytest
import torch

import adabet
from adabet.errors import MissingExtraError
from adabet.experiments.reproduce import figure2, figure6, find_reproduction, reproduce, stability
from adabet.experiments.reproduce.published import METHODS
from adabet.experiments.site import Site
from adabet.topology import betti_one

pytest.importorskip("matplotlib")


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_figure_6_marks_what_each_method_trains(task):
    written = reproduce(find_reproduction("figure6"), task)
    rows = read(written.table)
    layers = 25
    assert len(rows) == len(METHODS) * layers
    trains = {
        method.label: {int(row["position"]) for row in rows if row["method"] == method.label and row["trains"] == "1"}
        for method in METHODS
    }
    head = layers - 1
    assert trains["Full training"] == trains["PruneTrain"] == set(range(layers))
    assert trains["Transfer learning"] == {head}
    assert trains["Last-K"] == {head - 2, head - 1, head}
    assert all(head in chosen for chosen in trains.values())
    assert len(trains["Fisher"]) == len(trains["AdaBet"]) == 3
    assert {row["depth"] for row in rows if row["position"] == str(head)} == {"1.0"}
    # AdaBet's, asked directly
    site = Site.of(task.models[0], task.data[0])
    ranking = adabet.rank(site.model(0), site.splits.unlabelled(samples=40, batch_size=8, seed=0), seed=0)
    chosen = {row["layer"] for row in rows if row["method"] == "AdaBet" and row["trains"] == "1"}
    assert set(ranking.select(layer_ratio=0.1).layers) < chosen
    places = {row["layer"]: row["place"] for row in rows if row["method"] == "AdaBet" and row["place"]}
    assert sorted(places, key=lambda name: int(places[name])) == [item.layer.name for item in ranking.order]
    assert written.picture.stat().st_size > 10_000


def test_shares_of_data_are_what_the_strip_shows():
    rows = [
        {"method": "m", "data": data, "position": position, "trains": int(position == 1 or data == "a")}
        for data in ("a", "b")
        for position in range(2)
    ]
    assert figure6._shares(rows, ["m"]) == [[0.5, 1.0]]


def test_stability_of_equal_and_of_opposed_rankings():
    sizes = torch.full((20,), 10.0, dtype=torch.float64)
    counts = torch.arange(20)
    same = stability.compare(counts, counts, sizes)
    assert same == {"spearman": pytest.approx(1), "spearman_b1": pytest.approx(1), "overlap": 1.0}
    opposed = stability.compare(counts, counts.flip(0), sizes)
    assert opposed == {"spearman": pytest.approx(-1), "spearman_b1": pytest.approx(-1), "overlap": 0.0}
    flat = stability.compare(counts, torch.zeros(20, dtype=torch.int64), sizes)
    assert flat["spearman_b1"] is None


def test_the_size_of_layers_alone_makes_rankings_agree():
    """b1 that is noise, and layers of very different size: the paper's order agrees, b1 does not."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(5, 30, (200,), generator=generator) for _ in range(2))
    found = stability.compare(first, second, 10.0 ** torch.linspace(1, 6, 200, dtype=torch.float64))
    assert found["spearman"] > 0.95
    assert abs(found["spearman_b1"]) < 0.2


def test_draws_share_no_sample_and_stop_where_there_are_too_few():
    """Samples on two circles of five: a draw of 5 and its rest of 5 are looked at, more are not there."""
    angles = torch.arange(10) * torch.pi / 5
    points = torch.stack([angles.cos(), angles.sin()], 1).double()
    clouds = torch.cdist(points, points)[None].repeat(2, 1, 1)
    rows = stability.within({}, clouds, torch.tensor([1.0, 2.0]).double(), (5, 6), 3, seed=0)
    assert [(row["samples"], row["draw"]) for row in rows] == [(5, 0), (5, 1), (5, 2)]


def test_stability_as_a_whole(task):
    written = reproduce(find_reproduction("stability"), task)
    rows = read(written.table)
    assert {row["samples"] for row in rows} == {"8", "16", "24", "32", "40"}
    assert len(rows) == 5 * stability.QUICK_DRAWS
    assert all(-1 <= float(row["spearman"]) <= 1 and 0 <= float(row["overlap"]) <= 1 for row in rows)


def test_distances_that_are_looked_at_once_are_those_of_a_ranking(task):
    site = Site.of(task.models[0], task.data[0])
    clouds, sizes = stability.look(site, samples=40, seed=0)
    ranking = adabet.rank(site.model(0), site.splits.unlabelled(samples=40, batch_size=8, seed=0), seed=0)
    assert betti_one(clouds).tolist() == [item.score for item in ranking.layers]
    assert sizes.tolist() == [item.cost for item in ranking.layers]


def test_figure_2_without_umap_says_what_to_install(task, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"figure 2 needs umap.*experiments"):
        figure2.make(task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_clusters_far_apart_stay_apart_in_the_plane():
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(60, 20, generator=generator) + 100 * (torch.arange(60) % 2)[:, None]
    distances = torch.cdist(points, points)
    places = figure2.project(distances, seed=0)
    assert torch.equal(places, figure2.project(distances, seed=0))
    labels = torch.tensor(figure2.find_clusters(places))
    for cluster in set(labels.tolist()) - {-1}:
        assert len({int(number) % 2 for number in (labels == cluster).nonzero()}) == 1
