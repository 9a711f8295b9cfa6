"""Users that work: they poll in batches, take the time that --latency says, and report."""

from __future__ import annotations

import itertools
import random
import time
from urllib.parse import urlencode

import gevent
from locust import task
from locust.env import Environment

from bench.locust_suite.scenarios import Json, result_of, task_types
from bench.locust_suite.session import PodiumUser

_POLL_MS = 1000
_PATIENCE_S = 120
_OK = 200
_numbers = itertools.count()


class Worker(PodiumUser):
    """A result is sent until it is taken: it counts once, however often it comes."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.number = next(_numbers)
        self.worker_id = f"{self.session.ledger.path.stem}-{self.number}"

    def wait_time(self) -> float:
        return 0

    def results_of(self, tasks: list[Json]) -> list[Json]:
        """Works at all of a batch at a time."""
        if tasks:
            gevent.sleep(latency_s(self.options.latency))
        return [result_of(one, self.worker_id) for one in tasks]

    def poll(self, path: str, name: str, **query: str | list[str]) -> list[Json]:
        query |= {"count": str(self.options.batch), "timeout": str(_POLL_MS)}
        query["workerid"] = self.worker_id
        answer = self.call("GET", f"{path}?{urlencode(query, doseq=True)}", name)
        if answer.status != _OK or not answer.content:
            gevent.sleep(answer.retry_after_s)
            return []
        tasks: list[Json] = answer.content
        return tasks

    def until_s(self) -> float:
        return time.monotonic() + _PATIENCE_S


class BatchWorker(Worker):
    """As official SDKs do: one type, a result per request."""

    @task
    def work(self) -> None:
        types = task_types()
        task_type = types[self.number % len(types)]
        for result in self.results_of(self.poll(f"/tasks/poll/batch/{task_type}", "poll")):
            self.insist("POST", "/tasks", "result", result, until_s=self.until_s())


class SeveralTypesWorker(Worker):
    """One poll for all types, one request for all results."""

    @task
    def work(self) -> None:
        results = self.results_of(self.poll("/tasks/poll/batch", "poll all", type=task_types()))
        until_s = self.until_s()
        while results and time.monotonic() < until_s:
            path = "/tasks/bulk/update"
            answer = self.insist("POST", path, "bulk results", results, until_s=until_s)
            results = not_taken(results, answer.content)


class ExchangeWorker(Worker):
    """Results for tasks, in one round trip."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._results: list[Json] = []

    @property
    def is_idle(self) -> bool:
        return not self._results

    @task
    def work(self) -> None:
        self.exchange()

    def on_stop(self) -> None:
        """Report what is in hand, and take nothing more."""
        until_s = self.until_s()
        while self._results and time.monotonic() < until_s:
            self.exchange(polls=False)

    def exchange(self, *, polls: bool = True) -> None:
        poll = {"types": task_types(), "count": self.options.batch, "workerId": self.worker_id}
        # It waits for tasks only if nobody waits for what it reports.
        poll["timeout"] = 0 if self._results else _POLL_MS
        body = {"results": self._results} | ({"poll": poll} if polls else {})
        answer = self.call("POST", "/tasks/exchange", "exchange", body)
        if answer.status != _OK:
            gevent.sleep(answer.retry_after_s or 0.5)
            return
        remaining = not_taken(self._results, answer.content)
        self._results = remaining + self.results_of(answer.content.get("tasks") or [])


def not_taken(results: list[Json], answer: Json | None) -> list[Json]:
    """Those of which nobody knows whether they were taken: to be sent again."""
    if not isinstance(answer, dict):
        return results
    statuses = [one["status"] for one in answer["results"]]
    return [
        result
        for result, status in zip(results, statuses, strict=True)
        if status == 429 or status >= 500
    ]


def latency_s(kind: str) -> float:
    match kind:
        case "prompt":
            return 0
        case "slow":
            return random.uniform(0.2, 1)
        case "erratic" if random.random() < 0.05:
            return 3
        case _:
            return random.uniform(0.01, 0.05)
