"""Runs many cases at a time on both servers and compares what they observed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx

from tests.conformance import recordings
from tests.conformance.harness import Endpoint, Json, Mark, observe
from tests.conformance.servers import conductor, podium, version_of

Mode = Literal["both", "oracle", "ours", "record"]

# Cases at a time. The real server shares the machine with us and its SQLite has one writer.
THREADS = {"conductor": 6, "podium": 12}
HICCUPS = (AssertionError, KeyError, TypeError, httpx.TransportError)
"""What a case comes to on a server that is too busy: late answers, and errors in their place."""
SECONDS = "seconds.txt"
"""Not .json, which the answers are."""


@dataclass
class Runs:
    """The observations of one test session, each started as soon as a thread is free."""

    mode: Mode
    cache: Path
    stack: ExitStack = field(default_factory=ExitStack)
    oracle: dict[str, Future[Json]] = field(default_factory=dict)
    ours: dict[str, Future[Json]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    version: str = ""
    endpoint: Endpoint | None = None

    def __enter__(self) -> Runs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stack.close()
        kept = self.known_seconds() | self.seconds
        (self.cache / SECONDS).write_text(json.dumps(kept, indent=1, sort_keys=True))

    def known_seconds(self) -> dict[str, float]:
        """How long cases took in earlier sessions."""
        path = self.cache / SECONDS
        found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def begin(self, marks: list[Mark]) -> None:
        """Start the servers and all cases."""
        record = self.mode == "record"
        asked = [m for m in marks if m.recorded == record] if self.mode != "ours" else []
        own = marks if self.mode in ("both", "ours") else []
        if own:
            # Ours is there at once, and busy while the real one starts.
            self.ours = self.submit(own, self.stack.enter_context(podium()))
        if asked:
            endpoint = self.stack.enter_context(conductor())
            self.version = version_of(endpoint)
            self.endpoint = endpoint
            self.oracle = self.submit(asked, endpoint)

    def submit(self, marks: list[Mark], endpoint: Endpoint) -> dict[str, Future[Json]]:
        pool = ThreadPoolExecutor(THREADS[endpoint.kind], thread_name_prefix=endpoint.kind)
        self.stack.callback(pool.shutdown, cancel_futures=True)
        # The longest first, or the session ends with one that everything waits for.
        known = self.known_seconds()
        order = sorted(marks, key=lambda mark: -known.get(timing(mark, endpoint), 60.0))
        return {mark.name: pool.submit(self.timed, mark, endpoint) for mark in order}

    def timed(self, mark: Mark, endpoint: Endpoint) -> Json:
        began = time.monotonic()
        try:
            return observe(mark, endpoint)
        except HICCUPS as error:
            if endpoint.kind == "podium":
                raise
            return next(self.asked_again(mark, endpoint, error))
        finally:
            self.seconds[timing(mark, endpoint)] = time.monotonic() - began

    def asked_again(
        self, mark: Mark, endpoint: Endpoint, error: BaseException | None = None
    ) -> Iterator[Json]:
        """Further answers of the real server, at most ASKED_AGAIN_MAX. On a busy machine its
        SQLite loses pushes to queues and its JOINs race with retries; ours has one chance only.
        Raises its last failure when it has come to no answer at all."""
        answered = False
        for _ in range(ASKED_AGAIN_MAX):
            self.again.append(mark.name)
            try:
                observation = observe(mark, endpoint)
            except HICCUPS as failure:
                error = failure
                continue
            answered = True
            yield observation
        if not answered and error is not None:
            raise error

    def check(self, mark: Mark) -> None:
        """Raise if the servers differ, or what either answered contradicts the case itself."""
        if self.mode == "record":
            recordings.write(mark.name, self.version, self.oracle[mark.name].result())
            return
        expected = self.expected(mark)
        if self.mode == "oracle":
            return
        observed = written(self.ours[mark.name].result())
        if expected is None:
            return
        if mark.difference is not None:
            assert observed != expected, f"no difference any more: {mark.difference}"
            return
        if observed != expected and self.endpoint is not None and not mark.recorded:
            for answer in self.asked_again(mark, self.endpoint):
                expected = written(answer)
                if observed == expected:
                    self.kept(mark).write_text(json.dumps(expected))
                    break
        assert observed == expected
        # 1 == True in Python, not in JSON.
        assert booleans(observed) == booleans(expected)

    def kept(self, mark: Mark) -> Path:
        """Where the last live answer to a case is remembered."""
        return self.cache / f"{mark.name}.json"

    def expected(self, mark: Mark) -> Json:
        """What the real server observed; None if that is unknown (only when it is not asked)."""
        if mark.recorded:
            return recordings.read(mark.name)
        kept = self.kept(mark)
        if mark.name in self.oracle:
            observation = written(self.oracle[mark.name].result())
            kept.write_text(json.dumps(observation))
            return observation
        return json.loads(kept.read_text()) if kept.exists() else None


ASKED_AGAIN_MAX = 3


def timing(mark: Mark, endpoint: Endpoint) -> str:
    return f"{mark.name} on {endpoint.kind}"


def written(observation: Json) -> Json:
    """As it is read back from JSON."""
    return json.loads(json.dumps(observation))


def booleans(value: Json) -> Json:
    """The value with each boolean as text."""
    if isinstance(value, dict):
        return {key: booleans(item) for key, item in value.items()}
    if isinstance(value, list):
        return [booleans(item) for item in value]
    return f"<{value}>" if isinstance(value, bool) else value
