"""JDBC tasks against real databases."""

import atexit
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ops.databases_up import Database
from tests.support.served import Server, serving

KINDS = ("sqlite", "postgresql", "mariadb")

Json = dict[str, Any]


@cache
def database(kind: str) -> Database:
    folder = Path(tempfile.mkdtemp(prefix=f"podium-{kind}-"))
    made = Database(kind, folder)
    made.start()
    atexit.register(made.stop)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("sqlite") / "orders.db"
    connections = " ".join(
        [f"sqlite=sqlite://{file}"]
        + [f"{kind}={database(kind).url}" for kind in KINDS if kind != "sqlite"]
    )
    env = {
        **os.environ,
        "PODIUM_SQL_CONNECTIONS": connections,
        "PODIUM_SQL_ROWS_MAX": "50",
        "PODIUM_SQL_TIME_LIMIT_MS": "5000",
    }
    with serving(tmp_path_factory.mktemp("data"), env=env) as server:
        yield server


def run(server: Server, connection: str, statement: str, *parameters: Any, **fields: Any) -> Json:
    """The JDBC task of a workflow of its own, when that has ended."""
    step = {
        "name": "sql",
        "taskReferenceName": "sql",
        "type": "JDBC",
        "inputParameters": {
            "connectionId": connection,
            "statement": statement,
            "parameters": list(parameters),
            "type": "UPDATE",
            **fields,
        },
    }
    return server.carry_out(step)


def count(task: Json) -> int:
    assert task["status"] == "COMPLETED", task.get("reasonForIncompletion")
    number: int = task["outputData"]["update_count"]
    return number


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, server: Server) -> str:
    """A database with a fresh table `orders` of four rows."""
    name: str = request.param
    run(server, name, "DROP TABLE orders")
    count(
        run(
            server,
            name,
            "CREATE TABLE orders (id BIGINT, state VARCHAR(40), price DECIMAL(10, 2), note TEXT)",
        )
    )
    rows = "(1, 'new', 9.50, 'a?'), (2, 'new', 10.00, ?), (3, 'sent', 7, NULL), (4, 'x', 1, '')"
    assert count(run(server, name, f"INSERT INTO orders VALUES {rows}", "b'--; DROP")) == 4
    return name


def select(server: Server, kind: str, statement: str, *parameters: Any) -> list[Json]:
    task = run(server, kind, statement, *parameters, type="SELECT")
    assert task["status"] == "COMPLETED", task.get("reasonForIncompletion")
    rows: list[Json] = task["outputData"]["result"]
    return rows


def test_rows_come_as_objects(server: Server, kind: str) -> None:
    statement = "SELECT id, state, price, note FROM orders WHERE id <= ? ORDER BY id"
    assert select(server, kind, statement, 3) == [
        {"id": 1, "state": "new", "price": 9.5, "note": "a?"},
        {"id": 2, "state": "new", "price": 10, "note": "b'--; DROP"},
        {"id": 3, "state": "sent", "price": 7, "note": None},
    ]
    assert select(server, kind, "SELECT id FROM orders WHERE id > ?", 99) == []


def test_parameters_are_values_and_never_text(server: Server, kind: str) -> None:
    hostile = "x' OR '1'='1"
    assert select(server, kind, "SELECT id FROM orders WHERE state = ?", hostile) == []
    update = "UPDATE orders SET note = ? WHERE id = ? AND note = 'a?'"
    assert count(run(server, kind, update, "'); DROP TABLE orders; -- %s $1 ?", 1)) == 1
    [row] = select(server, kind, "SELECT note FROM orders WHERE id = ?", 1)
    assert row == {"note": "'); DROP TABLE orders; -- %s $1 ?"}


def test_an_update_counts_the_rows(server: Server, kind: str) -> None:
    update = "UPDATE orders SET state = ? WHERE state = ?"
    assert count(run(server, kind, update, "sent", "new", expectedUpdateCount="2")) == 2
    assert count(run(server, kind, "DELETE FROM orders WHERE state = ?", "sent")) == 3


def test_another_count_than_expected_changes_nothing(server: Server, kind: str) -> None:
    update = "UPDATE orders SET state = ? WHERE state = ?"
    task = run(server, kind, update, "gone", "new", expectedUpdateCount=3)
    assert task["status"] == "FAILED"
    reason = "Update count 2 does not match with expected update count 3"
    assert task["reasonForIncompletion"] == reason
    assert task["outputData"] == {"update_count": 2}
    assert select(server, kind, "SELECT id FROM orders WHERE state = 'gone'") == []


def test_a_bad_statement_fails_and_the_next_one_does_not(server: Server, kind: str) -> None:
    task = run(server, kind, "selc * from orders")
    assert task["status"] == "FAILED"
    assert task["reasonForIncompletion"]
    assert len(select(server, kind, "SELECT * FROM orders")) == 4


def test_too_many_rows_are_refused(server: Server, kind: str) -> None:
    statement = "SELECT a.id FROM orders a, orders b, orders c"
    task = run(server, kind, statement, type="SELECT")
    assert task["status"] == "FAILED"
    assert task["reasonForIncompletion"] == "The statement gives more than 50 rows"
    assert len(select(server, kind, "SELECT * FROM orders")) == 4


ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT max(i) FROM n",
    "postgresql": "SELECT pg_sleep(600)",
    "mariadb": "SELECT SLEEP(600)",
}


def test_a_statement_without_end_is_ended(server: Server, kind: str) -> None:
    task = run(server, kind, ENDLESS[kind], type="SELECT")
    assert task["status"] == "FAILED"
    assert len(select(server, kind, "SELECT * FROM orders")) == 4


def test_an_unknown_connection_is_named(server: Server) -> None:
    task = run(server, "nowhere", "SELECT 1")
    assert task["status"] == "FAILED"
    reason = "No such datasource configured by connectionId nowhere"
    assert task["reasonForIncompletion"] == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"statement": ""}, "Missing statement"),
        ({"type": "DROP"}, "type must be SELECT or UPDATE, not DROP"),
        ({"parameters": "x"}, "parameters must be a list"),
        ({"expectedUpdateCount": "many"}, "expectedUpdateCount must be a number"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused(server: Server, fields: Json, reason: str) -> None:
    task = run(server, "sqlite", fields.pop("statement", "SELECT 1"), **fields)
    assert (task["status"], task["reasonForIncompletion"]) == ("FAILED", reason)
