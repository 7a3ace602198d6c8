"""The same grid on a local Ray cluster of two nodes, one of which is killed with a cell on it."""

import sys
import threading

import psutil
import pytest

from adabet.errors import MissingExtraError, OptionError
from adabet.experiments import LocalPool, compare
from adabet.experiments.cluster import RayPool
from tests.experiments.grids import make_grid

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
"""Ray's own warnings are not ours."""

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'adabet[cluster]'")

STORE = 80 * 10**6
"""Bytes of each node's object store; results are a few kB."""


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def same(found, expected):
    """What does not depend on where and how fast it ran."""
    assert [run.cell for run in found.cells] == [run.cell for run in expected.cells]
    for ours, theirs in zip(found.cells, expected.cells, strict=True):
        assert (ours.status, ours.outcome.val, ours.outcome.test) == ("done", theirs.outcome.val, theirs.outcome.test)
        losses = [[epoch.train_loss for epoch in run.outcome.history] for run in (ours, theirs)]
        assert losses[0] == losses[1]
        assert ours.outcome.layers == theirs.outcome.layers


def lose(cluster, node) -> None:
    """Let a node go as a machine does that loses its power: all processes at once."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def test_gives_the_same_results_though_a_node_is_lost_in_the_middle(cluster, images, tmp_path):
    nodes = [cluster.add_node(num_cpus=1, memory=4 * 10**9, object_store_memory=STORE) for _ in range(2)]
    # each takes some seconds, so that both nodes are at work half a second after the first of four is done
    grid = make_grid(methods=["random", "head"], data=[str(images)], learning_rates=[0.01], epochs=25)
    pool = RayPool(cluster.address, threads=1, memory=10**9)

    lost = threading.Timer(0.5, lose, (cluster, nodes[0]))
    reports = []

    def progress(report):
        reports.append(report)
        if report.done == 1:
            lost.start()

    found = compare(grid, tmp_path / "ray.db", pool, progress=progress)
    lost.join()
    with pytest.raises(OptionError, match="nodes has what a cell takes: 1 CPU, 9 GPU and 2 GB a cell"):
        RayPool(cluster.address, gpus=9).__enter__()
    assert found.complete
    assert pool.lost == 1
    assert [report.done for report in reports] == list(range(5))
    same(found, compare(grid, tmp_path / "local.db", LocalPool(1, threads=1)))


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(
        OptionError, match=r"no Ray cluster at '127\.0\.0\.1:1' \(.*refused.*`ray start --head`"
    ) as error:
        compare(make_grid(), tmp_path / "r.db", RayPool("127.0.0.1:1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"gpus": -1}, {"memory": 0}])
def test_resources_that_make_no_sense_are_refused(wrong):
    with pytest.raises(OptionError, match="threads of at least 1"):
        RayPool("auto", **wrong)


def test_without_its_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs ray, .* pip install 'adabet\[cluster\]'"):
        RayPool("auto")
