"""Several processes behind one port: begun, replaced when they die, stopped together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.node.processes import settings_of
from cluster.settings import InvalidSettings, Settings, load_settings

ROOT = Path(__file__).parents[2]

# What the parent runs in place of a node: it says who it is, listens, and waits for SIGTERM.
CHILD = """
import os, signal, socket, sys, time
from pathlib import Path
from cluster.node import processes
from cluster.settings import Settings

folder = Path(sys.argv[1])

def serve(settings):
    if (folder / "broken").exists():
        sys.exit(int((folder / "broken").read_text()))
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with socket.create_server(("127.0.0.1", settings.port), reuse_port=True) as listening:
        listening.settimeout(0.02)
        (folder / settings.node_id).write_text(f"{os.getpid()} {settings.port} {settings.data_dir}")
        while not stopped:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            connection.sendall(settings.node_id.encode())
            connection.close()
    (folder / settings.node_id).unlink()

settings = Settings(node_id="n", port=0, data_dir=str(folder / "data"), processes=3)
sys.exit(processes.supervise(settings, serve))
"""


class Parent:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL
        )

    def pids(self) -> dict[str, int]:
        found = {}
        for name in ("n-1", "n-2", "n-3"):
            path = self.folder / name
            text = path.read_text() if path.exists() else ""
            if text:
                found[name] = int(text.split()[0])
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    parent = Parent(tmp_path)
    yield parent
    if parent.process.poll() is None:
        parent.process.kill()
    parent.process.wait(10)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_share_one_port_and_stop_together(parent: Parent) -> None:
    parent.wait_for(lambda: len(parent.pids()) == 3)
    ports = {(parent.folder / name).read_text().split()[1] for name in parent.pids()}
    assert len(ports) == 1
    answered = set()
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", int(next(iter(ports)))), timeout=5) as client:
            answered.add(client.recv(10).decode())
    assert answered == {"n-1", "n-2", "n-3"}
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(10) == 0
    assert parent.pids() == {}


def test_one_that_dies_is_replaced(parent: Parent) -> None:
    parent.wait_for(lambda: len(parent.pids()) == 3)
    before = parent.pids()
    os.kill(before["n-2"], signal.SIGKILL)
    parent.wait_for(lambda: parent.pids()["n-2"] != before["n-2"])
    after = parent.pids()
    assert (after["n-1"], after["n-3"]) == (before["n-1"], before["n-3"])
    parent.process.send_signal(signal.SIGINT)
    assert parent.process.wait(10) == 0


def test_one_that_cannot_begin_ends_all(parent: Parent) -> None:
    parent.wait_for(lambda: len(parent.pids()) == 3)
    before = parent.pids()
    (parent.folder / "broken").write_text("2")
    os.kill(before["n-1"], signal.SIGKILL)
    assert parent.process.wait(10) == 2
    parent.wait_for(lambda: not any(is_running(pid) for pid in before.values()))


def test_a_parent_that_is_killed_leaves_nobody_behind(parent: Parent) -> None:
    parent.wait_for(lambda: len(parent.pids()) == 3)
    pids = parent.pids().values()
    parent.process.kill()
    parent.process.wait(10)
    parent.wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_each_is_a_node_of_its_own() -> None:
    settings = Settings(node_id="east", data_dir="/var/podium", link_port=7400, processes=2)
    one, two = settings_of(settings, 1), settings_of(settings, 2)
    assert (one.node_id, one.data_dir, one.link_port) == ("east-1", "/var/podium/east-1", 7400)
    assert (two.node_id, two.data_dir, two.link_port) == ("east-2", "/var/podium/east-2", 7401)
    assert settings_of(Settings(link_port=0, processes=2), 2).link_port == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "only one process can use that store"),
        (
            {
                "store_url": "cassandra://h/ks",
                "queue_url": "redis://h:6379/0",
                "link_advertise": "h:7",
            },
            "leave link_advertise empty",
        ),
        (
            {"store_url": "cassandra://h/ks", "queue_url": "redis://h:6379/0", "link_port": 65535},
            "there are not so many",
        ),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    flags: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings(environ={}, flags=flags | {"processes": 2})
