"""How many workflows a second are wanted, by the time since the test began."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = {
    "steady": "the same all the time",
    "ramp": "from nothing to the rate, in a straight line",
    "spike": "the last fifth of each period brings the peak",
    "soak": "for hours: swells and ebbs by 30 % in each period",
    "overload": "the rate, the peak for half of the time, the rate again",
}


@dataclass(frozen=True)
class Load:
    """One of SHAPES with its parameters."""

    shape: str
    rate: float
    duration_s: float
    peak: float = 3
    """By how much more than the rate, in spikes and overload."""
    period_s: float = 30

    def rate_at(self, at_s: float) -> float:
        """Starts per second, over all producers."""
        match self.shape:
            case "steady":
                return self.rate
            case "ramp":
                return self.rate * min(1, at_s / self.duration_s)
            case "spike":
                is_high = at_s % self.period_s >= 0.8 * self.period_s
            case "soak":
                return self.rate * (1 + 0.3 * math.sin(2 * math.pi * at_s / self.period_s))
            case "overload":
                is_high = 0.25 <= at_s / self.duration_s < 0.75
            case unknown:
                raise ValueError(f"no shape {unknown!r}; there are {', '.join(SHAPES)}")
        return self.rate * self.peak if is_high else self.rate
