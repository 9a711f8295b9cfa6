"""A run as it was recorded, or as Prometheus knows it, and what can be derived from it."""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.parse
import urllib.request
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.recorder import KEPT

Points = list[tuple[float, float]]
"""Times and values, in the order of time."""

_BINS = 150
_BIN_S_MIN = 2.0
_SILENT_S = 5.0
_ENDED = "workflow_execution_seconds_count"
_STARTED = "workflow_start_success_total"


@dataclass
class Recorded:
    """One run on one server or cluster."""

    name: str
    metrics: dict[tuple[str, str], Points] = field(default_factory=lambda: defaultdict(list))
    """By node and key; a value holds until the next one."""
    cpu_s: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    memory_mib: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    locust: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    """Of each second in which there was a request: `start/n`, `start/failed`, `start/p99`."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """When a part of the run began, and what it is called; nothing in between is called ''."""
    accounts: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    """What rest_load.py found out."""
    about: dict[str, Any] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)
    """When a node was looked at last."""

    @property
    def span(self) -> tuple[float, float]:
        series = [*self.metrics.values(), *self.cpu_s.values(), *self.locust.values()]
        times = [points[edge][0] for points in series if points for edge in (0, -1)]
        return (min(times), max(times)) if times else (0.0, 1.0)

    @property
    def bin_s(self) -> float:
        first, last = self.span
        return max(_BIN_S_MIN, math.ceil((last - first) / _BINS))

    def edges(self, *, bins: int = 1) -> list[float]:
        first, last = self.span
        step = self.bin_s * bins
        return [first + number * step for number in range(int((last - first) / step) + 1)]

    def nodes(self) -> list[str]:
        return sorted({node for node, _ in self.metrics})

    def keys(self, *prefixes: str) -> list[str]:
        return sorted({key for _, key in self.metrics if key.startswith(prefixes)})

    def total(self, *keys: str, edges: Sequence[float]) -> list[float]:
        """The sum of gauges over all nodes, at each edge."""
        series = [
            (node, self.metrics[node, key]) for node, key in list(self.metrics) if key in keys
        ]
        return [
            sum(_at(points, edge) for node, points in series if self._is_up(node, edge))
            for edge in edges
        ]

    def _is_up(self, node: str, at_s: float) -> bool:
        """What a node said last holds no longer when it does not answer any more."""
        return at_s <= self.sampled.get(node, math.inf) + _SILENT_S

    def growth(self, *keys: str, edges: Sequence[float]) -> list[float]:
        """By how much counters grew on all nodes, from each edge to the next."""
        series = [self.metrics[one] for one in list(self.metrics) if one[1] in keys]
        return _growth(series, edges)

    def ended(self, edges: Sequence[float]) -> list[float]:
        return self.growth(_ENDED, edges=edges)

    def started(self, edges: Sequence[float]) -> list[float]:
        return self.growth(_STARTED, edges=edges)

    def cpu(self, name: str, edges: Sequence[float]) -> list[float]:
        return _growth([self.cpu_s[name]], edges)

    def per_workflow(self, amounts: Sequence[float], edges: Sequence[float]) -> Points:
        """Amounts by workflows that ended; where hardly any ended there is no figure."""
        ended = self.ended(edges)
        return [
            (edge, amount / count if count >= _few(edges) else math.nan)
            for edge, amount, count in zip(edges[1:], amounts, ended, strict=True)
        ]

    def histogram_quantile(self, route: str, quantile: float, edges: Sequence[float]) -> Points:
        """As Prometheus does it, from what all nodes counted between two edges; in ms."""
        pattern = re.compile(
            rf'http_request_seconds_bucket{{route="{re.escape(route)}",le="([^"]+)"}}'
        )
        bounds = {
            float(found[1]): self.growth(key, edges=edges)
            for key in self.keys("http_request_seconds_bucket")
            if (found := pattern.fullmatch(key))
        }
        return [
            (edge, 1000 * _quantile({le: counts[i] for le, counts in bounds.items()}, quantile))
            for i, edge in enumerate(edges[1:])
        ]


def read(path: Path) -> Recorded:
    """Of a file that recorder, Locust and `make bench` wrote to."""
    found = Recorded(path.stem)
    with path.open(encoding="utf-8") as lines:
        for text in lines:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut short: the run was killed
            _enter(found, line)
    return found


def _enter(found: Recorded, line: dict[str, Any]) -> None:
    at_s = line.pop("t")
    match line.pop("source"):
        case "node":
            node = line["node"]
            for key, value in line["values"].items():
                points = found.metrics[node, key]
                if not points and node in found.sampled:
                    # It was not there when the node was looked at before.
                    points.append((found.sampled[node], 0.0))
                points.append((at_s, value))
            found.sampled[node] = at_s
        case "process":
            found.cpu_s[line["name"]].append((at_s, line["cpu_s"]))
            found.memory_mib[line["name"]].append((at_s, line["memory_mib"]))
        case "locust":
            for key, value in line["values"].items():
                found.locust[key].append((at_s, value))
        case "mark":
            found.marks.append((at_s, line["text"]))
        case "account":
            found.accounts.append(line)
        case "window":
            found.windows.append(line)
        case "about":
            found.about |= line


def from_prometheus(url: str, begin_s: float, end_s: float) -> Recorded:
    """The same of a cluster that Prometheus watches."""
    found = Recorded("prometheus", about={"title": f"Prometheus at {url}"})
    step_s = max(1.0, math.ceil((end_s - begin_s) / 600))
    for name, kept in KEPT.items():
        query = f"sum by ({', '.join(('instance', *kept))}) ({name})"
        for series in _query_range(url, query, begin_s, end_s, step_s):
            labels = series["metric"]
            inner = ",".join(f'{label}="{labels[label]}"' for label in kept if label in labels)
            key = f"{name}{{{inner}}}" if inner else name
            points = [(at_s, float(value)) for at_s, value in series["values"]]
            found.metrics[labels.get("instance", "?"), key] = points
    for (node, key), points in list(found.metrics.items()):
        if key == "process_cpu_seconds_total":
            found.cpu_s[node] = points
        elif key == "process_resident_memory_bytes":
            found.memory_mib[node] = [(at_s, value / 2**20) for at_s, value in points]
    return found


def _query_range(
    url: str, query: str, begin_s: float, end_s: float, step_s: float
) -> Iterable[dict[str, Any]]:
    fields = {"query": query, "start": begin_s, "end": end_s, "step": step_s}
    address = f"{url.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _at(points: Points, at_s: float) -> float:
    index = bisect_right(points, at_s, key=lambda point: point[0])
    return points[index - 1][1] if index else 0.0


def _growth(series: Sequence[Points], edges: Sequence[float]) -> list[float]:
    grown = [0.0] * max(0, len(edges) - 1)
    for points in series:
        if not points:
            continue
        # Before its first sample a counter has not grown: it may be older than the recording.
        values = [_at(points, edge) if edge >= points[0][0] else points[0][1] for edge in edges]
        for index, (before, after) in enumerate(itertools.pairwise(values)):
            # A counter that fell belongs to a process that was started again.
            grown[index] += after - before if after >= before else after
    return grown


def _few(edges: Sequence[float]) -> float:
    return max(3.0, edges[1] - edges[0])


def _quantile(counts: dict[float, float], quantile: float) -> float:
    rank = quantile * counts.get(math.inf, 0.0)
    if not rank:
        return math.nan
    below, count_below = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= rank:
            if bound == math.inf:
                return below
            inside = count - count_below
            return below + (bound - below) * ((rank - count_below) / inside if inside else 1)
        below, count_below = bound, count
    return below
