"""Run real Redis servers from Debian's redis-server, without containers.

  python -m ops.redis_up start standalone|sentinel|cluster [--folder DIR] [--port N]
  python -m ops.redis_up status | stop [--folder DIR]

`start` prints the address for PODIUM_QUEUE_URL. Everything listens on 127.0.0.1, on free ports
unless --port names the first one, and keeps its files and pids in the folder. `sentinel` is one
primary, one replica and three sentinels; `cluster` is three primaries without replicas.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.children import die_with_starter, is_ours, wait_for

FOLDER = Path("build/redis")
MASTER = "podium"
SENTINEL_DOWN_MS = 1_000
START_S = 20
STOP_S = 10
# Debian keeps server programs in sbin, which is not on every PATH.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@dataclass(frozen=True)
class Secured:
    """TLS wherever servers are talked to or talk to each other, and logins; nobody else gets in."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    """Of the servers, and of those who ask them: a certificate is wanted from both sides."""
    login: tuple[str, str]
    """User and password of clients; it may do what they need, and no more."""
    sentinel_login: tuple[str, str]
    """The same for the sentinels."""
    admin: tuple[str, str]
    """Of whoever looks after them, and of the servers among themselves."""

    def options(self, login: tuple[str, str], *rights: str) -> list[str]:
        """Of a server to which clients log in by that."""
        user, password = login
        admin, admin_password = self.admin
        return [
            *("--tls-ca-cert-file", str(self.ca_file)),
            *("--tls-cert-file", str(self.cert_file)),
            *("--tls-key-file", str(self.key_file)),
            *("--tls-auth-clients", "yes", "--tls-replication", "yes", "--tls-cluster", "yes"),
            *("--user", "default", "off"),
            *("--user", admin, "on", f">{admin_password}", "~*", "&*", "+@all"),
            *("--user", user, "on", f">{password}", *rights),
        ]

    @property
    def asks_with(self) -> list[str]:
        """Of redis-cli."""
        return [
            *("--tls", "--cacert", str(self.ca_file)),
            *("--cert", str(self.cert_file), "--key", str(self.key_file)),
            *("--user", self.admin[0], "--pass", self.admin[1], "--no-auth-warning"),
        ]


class Server:
    """One redis-server process, a sentinel among them."""

    def __init__(
        self, folder: Path, name: str, port: int, *options: str, asks_with: Sequence[str] = ()
    ) -> None:
        """`asks_with`: how redis-cli gets in, and that there is TLS, if so."""
        self.dies_with_starter = False
        self.folder = folder / name
        self.name = name
        self.port = port
        self.options = options
        self.asks_with = asks_with
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def start(self) -> None:
        """Start it, again with the files it left, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            *self.options,
            *(("--port", "0", "--tls-port") if self.asks_with else ("--port",)),
            *(str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--daemonize", "no", "--logfile", str(self.folder / "log")),
        ]
        self.process = subprocess.Popen(
            [program("redis-server"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_starter if self.dies_with_starter else None,  # noqa: PLW1509
        )
        self.pid = self.process.pid
        wait_for(self.answers, f"{self.name} on port {self.port}", START_S)

    def answers(self) -> bool:
        try:
            return self.command("PING") == "PONG"
        except OSError:
            return False

    def command(self, *words: str) -> str:
        """The answer to a command as redis-cli shows it. OSError: there is none."""
        done = subprocess.run(
            [
                *(program("redis-cli"), "-h", "127.0.0.1", "-p", str(self.port)),
                *(*self.asks_with, *words),
            ],
            capture_output=True,
            text=True,
            timeout=STOP_S,
            check=False,
        )
        if done.returncode or done.stdout.startswith("Could not connect"):
            raise OSError(done.stderr.strip() or done.stdout.strip())
        return done.stdout.strip()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Stop it as by `kill`, and wait until it is gone."""
        if not self.pid:
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        if number in (signal.SIGSTOP, signal.SIGCONT):
            return
        if self.process is not None:
            self.process.wait(STOP_S)
        else:
            mark = mark_of(self.port)
            wait_for(lambda: not is_ours(self.pid, mark), f"the end of {self.name}", STOP_S)
        self.process, self.pid = None, 0

    def pause(self) -> None:
        self.kill(signal.SIGSTOP)

    def resume(self) -> None:
        self.kill(signal.SIGCONT)


class Servers:
    """What one address names."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        first_port: int = 0,
        die_with_starter: bool = False,
        secured: Secured | None = None,
    ) -> None:
        self.kind = kind
        self.folder = folder
        self.secured = secured
        self.data: list[Server] = []
        self.sentinels: list[Server] = []
        counts = {"standalone": 1, "sentinel": 5, "cluster": 3}
        ports = free_ports(counts[kind], first_port, cluster=kind == "cluster")
        plain = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        watching: list[str] = []
        asks: Sequence[str] = ()
        if secured is not None:
            plain += secured.options(secured.login, "~*", "&*", "+@all", "-@admin")
            plain += ["--masteruser", secured.admin[0], "--masterauth", secured.admin[1]]
            watching = secured.options(secured.sentinel_login, "+sentinel|masters")
            asks = secured.asks_with
        if kind == "standalone":
            self.data = [Server(folder, "redis", ports[0], *plain, asks_with=asks)]
        elif kind == "cluster":
            clustered = (*plain, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            self.data = [
                Server(folder, f"redis{n}", port, *clustered, asks_with=asks)
                for n, port in enumerate(ports)
            ]
        else:
            follows = ("--replicaof", f"127.0.0.1 {ports[0]}")
            self.data = [
                Server(folder, "primary", ports[0], *plain, asks_with=asks),
                Server(folder, "replica", ports[1], *plain, *follows, asks_with=asks),
            ]
            for n, port in enumerate(ports[2:]):
                config = folder / f"sentinel{n}" / "sentinel.conf"
                options = (str(config), "--sentinel", *watching)
                self.sentinels.append(
                    Server(folder, f"sentinel{n}", port, *options, asks_with=asks)
                )

        for server in [*self.data, *self.sentinels]:
            server.dies_with_starter = die_with_starter

    @property
    def url(self) -> str:
        asked = self.sentinels if self.kind == "sentinel" else self.data
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in asked)
        scheme, login = "redis", ""
        if self.secured is not None:
            scheme, login = "rediss", "{}:{}@".format(*self.secured.login)
        if self.kind == "standalone":
            return f"{scheme}://{login}{hosts}/0"
        path = f"/{MASTER}" if self.kind == "sentinel" else ""
        return f"{scheme}-{self.kind}://{login}{hosts}{path}"

    def start(self) -> None:
        """Start all of them and wait until they serve together."""
        for server in self.data:
            server.start()
        if self.kind == "cluster":
            self._join()
        for sentinel in self.sentinels:
            self._configure(sentinel)
            sentinel.start()
        if self.sentinels:
            wait_for(self._is_watched, "the sentinels", START_S)
        self._note()

    def _join(self) -> None:
        first = self.data[0]
        bounds = [0, 5461, 10923, 16384]
        for n, server in enumerate(self.data):
            server.command("CLUSTER", "ADDSLOTSRANGE", str(bounds[n]), str(bounds[n + 1] - 1))
            server.command("CLUSTER", "SET-CONFIG-EPOCH", str(n + 1))
        for server in self.data[1:]:
            first.command("CLUSTER", "MEET", "127.0.0.1", str(server.port))
        for server in self.data:
            wait_for(lambda: self._knows_all(server), "the cluster", START_S)  # noqa: B023

    def _knows_all(self, server: Server) -> bool:
        text = server.command("CLUSTER", "INFO")
        return "cluster_state:ok" in text and f"cluster_known_nodes:{len(self.data)}" in text

    def _configure(self, sentinel: Server) -> None:
        sentinel.folder.mkdir(parents=True, exist_ok=True)
        primary = self.data[0]
        lines = [
            f"sentinel monitor {MASTER} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {MASTER} {SENTINEL_DOWN_MS}",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        if self.secured is not None:
            user, password = self.secured.admin
            lines += [
                f"sentinel auth-user {MASTER} {user}",
                f"sentinel auth-pass {MASTER} {password}",
                # Sentinels ask each other too.
                f"sentinel sentinel-user {user}",
                f"sentinel sentinel-pass {password}",
            ]
        (sentinel.folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _is_watched(self) -> bool:
        for sentinel in self.sentinels:
            words = sentinel.command("SENTINEL", "MASTER", MASTER).splitlines()
            told = dict(zip(words[::2], words[1::2], strict=False))
            if told.get("num-slaves") != "1" or told.get("num-other-sentinels") != "2":
                return False
        return "master_link_status:up" in self.data[1].command("INFO", "replication")

    def primary(self) -> Server:
        """The server that the sentinels name."""
        found = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        port = int(found.splitlines()[1])
        return next(server for server in self.data if server.port == port)

    def stop(self) -> None:
        """Stop all of them; nothing is kept."""
        for server in [*self.sentinels, *self.data]:
            server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self) -> None:
        known = {one.name: [one.pid, one.port] for one in [*self.data, *self.sentinels]}
        note = {"url": self.url, "servers": known}
        (self.folder / "servers.json").write_text(json.dumps(note, indent=1))


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise SystemExit(f"{name} is not installed: run ops/services.sh")
    return found


def free_ports(count: int, first: int, *, cluster: bool) -> list[int]:
    if first:
        return list(range(first, first + count))
    held = []
    ports: list[int] = []
    while len(ports) < count:
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        held.append(one)
        port = one.getsockname()[1]
        # A cluster node also listens 10,000 ports higher.
        if not cluster or (port <= 55_535 and is_free(port + 10_000)):
            ports.append(port)
    for one in held:
        one.close()
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def noted(folder: Path) -> dict[str, list[int]]:
    try:
        servers: dict[str, list[int]] = json.loads((folder / "servers.json").read_text())["servers"]
    except OSError:
        raise SystemExit(f"nothing was started in {folder}") from None
    return servers


def mark_of(port: int) -> str:
    """What tells a server's command line from that of others."""
    # A server shows itself as "redis-server 127.0.0.1:PORT", with a mode behind it.
    return f":{port}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start")
    start.add_argument("kind", choices=["standalone", "sentinel", "cluster"])
    start.add_argument("--port", type=int, default=0, help="the first port; 0 = free ones")
    for one in (start, commands.add_parser("status"), commands.add_parser("stop")):
        one.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if asked.command == "start":
        if (folder / "servers.json").exists():
            raise SystemExit(f"servers were started in {folder} before: stop them first")
        servers = Servers(asked.kind, folder, first_port=asked.port)
        servers.start()
        print(servers.url)
        return
    found = noted(folder)
    for name, (pid, port) in found.items():
        alive = is_ours(pid, mark_of(port))
        if asked.command == "stop" and alive:
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not is_ours(pid, mark_of(port)), f"the end of {name}", STOP_S)  # noqa: B023
            alive = False
        print(f"{name} pid {pid} port {port} {'up' if alive else 'down'}")
    if asked.command == "stop":
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
