"""Counts what a node does, in ways that no machine makes more or less of: calls and statements."""

import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
_OWN = str(Path(__file__).parent)
"""Calls of this folder, and those it makes directly, are the client's: they do not count."""

_SQL = re.compile(
    r"\s*(?:(INSERT|REPLACE)\b.*?\bINTO|(DELETE)\s+FROM|(UPDATE)|(SELECT)\b.*?\bFROM)\s+(\w+)",
    re.IGNORECASE | re.DOTALL,
)


class Calls:
    """Counts calls of Python functions and of built-in ones, by code that is called or calls."""

    def __init__(self) -> None:
        self.is_on = False
        self.python: Counter[CodeType] = Counter()
        self.builtin: Counter[CodeType] = Counter()
        self.total = 0
        """Stands still while nothing happens."""
        self._is_own: dict[CodeType, bool] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count on this thread, which is the event loop's."""
        sys.setprofile(self._on_loop)
        try:
            yield
        finally:
            sys.setprofile(None)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Do not even look on: for a look at the time that things take."""
        sys.setprofile(None)
        try:
            yield
        finally:
            sys.setprofile(self._on_loop)

    def _on_loop(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.is_on:
            return
        if event == "call":
            caller = frame.f_back
            if self._own(frame) or (caller is not None and self._own(caller)):
                return
            self.python[frame.f_code] += 1
        elif event == "c_call":
            if self._own(frame):
                return
            self.builtin[frame.f_code] += 1
        else:
            return
        self.total += 1

    def _own(self, frame: FrameType) -> bool:
        code = frame.f_code
        known = self._is_own.get(code)
        if known is None:
            known = self._is_own[code] = code.co_filename.startswith(_OWN)
        return known


def by_module(counted: Counter[CodeType]) -> Counter[str]:
    """Sums of the calls of a module, by its path within the project or within site-packages."""
    sums: Counter[str] = Counter()
    for code, count in counted.items():
        sums[_module(code.co_filename)] += count
    return sums


def _module(path: str) -> str:
    for before in (f"{ROOT}/", "/site-packages/"):
        _, found, rest = path.partition(before)
        if found:
            return rest
    return path.rpartition("/python3")[2].partition("/")[2] or path


@contextmanager
def sql_counted(into: Counter[str]) -> Iterator[None]:
    """Count the statements of every SQLite connection that is opened meanwhile."""
    real = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real(*arguments, **options)
        connection.set_trace_callback(lambda statement: into.update((_sql(statement),)))
        return connection

    sqlite3.connect = connect  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = real


def _sql(statement: str) -> str:
    found = _SQL.match(statement)
    if found is None:
        return statement.split(maxsplit=1)[0].upper()
    *verbs, table = found.groups()
    return f"{next(filter(None, verbs)).upper()} {table}"
