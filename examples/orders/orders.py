"""The orders of the demo: what goes in, how each must end, and how to read how it did end.

The same number always gives the same order, so that two runs can be compared.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conductor.client.http.models.workflow import Workflow

from examples.orders import catalogue

NAMES = ("Ada", "Barbara", "Edsger", "Frances", "Grace", "Ken", "Leslie", "Margaret")


@dataclass(frozen=True)
class Order:
    order_id: str
    kind: str
    input: dict[str, Any]
    expected: str
    """The ending, in the words of `ending`."""


def make_orders(count: int) -> list[Order]:
    """Orders 1 to `count`. Each ten in a row hold every kind."""
    return [make_order(number) for number in range(1, count + 1)]


def make_order(number: int) -> Order:
    draw = random.Random(number)
    order_id = f"o-{number:04}"
    name = draw.choice(NAMES)
    sellable = [sku for sku in catalogue.PRICES if sku != catalogue.SOLD_OUT]
    order_input = {
        "orderId": order_id,
        "customer": {"name": name, "email": f"{name.lower()}@post.example"},
        "items": [
            {"sku": sku, "quantity": draw.randint(1, 4)}
            for sku in draw.sample(sellable, draw.randint(1, 3))
        ],
        "payment": {"method": "card", "cardNumber": catalogue.GOOD_CARD},
        "courier": catalogue.STEADY_COURIER,
    }
    kind, twist, expected = KINDS[(number - 1) % len(KINDS)]
    twist(order_input)
    return Order(order_id, kind, order_input, expected)


def pay_by_card(_order: dict[str, Any]) -> None:
    """As it is."""


def pay_by_paypal(order: dict[str, Any]) -> None:
    order["payment"] = {"method": "paypal", "account": order["customer"]["email"]}


def pay_by_empty_card(order: dict[str, Any]) -> None:
    order["payment"]["cardNumber"] = catalogue.EMPTY_CARD


def want_what_is_sold_out(order: dict[str, Any]) -> None:
    order["items"].append({"sku": catalogue.SOLD_OUT, "quantity": 1})


def send_by_shaky_courier(order: dict[str, Any]) -> None:
    order["courier"] = catalogue.SHAKY_COURIER


def leave_dead_mail_address(order: dict[str, Any]) -> None:
    order["customer"]["email"] = "nobody" + catalogue.DEAD_MAIL_DOMAIN


# What is special about the order, what makes it so, how it must end.
KINDS: tuple[tuple[str, Callable[[dict[str, Any]], None], str], ...] = (
    ("card", pay_by_card, "shipped, paid by card"),
    ("PayPal", pay_by_paypal, "shipped, paid by paypal"),
    ("declined card", pay_by_empty_card, "payment failed, compensated"),
    ("out of stock", want_what_is_sold_out, "refused, gold-stapler is sold out"),
    ("shaky courier", send_by_shaky_courier, "shipped at attempt 3, paid by card"),
    ("dead mail address", leave_dead_mail_address, "shipped, paid by card, no receipt"),
    ("card", pay_by_card, "shipped, paid by card"),
    ("PayPal", pay_by_paypal, "shipped, paid by paypal"),
    ("card", pay_by_card, "shipped, paid by card"),
    ("PayPal", pay_by_paypal, "shipped, paid by paypal"),
)


def ending(order: Order, workflow: Workflow, compensation: Workflow | None) -> str:
    """How the order ended, in a few words; anything that should not be is said too.

    `compensation` is the failure workflow that the engine started, if it did.
    """
    match workflow.status, workflow.output.get("outcome"):
        case "COMPLETED", "SHIPPED":
            return shipped(order, workflow)
        case "COMPLETED", "OUT_OF_STOCK":
            return f"refused, {' and '.join(workflow.output['missing'])} is sold out"
        case "FAILED", _:
            failed = [
                task.reference_task_name for task in workflow.tasks if task.status == "FAILED"
            ]
            return f"{' and '.join(failed)} failed, {compensated(order, compensation)}"
        case status, _:
            return f"{status}: {workflow.reason_for_incompletion}"


def shipped(order: Order, workflow: Workflow) -> str:
    output = workflow.output
    attempts = sum(task.reference_task_name == "book_courier" for task in workflow.tasks)
    words = ["shipped" if attempts == 1 else f"shipped at attempt {attempts}"]
    words.append(f"paid by {output['paidBy']}")
    if output["receipt"] == "COMPLETED_WITH_ERRORS":
        words.append("no receipt")
    right = {
        "total": total(order),
        "transactionId": f"{output['paidBy']}-{order.order_id}",
        "invoiceNumber": f"invoice-{order.order_id}",
        "trackingNumber": f"{order.input['courier']}-{order.order_id}",
    }
    words += [
        f"{name} {output.get(name)!r} instead of {value!r}"
        for name, value in right.items()
        if output.get(name) != value
    ]
    return ", ".join(words)


def compensated(order: Order, compensation: Workflow | None) -> str:
    if compensation is None:
        return "no compensation started"
    if compensation.status != "COMPLETED":
        return f"compensation {compensation.status}"
    released = compensation.output.get("released")
    if released != f"reservation-{order.order_id}":
        return f"compensated, but released {released}"
    return "compensated"


def total(order: Order) -> float:
    items = order.input["items"]
    return round(sum(catalogue.PRICES[item["sku"]] * item["quantity"] for item in items), 2)
