"""The account of a load test: what a ledger says, compared with a full read of every workflow.

    python -m bench.locust_suite.account --hosts URL[,URL] LEDGER...    of a run that broke off

Every start that was acknowledged must be there under the id that was answered, once, ended as
planned, each task executed as planned. A start that was refused must not be there. One that nobody
answered may be there or not, but not twice, and if it is, it must have ended like the others.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.locust_suite import ledger
from bench.locust_suite.api import Api, Unanswered
from bench.locust_suite.ledger import Intent
from bench.locust_suite.scenarios import Json, Plan, plan_of, workflow_name

_EXAMPLES = 20
_AT_A_TIME = 50
_READERS = 6
_ENDED = ("COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")

Answer = tuple[int, Any]
Call = Callable[[str, str, Any], Answer]


@dataclass
class Account:
    """Sums over one ledger or several; `problems` is empty if all is well."""

    intended: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown_found: int = 0
    unknown_absent: int = 0
    completed: int = 0
    failed_as_planned: int = 0
    attempts_failed: int = 0
    """Attempts that workers failed on purpose."""
    attempts_timed_out: int = 0
    """Attempts that were given to another worker because the first fell silent."""
    problems: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems

    def add_problem(self, kind: str, what: str) -> None:
        self.problems[kind] = self.problems.get(kind, 0) + 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{kind}: {what}")

    def add(self, other: Account) -> None:
        for name, value in asdict(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        self.problems = dict(Counter(self.problems) + Counter(other.problems))
        self.examples = (self.examples + other.examples)[:_EXAMPLES]

    def __str__(self) -> str:
        text = (
            f"{self.intended} starts: {self.acknowledged} acknowledged, {self.refused} refused, "
            f"{self.unknown_found + self.unknown_absent} without an answer "
            f"({self.unknown_found} of them happened); "
            f"{self.completed} completed, {self.failed_as_planned} failed as planned; "
            f"{self.attempts_failed} attempts failed on purpose, "
            f"{self.attempts_timed_out} given to another worker"
        )
        if self.is_good:
            return f"{text}; 0 lost, 0 twice"
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(self.problems.items()))
        return "\n  ".join([f"{text}; NOT AS IT SHOULD BE: {found}", *self.examples])


def take(
    paths: Sequence[Path],
    call: Call,
    *,
    deadline_s: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Account:
    """Read every workflow of these ledgers until all have ended, or the deadline has passed.

    Those that have not ended are written to a file beside the first ledger and looked at again,
    so that memory holds no list of them.
    """
    until = time.monotonic() + deadline_s
    account = Account()
    remaining: Iterable[Intent] = itertools.chain.from_iterable(map(ledger.read, paths))
    for turn in itertools.count():
        is_last = time.monotonic() >= until
        open_path = paths[0].with_suffix(f".open-{turn % 2}")
        count = ledger.write(open_path, _look(remaining, call, account, is_last=is_last))
        if not count or is_last:
            return account
        progress(f"{count} workflows have not ended yet")
        remaining = ledger.read(open_path)
        time.sleep(1)
    raise AssertionError


def judge(intent: Intent, found: Sequence[Json], account: Account, *, is_last: bool) -> bool:
    """Count one intent, whose workflows are `found`; False if it is too early to say."""
    ids = [str(workflow["workflowId"]) for workflow in found]
    missing = [one for one in intent.ids if one not in ids]
    ended = all(workflow["status"] in _ENDED for workflow in found)
    if (missing or not ended) and not is_last:
        return False
    account.intended += 1
    account.acknowledged += bool(intent.ids)
    if not intent.ids:
        account.refused += intent.is_refused
        account.unknown_found += bool(found) and not intent.is_refused
        account.unknown_absent += not found and not intent.is_refused
    for one in missing:
        account.add_problem("lost", f"{intent.key} was acknowledged as {one}, which is not there")
    if len({*ids, *intent.ids}) > 1:
        account.add_problem("twice", f"{intent.key} is {', '.join({*ids, *intent.ids})}")
    if found and intent.is_refused:
        account.add_problem("refused but there", f"{intent.key} is {ids[0]}")
    plan = plan_of(intent.scenario, intent.number)
    for workflow in found:
        for kind, what in _deviations(workflow, plan, account):
            account.add_problem(kind, f"{workflow['workflowId']} ({intent.key}) {what}")
    return True


def _deviations(workflow: Json, plan: Plan, account: Account) -> Iterator[tuple[str, str]]:
    status = workflow["status"]
    if status not in _ENDED:
        yield "not ended", f"is {status}"
        return
    if status != plan.status:
        yield "ended otherwise", f"is {status}, planned was {plan.status}"
        return
    account.completed += status == "COMPLETED"
    account.failed_as_planned += status == "FAILED"
    if (workflow.get("output") or {}).get("v") != plan.output.get("v"):
        yield "wrong output", f"has output {workflow.get('output')}, planned was {plan.output}"
    tasks = [task for task in workflow.get("tasks", ()) if task["taskType"].startswith("locust_")]
    attempts = Counter((task["referenceTaskName"], task["status"]) for task in tasks)
    for reference in {*plan.completed, *(reference for reference, _ in attempts)}:
        completed = attempts[reference, "COMPLETED"]
        timed_out = attempts[reference, "TIMED_OUT"]
        failed = attempts[reference, "FAILED"] + attempts[reference, "FAILED_WITH_TERMINAL_ERROR"]
        account.attempts_failed += failed
        account.attempts_timed_out += timed_out
        wanted = int(reference in plan.completed)
        if completed != wanted:
            yield (
                "task executed otherwise",
                f"completed {reference} {completed} times, not {wanted}",
            )
        planned = plan.failures.get(reference, 0)
        # An attempt that timed out took the number of one that was to fail.
        if not max(0, planned - timed_out) <= failed <= planned:
            yield "task failed otherwise", f"{reference} failed {failed} times, planned: {planned}"


def _look(
    intents: Iterable[Intent], call: Call, account: Account, *, is_last: bool
) -> Iterator[Intent]:
    """Account for those that can be accounted for, several reads at a time; yields the others."""
    left: list[Intent] = []
    errors: list[Exception] = []
    lock = threading.Lock()
    chunks = _chunks(intents)

    def work() -> None:
        while not errors:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            try:
                found = _found(chunk, call)
            except Unanswered as error:
                found = None
                if is_last:
                    errors.append(error)
                    return
            with lock:
                left.extend(
                    intent
                    for intent in chunk
                    if found is None
                    or not judge(intent, found.get(intent.key, ()), account, is_last=is_last)
                )

    threads = [threading.Thread(target=work, daemon=True) for _ in range(_READERS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or left:
        with lock:
            some, left[:] = left[:], []
        yield from some
        time.sleep(0.01)
    if errors:
        account.add_problem("not accounted for", str(errors[0]))


def _chunks(intents: Iterable[Intent]) -> Iterator[list[Intent]]:
    """Up to 50 of one definition each: the search by correlation ids takes one name."""
    waiting: dict[str, list[Intent]] = {}
    for intent in intents:
        chunk = waiting.setdefault(intent.scenario, [])
        chunk.append(intent)
        if len(chunk) == _AT_A_TIME:
            yield waiting.pop(intent.scenario)
    yield from waiting.values()


def _found(chunk: Sequence[Intent], call: Call) -> dict[str, list[Json]]:
    """All workflows of these intents, read whole from their owners."""
    name = workflow_name(chunk[0].scenario)
    path = f"/workflow/{name}/correlated?includeClosed=true&includeTasks=true"
    status, answer = call("POST", path, [intent.key for intent in chunk])
    if status != 200:
        raise Unanswered(f"POST {path}: {status} {answer}")
    found: dict[str, list[Json]] = {key: list(runs) for key, runs in answer.items()}
    for intent in chunk:
        runs = found.setdefault(intent.key, [])
        for one in {*intent.ids} - {str(run["workflowId"]) for run in runs}:
            # The search lags behind; what counts is whether the workflow itself is there.
            status, workflow = call("GET", f"/workflow/{one}?includeTasks=true", None)
            if status == 200:
                runs.append(workflow)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Accounts for the ledgers of a load test.")
    parser.add_argument("ledgers", nargs="+", type=Path, metavar="LEDGER")
    parser.add_argument("--hosts", default="http://127.0.0.1:8080", help="with commas between")
    parser.add_argument("--deadline", type=float, default=60, help="seconds to wait for open ones")
    options = parser.parse_args()
    api = Api(options.hosts.split(","))
    account = take(options.ledgers, api.call, deadline_s=options.deadline, progress=print)
    print(account)
    return 0 if account.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
