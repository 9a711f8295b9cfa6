"""`podium schema`: what a person at the console sees."""

import logging
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from cluster.cli import main
from cluster.urls import CassandraUrl
from tests.support import cassandra


@pytest.fixture(autouse=True)
def same_logs_afterwards() -> Iterator[None]:
    """The command sets up logs for its own process, which is this one here."""
    root, driver = logging.getLogger(), logging.getLogger("cassandra")
    before = root.handlers[:], root.level, driver.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    driver.setLevel(before[2])


@pytest.fixture
def store(cassandra_url: CassandraUrl, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PODIUM_CASSANDRA_REPLICATION", "1")
    host = cassandra_url.hosts[0]
    return f"cassandra://{host.name}:{host.port}/{cassandra.fresh_keyspace()}"


def schema(action: str, store: str) -> Result:
    return CliRunner().invoke(main, ["schema", action, "--store", store])


def test_apply_status_and_diff(store: str) -> None:
    assert "podium schema apply" in schema("status", store).output
    missing = schema("diff", store)
    assert missing.exit_code == 1
    assert "not there" in missing.output
    first = schema("apply", store)
    assert first.exit_code == 0
    assert "created keyspace" in first.output
    assert "applied 0001_first.cql" in first.output
    assert "up to date" in schema("apply", store).output
    assert "fewer than 3 copies" in schema("status", store).output
    same = schema("diff", store)
    assert (same.exit_code, same.output) == (0, "")


def test_what_cannot_be_done_is_said_on_one_line() -> None:
    for store, reason in (
        ("sqlite:///data/podium.db", "only Cassandra has a schema"),
        ("cassandra://127.0.0.1:1/podium", "cannot connect to Cassandra at 127.0.0.1:1"),
        ("cassandra://h", "wanted: cassandra://h1,h2:9042/keyspace"),
    ):
        result = schema("status", store)
        assert result.exit_code == 2
        assert reason in result.output
        assert result.output.count("\n") == 1
