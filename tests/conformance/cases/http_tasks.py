"""HTTP tasks (rules 199-202), against a service of our own that both servers call."""

from __future__ import annotations

import atexit
from functools import cache
from itertools import count

from tests.conformance.harness import Json, Server, pick, rule, step
from tests.support.http_service import Answer, HttpService

_numbers = count()
TIMEOUTS = {"connectionTimeOut": 30_000, "readTimeOut": 30_000}


@cache
def service() -> HttpService:
    made = HttpService()
    atexit.register(made.close)
    return made


def path(*answers: Answer) -> str:
    """A path of the service that answers so, in turn."""
    fresh = f"/{next(_numbers)}"
    service().answer(fresh, *answers)
    return fresh


def http(at: str, method: str = "GET", request: Json = None, **fields: Json) -> Json:
    given = {"uri": service().url + at, "method": method, **TIMEOUTS, **(request or {})}
    return step("HTTP", "h", {"http_request": given}, **fields)


def response_of(task: Json) -> Json:
    """What both servers show alike of a response."""
    assert "reasonForIncompletion" not in task, task["reasonForIncompletion"]
    response = dict(task["outputData"]["response"])
    headers = {name.lower(): value for name, value in response.pop("headers").items()}
    return {**response, "contentType": headers.get("content-type")}


def called(server: Server, *answers: Answer, **request: Json) -> Json:
    run = server.ended(server.launch([http(path(*answers), request=request)]))
    [task] = run["tasks"]
    assert task["status"] == "COMPLETED", task.get("reasonForIncompletion")
    return response_of(task)


@rule(199, 200)
def bodies_of_http_responses(server: Server) -> Json:
    bodies = (b"[1, 2.5]", b"7", b'"text"', b"true", b"null", b"plain text", b"", b'{"a": 1}')
    return [called(server, Answer(body=body)) for body in bodies]


@rule(201)
def http_errors_fail_the_task(server: Server) -> Json:
    seen = []
    for status, body in ((404, b"gone"), (500, b'{"a": 1}'), (400, b"")):
        at = path(Answer(status, body))
        run = server.ended(server.launch([http(at)]))
        [task] = run["tasks"]
        reason, response = task["reasonForIncompletion"], task["outputData"]["response"]
        assert reason.startswith("Failed to invoke HTTP task due to: ")
        assert isinstance(response, str)
        assert reason.endswith(response)
        # Conductor says which class of Java it was as well.
        text = response.removeprefix("java.lang.Exception: ").replace(service().url + at, "URI")
        seen.append([run["status"], task["status"], text])
    return seen


@rule(201)
def an_http_service_that_is_not_there_fails_the_task(server: Server) -> Json:
    given = {"uri": "http://127.0.0.1:1/", "method": "GET"}
    run = server.ended(server.launch([step("HTTP", "h", {"http_request": given})]))
    [task] = run["tasks"]
    assert task["reasonForIncompletion"].startswith("Failed to invoke HTTP task due to: ")
    return [run["status"], task["status"], isinstance(task["outputData"]["response"], str)]


@rule(202)
def http_tasks_without_uri_or_method(server: Server) -> Json:
    seen = []
    for given in ({"method": "GET"}, {"uri": "http://127.0.0.1:1/"}):
        run = server.ended(server.launch([step("HTTP", "h", {"http_request": given})]))
        [task] = run["tasks"]
        seen.append([run["status"], pick(task, "status", "reasonForIncompletion", "outputData")])
    return seen
