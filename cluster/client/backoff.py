"""How long to wait before the next attempt: longer each time, and never all clients at once."""

import os

_FIRST_S, _MOST_S = 0.1, 10.0
_ATTEMPTS_MAX = 16


class Backoff:
    """The pauses after failures in a row; `succeeded` begins anew."""

    def __init__(self, *, first_s: float = _FIRST_S, most_s: float = _MOST_S) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    def next_s(self, at_least_s: float | None = None) -> float:
        """The pause after one more failure, not shorter than the server has asked for."""
        most_s = min(self._most_s, self._first_s * (1 << self._failures))
        self._failures = min(self._failures + 1, _ATTEMPTS_MAX)
        return (at_least_s or 0.0) + most_s * _jitter()


def _jitter() -> float:
    """Anything in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / (1 << 32)
