"""Runs the order demo against any server that speaks Conductor's API.

Registers the definitions, starts the workers, starts the orders, waits until all have ended, and
prints how each ended. Exit status 0 only if every one ended as it should.

    python -m examples.orders.run --server http://127.0.0.1:8080/api --orders 200
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from conductor.client.configuration.configuration import Configuration
from conductor.client.http.models.start_workflow_request import StartWorkflowRequest
from conductor.client.http.rest import ApiException
from conductor.client.orkes_clients import OrkesClients
from conductor.client.workflow_client import WorkflowClient

from examples.orders.orders import Order, ending, make_orders

DEFINITIONS = Path(__file__).parent / "definitions"
WORKFLOWS = ("payment.json", "compensation.json", "order_fulfilment.json")
ENDED = {"COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED"}
WORKERS_READY_S = 90
NO_PROGRESS_S = 60
STARTS_AT_ONCE = 4


@dataclass
class Result:
    order: Order
    workflow_id: str
    ended: str = "still running"
    seconds: float | None = None

    @property
    def is_right(self) -> bool:
        return self.ended == self.order.expected


class DemoFailed(Exception):
    """The demo cannot go on; the message tells the user why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the order-fulfilment demo.")
    parser.add_argument("--server", default="http://127.0.0.1:8080/api", help="the engine's API")
    parser.add_argument("--orders", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--exit", action="store_true", help="stop after the table")
    parser.add_argument("--log", type=Path, help="file for what the workers print")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    log = options.log or Path(tempfile.gettempdir()) / "orders-workers.log"
    clients = OrkesClients(Configuration(server_api_url=options.server))
    workflows = clients.get_workflow_client()
    try:
        register_definitions(clients)
        with workers_running(options.server, log):
            wait_for_workers(clients, log)
            results = start_orders(workflows, make_orders(options.orders))
            wait_for_orders(workflows, results)
            print_table(results)
            if not options.exit:
                stay_up(options.server)
    except KeyboardInterrupt:
        # Asked for; the context manager above has stopped the workers.
        print()
        return 130
    except DemoFailed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except (ApiException, httpx.HTTPError) as failure:
        print(f"\nThe engine at {options.server} refused: {failure}", file=sys.stderr)
        return 1
    return 0 if all(result.is_right for result in results) else 1


def register_definitions(clients: OrkesClients) -> None:
    """Task definitions first: a workflow definition copies those it uses."""
    metadata = clients.get_metadata_client()
    task_definitions = load("tasks.json")
    for definition in task_definitions:
        metadata.register_task_def(definition)
    for file_name in WORKFLOWS:
        metadata.update_workflow_def(load(file_name), overwrite=True)
    print(f"Registered {len(WORKFLOWS)} workflows and {len(task_definitions)} task types.")


def load(file_name: str) -> Any:
    return json.loads((DEFINITIONS / file_name).read_text())


@contextlib.contextmanager
def workers_running(server: str, log: Path) -> Iterator[None]:
    """The workers as a program of their own, as they would run in production."""
    command = [sys.executable, "-m", "examples.orders.workers", "--server", server]
    with log.open("ab") as output:
        # In a session of its own, so that Ctrl-C comes to us, and we stop it when we are done.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_workers(clients: OrkesClients, log: Path) -> None:
    """Until every type has been polled for, so that the times in the table are the engine's."""
    tasks = clients.get_task_client()
    waiting = {definition["name"] for definition in load("tasks.json")}
    count = len(waiting)
    progress = Progress()
    started_ms = time.time() * 1000
    deadline = time.monotonic() + WORKERS_READY_S
    while True:
        for task_type in sorted(waiting):
            polls = tasks.get_task_poll_data(task_type) or []
            if any(poll.last_poll_time >= started_ms for poll in polls):
                waiting.discard(task_type)
        progress.show(f"Workers: {count - len(waiting)} of {count} ask for tasks")
        if not waiting:
            break
        if time.monotonic() > deadline:
            names = ", ".join(sorted(waiting))
            raise DemoFailed(f"No worker asks for {names}; what the workers say is in {log}")
        time.sleep(0.2)
    progress.done()


def start_orders(workflows: WorkflowClient, orders: list[Order]) -> list[Result]:
    def start(order: Order) -> Result:
        request = StartWorkflowRequest(
            name="order_fulfilment",
            version=1,
            correlation_id=order.order_id,
            input=order.input,
        )
        return Result(order, workflow_id=workflows.start_workflow(request))

    results = []
    progress = Progress()
    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        for result in pool.map(start, orders):
            results.append(result)
            progress.show(f"Orders: {len(results)} of {len(orders)} started")
    progress.done()
    return results


def wait_for_orders(workflows: WorkflowClient, results: list[Result]) -> None:
    """Fills in how each ended, until all have or nothing has moved for a minute."""
    open_results = list(results)
    progress = Progress()
    last_end = time.monotonic()
    while open_results and time.monotonic() - last_end < NO_PROGRESS_S:
        for result in list(open_results):
            if look_at(workflows, result):
                open_results.remove(result)
                last_end = time.monotonic()
            ended = len(results) - len(open_results)
            progress.show(f"Orders: {ended} of {len(results)} ended")
        time.sleep(0.2 if open_results else 0)
    progress.done()


def look_at(workflows: WorkflowClient, result: Result) -> bool:
    """Whether the order has ended, and its compensation if it needs one; fills in how."""
    if workflows.get_workflow(result.workflow_id, include_tasks=False).status not in ENDED:
        return False
    workflow = workflows.get_workflow(result.workflow_id, include_tasks=True)
    compensation = None
    if compensation_id := workflow.output.get("conductor.failure_workflow"):
        compensation = workflows.get_workflow(compensation_id, include_tasks=False)
    result.ended = ending(result.order, workflow, compensation)
    result.seconds = (workflow.end_time - workflow.create_time) / 1000
    if workflow.status == "FAILED":
        return compensation is not None and compensation.status in ENDED
    return True


def print_table(results: list[Result]) -> None:
    print(f"\n{'order':<8} {'kind':<18} {'took':>8}         how it ended")
    for result in results:
        order = result.order
        took = "-" if result.seconds is None else f"{result.seconds:.2f} s"
        if result.is_right:
            print(f"{order.order_id:<8} {order.kind:<18} {took:>8}  ok     {result.ended}")
        else:
            print(f"{order.order_id:<8} {order.kind:<18} {took:>8}  WRONG  {result.ended}")
            print(f"{'':<37} should be: {order.expected} (workflow {result.workflow_id})")
    kinds = dict.fromkeys(result.order.kind for result in results)
    print(f"\n{'kind':<18} {'orders':>6} {'right':>6} {'median':>8} {'slowest':>8}")
    for kind in kinds:
        print_kind(kind, [result for result in results if result.order.kind == kind])
    right = sum(result.is_right for result in results)
    print(f"\n{right} of {len(results)} orders ended as they should.", flush=True)


def print_kind(kind: str, results: list[Result]) -> None:
    right = sum(result.is_right for result in results)
    seconds = [result.seconds for result in results if result.seconds is not None]
    median = f"{statistics.median(seconds):.2f} s" if seconds else "-"
    slowest = f"{max(seconds):.2f} s" if seconds else "-"
    print(f"{kind:<18} {len(results):>6} {right:>6} {median:>8} {slowest:>8}")


def stay_up(server: str) -> None:
    order_input = json.dumps(make_orders(1)[0].input)
    print(
        f"""
The engine and the workers stay up. Start one more order, and look at it by the id that comes back:

  curl -X POST {server}/workflow/order_fulfilment -H 'Content-Type: application/json' \\
    -d '{order_input}'
  curl {server}/workflow/THE-ID

Ctrl-C stops everything.""",
        flush=True,
    )
    while True:
        time.sleep(3600)


class Progress:
    """One line that rewrites itself; where there is no terminal, only its last state is printed."""

    def __init__(self) -> None:
        self.text = ""

    def show(self, text: str) -> None:
        self.text = text
        if sys.stdout.isatty():
            print(f"\r\033[K{text}", end="", flush=True)

    def done(self) -> None:
        print("" if sys.stdout.isatty() else self.text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
