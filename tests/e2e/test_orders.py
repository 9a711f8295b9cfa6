"""The order demo as a newcomer runs it: `make run`, our server, the unmodified official SDK."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from conductor.client.http.models.task import Task
from conductor.client.http.models.workflow import Workflow

from examples.orders.orders import KINDS, Order, ending, make_orders, total
from ops.children import free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180


class Demo:
    """`ops.run_demo` in a session of its own, as a terminal would run it."""

    def __init__(self, data: Path, port: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "ops.run_demo", "--port", str(port), "--data", str(data)]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def output_to_end(self) -> str:
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        return output

    def output_until(self, start_of_line: str) -> str:
        output = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            output += line
            if line.startswith(start_of_line):
                return output
        raise AssertionError(f"ended before {start_of_line!r}:\n{output}")

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)


def processes_with(text: str) -> list[str]:
    """Command lines of the running processes that have `text` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if text in command:
                found.append(command)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    for log in folder.glob("*.log"):
        print(f"--- {log.name}\n{log.read_text()[-4000:]}")  # noqa: T201


def test_every_order_ends_as_it_should_and_the_exit_status_says_so(data: Path) -> None:
    with Demo(data, free_port(), "--orders", "20", "--exit") as demo:
        output = demo.output_to_end()
    assert demo.process.returncode == 0, output
    assert "20 of 20 orders ended as they should." in output
    for kind, _twist, expected in KINDS:
        assert re.search(rf"^o-\d{{4}} +{kind} .* s  ok +{expected}$", output, re.MULTILINE), output
    assert processes_with(str(data)) == []


def test_ctrl_c_stops_engine_and_workers_and_the_state_stays(data: Path) -> None:
    with Demo(data, free_port(), "--orders", "10") as demo:
        output = demo.output_until("Ctrl-C stops everything.")
        assert "10 of 10 orders ended as they should." in output
        demo.press_ctrl_c()
        rest = demo.output_to_end()
    assert demo.process.returncode == 130, rest
    assert "Traceback" not in rest
    assert processes_with(str(data)) == []
    assert (data / "podium.db").stat().st_size > 0


def test_a_taken_port_is_said_in_words(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Demo(data, taken.getsockname()[1], "--exit") as demo:
            output = demo.output_to_end()
    assert demo.process.returncode == 1
    assert "The engine did not start" in output
    assert "address already in use" in output
    assert "Traceback" not in output


# That a wrong ending is seen, without a server that makes one.

SHIPPED = {
    "outcome": "SHIPPED",
    "paidBy": "card",
    "receipt": "COMPLETED",
    "transactionId": "card-o-0001",
    "invoiceNumber": "invoice-o-0001",
    "trackingNumber": "swift-o-0001",
}


def first_order() -> Order:
    return make_orders(1)[0]


def workflow(output: dict[str, Any], *, status: str = "COMPLETED", attempts: int = 1) -> Workflow:
    tasks = [Task(reference_task_name="book_courier", status="COMPLETED")] * attempts
    return Workflow(status=status, output=output, tasks=tasks)


def test_the_right_ending_is_recognised() -> None:
    order = first_order()
    right = workflow(SHIPPED | {"total": total(order)})
    assert ending(order, right, None) == order.expected


@pytest.mark.parametrize(
    "wrong",
    [
        workflow(SHIPPED | {"total": 0.01}),
        workflow(SHIPPED | {"total": total(first_order()), "trackingNumber": "swift-o-0002"}),
        workflow(SHIPPED | {"total": total(first_order()), "paidBy": "paypal"}),
        workflow(SHIPPED | {"total": total(first_order())}, attempts=2),
        workflow(SHIPPED | {"total": total(first_order())}, status="RUNNING"),
        workflow({}, status="COMPLETED"),
        workflow({}, status="FAILED"),
    ],
)
def test_a_wrong_ending_is_not_taken_for_right(wrong: Workflow) -> None:
    order = first_order()
    assert ending(order, wrong, None) != order.expected


def test_a_declined_order_needs_its_compensation() -> None:
    order = next(order for order in make_orders(10) if order.kind == "declined card")
    failed = Workflow(
        status="FAILED",
        output={},
        tasks=[Task(reference_task_name="payment", status="FAILED")],
    )
    undone = {"released": f"reservation-{order.order_id}"}
    assert ending(order, failed, Workflow(status="COMPLETED", output=undone)) == order.expected
    for compensation in (
        None,
        Workflow(status="FAILED", output=undone),
        Workflow(status="COMPLETED", output={"released": "reservation-o-0001"}),
    ):
        assert ending(order, failed, compensation) != order.expected


def test_orders_are_the_same_in_every_run() -> None:
    assert make_orders(30) == make_orders(40)[:30]
    assert {order.kind for order in make_orders(10)} == {kind for kind, _, _ in KINDS}
