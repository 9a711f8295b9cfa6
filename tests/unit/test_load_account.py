"""The ledger of a load test, and the account of it."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.locust_suite import account as accounts
from bench.locust_suite import ledger
from bench.locust_suite.account import Account
from bench.locust_suite.ledger import Intent, Ledger
from bench.locust_suite.scenarios import NAMES, plan_of, task_types, workflow_name
from bench.locust_suite.shapes import SHAPES, Load

Json = dict[str, Any]


class Answers:
    """A cluster, as far as an account sees it: workflows by id, found by correlation id."""

    def __init__(self) -> None:
        self.workflows: dict[str, Json] = {}
        self.unsearchable: set[str] = set()

    def run(self, intent: Intent, workflow_id: str, **fields: Any) -> Json:
        """A workflow that ended as planned, but for some fields."""
        plan = plan_of(intent.scenario, intent.number)
        failed = "FAILED" if plan.status == "COMPLETED" else "FAILED_WITH_TERMINAL_ERROR"
        attempts = [(ref, failed) for ref, times in plan.failures.items() for _ in range(times)]
        attempts += [(ref, "COMPLETED") for ref in plan.completed]
        workflow = {
            "workflowId": workflow_id,
            "workflowName": workflow_name(intent.scenario),
            "correlationId": intent.key,
            "status": plan.status,
            "output": plan.output,
            "tasks": [task(reference, status) for reference, status in attempts],
        } | fields
        self.workflows[workflow_id] = workflow
        return workflow

    def call(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "GET":
            found = self.workflows.get(path.split("?", maxsplit=1)[0].split("/")[2])
            return (404, None) if found is None else (200, found)
        name = path.split("/")[2]
        answer: dict[str, list[Json]] = {key: [] for key in body}
        for workflow_id, workflow in self.workflows.items():
            is_named = workflow["workflowName"] == name
            if is_named and workflow["correlationId"] in answer:
                if workflow_id not in self.unsearchable:
                    answer[workflow["correlationId"]].append(workflow)
        return 200, answer


def task(reference: str, status: str) -> Json:
    return {"taskType": "locust_any", "referenceTaskName": reference, "status": status}


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path / "one.ledger", "run-0")
    yield book
    book.close()


def take(book: Ledger, answers: Answers) -> Account:
    return accounts.take([book.path], answers.call, deadline_s=0)


def taken(book: Ledger, answers: Answers, scenario: str = "chain5", **fields: Any) -> Json:
    """One start that was acknowledged, and its workflow."""
    intent = book.intend(scenario)
    workflow_id = f"id-{intent.number}"
    book.took(intent, workflow_id)
    return answers.run(intent, workflow_id, **fields)


def test_all_is_well_when_every_scenario_ended_as_planned(book: Ledger, answers: Answers) -> None:
    for scenario in NAMES * 4:
        taken(book, answers, scenario)
    account = take(book, answers)
    assert account.problems == {}
    assert (account.intended, account.acknowledged) == (20, 20)
    assert (account.completed, account.failed_as_planned) == (16, 4)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"status": "RUNNING"}, "not ended"),
        ({"status": "TERMINATED"}, "ended otherwise"),
        ({"output": {"v": 99}}, "wrong output"),
        ({"tasks": []}, "task executed otherwise"),
    ],
)
def test_one_that_is_not_as_planned_is_a_problem(
    book: Ledger, answers: Answers, fields: Json, problem: str
) -> None:
    taken(book, answers)
    taken(book, answers, "simple1", **fields)
    assert take(book, answers).problems == {problem: 1}


def test_a_task_that_was_executed_twice_is_a_problem(book: Ledger, answers: Answers) -> None:
    workflow = taken(book, answers)
    workflow["tasks"].append(task("t3", "COMPLETED"))
    assert take(book, answers).problems == {"task executed otherwise": 1}


def test_a_failure_that_nobody_planned_is_a_problem(book: Ledger, answers: Answers) -> None:
    taken(book, answers)["tasks"].append(task("t3", "FAILED"))
    assert take(book, answers).problems == {"task failed otherwise": 1}


def test_an_attempt_that_timed_out_may_stand_for_one_that_was_to_fail(
    book: Ledger, answers: Answers
) -> None:
    workflow = taken(book, answers, "flaky")
    tasks = workflow["tasks"]
    tasks[[one["status"] for one in tasks].index("FAILED")]["status"] = "TIMED_OUT"
    account = take(book, answers)
    assert account.problems == {}
    assert account.attempts_timed_out == 1


def test_an_acknowledged_start_that_is_not_there_is_lost(book: Ledger, answers: Answers) -> None:
    workflow = taken(book, answers)
    del answers.workflows[workflow["workflowId"]]
    assert take(book, answers).problems == {"lost": 1}


def test_one_that_the_search_does_not_find_is_read_by_its_id(
    book: Ledger, answers: Answers
) -> None:
    answers.unsearchable.add(taken(book, answers)["workflowId"])
    assert take(book, answers).problems == {}


def test_a_start_that_happened_twice_is_a_problem(book: Ledger, answers: Answers) -> None:
    intent = book.intend("simple1")
    book.took(intent, "a")
    answers.run(intent, "a")
    answers.run(intent, "b")
    assert take(book, answers).problems == {"twice": 1}


def test_a_repeated_start_that_got_another_id_is_a_problem(book: Ledger, answers: Answers) -> None:
    intent = book.intend("simple1")
    for workflow_id in ("a", "a", "b"):
        book.took_again(intent, workflow_id)
        answers.run(intent, workflow_id)
    assert take(book, answers).problems == {"twice": 1}


def test_every_id_that_was_answered_must_be_there(book: Ledger, answers: Answers) -> None:
    intent = book.intend("simple1")
    book.took(intent, "a")
    book.took_again(intent, "b")
    answers.run(intent, "a")
    assert take(book, answers).problems == {"lost": 1, "twice": 1}


def test_a_refused_start_must_not_be_there(book: Ledger, answers: Answers) -> None:
    for _ in range(2):
        intent = book.intend("simple1")
        book.refuse(intent)
    answers.run(intent, "a")
    account = take(book, answers)
    assert account.problems == {"refused but there": 1}
    assert account.refused == 2


def test_a_start_without_an_answer_may_be_there_or_not_but_not_twice(
    book: Ledger, answers: Answers
) -> None:
    absent, once, twice = (book.intend("simple1") for _ in range(3))
    answers.run(once, "a")
    answers.run(twice, "b")
    answers.run(twice, "c")
    account = take(book, answers)
    assert account.problems == {"twice": 1}
    assert (account.unknown_absent, account.unknown_found) == (1, 2)
    assert absent.key not in "".join(account.examples)


def test_one_without_an_answer_that_did_not_end_is_a_problem(
    book: Ledger, answers: Answers
) -> None:
    answers.run(book.intend("simple1"), "a", status="RUNNING")
    assert take(book, answers).problems == {"not ended": 1}


def test_what_has_not_ended_yet_is_looked_at_again(book: Ledger, answers: Answers) -> None:
    workflow = taken(book, answers, status="RUNNING")
    for _ in range(200):
        taken(book, answers)
    asked: defaultdict[str, int] = defaultdict(int)

    def call(method: str, path: str, body: Any) -> tuple[int, Any]:
        for key in body:
            asked[key] += 1
        if asked[workflow["correlationId"]] == 2:
            workflow["status"] = "COMPLETED"
        return answers.call(method, path, body)

    account = accounts.take([book.path], call, deadline_s=60)
    assert account.problems == {}
    assert account.acknowledged == 201
    assert sum(asked.values()) == 202


def test_accounts_add_up() -> None:
    total = Account(intended=1, problems={"lost": 1}, examples=["a"])
    other = Account(intended=2, problems={"lost": 1, "twice": 1}, examples=["b"])
    total.add(other)
    assert total == Account(intended=3, problems={"lost": 2, "twice": 1}, examples=["a", "b"])


def test_a_ledger_is_read_as_it_was_written(book: Ledger) -> None:
    first, second, third = (book.intend(name) for name in ("simple1", "flaky", "doomed"))
    book.took(third, "id-3")
    book.refuse(first)
    assert list(ledger.read(book.path)) == [
        Intent(first.key, "simple1", 0, is_refused=True),
        second,
        Intent(third.key, "doomed", 2, ids=("id-3",)),
    ]


def test_a_line_that_a_killed_process_did_not_finish_says_nothing(book: Ledger) -> None:
    intent = book.intend("simple1")
    with book.path.open("a") as file:
        file.write(f"taken {intent.key} 01a1")
    assert list(ledger.read(book.path)) == [intent]


def test_reading_goes_on_before_it_knows_what_is_never_answered(
    book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_WINDOW", 10)
    lost = book.intend("simple1")
    for _ in range(50):
        intent = book.intend("simple1")
        book.took(intent, f"id-{intent.number}")
    found = list(ledger.read(book.path))
    assert [intent.number for intent in found[:40]] == list(range(1, 41))
    assert {intent.number for intent in found} == set(range(51))
    assert found[40] == lost


def test_what_is_written_for_another_look_is_the_same(book: Ledger, tmp_path: Path) -> None:
    for scenario in NAMES:
        intent = book.intend(scenario)
        book.took(intent, f"id-{intent.number}")
    book.refuse(book.intend("simple1"))
    book.intend("chain5")
    intents = list(ledger.read(book.path))
    assert ledger.write(tmp_path / "again", iter(intents)) == 7
    assert list(ledger.read(tmp_path / "again")) == intents


def test_each_task_type_is_polled_for_once() -> None:
    assert len(task_types()) == len(set(task_types())) == 10


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_never_asks_for_less_than_nothing(shape: str) -> None:
    load = Load(shape, rate=50, duration_s=100)
    rates = [load.rate_at(at_s) for at_s in range(101)]
    assert min(rates) >= 0
    assert max(rates) <= 150


def test_overload_begins_and_ends_with_what_is_normal() -> None:
    load = Load("overload", rate=50, duration_s=100, peak=4)
    assert [load.rate_at(at_s) for at_s in (0, 24, 25, 74, 75)] == [50, 50, 200, 200, 50]


def test_spikes_come_at_the_end_of_each_period() -> None:
    load = Load("spike", rate=10, duration_s=100, peak=3, period_s=20)
    assert [load.rate_at(at_s) for at_s in (0, 15, 16, 19, 20, 36)] == [10, 10, 30, 30, 10, 30]
