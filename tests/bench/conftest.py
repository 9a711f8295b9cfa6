"""What the load tests run against: two nodes over one Cassandra and one Redis."""

from collections.abc import Iterator

import pytest

from bench.measuring import Cluster, cluster


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    with cluster(2, heap="512m") as running:
        yield running
