"""HTTP tasks, as far as no node is needed: inputs, addresses, responses, tokens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from cluster.clock import SystemClock
from cluster.node.executors.http_addresses import AddressPolicy
from cluster.node.executors.http_requests import read_request
from cluster.node.executors.http_task import HttpTask, load_certificates
from cluster.system_tasks import Again, Done, Work, WorkFailed
from tests.support.http_service import Answer, HttpService, Request, as_json, http_service

Json = dict[str, Any]

REFUSED_ALWAYS = [
    "169.254.169.254",
    "169.254.0.9",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
]
PRIVATE = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "::ffff:10.0.0.1"]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
PUBLIC = ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"]


@pytest.mark.parametrize("address", REFUSED_ALWAYS)
def test_some_addresses_are_never_called(address: str) -> None:
    assert AddressPolicy(private=True, loopback=True).fault(address)


@pytest.mark.parametrize("address", [*PRIVATE, *LOOPBACK])
def test_others_are_by_setting(address: str) -> None:
    assert AddressPolicy(private=False, loopback=False).fault(address)
    assert AddressPolicy(private=True, loopback=True).fault(address) is None
    is_loopback = address in LOOPBACK
    assert (AddressPolicy(private=True, loopback=False).fault(address) is None) != is_loopback


@pytest.mark.parametrize("address", PUBLIC)
def test_the_rest_is_called(address: str) -> None:
    assert AddressPolicy(private=False, loopback=False).fault(address) is None


def request_of(**fields: Any) -> Any:
    given = {"uri": "http://a", "method": "get", **fields}
    return read_request({"http_request": given}, idempotency_key="t1")


def test_a_request_has_conductors_defaults() -> None:
    request = request_of()
    assert request.method == "GET"
    assert (request.connect_timeout_ms, request.read_timeout_ms) == (3000, 3000)
    assert request.headers == {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Idempotency-Key": "t1",
    }
    assert read_request({"uri": "http://b", "method": "PUT"}, idempotency_key="").uri == "http://b"


def test_headers_of_the_definition_replace_those() -> None:
    given = {"idempotency-key": "mine", "X-Count": 3, "X-None": None, "ACCEPT": "text/plain"}
    headers = request_of(headers=given).headers
    assert headers == {
        "Accept": "text/plain",
        "Content-Type": "application/json",
        "Idempotency-Key": "mine",
        "X-Count": "3",
    }


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        (None, None, None),
        ("as it is", None, b"as it is"),
        ({"a": [1, None]}, None, b'{"a":[1,null]}'),
        ([1], "application/json", b"[1]"),
        ({"a": "x y", "b": [1, True]}, "application/x-www-form-urlencoded", b"a=x+y&b=1&b=true"),
    ],
)
def test_bodies(body: Any, content_type: str | None, sent: bytes | None) -> None:
    assert request_of(body=body, contentType=content_type).body == sent


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "Missing HTTP request."),
        ({"http_request": "x"}, "http_request must be an object"),
        ({"http_request": {"method": "GET"}}, "Missing HTTP URI."),
        ({"http_request": {"uri": "http://a"}}, "No HTTP method specified"),
        ({"uri": "http://a", "method": "BREW"}, "There is no HTTP method BREW"),
        ({"uri": "http://a", "method": "GET", "headers": []}, "http_request.headers must be"),
        ({"uri": "http://a", "method": "GET", "readTimeOut": "x"}, "http_request.readTimeOut"),
        ({"uri": "http://a", "method": "GET", "oauth2": {}}, "http_request.oauth2: "),
    ],
)
def test_what_makes_no_request_is_said(value: Json, reason: str) -> None:
    with pytest.raises(WorkFailed) as failed:
        read_request(value, idempotency_key="")
    assert failed.value.reason.startswith(reason)


def test_certificates_are_named(tmp_path: Any) -> None:
    assert load_certificates("") == {}
    for text in ("x", "x=/only/one", "=a:b"):
        with pytest.raises(ValueError):
            load_certificates(text)
    with pytest.raises(OSError):
        load_certificates(f"x={tmp_path}/no.pem:{tmp_path}/no.key")


# -- against a service


@pytest.fixture
def service() -> Any:
    with http_service() as service:
        yield service


async def _no_script(language: str, source: str, value: bytes) -> bytes:
    raise AssertionError(source)


@asynccontextmanager
async def opened(
    *,
    loopback: bool = True,
    bytes_max: int = 10_000,
    evaluate: Callable[[str, str, bytes], Any] = _no_script,
) -> AsyncIterator[HttpTask]:
    task = HttpTask(
        addresses=AddressPolicy(private=True, loopback=loopback),
        evaluate=evaluate,
        certificates={},
        response_bytes_max=bytes_max,
        clock=SystemClock(),
    )
    await task.open()
    try:
        yield task
    finally:
        await task.close()


def call(uri: str, *, poll_count: int = 1, options: Json | None = None, **fields: Any) -> Any:
    """What a request comes to: Done, Again, or the WorkFailed."""

    async def carry_out() -> Any:
        work = Work(
            task_id="t1",
            task_type="HTTP",
            workflow_instance_id="w1",
            workflow_type="w",
            reference_task_name="call",
            input_data={"http_request": {"uri": uri, "method": "GET", **fields}},
            poll_count=poll_count,
        )
        async with opened(**(options or {})) as task:
            try:
                return await task.execute(work)
            except WorkFailed as failed:
                return failed

    return asyncio.run(carry_out())


def body_of(outcome: Any) -> Any:
    assert isinstance(outcome, Done), getattr(outcome, "reason", outcome)
    return outcome.output["response"]["body"]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b'{"a": [1, 2.5]}', {"a": [1, 2.5]}),
        (b"[]", []),
        (b"7", 7.0),
        (b'"text"', "text"),
        (b"true", "true"),
        (b"null", "null"),
        (b"no json", "no json"),
        (b"", None),
        ("grün".encode(), "grün"),
    ],
)
def test_a_body_is_read_as_conductor_reads_it(
    service: HttpService, sent: bytes, shown: Any
) -> None:
    service.answer("/x", Answer(body=sent))
    body = body_of(call(f"{service.url}/x"))
    assert (body, type(body)) == (shown, type(shown))


def test_headers_that_come_twice_are_lists(service: HttpService) -> None:
    service.answer("/x", Answer(headers={"X-A": "1", "x-a": "2"}))
    outcome = call(f"{service.url}/x")
    response = outcome.output["response"]
    assert response["headers"]["X-A"] + response["headers"].get("x-a", []) == ["1", "2"]


def test_an_error_status_fails_with_its_text(service: HttpService) -> None:
    service.answer("/x", Answer(404, b"gone"), Answer(500, b""))
    failed = call(f"{service.url}/x?key=hush")
    text = f'404 Not Found on GET request for "{service.url}/x": "gone"'
    assert failed.reason == f"Failed to invoke HTTP task due to: {text}"
    assert failed.output == {"response": text}
    assert call(f"{service.url}/x").output["response"].endswith(": [no body]")


def test_nobody_there(service: HttpService) -> None:
    failed = call("http://127.0.0.1:1/x")
    assert failed.reason.startswith("Failed to invoke HTTP task due to: ")
    assert failed.output["response"] in failed.reason
    assert call("ftp://127.0.0.1/x").reason
    assert call("not a uri").reason


def test_a_service_that_keeps_silent_times_out(service: HttpService) -> None:
    held = threading.Event()
    service.answer("/x", Answer(wait=held))
    failed = call(f"{service.url}/x", readTimeOut=100)
    held.set()
    assert "due to: " in failed.reason


def test_a_large_body_is_refused(service: HttpService) -> None:
    service.answer("/x", Answer(body=b"x" * 10_001))
    assert call(f"{service.url}/x").reason == "The response is larger than 10000 bytes"
    service.answer("/x", Answer(body=b"x" * 10_000))
    assert len(body_of(call(f"{service.url}/x"))) == 10_000


def test_an_address_that_is_not_allowed_is_not_called(service: HttpService) -> None:
    port = service.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
        failed = call(f"http://{host}:{port}/x", options={"loopback": False})
        assert isinstance(failed, WorkFailed), host
    assert service.requests == []
    failed = call(f"{service.url}/x", options={"loopback": False})
    assert "http_loopback_addresses" in failed.reason


def test_a_redirect_is_checked_again(service: HttpService) -> None:
    away = {"Location": "http://169.254.169.254/latest/meta-data"}
    service.answer("/x", Answer(302, headers=away))
    failed = call(f"{service.url}/x")
    assert "metadata service" in failed.reason
    service.answer("/x", Answer(302, headers={"Location": "/y"}))
    assert body_of(call(f"{service.url}/x")) == {"ok": True}


def test_a_post_is_not_redirected(service: HttpService) -> None:
    service.answer("/x", Answer(302, b"there", {"Location": "/y"}))
    failed = call(f"{service.url}/x", method="POST", body={})
    assert failed.reason == "No response from the remote service"
    assert failed.output["response"]["statusCode"] == 302
    assert [request.path for request in service.requests] == ["/x"]


def test_no_cookie_goes_from_one_task_to_another(service: HttpService) -> None:
    service.answer("/x", Answer(headers={"Set-Cookie": "a=b"}))
    # No jar takes a cookie from a mere address.
    uri = service.url.replace("127.0.0.1", "localhost") + "/x"

    async def twice() -> None:
        work = Work(
            task_id="t1",
            task_type="HTTP",
            workflow_instance_id="w1",
            workflow_type="w",
            reference_task_name="call",
            input_data={"http_request": {"uri": uri, "method": "GET"}},
        )
        async with opened() as task:
            await task.execute(work)
            await task.execute(work)

    asyncio.run(twice())
    assert [request.headers.get("cookie") for request in service.requests] == [None, None]


# -- tokens

OAUTH = {"clientId": "me", "clientSecret": "hush", "scope": "read"}


def test_a_token_is_asked_for_once_and_sent_with_every_call(service: HttpService) -> None:
    service.answer("/token", as_json({"access_token": "tok", "expires_in": 3600}))
    value = {
        "http_request": {
            "uri": f"{service.url}/x",
            "method": "GET",
            "oauth2": {**OAUTH, "tokenUri": f"{service.url}/token"},
        }
    }

    async def many() -> None:
        work = Work(
            task_id="t1",
            task_type="HTTP",
            workflow_instance_id="w1",
            workflow_type="w",
            reference_task_name="call",
            input_data=value,
        )
        async with opened() as task:
            await asyncio.gather(*(task.execute(work) for _ in range(5)))

    asyncio.run(many())
    [asked] = service.got("/token")
    assert asked.body == b"grant_type=client_credentials&scope=read"
    assert asked.headers["authorization"] == "Basic bWU6aHVzaA=="
    calls = service.got("/x", 5)
    assert {request.headers["authorization"] for request in calls} == {"Bearer tok"}


def test_a_token_that_is_not_taken_is_asked_for_anew_once(service: HttpService) -> None:
    tokens = iter(["old", "new", "newer"])
    service.answers["/token"] = lambda _: as_json({"access_token": next(tokens)})

    def guarded(request: Request) -> Answer:
        return Answer(200 if request.headers["authorization"] == "Bearer new" else 401)

    service.answers["/x"] = guarded
    oauth = {**OAUTH, "tokenUri": f"{service.url}/token", "clientAuthentication": "post"}
    assert body_of(call(f"{service.url}/x", oauth2=oauth)) == {"ok": True}
    assert len(service.got("/token", 2)) == 2
    service.answers["/x"] = lambda _: Answer(401)
    tokens = iter(["a", "b", "c"])
    assert "401" in call(f"{service.url}/x", oauth2=oauth).reason


@pytest.mark.parametrize("answer", [Answer(400), Answer(200, b"{}"), Answer(200, b"no json")])
def test_without_a_token_the_call_fails_and_says_why(service: HttpService, answer: Answer) -> None:
    service.answer("/token", answer)
    oauth = {**OAUTH, "tokenUri": f"{service.url}/token"}
    failed = call(f"{service.url}/x", oauth2=oauth)
    assert failed.reason.startswith(f"No token from {service.url}/token: ")
    assert "hush" not in failed.reason


# -- until a condition holds


@pytest.mark.parametrize(
    ("fields", "poll_count", "pause_s"),
    [
        ({}, 1, 60),
        ({"pollingInterval": 5}, 4, 5),
        ({"pollingInterval": 5, "pollingStrategy": "LINEAR_BACKOFF"}, 3, 15),
        ({"pollingInterval": "5", "pollingStrategy": "EXPONENTIAL_BACKOFF"}, 4, 40),
        ({"pollingInterval": 3600, "pollingStrategy": "EXPONENTIAL_BACKOFF"}, 40, 86400),
    ],
)
def test_the_call_is_repeated_until_the_condition_holds(
    service: HttpService, fields: Json, poll_count: int, pause_s: int
) -> None:
    seen: list[Any] = []
    verdicts = [b"false", b"true"]

    async def evaluate(language: str, source: str, value: bytes) -> bytes:
        seen.append((language, source, orjson.loads(value)["output"]["response"]["body"]))
        return verdicts.pop(0)

    outcomes = [
        call(
            f"{service.url}/x",
            terminationCondition="$.done",
            poll_count=poll_count,
            options={"evaluate": evaluate},
            **fields,
        )
        for _ in range(2)
    ]
    assert isinstance(outcomes[0], Again)
    assert outcomes[0].after_s == pause_s
    assert body_of(outcomes[1]) == {"ok": True}
    assert seen == [("javascript", "$.done", {"ok": True})] * 2
