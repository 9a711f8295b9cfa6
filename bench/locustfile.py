"""Load for a Podium cluster, and the account of it: see docs/benchmarking.md.

    locust -f bench/locustfile.py --headless --hosts http://a:8080,http://b:8080 --rate 100

The run fails (exit status 1) if a start that was acknowledged did not end as planned, or was
carried out twice.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import locust.runners
from locust import LoadTestShape, User, events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

# Locust puts this folder on the path, where bench.cluster would be found in place of `cluster`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.locust_suite import options as suite_options
from bench.locust_suite.api import Api
from bench.locust_suite.closing import CLOSE, CLOSED, Closing
from bench.locust_suite.fleets import BatchWorker, ExchangeWorker, SeveralTypesWorker
from bench.locust_suite.producers import BulkProducer, SingleProducer
from bench.locust_suite.readers import Reader, Searcher
from bench.locust_suite.recording import Recording
from bench.locust_suite.scenarios import task_definitions, workflow_definitions

USERS: Mapping[type[User], str] = {
    SingleProducer: "producers",
    BulkProducer: "bulk_producers",
    BatchWorker: "batch_workers",
    SeveralTypesWorker: "several_workers",
    ExchangeWorker: "exchange_workers",
    Reader: "readers",
    Searcher: "searchers",
}
"""And the option that says how many there are, over all processes."""
_STOP_TIMEOUT_S = 40
"""A user ends what it is about, so that no task stays in the hands of one that is gone."""

# Figures of each second from each worker, for the recording.
locust.runners.WORKER_REPORT_INTERVAL = 1.0


class Planned(LoadTestShape):
    """All users at once, for the time of the test: its shape is in the rate at which they start."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        if self.get_run_time() > options.duration:
            return None
        users = sum(getattr(options, option) for option in USERS.values())
        return users, users


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    suite_options.add(parser)


@events.init.add_listener
def begin(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    environment.stop_timeout = environment.stop_timeout or _STOP_TIMEOUT_S
    runner = environment.runner
    is_worker = isinstance(runner, WorkerRunner)
    if not is_worker:
        # On a worker the master's numbers hold.
        environment.user_classes = [one for one in USERS if getattr(options, USERS[one]) > 0]
        for user_class in environment.user_classes:
            user_class.fixed_count = getattr(options, USERS[user_class])
    recording = Recording("" if is_worker else options.record)
    closing = Closing(environment, recording.line)

    def on_test_start(**_: Any) -> None:
        if not is_worker:
            register(suite_options.hosts_of(options))
            text = suite_options.title_of(options)
            recording.line({"source": "mark", "text": text})
        closing.begin()

    def on_test_stop(**_: Any) -> None:
        recording.line({"source": "mark", "text": "drain"})
        closing.close()
        recording.line({"source": "mark", "text": ""})

    events.test_start.add_listener(on_test_start)
    events.test_stop.add_listener(on_test_stop)
    if isinstance(runner, MasterRunner):
        runner.register_message(CLOSED, closing.on_closed)
    elif isinstance(runner, WorkerRunner):
        # Beside what the worker reads next: its users take a while to stop.
        runner.register_message(CLOSE, closing.on_close, concurrent=True)
    gevent.spawn(recording.run, environment)


def register(hosts: list[str]) -> None:
    """The suite's definitions, before the first start."""
    api = Api(hosts)
    calls = (
        ("POST", "/metadata/taskdefs", task_definitions()),
        ("PUT", "/metadata/workflow", workflow_definitions()),
    )
    for method, path, body in calls:
        status, answer = api.call(method, path, body)
        if status not in (200, 204):
            raise SystemExit(f"{method} {path}: {status} {answer}")
    logging.getLogger("podium").info("definitions are registered")
