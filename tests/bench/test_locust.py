"""The Locust suite as an SRE runs it: real processes, and an account that decides how it ends."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.locust_suite import ledger
from bench.locust_suite.ledger import Intent
from bench.locust_suite.scenarios import workflow_name
from bench.measuring import ROOT, Cluster
from ops.children import free_port

LOCUST = [str(Path(sys.executable).parent / "locust"), "-f", "bench/locustfile.py"]
LIMIT_S = 280
SINGLE_S, SEVERAL_S, SABOTAGED_S = 20, 60, 8
NOTHING: dict[str, int] = {}


class Run:
    """One Locust run on two nodes, with what it recorded."""

    def __init__(self, folder: Path, hosts: str, seconds: int) -> None:
        self.folder = folder
        self._record = folder / "record.jsonl"
        self._log = folder / "locust.log"
        self._options = [
            *("--headless", "--only-summary", "--hosts", hosts, "--run-id", "run"),
            *("--duration", str(seconds), "--rate", "30", "--ledgers", str(folder)),
            *("--record", str(self._record)),
        ]

    @contextmanager
    def process(self, *options: str, is_worker: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """A process of it, ended with the block if it has not ended by itself."""
        more = [*options] if is_worker else [*self._options, *options]
        with self._log.open("ab") as output:
            process = subprocess.Popen(
                [*LOCUST, *more], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def account(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in self._record.read_text().splitlines()]
        (account,) = (line for line in lines if line["source"] == "account")
        return dict(account)

    def intents(self) -> list[Intent]:
        """What is in its ledgers so far."""
        found = list((self.folder / "run").glob("*.ledger"))
        return [intent for path in found for intent in ledger.read(path)]


@pytest.fixture
def hosts(two_nodes: Cluster) -> str:
    """Base URLs of the nodes, commas between."""
    return two_nodes.server.base_url


def test_one_process_accounts_for_all_it_started(tmp_path: Path, hosts: str) -> None:
    run = Run(tmp_path, hosts, SINGLE_S)
    with run.process() as locust:
        assert locust.wait(LIMIT_S) == 0, run.log
    account = run.account()
    assert account["problems"] == NOTHING
    assert account["intended"] == len(run.intents())
    assert account["acknowledged"] > 0
    assert account["completed"] > 0
    assert account["failed_as_planned"] > 0
    assert account["attempts_failed"] > account["failed_as_planned"]


def test_a_master_adds_up_what_two_workers_account_for(tmp_path: Path, hosts: str) -> None:
    run = Run(tmp_path, hosts, SEVERAL_S)
    port = str(free_port())
    with ExitStack() as stack:
        workers = [
            stack.enter_context(run.process("--worker", "--master-port", port, is_worker=True))
            for _ in range(2)
        ]
        options = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port)
        master = stack.enter_context(
            run.process(*options, "--expect-workers", "2", "--shape", "spike")
        )
        assert master.wait(LIMIT_S) == 0, run.log
        for worker in workers:
            worker.wait(10)
    assert len(list((tmp_path / "run").glob("*.ledger"))) == 2
    account = run.account()
    assert account["problems"] == NOTHING
    assert account["intended"] == len(run.intents())
    assert account["acknowledged"] > 0


def test_a_run_fails_if_one_is_lost_one_is_there_twice_and_one_ends_otherwise(
    tmp_path: Path, hosts: str
) -> None:
    run = Run(tmp_path, hosts, SABOTAGED_S)
    with (
        httpx.Client(base_url=hosts.split(",", maxsplit=1)[0], timeout=30) as client,
        run.process("--latency", "slow", "--drain", "30") as locust,
    ):
        sabotage(client, run)
        assert locust.wait(LIMIT_S) == 1, run.log
    assert run.account()["problems"] == {"lost": 1, "twice": 1, "ended otherwise": 1}


def sabotage(client: httpx.Client, run: Run) -> None:
    """Start one of its workflows once more, terminate a second, remove a third."""
    taken = fresh(run)
    again = next(taken)
    body = {"name": workflow_name(again.scenario), "version": 1, "correlationId": again.key}
    client.post("/workflow", json=body | {"input": {"n": again.number}}).raise_for_status()
    for intent in taken:
        client.delete(f"/workflow/{intent.ids[0]}")
        status = client.get(f"/workflow/{intent.ids[0]}/status").json()["status"]
        if status == "TERMINATED":
            break
    removed = next(taken)
    path = f"/workflow/{removed.ids[0]}/remove?archiveWorkflow=false"
    client.delete(path).raise_for_status()


def fresh(run: Run) -> Iterator[Intent]:
    """Starts that have just been acknowledged, none twice, of workflows that take a while."""
    seen: set[str] = set()
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        for intent in reversed(run.intents()):
            if intent.scenario == "chain5" and intent.ids and intent.key not in seen:
                seen.add(intent.key)
                yield intent
                break
        time.sleep(0.05)
