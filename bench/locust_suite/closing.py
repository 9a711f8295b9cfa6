"""The end of a test: what is open is worked off, then every process accounts for its ledger.

Locust tells workers to quit as soon as the shape is over. So the master tells them to close first,
and waits for their accounts; the sum decides how the run ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from bench.locust_suite import account as accounts
from bench.locust_suite.account import Account
from bench.locust_suite.api import Api
from bench.locust_suite.fleets import ExchangeWorker
from bench.locust_suite.options import title_of
from bench.locust_suite.session import Session

CLOSE, CLOSED = "podium_close", "podium_closed"
_DRAINERS = 3
_SLACK_S = 90
"""What a worker may take beside its drain: users that end, reads of all that it started."""
_log = logging.getLogger("podium")

Record = Callable[[dict[str, Any]], None]


class Closing:
    """Of one test after the other; on the master it gathers the accounts of all workers."""

    def __init__(self, environment: Environment, record: Record) -> None:
        self._environment = environment
        self._record = record
        self._accounts: dict[str, Account] = {}
        self._news = Event()
        self._workers: set[str] = set()
        self._is_open = False

    def begin(self) -> None:
        """A worker that takes part owes an account, even if it is not heard of any more."""
        runner = self._environment.runner
        self._accounts.clear()
        self._workers.clear()
        if isinstance(runner, MasterRunner):
            self._workers.update(client.id for client in runner.clients.all)
        else:
            Session.current = Session(self._environment)
        self._is_open = True

    def on_close(self, environment: Environment, msg: Message) -> None:
        """On a worker: stop the users as a stop by hand does; the rest follows from that."""
        assert environment.runner is not None
        environment.runner.stop()

    def on_closed(self, environment: Environment, msg: Message) -> None:
        self._accounts[msg.node_id] = Account(**msg.data)
        self._news.set()

    def close(self) -> None:
        """When the users of this process have stopped."""
        if not self._is_open:
            return
        self._is_open = False
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            self._judge(self._gather(runner))
        elif isinstance(runner, WorkerRunner):
            # In a greenlet of its own: this one reads the master's messages.
            gevent.spawn(self._send, runner)
        elif Session.current is not None:
            self._judge(settle(self._environment, Session.current))

    def _send(self, runner: WorkerRunner) -> None:
        if Session.current is None:
            account = Account()
        else:
            try:
                account = settle(self._environment, Session.current)
            except Exception as error:
                _log.exception("the account failed")
                account = Account()
                account.add_problem("not accounted for", repr(error))
        runner.send_message(CLOSED, asdict(account))

    def _gather(self, runner: MasterRunner) -> Account:
        options = self._environment.parsed_options
        assert options is not None
        for client_id in self._workers:
            runner.send_message(CLOSE, client_id=client_id)
        patience_s = options.drain + _SLACK_S + (self._environment.stop_timeout or 0)
        until_s = time.monotonic() + patience_s
        while self._workers - self._accounts.keys() and time.monotonic() < until_s:
            self._news.clear()
            self._news.wait(1)
        total = Account()
        for client_id in self._workers:
            if client_id in self._accounts:
                total.add(self._accounts[client_id])
            else:
                total.add_problem("not accounted for", f"no word from worker {client_id}")
        return total

    def _judge(self, account: Account) -> None:
        if account.is_good and not account.acknowledged:
            account.add_problem("not accounted for", "no start was acknowledged at all")
        _log.log(logging.INFO if account.is_good else logging.ERROR, "account: %s", account)
        assert self._environment.parsed_options is not None
        load = title_of(self._environment.parsed_options)
        self._record({"source": "account", "load": load, "text": str(account), **asdict(account)})
        if not account.is_good:
            self._environment.process_exit_code = 1


def settle(environment: Environment, session: Session) -> Account:
    """Work on until all that this process started has ended, and account for it."""
    options = session.options
    session.ledger.close()
    workers = [ExchangeWorker(environment) for _ in range(_DRAINERS)]
    is_over = Event()

    def drain(worker: ExchangeWorker) -> None:
        while not is_over.is_set():
            worker.work()
        worker.on_stop()

    draining = [gevent.spawn(drain, worker) for worker in workers]
    try:
        path = Path(session.ledger.path)
        account = accounts.take(
            [path], Api(session.hosts).call, deadline_s=options.drain, progress=_log.info
        )
    finally:
        is_over.set()
        gevent.joinall(draining, timeout=30)
    if session.not_sent:
        _log.warning("%s starts were not sent: too few producers", session.not_sent)
    return account
