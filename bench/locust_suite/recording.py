"""Locust's figures of each second, as lines for the report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment

_PERCENTILES = (50, 95, 99)


class Recording:
    """Appends to a file; without a path it keeps nothing."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._before: dict[tuple[str, str], tuple[int, int, Counter[int]]] = {}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def line(self, content: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"t": round(time.time(), 3), **content}) + "\n")

    def run(self, environment: Environment) -> None:
        """Until killed."""
        while self._path is not None:
            gevent.sleep(1)
            self._sample(environment)

    def _sample(self, environment: Environment) -> None:
        values: dict[str, float] = {}
        for (name, method), entry in list(environment.stats.entries.items()):
            count, failures, times = self._before.get((name, method), (0, 0, Counter()))
            now = Counter[int](entry.response_times)
            if entry.num_requests < count:
                count, failures, times = 0, 0, Counter()  # Locust began its figures anew
            lately = now - times
            self._before[name, method] = (entry.num_requests, entry.num_failures, now)
            if entry.num_requests == count:
                continue
            values[f"{name}/n"] = entry.num_requests - count
            values[f"{name}/failed"] = entry.num_failures - failures
            for percentile in _PERCENTILES:
                values[f"{name}/p{percentile}"] = _percentile(lately, percentile)
        self.line({"source": "locust", "values": values})


def _percentile(times: Counter[int], percentile: int) -> float:
    """Of response times in ms and how often each was seen."""
    rank = sum(times.values()) * percentile / 100
    for time_ms, count in sorted(times.items()):
        rank -= count
        if rank <= 0:
            return float(time_ms)
    return 0.0
