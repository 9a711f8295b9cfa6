"""What `make bench` runs: the same load on one process with SQLite and on a cluster of two nodes.

    python -m bench.campaign [--minutes 10] [--only embedded cluster] [--rate 100] [--nodes 2]

On each: a window of rest_load.py per scenario (as fast as it goes), then Locust steady and with
spikes, each with its account. All of it is recorded; the page is build/bench/report.html, the
figures are build/bench/figures.json. Exit status 1 if anything is not sound. Let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.measuring import ROOT, Server, cluster, cpu_ms_of, is_sound, load, podium
from bench.recorded import Recorded, read
from bench.recorder import Recorder, recording
from bench.report import OUT, write

FOLDER = ROOT / "build" / "bench"
LOCUST = (str(Path(sys.executable).parent / "locust"), "-f", "bench/locustfile.py")
SCENARIOS = ("simple1", "chain5", "fork10")
_WARMUP_S = 5.0
# Shares of the time of each server; what is left is what starting and accounts take.
_WINDOW, _STEADY, _SPIKE = 0.12, 0.2, 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a node and a cluster, makes a page.")
    parser.add_argument("--minutes", type=float, default=10, help="for all of it")
    parser.add_argument("--only", nargs="+", choices=["embedded", "cluster"])
    parser.add_argument("--nodes", type=int, default=2, help="of the cluster")
    parser.add_argument("--rate", type=float, default=100, help="workflows per second by Locust")
    options = parser.parse_args()
    # Stopped by whatever means, it stops its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    servers: dict[str, Callable[[], AbstractContextManager[Server]]] = {
        "embedded": podium,
        "cluster": lambda: _cluster(options.nodes),
    }
    titles = {"embedded": "Embedded: one process, SQLite"}
    titles["cluster"] = f"Cluster: {options.nodes} nodes, one Cassandra, one Redis"
    names = options.only or list(servers)
    seconds = 60 * options.minutes / len(names)
    runs = []
    for name in names:
        print(f"== {titles[name]} ==", flush=True)
        with servers[name]() as server:
            runs.append(measure(server, name, titles[name], seconds=seconds, rate=options.rate))
    write(runs, OUT, title="Load test of Podium")
    figures = {run.name: {"windows": run.windows, "accounts": run.accounts} for run in runs}
    (FOLDER / "figures.json").write_text(json.dumps(figures, indent=1))
    print(f"\nwrote {OUT} and {FOLDER / 'figures.json'}")
    return 0 if all(_is_good(run) for run in runs) else 1


def measure(server: Server, name: str, title: str, *, seconds: float, rate: float) -> Recorded:
    """All the load on one server, recorded."""
    path = FOLDER / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    hosts = [url.removesuffix("/api") for url in server.base_url.split(",")]
    nodes = {f"node-{number}": url for number, url in enumerate(hosts, 1)}
    with recording(path, nodes, server.processes) as recorder:
        recorder.line("about", title=title, about=_about())
        for scenario in SCENARIOS:
            window(server, scenario, recorder, seconds=seconds * _WINDOW)
        for shape, share in (("steady", _STEADY), ("spike", _SPIKE)):
            by_locust(hosts, path, shape, seconds=seconds * share, rate=rate)
    return read(path)


def window(server: Server, scenario: str, recorder: Recorder, *, seconds: float) -> None:
    warmup = min(_WARMUP_S, seconds / 3)
    recorder.line("mark", text=scenario)
    row = load(server, scenario, seconds=seconds - warmup, warmup=warmup)
    recorder.line("mark", text="")
    cpu_ms = {process: cpu_ms_of(row, [process]) for process in server.processes}
    recorder.line(
        "window",
        scenario=scenario,
        wf_per_s=row["wf_per_s"],
        cpu_ms=cpu_ms,
        start_ms=row["start_ms"],
        e2e_ms=row["e2e_ms"],
        checked=row["verify"]["checked"],
        is_sound=is_sound(row),
    )
    print(
        f"rest_load {scenario:<8} {row['wf_per_s']:>6.0f}/s  CPU {sum(cpu_ms.values()):.2f} ms per "
        f"workflow  start p50 {row['start_ms']['p50']:.1f} p99 {row['start_ms']['p99']:.1f} ms"
        f"{'' if is_sound(row) else '  NOT SOUND'}",
        flush=True,
    )


def by_locust(hosts: list[str], record: Path, shape: str, *, seconds: float, rate: float) -> None:
    """Its account is in the recording; Locust prints it, too."""
    options = {
        "--hosts": ",".join(hosts),
        "--shape": shape,
        "--rate": f"{rate:g}",
        "--duration": f"{seconds:.0f}",
        "--ledgers": str(FOLDER / "ledgers"),
        "--run-id": f"{time.strftime('%Y%m%d-%H%M%S')}-{shape}",
        "--record": str(record),
    }
    words = [word for option in options.items() for word in option]
    command = [*LOCUST, "--headless", "--only-summary", *words]
    log = FOLDER / f"locust-{shape}.log"
    with log.open("wb") as output:
        status = subprocess.run(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    accounts = read(record).accounts
    said = accounts[-1]["text"] if accounts else "no account"
    print(f"Locust {shape}: exit status {status}; {said} ({log})", flush=True)


@contextmanager
def _cluster(nodes: int) -> Iterator[Server]:
    with cluster(nodes) as running:
        yield running.server


def _is_good(run: Recorded) -> bool:
    accounts = [account for account in run.accounts if not account["problems"]]
    return len(accounts) == 2 and all(row["is_sound"] for row in run.windows)


def _about() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    version = done.stdout.strip()
    return (
        f"commit {version or 'unknown'}; {os.cpu_count()} cores, which the load generator shares; "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    )


if __name__ == "__main__":
    sys.exit(main())
