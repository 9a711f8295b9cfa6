"""Makes what two servers answered comparable: ids, times and host names become placeholders."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
DAY_MS = 86_400_000

# Measured by each server for itself; what matters is that the field is there.
DURATIONS = frozenset({"queueWaitTime", "executionTime"})


@dataclass
class Normaliser:
    """Numbers ids in the order in which they are met; one per case and server."""

    labels: dict[str, str] = field(default_factory=dict)

    def label(self, found: str) -> str:
        return self.labels.setdefault(found.lower(), f"<id {len(self.labels) + 1}>")

    def text(self, value: str) -> str:
        return UUID.sub(lambda match: self.label(match.group()), value)

    def value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, str):
            return "<host>" if key == "instance" and value else self.text(value)
        if isinstance(value, int | float):
            return self.number(value, key)
        if isinstance(value, dict):
            return self.mapping(value)
        if isinstance(value, list | tuple):
            items = sorted_errors(value) if key == "validationErrors" else value
            return [self.value(item) for item in items]
        raise TypeError(f"an observation holds JSON only, not {type(value).__name__}: {value!r}")

    def number(self, value: int | float, key: str) -> int | float | str:
        if key in DURATIONS:
            return "<duration>"
        # A stamp near to now is a time under any key. 0 stays: it says "not yet".
        if abs(value - time.time() * 1000) < DAY_MS:
            return "<time>"
        return float(f"{value:.12g}") if isinstance(value, float) else value

    def mapping(self, value: dict[Any, Any]) -> dict[str, Any]:
        # Sorted, so that ids are numbered alike on both sides. Keys that are ids themselves sort
        # by the number they already have.
        def order(key: str) -> str:
            return UUID.sub(lambda match: self.labels.get(match.group().lower(), "<id ?>"), key)

        known = {str(key): item for key, item in value.items()}
        return {self.text(key): self.value(known[key], key) for key in sorted(known, key=order)}


def sorted_errors(errors: Any) -> list[Any]:
    """Conductor reports validation errors in the order of a hash set."""
    return sorted(errors, key=lambda error: sorted(str(item) for item in error.items()))
