"""bench/open_workflows.py with few workflows: a node full of them goes on, and comes back."""

from argparse import Namespace
from collections.abc import Iterator

import pytest
import uvloop

from bench.measuring import Cluster, cluster
from bench.open_workflows import measure

COUNT = 20_000


@pytest.fixture(scope="module")
def one_node() -> Iterator[Cluster]:
    with cluster(1, heap="512m") as running:
        yield running


@pytest.mark.parametrize("kind", ["queued", "waiting"])
def test_twenty_thousand_open_workflows_outlive_their_node(
    kind: str, two_nodes: Cluster, one_node: Cluster
) -> None:
    options = Namespace(count=COUNT, requests=4, pairs=1, seconds=2, warmup=1, check=5_000)
    report = uvloop.run(measure(two_nodes, one_node, kind, options))
    assert report["count"] == COUNT
    assert report["opening"]["troubles"] == {}
    assert report["simple1"]["sound"]
    assert (report["looked_at"], report["missing"]) == (5_000, {})
