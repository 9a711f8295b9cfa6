"""`make cluster`: Cassandra, Redis and three nodes here, and the order demo against them.

Ctrl-C stops all of it. What the stores hold is thrown away at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from ops import children
from ops.cassandra_up import Options, Ring
from ops.redis_up import Servers

ROOT = Path(__file__).parents[1]
PODIUM = Path(sys.executable).parent / "podium"
NODE_READY_S = 60
NODE_STOPS_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="of the balancer; nodes follow")
    parser.add_argument("--folder", type=Path, default=Path("build/cluster"))
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--orders", type=int, default=200, help="0: just the cluster")
    parser.add_argument("--exit", action="store_true", help="stop after the table")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            return run(options, stack)
    except KeyboardInterrupt:
        return 130


def run(options: argparse.Namespace, stack: ExitStack) -> int:
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print("Starting Cassandra and Redis; the first time Cassandra is fetched.", flush=True)
    environment = {
        **os.environ,
        "PODIUM_STORE_URL": start_cassandra(folder, stack),
        "PODIUM_QUEUE_URL": start_redis(folder, stack),
        "PODIUM_CASSANDRA_REPLICATION": "1",
        "PODIUM_LINK_TOKEN": secrets.token_hex(16),
    }
    subprocess.run([PODIUM, "schema", "apply"], env=environment, check=True)
    ports = [options.port + 1 + number for number in range(options.nodes)]
    nodes = [start_node(number, port, folder, environment) for number, port in enumerate(ports, 1)]
    stack.callback(stop_nodes, nodes)
    for node, port in zip(nodes, ports, strict=True):
        ready = f"http://127.0.0.1:{port}/health/ready"
        if not children.wait_until_served(node, ready, NODE_READY_S):
            print(f"A node did not start; see the logs in {folder}.", file=sys.stderr)
            return 1
    balancer = Balancer(options.port, ports)
    balancer.start()
    addresses = ", ".join(f"http://127.0.0.1:{port}" for port in ports)
    print(f"The cluster is on http://127.0.0.1:{options.port}, its nodes on {addresses};")
    print(f"logs and data are in {folder}.", flush=True)
    if options.orders == 0:
        signal.pause()
    command = [sys.executable, "-m", "examples.orders.run"]
    command += ["--server", f"http://127.0.0.1:{options.port}/api"]
    command += ["--orders", str(options.orders), "--log", str(folder / "workers.log")]
    command += ["--exit"] if options.exit else []
    # In a session of its own, so that Ctrl-C reaches it once, from us.
    demo = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return demo.wait()
    except KeyboardInterrupt:
        demo.terminate()
        demo.wait()
        raise


def start_cassandra(folder: Path, stack: ExitStack) -> str:
    ring = Ring(folder / "cassandra", options=Options(heap="512m"))
    stack.callback(ring.stop)
    ring.start()
    return f"cassandra://{ring.hosts}/podium"


def start_redis(folder: Path, stack: ExitStack) -> str:
    servers = Servers("standalone", folder / "redis")
    stack.callback(servers.stop)
    servers.start()
    return servers.url


def start_node(
    number: int, port: int, folder: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    data = folder / f"node-{number}"
    serve = [str(PODIUM), "serve", "--port", str(port), "--data", str(data)]
    with (folder / f"node-{number}.log").open("ab") as output:
        return subprocess.Popen(
            serve,
            env={**environment, "PODIUM_NODE_ID": f"node-{number}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_nodes(nodes: list[subprocess.Popen[bytes]]) -> None:
    print("Stopping the cluster.", flush=True)
    for node in nodes:
        if node.poll() is None:
            node.terminate()
    for node in nodes:
        if not children.stop(node, NODE_STOPS_S):
            print(f"A node did not stop in {NODE_STOPS_S} s: it was killed.", file=sys.stderr)


class Balancer:
    """Takes connections on one port and hands them to the nodes in turn. Production has a real one:
    ops/haproxy/."""

    def __init__(self, port: int, targets: list[int]) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._turns = itertools.cycle(targets)
        self._count = len(targets)

    def start(self) -> None:
        """Serve in a thread of its own for as long as the process lives."""
        threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, sock=self._listening)
        await server.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connect()
            await asyncio.gather(pump(reader, back), pump(there, writer))
        except OSError:
            pass
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for port in itertools.islice(self._turns, self._count - 1):
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
        return await asyncio.open_connection("127.0.0.1", next(self._turns))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(main())
