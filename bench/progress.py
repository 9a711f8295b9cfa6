"""How far a phase is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

_BAR = 30
_TERMINAL_EVERY_S, _LINE_EVERY_S = 0.2, 5.0


class Progress:
    """Of one phase with a known number of steps; `total` 0: only the note is shown."""

    def __init__(self, phase: str, total: int, *, done: int = 0) -> None:
        self._phase = phase
        self._total = total
        self._first = done
        self._began_s = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown_s = 0.0

    def at(self, done: int, note: str = "") -> None:
        """So many are done by now; shown if the last time was long enough ago."""
        every_s = _TERMINAL_EVERY_S if self._is_terminal else _LINE_EVERY_S
        if time.monotonic() - self._shown_s >= every_s:
            self._show(done, note)

    def end(self, done: int, note: str = "") -> None:
        """The last line of the phase."""
        self._show(done, note)
        if self._is_terminal:
            print(flush=True)

    def _show(self, done: int, note: str) -> None:
        now_s = self._shown_s = time.monotonic()
        took_s = now_s - self._began_s
        line = f"{self._phase:<11}{took_s:6.0f} s"
        if self._total:
            filled = _BAR * done // self._total
            rate = (done - self._first) / took_s if took_s else 0.0
            line += f" [{'#' * filled:<{_BAR}}] {done:,} of {self._total:,}, {rate:,.0f}/s"
            if rate and done < self._total:
                line += f", {(self._total - done) / rate:,.0f} s left"
        if note:
            line += f"; {note}"
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)
