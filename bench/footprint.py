"""What processes cost: CPU, memory, and the disk that their folders take."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rest_load import _children, cpu_only

_EVERY_S = 1.0


def memory_mib(pid: int, what: str = "VmRSS") -> int:
    """`VmRSS`: now. `VmHWM`: the most there ever was. 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith(f"{what}:")), None)
    return int(found.split()[1]) >> 10 if found else 0


def disk_mib(folder: Path) -> int:
    # Files come and go under it while it counts.
    told = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True, check=False)
    return int(told.stdout.split()[0]) if told.stdout else 0


class Meter:
    """CPU and peak memory by name of process, over processes that come and go under a name.

    It looks every second, so of a process that is killed the last second is missing.
    """

    def __init__(self, processes: Callable[[], dict[str, int]]) -> None:
        self._processes = processes
        self._seen: dict[int, float] = {}
        self.cpu_s: Counter[str] = Counter()
        self.peak_mib: Counter[str] = Counter()
        self._look(first=True)

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.look()

    def look(self) -> None:
        self._look(first=False)

    def _look(self, *, first: bool) -> None:
        children = _children()
        for name, pid in {**self._processes(), "client": os.getpid()}.items():
            # The client's children are the servers.
            is_client = pid == os.getpid()
            cpu_s = time.process_time() if is_client else float(cpu_only(pid, children))
            before_s = self._seen.get(pid, cpu_s if first else 0.0)
            self._seen[pid] = cpu_s
            self.cpu_s[name] += max(0.0, cpu_s - before_s)
            self.peak_mib[name] = max(self.peak_mib[name], memory_mib(pid, "VmHWM"))


class Stretch:
    """One stretch of a run: how long it took, and what CPU by whom."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        meter.look()
        self._began_s = time.monotonic()
        self._cpu_s = Counter(meter.cpu_s)

    def figures(self, workflows: int) -> dict[str, Any]:
        """Seconds, rate, and CPU in all and per workflow."""
        self._meter.look()
        took_s = time.monotonic() - self._began_s
        cpu_s = {
            name: total - self._cpu_s.get(name, 0.0) for name, total in self._meter.cpu_s.items()
        }
        found: dict[str, Any] = {
            "seconds": round(took_s, 1),
            "workflows": workflows,
            "cpu_s": {name: round(value, 2) for name, value in cpu_s.items()},
        }
        if workflows:
            found["per_s"] = round(workflows / took_s)
            found["cpu_ms_per_workflow"] = {
                name: round(1000 * value / workflows, 4) for name, value in cpu_s.items()
            }
        return found
