"""Workers written with the official SDK, as a program of their own, for the tests of the SDK.

python -m tests.support.sdk_workers --server http://127.0.0.1:8080/api
"""

import argparse
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.context.task_context import get_task_context
from conductor.client.http.models.task import Task
from conductor.client.http.models.task_result import TaskResult
from conductor.client.http.models.task_result_status import TaskResultStatus
from conductor.client.worker.exception import NonRetryableException
from conductor.client.worker.worker_task import worker_task

POLL = {"thread_count": 2, "poll_timeout": 1000, "poll_interval_millis": 20}
worker: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]] = worker_task


@worker("sdk_add", **POLL)
def add(left: int, right: int) -> dict[str, Any]:
    """What comes back is a map."""
    return {"sum": left + right}


@worker("sdk_twice", **POLL)
def fail_twice(what: str) -> dict[str, Any]:
    """Fails on the first two attempts."""
    attempt = get_task_context().get_retry_count()
    if attempt < 2:
        raise ConnectionError(f"{what} is away")
    return {"attempt": attempt}


@worker("sdk_never", **POLL)
def fail_for_good(why: str) -> dict[str, Any]:
    """No further attempt helps."""
    raise NonRetryableException(why)


@worker("sdk_whole", **POLL)
def whole_task(task: Task) -> TaskResult:
    """Takes the task as it was polled and makes the result by hand, with a log line."""
    result = task.to_task_result(TaskResultStatus.COMPLETED)
    result.add_output_data("seen", task.input_data)
    result.log("one line from the worker")
    return result


@worker("sdk_domain", domain="green", **POLL)
def in_domain() -> dict[str, Any]:
    """Asks in a domain of its own."""
    return {"domain": "green"}


def main() -> None:
    """Work until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    options = parser.parse_args()
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    configuration = Configuration(server_api_url=options.server, log_level=logging.WARNING)
    # By its import name: the worker processes import it by name.
    with TaskHandler(
        configuration=configuration, import_modules=["tests.support.sdk_workers"]
    ) as handler:
        handler.start_processes()
        stop.wait()


if __name__ == "__main__":
    main()
