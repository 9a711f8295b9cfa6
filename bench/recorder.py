"""Records each second what a run does: metrics of the nodes, /proc of processes on this machine.

    python -m bench.recorder --out FILE --nodes URL[,URL] [--watch name=pid[,name=pid]]

The file has one JSON object per line; Locust (--record) and `make bench` append theirs to the same
file, and bench/report.py makes a page of it. Of metrics only those that changed are written. A
scrape costs a node some milliseconds of CPU: with 1,000 workflows a second nobody sees that.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.rest_load import _children, proc_sample

INTERVAL_S = 1.0
_SCRAPE_S = 5
_LINE = re.compile(r"^([a-z_]\w*)(?:\{(.*)\})? (\S+)", re.MULTILINE | re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

KEPT: Mapping[str, tuple[str, ...]] = {
    "workflow_start_success_total": (),
    "workflow_execution_seconds_count": (),
    "http_requests_total": ("status",),
    "http_items_total": ("route", "status"),
    "http_request_seconds_bucket": ("route", "le"),
    "http_request_seconds_count": ("route",),
    "task_queue_depth": (),
    "task_in_progress": (),
    "polls_parked": (),
    "commit_log_pending_bytes": (),
    "commit_log_bytes_total": (),
    "commit_log_append_seconds_sum": (),
    "commit_log_append_seconds_count": (),
    "store_requests_total": ("server", "kind"),
    "store_items_total": ("server", "kind"),
    "store_sent_bytes_total": ("server", "kind"),
    "event_loop_lag_seconds_sum": (),
    "event_loop_lag_seconds_count": (),
    "process_cpu_seconds_total": (),
    "process_resident_memory_bytes": (),
}
"""What is recorded, and which of its labels: over the others it is summed up."""


class Recorder:
    """Samples until it is told to stop."""

    def __init__(self, path: Path, nodes: Mapping[str, str], watch: Mapping[str, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._nodes = nodes
        self._watch = dict(watch)
        self._before: dict[str, dict[str, float]] = {}

    def line(self, source: str, **content: Any) -> None:
        text = json.dumps({"t": round(time.time(), 3), "source": source, **content})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def sample(self) -> None:
        """A node that does not answer is left out: it may have been killed on purpose."""
        children = _children()
        for name, pid in self._watch.items():
            cpu_s, memory_mib = proc_sample(pid, children)
            if cpu_s:
                self.line("process", name=name, cpu_s=cpu_s, memory_mib=round(memory_mib, 1))
        for name, url in self._nodes.items():
            try:
                with urllib.request.urlopen(f"{url}/metrics", timeout=_SCRAPE_S) as page:
                    values = sums(page.read().decode())
            except OSError:
                continue
            before = self._before.get(name, {})
            changed = {key: value for key, value in values.items() if before.get(key) != value}
            self._before[name] = values
            self.line("node", node=name, values=changed)

    def run(self, stop: threading.Event) -> None:
        while True:
            began_s = time.monotonic()
            self.sample()
            if stop.wait(max(0.1, INTERVAL_S - (time.monotonic() - began_s))):
                return


@contextmanager
def recording(path: Path, nodes: Mapping[str, str], watch: Mapping[str, int]) -> Iterator[Recorder]:
    """Record in the background."""
    recorder, stop = Recorder(path, nodes, watch), threading.Event()
    thread = threading.Thread(target=recorder.run, args=(stop,))
    thread.start()
    try:
        yield recorder
    finally:
        stop.set()
        thread.join()


def sums(page: str) -> dict[str, float]:
    """What is kept of a page of metrics, by name and labels: `name{label="value"}`."""
    found: dict[str, float] = {}
    for name, labels, value in _LINE.findall(page):
        if name not in KEPT:
            continue
        given = dict(_LABEL.findall(labels)) if KEPT[name] else {}
        inner = ",".join(f'{label}="{given[label]}"' for label in KEPT[name] if label in given)
        key = f"{name}{{{inner}}}" if inner else name
        found[key] = found.get(key, 0.0) + float(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Records a run for bench/report.py.")
    parser.add_argument("--out", type=Path, required=True, help="file; lines are appended")
    parser.add_argument("--nodes", required=True, help="base URLs with commas between")
    parser.add_argument("--watch", default="", help="name=pid of local processes, commas between")
    parser.add_argument("--seconds", type=float, help="default: until Ctrl-C")
    options = parser.parse_args()
    urls = [url.rstrip("/").removesuffix("/api") for url in options.nodes.split(",")]
    nodes = {f"node-{number}": url for number, url in enumerate(urls, 1)}
    pairs = [pair.split("=") for pair in options.watch.split(",") if pair]
    watch = {name: int(pid) for name, pid in pairs}
    with recording(options.out, nodes, watch):
        try:
            time.sleep(options.seconds or 1e9)
        except KeyboardInterrupt:
            print(f"recorded to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
