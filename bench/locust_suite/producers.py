"""Users that start workflows: one by one, and many in a request.

A refusal is one only if the start was sent once: of an earlier try that was not answered it says
nothing, and the start stays one of which nobody knows.
"""

from __future__ import annotations

import random
import time
from typing import Any

import gevent
from locust import task

from bench.locust_suite.ledger import Intent
from bench.locust_suite.scenarios import Json, input_of, workflow_name
from bench.locust_suite.session import PacedUser

_OK, _TOO_MANY = 200, 429
_NOT_DONE = (400, 404, 409, 413, _TOO_MANY)
_PATIENCE_S = 30
_PAUSE_S = 0.5


def start_request(intent: Intent, *, has_key: bool) -> Json:
    request = {
        "name": workflow_name(intent.scenario),
        "version": 1,
        "correlationId": intent.key,
        "input": input_of(intent.scenario, intent.number),
    }
    return request | ({"idempotencyKey": intent.key} if has_key else {})


class SingleProducer(PacedUser):
    """Every other start has an idempotency key, and is repeated until it is answered."""

    def share_of_rate(self) -> float:
        return (1 - self.options.bulk_share) / max(1, self.options.producers)

    @task
    def produce(self) -> None:
        ledger = self.session.ledger
        intent = ledger.intend(self.session.pick_scenario())
        has_key = intent.number % 2 == 0
        body = start_request(intent, has_key=has_key)
        answer = self.call("POST", "/workflow", "start", body)
        is_first = not (has_key and answer.is_unknown)
        if not is_first:
            until_s = time.monotonic() + _PATIENCE_S
            answer = self.insist("POST", "/workflow", "start again", body, until_s=until_s)
        if answer.status == _OK:
            ledger.took(intent, str(answer.content))
            if has_key and random.random() < self.options.repeat:
                again = self.call("POST", "/workflow", "start repeated", body)
                if again.status == _OK:
                    ledger.took_again(intent, str(again.content))
        elif answer.status in _NOT_DONE:
            if is_first:
                ledger.refuse(intent)
            gevent.sleep(answer.retry_after_s)


class BulkProducer(PacedUser):
    """Up to --bulk starts in a request, all with idempotency keys."""

    @property
    def starts(self) -> int:
        return int(self.options.bulk)

    def share_of_rate(self) -> float:
        return self.options.bulk_share / max(1, self.options.bulk_producers) / self.options.bulk

    @task
    def produce(self) -> None:
        intents = [
            self.session.ledger.intend(self.session.pick_scenario())
            for _ in range(self.options.bulk)
        ]
        until_s = time.monotonic() + _PATIENCE_S
        is_first = True
        while intents and time.monotonic() < until_s:
            body = [start_request(intent, has_key=True) for intent in intents]
            answer = self.call("POST", "/workflow/bulk/start", "bulk start", body)
            if answer.status == _OK:
                intents = self._note(intents, answer.content["results"], is_first=is_first)
            elif answer.status in _NOT_DONE:
                if is_first:
                    for intent in intents:
                        self.session.ledger.refuse(intent)
                gevent.sleep(answer.retry_after_s)
                return
            is_first = False
            if intents:
                gevent.sleep(_PAUSE_S)

    def _note(self, intents: list[Intent], results: list[Any], *, is_first: bool) -> list[Intent]:
        """Enters what was answered for each; returns those of which nobody knows."""
        unknown = []
        refused = 0
        for intent, result in zip(intents, results, strict=True):
            if result["status"] == _OK:
                self.session.ledger.took(intent, str(result["id"]))
            elif result["status"] not in _NOT_DONE:
                unknown.append(intent)
            elif is_first:
                self.session.ledger.refuse(intent)
                refused += result["status"] == _TOO_MANY
        if refused:
            gevent.sleep(1)
        return unknown
