"""Starts servers on free ports and lets rest_load.py drive them; shared by the benchmarks here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.cassandra_up import Options, Ring
from ops.redis_up import Servers

ROOT = Path(__file__).parents[1]
PODIUM = Path(sys.executable).parent / "podium"


@dataclass(frozen=True)
class Server:
    """One running server; `processes` are what its CPU is counted over, by name."""

    base_url: str
    processes: dict[str, int]


@contextmanager
def podium(*options: str) -> Iterator[Server]:
    """`podium serve` on a temporary folder, with more options; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as data:
        port = free_port()
        log = Path(data) / "server.log"
        command = [str(PODIUM), "serve", "--port", str(port), "--data", data, *options]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(server, port, log)
            yield Server(f"http://127.0.0.1:{port}/api", {"podium": server.pid})
        finally:
            stop(server)


class Node:
    """One node process of a cluster, on ports and in a folder of its own."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str]) -> None:
        self.name = f"node-{number}"
        self.port = free_port()
        self.log = folder / f"{self.name}.log"
        self._data = folder / self.name
        self._environment = {**environment, "PODIUM_NODE_ID": self.name}
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [str(PODIUM), "serve", "--port", str(self.port), "--data", str(self._data)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until_healthy(self.process, self.port, self.log, path="/health/ready")

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """In good order."""
        stop(self.process)


@dataclass(frozen=True)
class Cluster:
    """Node processes on one Cassandra node (RF 1) and one Redis without AOF."""

    nodes: Sequence[Node]
    cassandra: Ring
    redis: Servers
    folder: Path

    @property
    def server(self) -> Server:
        """All of it, as one server whose clients spread over the nodes."""
        stores = {"cassandra": self.cassandra.nodes[0].pid, "redis": self.redis.data[0].pid}
        return Server(
            ",".join(f"http://127.0.0.1:{node.port}/api" for node in self.nodes),
            {**stores, **{node.name: node.process.pid for node in self.nodes}},
        )


@contextmanager
def cluster(
    nodes: int, *, heap: str = "1g", settings: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """Start the stores and the nodes, all on this machine; stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        ring = Ring(folder / "cassandra", options=Options(heap=heap))
        stack.callback(ring.stop)
        ring.start()
        redis = Servers("standalone", folder / "redis")
        stack.callback(redis.stop)
        redis.start()
        environment = {
            **os.environ,
            "PODIUM_STORE_URL": f"cassandra://{ring.hosts}/podium",
            "PODIUM_QUEUE_URL": redis.url,
            "PODIUM_CASSANDRA_REPLICATION": "1",
            "PODIUM_LINK_TOKEN": "bench",
            **(settings or {}),
        }
        subprocess.run([PODIUM, "schema", "apply"], env=environment, check=True)
        started = []
        for number in range(1, nodes + 1):
            node = Node(number, folder, environment)
            node.start()
            stack.callback(node.stop)
            started.append(node)
        yield Cluster(started, ring, redis, folder)


@contextmanager
def conductor(store: str, *, version: str, heap: str) -> Iterator[Server]:
    """The real Conductor server, by ops/conductor_up.sh; stopped at the end.

    `store` is `sqlite` or `redis`: then with a Redis of its own that keeps nothing on disk.
    """
    with tempfile.TemporaryDirectory(prefix="conductor-bench-") as folder:
        environment = {**os.environ, "HEAP": heap, "PYTHON": sys.executable, "TMPDIR": folder}
        redis: subprocess.Popen[bytes] | None = None
        processes: dict[str, int] = {}
        if store == "redis":
            port = free_port()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
            redis = subprocess.Popen(
                ["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            environment["REDIS"] = f"127.0.0.1:{port}"
            processes["redis"] = redis.pid
        pid = 0
        try:
            port = free_port()
            script = str(ROOT / "ops" / "conductor_up.sh")
            started = subprocess.run(
                [script, str(port), version, store],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            pid = int(started.stdout.split("pid ")[1].split(",")[0])
            processes["conductor"] = pid
            yield Server(f"http://127.0.0.1:{port}/api", processes)
        finally:
            if pid:
                os.kill(pid, signal.SIGTERM)
                wait_until_gone(pid)
            if redis is not None:
                redis.terminate()
                redis.wait()


def load(server: Server, scenario: str, *, seconds: float, warmup: float) -> dict[str, Any]:
    """What rest_load.py found out (its last line of output), all ids verified."""
    watch = ",".join(f"{name}={pid}" for name, pid in server.processes.items())
    command = [sys.executable, str(ROOT / "bench" / "rest_load.py")]
    command += ["--base-url", server.base_url, "--scenario", scenario, "--watch", watch]
    command += ["--duration", str(seconds), "--warmup", str(warmup)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def cpu_ms_of(row: dict[str, Any], processes: Sequence[str]) -> float:
    """CPU per workflow of some processes together."""
    rate = row["wf_per_s"]
    cores = sum(row["cpu_cores"][name] for name in processes)
    return 1000 * cores / rate if rate else float("nan")


def is_sound(row: dict[str, Any]) -> bool:
    """No error, and nothing that was acknowledged is missing."""
    return not row["errors"] and not row["unacked_at_end"] and not row["verify"]["not_ok"]


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def wait_until_healthy(
    server: subprocess.Popen[bytes], port: int, log: Path, *, path: str = "/health"
) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit(f"the engine did not start:\n{log.read_text(errors='replace')[-3000:]}")


def wait_until_gone(pid: int) -> None:
    # Not a child of this process: the script that started it has ended.
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
