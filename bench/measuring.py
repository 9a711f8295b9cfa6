"""Starts servers on free ports and lets rest_load.py drive them; shared by the benchmarks here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import cassandra_up, children, redis_up
from ops.cassandra_up import Options, Ring
from ops.children import free_port, is_ours
from ops.redis_up import Servers

ROOT = Path(__file__).parents[1]
PODIUM = Path(sys.executable).parent / "podium"
_STOP_S = 60
_NODES = "nodes.json"


@dataclass(frozen=True)
class Server:
    """One running server; `processes` are what its CPU is counted over, by name."""

    base_url: str
    processes: dict[str, int]


@contextmanager
def podium(*options: str, settings: dict[str, str] | None = None) -> Iterator[Server]:
    """`podium serve` on a temporary folder, with more options; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as data:
        port = free_port()
        log = Path(data) / "server.log"
        command = [str(PODIUM), "serve", "--port", str(port), "--data", data, *options]
        environment = {**os.environ, **(settings or {})}
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
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
        self.pid = 0
        """0: it does not run."""
        self.log = folder / f"{self.name}.log"
        self._data = folder / self.name
        self._environment = {**environment, "PODIUM_NODE_ID": self.name}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, limit_s: float = 60) -> None:
        """Start it, and wait until it is ready."""
        command = [str(PODIUM), "serve", "--port", str(self.port), "--data", str(self._data)]
        with self.log.open("ab") as output:
            # In a session of its own: Ctrl-C is for the benchmark, which then stops its nodes.
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        wait_until_healthy(
            self._process, self.port, self.log, path="/health/ready", limit_s=limit_s
        )

    def attach(self, port: int, pid: int) -> None:
        """Take it as an earlier run has left it, running or not."""
        self.port = port
        self.pid = pid if is_ours(pid, str(self._data)) else 0

    def kill(self) -> None:
        """As kill -9 does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In good order."""
        if self._process is not None and self.pid:
            stop(self._process)
            self.pid = 0
        else:
            self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.pid:
            os.kill(self.pid, number)
            if self._process is not None:
                self._process.wait()
            else:
                wait_until_gone(self.pid)
        self.pid = 0


@dataclass(frozen=True)
class Cluster:
    """Node processes on one Cassandra node (RF 1) and one Redis without AOF."""

    nodes: list[Node]
    cassandra: Ring
    redis: Servers
    folder: Path
    environment: dict[str, str]

    @property
    def server(self) -> Server:
        """All of it, as one server whose clients spread over the nodes that run."""
        running = [node for node in self.nodes if node.pid]
        stores = {"cassandra": self.cassandra.nodes[0].pid, "redis": self.redis.data[0].pid}
        return Server(
            ",".join(f"{node.address}/api" for node in running),
            {**stores, **{node.name: node.pid for node in running}},
        )

    def add(self) -> Node:
        """One more node, started and ready."""
        node = Node(len(self.nodes) + 1, self.folder, self.environment)
        self.nodes.append(node)
        node.start()
        self.note()
        return node

    def note(self) -> None:
        """Write down which nodes there are, for a later run that goes on with them."""
        found = [[node.port, node.pid] for node in self.nodes]
        (self.folder / _NODES).write_text(json.dumps(found))

    def stop(self) -> None:
        """Stop all of it; the data of Cassandra stay."""
        for node in self.nodes:
            node.stop()
        self.redis.stop()
        self.cassandra.stop()


@contextmanager
def cluster(
    nodes: int,
    *,
    heap: str = "1g",
    settings: dict[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Cluster]:
    """Start the stores and the nodes, all on this machine; stopped and removed at the end.

    With a `folder` they go on running if what is done with them is interrupted, and the next call
    with that folder goes on with them; what has stopped meanwhile is started again.
    """
    with ExitStack() as stack:
        place = folder
        if place is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="podium-bench-"))
            place = Path(name)
        running = _known(place, heap, settings or {})
        stack.callback(running.stop)
        _start(running, nodes)
        try:
            yield running
        except BaseException:
            if folder is not None:
                stack.pop_all()
            raise
    shutil.rmtree(place, ignore_errors=True)


def discard(folder: Path) -> None:
    """Stop and remove what an interrupted run has left in a folder."""
    _known(folder, "1g", {}).stop()
    shutil.rmtree(folder)


def _known(folder: Path, heap: str, settings: dict[str, str]) -> Cluster:
    """What is in a folder, running or not; in an empty one there are no nodes yet."""
    folder.mkdir(parents=True, exist_ok=True)
    ring = cassandra_up.noted(folder / "cassandra")
    if ring is None:
        ring = Ring(folder / "cassandra", options=Options(heap=heap))
    redis = Servers("standalone", folder / "redis")
    if (folder / "redis" / "servers.json").exists():
        server = redis.data[0]
        server.pid, server.port = redis_up.noted(folder / "redis")[server.name]
        server.pid = server.pid if is_ours(server.pid, redis_up.mark_of(server.port)) else 0
    environment = {
        **os.environ,
        "PODIUM_STORE_URL": f"cassandra://{ring.hosts}/podium",
        "PODIUM_QUEUE_URL": redis.url,
        "PODIUM_CASSANDRA_REPLICATION": "1",
        "PODIUM_LINK_TOKEN": "bench",
        **settings,
    }
    nodes = []
    if (folder / _NODES).exists():
        for number, (port, pid) in enumerate(json.loads((folder / _NODES).read_text()), 1):
            nodes.append(Node(number, folder, environment))
            nodes[-1].attach(port, pid)
    return Cluster(nodes, ring, redis, folder, environment)


def _start(running: Cluster, nodes: int) -> None:
    """The stores, and so many nodes, as far as they do not run."""
    if not running.cassandra.nodes[0].pid:
        running.cassandra.start()
    if not running.redis.data[0].pid:
        running.redis.start()
    subprocess.run([PODIUM, "schema", "apply"], env=running.environment, check=True)
    for node in running.nodes:
        if not node.pid and len([one for one in running.nodes if one.pid]) < nodes:
            node.start()
    while len(running.nodes) < nodes:
        running.add()
    running.note()


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


def load(
    server: Server, scenario: str, *, seconds: float, warmup: float, rate: float = 0
) -> dict[str, Any]:
    """What rest_load.py found out (its last line of output), all ids verified.

    `rate`: workflows per second that are offered; 0: as many as it can take.
    """
    watch = ",".join(f"{name}={pid}" for name, pid in server.processes.items())
    command = [sys.executable, str(ROOT / "bench" / "rest_load.py")]
    command += ["--base-url", server.base_url, "--scenario", scenario, "--watch", watch]
    command += ["--duration", str(seconds), "--warmup", str(warmup)]
    # On a slow machine what is open at the end takes its time; it ends as soon as nothing is.
    command += ["--drain", "180"]
    command += ["--rate", str(rate)] if rate else []
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
    children.stop(server, _STOP_S)


def wait_until_healthy(
    server: subprocess.Popen[bytes],
    port: int,
    log: Path,
    *,
    path: str = "/health",
    limit_s: float = 60,
) -> None:
    """SystemExit with the end of its log if it does not answer in time."""
    if children.wait_until_served(server, f"http://127.0.0.1:{port}{path}", limit_s):
        return
    why = f"not ready within {limit_s:.0f} s" if server.poll() is None else "it ended"
    sys.exit(f"the engine did not start, {why}:\n{log.read_text(errors='replace')[-3000:]}")


def wait_until_gone(pid: int) -> None:
    # Not a child of this process: the script that started it has ended.
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
