"""The workers of the order workflow, written with Conductor's official Python SDK.

A worker is a plain function: the task's input parameters are its arguments, what it returns becomes
the task's output. What it raises decides how the workflow goes on: NonRetryableException fails the
task for good, any other exception lets the engine try again as the task's definition says (see
definitions/tasks.json).

The engine may hand out a task twice (a worker that died half-way), so whatever happens outside is
named after the order: charging twice under one transaction id is charging once.

    python -m examples.orders.workers --server http://127.0.0.1:8080/api
"""

import argparse
import logging
import signal
import threading
import time
from types import FrameType

from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.context.task_context import get_task_context
from conductor.client.worker.exception import NonRetryableException
from conductor.client.worker.worker_task import worker_task

from examples.orders import catalogue

# How each worker asks for work: up to four tasks at once; a poll waits 500 ms at the server for a
# task to turn up, so that an idle worker asks twice a second and still gets a new task at once.
POLL = {"thread_count": 4, "poll_timeout": 500, "poll_interval_millis": 50}


@worker_task("reserve_stock", **POLL)
def reserve_stock(order_id: str, items: list[dict]) -> dict:
    missing = [item["sku"] for item in items if catalogue.STOCK[item["sku"]] < item["quantity"]]
    if missing:
        return {"stock": "out_of_stock", "missing": missing}
    total = sum(catalogue.PRICES[item["sku"]] * item["quantity"] for item in items)
    return {
        "stock": "reserved",
        "reservationId": f"reservation-{order_id}",
        "total": round(total, 2),
    }


@worker_task("charge_card", **POLL)
def charge_card(order_id: str, amount: float, card_number: str) -> dict:
    work(0.02)
    if card_number == catalogue.EMPTY_CARD:
        # Asking the bank again would not help: the workflow fails, and its compensation starts.
        raise NonRetryableException(f"card declined: {amount} is above the limit")
    return {"transactionId": f"card-{order_id}", "amount": amount}


@worker_task("charge_paypal", **POLL)
def charge_paypal(order_id: str, amount: float, account: str) -> dict:
    work(0.03)
    return {"transactionId": f"paypal-{order_id}", "amount": amount, "account": account}


@worker_task("pack_order", **POLL)
def pack_order(order_id: str, items: list[dict]) -> dict:
    work(0.05)
    pieces = sum(item["quantity"] for item in items)
    return {"parcels": [f"{order_id}/{n}" for n in range(1, (pieces + 4) // 5 + 1)]}


@worker_task("create_invoice", **POLL)
def create_invoice(order_id: str, total: float, transaction_id: str) -> dict:
    return {"invoiceNumber": f"invoice-{order_id}", "total": total, "paidWith": transaction_id}


@worker_task("book_courier", **POLL)
def book_courier(order_id: str, courier: str, parcels: list[str]) -> dict:
    attempt = get_task_context().get_retry_count() + 1
    if courier == catalogue.SHAKY_COURIER and attempt <= 2:
        raise ConnectionError(f"{courier} does not answer (attempt {attempt})")
    return {"trackingNumber": f"{courier}-{order_id}", "parcels": len(parcels), "attempt": attempt}


@worker_task("send_receipt", **POLL)
def send_receipt(email: str, text: str) -> dict:
    if email.endswith(catalogue.DEAD_MAIL_DOMAIN):
        raise ValueError(f"no such mailbox: {email}")
    return {"sentTo": email, "characters": len(text)}


@worker_task("release_stock", **POLL)
def release_stock(order_id: str) -> dict:
    return {"released": f"reservation-{order_id}"}


def work(seconds: float) -> None:
    """Where a real worker would call a bank or a printer."""
    time.sleep(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs one process for each type of worker.")
    parser.add_argument("--server", default="http://127.0.0.1:8080/api", help="the engine's API")
    options = parser.parse_args()

    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    configuration = Configuration(server_api_url=options.server, log_level=logging.WARNING)
    # By its import name also when this file is the program: the worker processes import it by name.
    with TaskHandler(
        configuration=configuration, import_modules=["examples.orders.workers"]
    ) as handler:
        handler.start_processes()
        stop.wait()


if __name__ == "__main__":
    main()
