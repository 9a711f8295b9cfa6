"""Users that look: at single workflows, and for many. A wrong answer is a failed request."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from locust import task
from locust.env import Environment

from bench.locust_suite.scenarios import NAMES, workflow_name
from bench.locust_suite.session import PodiumUser

_OK = 200
_LATELY_MS = 5_000


class Reader(PodiumUser):
    """Reads workflows that this process started lately."""

    def wait_time(self) -> float:
        return random.uniform(0.1, 0.5)

    @task(3)
    def whole(self) -> None:
        self._read("?includeTasks=true", "read with tasks")

    @task(3)
    def header(self) -> None:
        self._read("?includeTasks=false", "read without tasks")

    @task(3)
    def status(self) -> None:
        self._read("/status", "read status")

    @task(1)
    def task_list(self) -> None:
        recent = self.session.ledger.recent
        if recent:
            _, _, workflow_id = random.choice(recent)
            self.call("GET", f"/workflow/{workflow_id}/tasks?count=20", "read tasks")

    def _read(self, rest: str, name: str) -> None:
        recent = self.session.ledger.recent
        if not recent:
            return
        _, key, workflow_id = random.choice(recent)
        answer = self.call("GET", f"/workflow/{workflow_id}{rest}", name)
        if answer.status == _OK and answer.content.get("correlationId") != key:
            self.report("GET", name, f"{workflow_id} is not the workflow of {key}")


class Searcher(PodiumUser):
    """Each turn one of SEARCHES."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._job = ""

    def wait_time(self) -> float:
        return random.uniform(0.5, 1.5)

    @task
    def search(self) -> None:
        name, find = random.choice(list(SEARCHES.items()))
        find(self, name)

    def running(self, name: str) -> None:
        """Open workflows of a definition that were started lately."""
        now_ms = int(time.time() * 1000)
        times = f"startTime={now_ms - _LATELY_MS}&endTime={now_ms}"
        self.call("GET", f"/workflow/running/{_any_name()}?{times}", name)

    def correlated(self, name: str) -> None:
        recent = self.session.ledger.recent
        if not recent:
            return
        scenario, key, workflow_id = random.choice(recent)
        path = f"/workflow/{workflow_name(scenario)}/correlated/{key}?includeClosed=true"
        answer = self.call("GET", path, name)
        # The search may lag behind; what it finds has to be right.
        if answer.status == _OK and any(run["workflowId"] != workflow_id for run in answer.content):
            self.report("GET", name, f"{key} found something else than {workflow_id}")

    def by_status_and_time(self, name: str) -> None:
        """A bulk job that changes nothing: it counts what a query finds."""
        query = {"name": _any_name(), "version": 1, "statuses": ["RUNNING"]}
        query["startTimeFrom"] = int(time.time() * 1000) - _LATELY_MS
        body = {"operation": "pause", "query": query, "dryRun": True}
        answer = self.call("POST", "/workflow/bulk/jobs", name, body)
        if answer.status == _OK:
            self._job = answer.content["id"]

    def job(self, name: str) -> None:
        if self._job:
            self.call("GET", f"/workflow/bulk/jobs/{self._job}", name)


SEARCHES: dict[str, Callable[[Searcher, str], Any]] = {
    "search running": Searcher.running,
    "search by correlation id": Searcher.correlated,
    "search by status and time": Searcher.by_status_and_time,
    "look at a job": Searcher.job,
}
"""By the name of their figures. A new kind of search is a method and a line here."""


def _any_name() -> str:
    return workflow_name(random.choice(NAMES))
