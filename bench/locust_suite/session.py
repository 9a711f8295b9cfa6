"""What all users of one process share, and how they speak to the cluster."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.runners import WorkerRunner

from bench.locust_suite.ledger import Ledger
from bench.locust_suite.options import hosts_of, load_of, mix_of

_RETRY_AFTER_S_MAX = 5.0
_PAUSE_S = 0.5
_BEHIND_S = 5.0
_REFUSED, _UNANSWERED = 429, 0
_JSON = {"Content-Type": "application/json"}


class Session:
    """One test in one process, from its start to its account."""

    current: Session | None = None

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert isinstance(options, argparse.Namespace)
        runner = environment.runner
        index = runner.worker_index if isinstance(runner, WorkerRunner) else 0
        self.options = options
        self.load = load_of(options)
        self.mix = mix_of(options)
        self.hosts = hosts_of(options)
        # Keys no test has used before, whatever it is called: the cluster remembers them.
        name = f"{index}-{uuid.uuid4().hex[:8]}"
        path = Path(options.ledgers) / options.run_id / f"worker-{name}.ledger"
        self.ledger = Ledger(path, f"{options.run_id}-{name}")
        self.began_s = time.monotonic()
        self.not_sent = 0
        """Starts that the shape wanted and that no producer was free to send."""
        self._turn = itertools.count(random.randrange(len(self.hosts)))

    def next_host(self) -> str:
        return self.hosts[next(self._turn) % len(self.hosts)]

    def pick_scenario(self) -> str:
        return random.choices(list(self.mix), weights=list(self.mix.values()))[0]


@dataclass(frozen=True)
class Answer:
    """`status` is 0 if none came, or one that cannot be read: nobody knows what happened."""

    status: int
    content: Any
    retry_after_s: float = 0

    @property
    def is_unknown(self) -> bool:
        return self.status == _UNANSWERED or self.status >= 500


class PodiumUser(FastHttpUser):
    """Goes on with another host when its own does not answer."""

    abstract = True
    network_timeout = 30.0
    connection_timeout = 10.0

    def __init__(self, environment: Environment) -> None:
        session = Session.current
        assert session is not None
        self.session = session
        self.options = session.options
        self.host = session.next_host()
        super().__init__(environment)

    def call(self, method: str, path: str, name: str, body: Any = None) -> Answer:
        """`name` groups requests in Locust's figures. A 429 is counted apart: it is no failure."""
        with self.client.request(
            method,
            f"{self.host}/api{path}",
            name=name,
            data=None if body is None else json.dumps(body),
            headers=_JSON,
            catch_response=True,
        ) as response:
            answer = _read(response)
            if answer.status == _REFUSED:
                response.request_meta["name"] = f"{name} (429)"
                response.success()
        if answer.status == _UNANSWERED:
            self.host = self.session.next_host()
            gevent.sleep(_PAUSE_S)
        return answer

    def insist(self, method: str, path: str, name: str, body: Any, *, until_s: float) -> Answer:
        """Send it again until there is an answer; for what may be sent twice."""
        while True:
            answer = self.call(method, path, name, body)
            passes = answer.is_unknown or answer.status == _REFUSED
            if not passes or time.monotonic() > until_s:
                return answer
            gevent.sleep(answer.retry_after_s or _PAUSE_S)

    def report(self, method: str, name: str, wrong: str) -> None:
        """An answer that was well-formed and yet wrong: counts as a failed request."""
        self.environment.events.request.fire(
            request_type=method,
            name=f"{name} (wrong)",
            response_time=0,
            response_length=0,
            exception=AssertionError(wrong),
            context={},
        )


class PacedUser(PodiumUser):
    """Does its part of the rate that the shape wants, at random moments as independent callers do.

    A user that falls behind makes up for it, by at most 5 s: what it leaves out is counted.
    """

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._due_s = time.monotonic() + self._gap_s(time.monotonic())

    @property
    def starts(self) -> int:
        """Workflows that a call starts."""
        return 1

    def share_of_rate(self) -> float:
        """Calls of this user, for each workflow per second that is wanted."""
        raise NotImplementedError

    def wait_time(self) -> float:
        now_s = time.monotonic()
        self._due_s += self._gap_s(self._due_s)
        while self._due_s < now_s - _BEHIND_S:
            self._due_s += self._gap_s(self._due_s)
            self.session.not_sent += self.starts
        return max(0.0, self._due_s - now_s)

    def _gap_s(self, at_s: float) -> float:
        rate = self.session.load.rate_at(at_s - self.session.began_s) * self.share_of_rate()
        # Never so long that it would sleep through a change of the rate.
        return min(random.expovariate(rate), 5.0) if rate > 0 else 1.0


def _read(response: ResponseContextManager) -> Answer:
    status = response.status_code or _UNANSWERED
    headers = response.headers or {}
    try:
        content = response.text if status else None
    except Exception as error:
        response.failure(error)
        return Answer(_UNANSWERED, None)
    try:
        decoded = json.loads(content) if content else None
    except ValueError:
        decoded = content
    try:
        after_s = min(float(headers.get("Retry-After", 0)), _RETRY_AFTER_S_MAX)
    except ValueError:
        after_s = 1.0
    return Answer(status, decoded, after_s)
