"""What one process of a load test asked for, and what it was told: files that only grow.

A line for each start before it is sent, and one for what came of it. Memory holds only what is
under way, so a run may be as long as it likes; a process that is killed leaves a ledger that can
still be accounted for. Of a start without a second line nobody knows whether it happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_RECENT = 1000
_WINDOW = 20_000
"""Answers within which the second answer to a start stands: several bulk requests."""
START, TAKEN, REFUSED = "start", "taken", "refused"


@dataclass(frozen=True)
class Intent:
    """One workflow that somebody wanted to be started, once."""

    key: str
    """Its correlation id, so that it can be found whatever became of the request."""
    scenario: str
    number: int
    ids: tuple[str, ...] = ()
    """What the server answered; more than one if it was asked again and the answer differed."""
    is_refused: bool = False
    """The server said that it did not happen."""


class Ledger:
    """Written by one process; the numbers of its starts are its own."""

    def __init__(self, path: Path, prefix: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A line at a time to the operating system: what was written survives this process.
        self._file = path.open("x", encoding="ascii", buffering=1)
        self._prefix = prefix
        self._next = 0
        self.path = path
        self.taken = self.refused = 0
        self.recent: deque[tuple[str, str, str]] = deque(maxlen=_RECENT)
        """Scenario, key and id of starts that were taken lately: for who reads."""

    @property
    def intended(self) -> int:
        return self._next

    def intend(self, scenario: str) -> Intent:
        """To be called before anything is sent."""
        number = self._next
        self._next += 1
        key = f"{self._prefix}-{number}"
        self._file.write(f"{START} {key} {scenario} {number}\n")
        return Intent(key, scenario, number)

    def took(self, intent: Intent, workflow_id: str) -> None:
        self._file.write(f"{TAKEN} {intent.key} {workflow_id}\n")
        self.taken += 1
        self.recent.append((intent.scenario, intent.key, workflow_id))

    def took_again(self, intent: Intent, workflow_id: str) -> None:
        """The answer to a start that was repeated although it had been answered."""
        self._file.write(f"{TAKEN} {intent.key} {workflow_id}\n")

    def refuse(self, intent: Intent) -> None:
        self._file.write(f"{REFUSED} {intent.key}\n")
        self.refused += 1

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[Intent]:
    """All intents of a file that is complete: those that were answered first.

    An answer stands close behind its start, and a second answer close behind the first, so that
    few are in memory at a time: as many as were under way, and those without an answer.
    """
    open_intents: dict[str, Intent] = {}
    answered: deque[str] = deque()
    with path.open(encoding="ascii") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # the process was killed while it wrote
            kind, key, *rest = line.split()
            if kind == START:
                open_intents[key] = Intent(key, rest[0], int(rest[1]))
                continue
            intent = open_intents[key]
            if not intent.ids and not intent.is_refused:
                answered.append(key)
            open_intents[key] = _answered(intent, kind, rest)
            if len(answered) > _WINDOW:
                yield open_intents.pop(answered.popleft())
    yield from open_intents.values()


def write(path: Path, intents: Iterable[Intent]) -> int:
    """A file of the same form; returns how many there were."""
    count = 0
    with path.open("w", encoding="ascii") as file:
        for intent in intents:
            count += 1
            file.write(f"{START} {intent.key} {intent.scenario} {intent.number}\n")
            file.writelines(f"{TAKEN} {intent.key} {one}\n" for one in intent.ids)
            if intent.is_refused:
                file.write(f"{REFUSED} {intent.key}\n")
    return count


def _answered(intent: Intent, kind: str, rest: list[str]) -> Intent:
    ids = intent.ids
    if kind == TAKEN and rest[0] not in ids:
        ids = (*ids, rest[0])
    refused = intent.is_refused or kind == REFUSED
    return Intent(intent.key, intent.scenario, intent.number, ids, refused)
