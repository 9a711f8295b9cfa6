"""Options that the suite adds to Locust's own; the master's hold for all workers."""

from __future__ import annotations

import argparse
import time
from typing import Any

from bench.locust_suite.scenarios import NAMES
from bench.locust_suite.shapes import SHAPES, Load

LATENCIES = {
    "prompt": "results at once",
    "usual": "10-50 ms a batch",
    "slow": "0.2-1 s a batch",
    "erratic": "10-50 ms, one batch in twenty 3 s",
}
"""How long workers take."""


def add(parser: Any) -> None:
    group = parser.add_argument_group("Podium's suite")
    shapes = "; ".join(f"{name}: {meaning}" for name, meaning in SHAPES.items())
    group.add_argument(
        "--shape", choices=list(SHAPES), default="steady", help=shapes.replace("%", "%%")
    )
    group.add_argument("--rate", type=float, default=50, help="workflows per second, all together")
    group.add_argument("--duration", type=float, default=60, help="seconds of load; then it drains")
    group.add_argument(
        "--peak", type=float, default=3, help="times the rate, in spike and overload"
    )
    group.add_argument("--period", type=float, default=30, help="seconds, of spike and soak")
    group.add_argument("--hosts", default="", help="base URLs with commas between, instead of -H")
    group.add_argument(
        "--mix", default="simple1=5,chain5=2,fork10=1,flaky=1,doomed=1", help="shares"
    )
    latencies = "; ".join(f"{name}: {meaning}" for name, meaning in LATENCIES.items())
    group.add_argument("--latency", choices=list(LATENCIES), default="usual", help=latencies)
    group.add_argument("--bulk-share", type=float, default=0.5, help="of the rate, by bulk starts")
    group.add_argument("--bulk", type=int, default=20, help="starts in a bulk request")
    group.add_argument("--repeat", type=float, default=0.02, help="of single starts are sent twice")
    group.add_argument("--producers", type=int, default=8, help="of single starts")
    group.add_argument("--bulk-producers", type=int, default=2)
    group.add_argument("--batch-workers", type=int, default=8, help="poll one type each")
    group.add_argument(
        "--several-workers", type=int, default=2, help="poll all types, bulk results"
    )
    group.add_argument("--exchange-workers", type=int, default=2, help="results for tasks")
    group.add_argument("--batch", type=int, default=20, help="tasks asked for by a poll")
    group.add_argument("--readers", type=int, default=2)
    group.add_argument("--searchers", type=int, default=1)
    group.add_argument("--run-id", default=time.strftime("%Y%m%d-%H%M%S"), help="name of this run")
    group.add_argument("--ledgers", default="build/bench/ledgers", help="folder of the ledgers")
    group.add_argument(
        "--drain", type=float, default=120, help="seconds for what is open at the end"
    )
    group.add_argument("--record", default="", help="JSONL file for the report, a line per second")


def load_of(options: argparse.Namespace) -> Load:
    return Load(options.shape, options.rate, options.duration, options.peak, options.period)


def title_of(options: argparse.Namespace) -> str:
    return f"{options.shape}, {options.rate:g}/s"


def hosts_of(options: argparse.Namespace) -> list[str]:
    """Base URLs, without /api."""
    given = options.hosts or options.host or "http://127.0.0.1:8080"
    return [host.strip().rstrip("/").removesuffix("/api") for host in given.split(",")]


def mix_of(options: argparse.Namespace) -> dict[str, int]:
    shares = {}
    for share in options.mix.split(","):
        scenario, _, weight = share.partition("=")
        if scenario not in NAMES:
            raise SystemExit(f"--mix: no scenario {scenario!r}; there are {', '.join(NAMES)}")
        shares[scenario] = int(weight or 1)
    return shares
