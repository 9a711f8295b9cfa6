"""`make bench`: throughput, and CPU per workflow, of one process with SQLite.

Starts `podium serve` on a temporary folder, lets rest_load.py drive each scenario (starts one by
one, batch polls, all ids verified at the end), and prints a table. Load generator and server share
the machine, so let nothing else run. The whole figures go to build/bench.jsonl.

    python bench/embedded.py [--seconds 20] [--warmup 5] [--scenario simple1 ...] [--store URL]
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PODIUM = Path(sys.executable).parent / "podium"
# CPU of the server per workflow, in ms, that issue 3 asks for.
LIMITS_MS = {"simple1": 0.6, "chain5": 1.8, "fork10": 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures one Podium process with SQLite.")
    parser.add_argument("--seconds", type=float, default=20, help="measured, per scenario")
    parser.add_argument("--warmup", type=float, default=5, help="before, with the same load")
    parser.add_argument("--scenario", nargs="+", default=list(LIMITS_MS), choices=list(LIMITS_MS))
    parser.add_argument("--store", help="store URL instead of SQLite in a temporary folder")
    options = parser.parse_args()
    figures = [measure(scenario, options) for scenario in options.scenario]
    report = ROOT / "build" / "bench.jsonl"
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(json.dumps(row) + "\n" for row in figures))
    print(
        f"\n{'scenario':<10} {'workflows/s':>11} {'CPU ms/wf':>10} {'limit':>6} "
        f"{'start p50':>10} {'start p99':>10} {'whole p50':>10} {'memory':>8}  verified"
    )
    for row in figures:
        print_row(row)
    return 0 if all(is_sound(row) for row in figures) else 1


def measure(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """What rest_load.py found out, its last line of output. A fresh server for each scenario."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as data:
        port = free_port()
        serve = [str(PODIUM), "serve", "--port", str(port), "--data", data]
        serve += ["--store", options.store] if options.store else []
        log = Path(data) / "server.log"
        with log.open("wb") as output:
            server = subprocess.Popen(serve, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(server, port, log)
            load = [sys.executable, str(ROOT / "bench" / "rest_load.py")]
            load += ["--base-url", f"http://127.0.0.1:{port}/api", "--scenario", scenario]
            load += ["--duration", str(options.seconds), "--warmup", str(options.warmup)]
            load += ["--watch", f"podium={server.pid}"]
            done = subprocess.run(load, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def wait_until_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit(f"the engine did not start:\n{log.read_text(errors='replace')[-3000:]}")


def print_row(row: dict[str, Any]) -> None:
    rate = row["wf_per_s"]
    cpu_ms = 1000 * row["cpu_cores"]["podium"] / rate if rate else float("nan")
    checked = f"{row['verify']['checked']} ended"
    verified = checked if is_sound(row) else f"NOT SOUND: {row['verify']} {row['errors']}"
    print(
        f"{row['scenario']:<10} {rate:>11.0f} {cpu_ms:>10.3f} {LIMITS_MS[row['scenario']]:>6.1f} "
        f"{row['start_ms']['p50']:>10.2f} {row['start_ms']['p99']:>10.2f} "
        f"{row['e2e_ms']['p50']:>10.2f} {row['mem_mib']['podium']:>4.0f} MiB  {verified}"
    )


def is_sound(row: dict[str, Any]) -> bool:
    """No error, and nothing that was acknowledged is missing."""
    return not row["errors"] and not row["unacked_at_end"] and not row["verify"]["not_ok"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
