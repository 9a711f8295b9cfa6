"""bench/million.py with few workflows: what it does to a cluster, and that its account bites."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bench.ledger import Ledger
from bench.measuring import ROOT, Cluster, Server, podium
from bench.million import execute, read_options
from bench.traffic import Nodes, Traffic
from bench.verdict import Account

COUNT = 20_000
LIMIT_S = 280


@pytest.fixture(scope="module")
def one_process() -> Iterator[Server]:
    """Enough for what is about the client."""
    with podium() as server:
        yield server


def run(two_nodes: Cluster, folder: Path, *arguments: str) -> dict[str, Any]:
    options = read_options(["--folder", str(folder), "--live", "20", *arguments])
    return uvloop.run(execute(options, two_nodes))


def test_twenty_thousand_with_a_node_killed_on_the_way(two_nodes: Cluster, tmp_path: Path) -> None:
    report = run(two_nodes, tmp_path, "--count", str(COUNT), "--injuries", "draining:kill")
    assert report["good"], report["faults"]
    assert (report["lost"], report["duplicated"]) == (0, 0)
    held = report["account"]["held"]
    assert held["read"] == held["acknowledged_starts"] == held["counted_ended"] == COUNT
    assert [one["injury"] for one in report["injuries"]] == ["kill"]
    opened = report["phases"][1]["open_at_once"]
    assert opened["by_search"] == opened["tasks_in_queue"] == opened["by_ledger"] == COUNT
    assert report["account"]["live"]["acknowledged_starts"] > 0
    assert report["client"]["ledger_bytes_per_workflow"] <= 32


def test_a_client_that_is_killed_goes_on_where_it_was(one_process: Server, tmp_path: Path) -> None:
    """kill -9 while it opens, Ctrl-C while it ends them: each time it goes on with the ledger."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "bench.million", "--count", "3000", "--requests", "1"]
    command += ["--url", one_process.base_url]
    assert end_at([*command, "--folder", str(folder)], folder, 500, signal.SIGKILL) < 0
    assert end_at([*command, "--resume", str(folder)], folder, 3_800, signal.SIGINT) == 130
    seen = Ledger(folder / "held.ledger")
    assert seen.count == 3_000
    assert 800 <= seen.done < 3_000
    seen.close()
    done = subprocess.run(
        [*command, "--resume", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 lost, 0 duplicated", done.stdout
    assert done.returncode == 0


def end_at(command: list[str], folder: Path, steps: int, number: int) -> int:
    """Start it, end it by a signal after so many starts and results; returns its status."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            if (folder / "held.ledger").exists():
                ledger = Ledger(folder / "held.ledger", read_only=True)
                ledger.close()
                if ledger.count + ledger.done >= steps:
                    os.kill(process.pid, number)
                    break
        return process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", ["lost", "open", "twice", "stray"])
def test_the_account_finds(fault: str, one_process: Server, tmp_path: Path) -> None:
    lost, duplicated = uvloop.run(accounted(fault, one_process.base_url, tmp_path))
    assert (lost, duplicated) == ((1, 0) if fault in ("lost", "open") else (0, 1))


async def accounted(fault: str, url: str, tmp_path: Path) -> tuple[int, int]:
    """Ten workflows that went as they should, but for one."""
    nodes = Nodes(lambda: [url])
    ledger = Ledger(tmp_path / "ledger")
    traffic = Traffic(nodes, ledger, f"fault_{fault}_{time.time_ns()}")
    await traffic.register()
    await traffic.open(10, requests=1, on_progress=lambda _: None)
    await traffic.drain(workers=1, on_progress=lambda _: None)
    if fault == "lost":
        await ledger.started([(10, "01a1fe72-f05c-8241-9d31-6a754b500000")])
    elif fault == "open":
        await traffic.open(11, requests=1, on_progress=lambda _: None)
    elif fault == "twice":
        await ledger.started([(3, ledger.id_of(4))])
    account = Account(ledger)
    await account.take([url], connections=4, on_progress=lambda _: None)
    account.strays([], ledger.count + (fault == "stray"))
    ledger.close()
    await nodes.close()
    return account.sums
