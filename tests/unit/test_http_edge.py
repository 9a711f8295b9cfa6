"""The HTTP edge: errors in Conductor's shape, query parameters, bodies that cannot be kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from cluster.errors import Conflict, Overloaded, ValidationFailed, Violation
from cluster.metrics import Metrics
from cluster.node.api import bodies
from cluster.node.middleware import Answer, Call, Edge, Route, plain

pytestmark = pytest.mark.asyncio

RESULT = bodies.reader(bodies.TaskResultBody)
BODY_MAX = 900_000


async def echo(call: Call) -> Answer:
    return plain(f"{call.path['word']} {call.text('q')} {call.integer('n', 7)} {len(call.body)}")


async def conflict(_call: Call) -> Answer:
    raise Conflict("not now")


async def busy(_call: Call) -> Answer:
    raise Overloaded("too much", retry_after_s=3)


async def invalid(_call: Call) -> Answer:
    raise ValidationFailed([Violation("m.arg0.a", "a is bad", "1"), Violation("m.arg0.b", "no")])


async def defect(_call: Call) -> Answer:
    raise KeyError("oops")


async def result(call: Call) -> Answer:
    read = bodies.read(RESULT, call.body)
    kept = bodies.optional_object(read.output_data, "outputData")
    return Answer(b"null" if kept is None else kept)


async def nothing(_call: Call) -> Answer:
    return Answer()


class Server:
    def __init__(self, session: ClientSession, url: str, metrics: Metrics) -> None:
        self.session, self.url, self.metrics = session, url, metrics

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        async with self.session.request(method, self.url + path, **options) as response:
            raw = await response.read()
            kind = response.headers.get("Content-Type", "")
            body = orjson.loads(raw) if kind == "application/json" else raw.decode()
            return response.status, body, response.headers


@asynccontextmanager
async def serving(*, body_bytes_max: int = BODY_MAX) -> AsyncIterator[Server]:
    metrics = Metrics()
    edge = Edge(metrics, body_bytes_max=body_bytes_max)
    routes = [
        Route("GET", "/api/words/{word}", echo),
        Route("POST", "/api/words/{word}", echo),
        Route("POST", "/api/conflict", conflict),
        Route("POST", "/api/busy", busy),
        Route("POST", "/api/invalid", invalid),
        Route("POST", "/api/defect", defect),
        Route("POST", "/api/result", result),
        Route("POST", "/api/nothing", nothing),
    ]
    edge.add(routes)
    runner = web.ServerRunner(edge.server())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with ClientSession() as session:
        yield Server(session, f"http://{host}:{port}", metrics)
    await runner.cleanup()


async def test_a_refusal_has_the_shape_of_conductor() -> None:
    async with serving() as server:
        status, body, headers = await server.call("POST", "/api/conflict")
        assert status == 409
        assert headers["Content-Type"] == "application/json"
        assert set(body) == {"status", "message", "instance", "retryable"}
        assert body["status"] == 409
        assert body["message"] == "not now"
        assert body["retryable"] is False


async def test_violations_are_listed_and_the_instance_is_not() -> None:
    async with serving() as server:
        status, body, _ = await server.call("POST", "/api/invalid")
        assert status == 400
        assert body == {
            "status": 400,
            "message": "Validation failed, check below errors for detail.",
            "retryable": False,
            "validationErrors": [
                {"path": "m.arg0.a", "message": "a is bad", "invalidValue": "1"},
                {"path": "m.arg0.b", "message": "no"},
            ],
        }


async def test_an_overloaded_server_says_when_to_come_back() -> None:
    async with serving() as server:
        status, body, headers = await server.call("POST", "/api/busy")
        assert status == 429
        assert headers["Retry-After"] == "3"
        assert body["retryAfterMs"] == 3_000
        assert body["retryable"] is True


async def test_a_defect_is_logged_once_and_tells_the_client_nothing() -> None:
    async with serving() as server:
        with capture_logs() as lines:
            status, body, _ = await server.call("POST", "/api/defect")
        assert status == 500
        assert "oops" not in body["message"]
        assert [(line["log_level"], line["route"]) for line in lines] == [("error", "/api/defect")]


async def test_user_mistakes_are_not_logged() -> None:
    async with serving() as server:
        with capture_logs() as lines:
            await server.call("POST", "/api/invalid")
            await server.call("POST", "/api/result", data=b"{nope")
            await server.call("GET", "/api/nowhere")
        assert lines == []


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/api/nowhere", 404, "No static resource api/nowhere."),
        ("GET", "/api/words/", 404, "No static resource api/words."),
        ("GET", "/", 404, "No static resource ."),
        ("DELETE", "/api/words/a", 405, "Request method 'DELETE' is not supported"),
        ("GET", "/api/conflict", 405, "Request method 'GET' is not supported"),
    ],
)
async def test_unknown_paths_and_methods(method: str, path: str, status: int, message: str) -> None:
    async with serving() as server:
        got, body, headers = await server.call(method, path)
        assert (got, body["message"]) == (status, message)
        if status == 405:
            assert headers["Allow"] in ("GET, POST", "POST")


async def test_names_in_paths_and_queries_are_decoded() -> None:
    async with serving() as server:
        path = "/api/words/a%2Fb%20%C3%A9?q=x%26y&q=z+1&n=-5"
        assert (await server.call("GET", path))[1] == "a/b é z 1 -5 0"
        assert (await server.call("GET", "/api/words/a?n="))[1] == "a None 7 0"


@pytest.mark.parametrize("number", ["x", "1.5", "99999999999999999999", "9223372036854775808", "١"])
async def test_a_number_that_is_none_is_refused(number: str) -> None:
    async with serving() as server:
        status, body, _ = await server.call("GET", "/api/words/a", params={"n": number})
        assert status == 400
        assert body["message"].startswith("Query parameter 'n' must be a whole number, not '")


@pytest.mark.parametrize("limit", [BODY_MAX, 1000])
async def test_a_body_over_the_limit_is_refused(limit: int) -> None:
    async with serving(body_bytes_max=limit) as server:
        status, body, _ = await server.call("POST", "/api/words/a", data=b"x" * (limit + 1))
        assert status == 413
        assert body["message"] == f"The body is larger than {limit} bytes"
        assert (await server.call("POST", "/api/words/a", data=b"x" * limit))[0] == 200


async def test_an_empty_answer_has_no_body_and_no_content_type() -> None:
    async with serving() as server:
        status, body, headers = await server.call("POST", "/api/nothing")
        assert (status, body) == (200, "")
        assert "Content-Type" not in headers
        assert headers["Content-Length"] == "0"


DEEP = b'{"outputData":{"a":' + b"[" * 253 + b"]" * 253 + b"}}"
TOO_DEEP = b'{"outputData":{"a":' + b"[" * 254 + b"]" * 254 + b"}}"
BOTTOMLESS = b'{"outputData":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
UNKNOWN_BOTTOMLESS = b'{"zz":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "Required request body is missing"),
        (b"  ", "Required request body is missing"),
        (b"{nope", "line 1 column 2"),
        (b'{"taskId":\n "a", }', "line 2"),
        (b'{"taskId":"a"', "line 1"),
        (b'{"taskId":"a"} x', "line 1 column 16"),
        (b"[1]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"taskId":5}', "Expected `str | null`, got `int` - at `$.taskId`"),
        (b'{"taskId":"\xff"}', "The body is no JSON"),
        (b'{"outputData":[1]}', "outputData must be a JSON object, not a list"),
        (b'{"outputData":"a"}', "outputData must be a JSON object, not a string"),
        (b'{"outputData":true}', "outputData must be a JSON object, not a boolean"),
        (b'{"outputData":{"a":"\xff"}}', "The body is no JSON: byte 21 is not UTF-8"),
        (b'{"outputData":{"a":"\\ud800"}}', "surrogate"),
        (b'{"outputData":{"a":NaN}}', "The body is no JSON"),
        (b'{"outputData":{"a":1e999}}', "outputData is no JSON that can be kept"),
        (b'{"outputData":{"a":1' + b"0" * 400 + b"}}", "outputData is no JSON that can be kept"),
        (TOO_DEEP, "outputData is nested deeper than 254 levels"),
        (BOTTOMLESS, "The body is no JSON"),
        (UNKNOWN_BOTTOMLESS, "The body is no JSON"),
        (b'{"callbackAfterSeconds":1.5}', "`$.callbackAfterSeconds`"),
        (b'{"callbackAfterSeconds":"x"}', "`$.callbackAfterSeconds`"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(body: bytes, says: str) -> None:
    async with serving() as server:
        status, answer, _ = await server.call("POST", "/api/result", data=body)
        assert status == 400
        assert says in answer["message"]


@pytest.mark.parametrize(
    "output",
    [
        b"{}",
        b'{"a": 1.50 ,"a":2, "big":123456789012345678901234567890, "e":1E5, "\xc3\xa9":"\\u00e9"}',
        DEEP[len(b'{"outputData":') : -1],
        b"null",
    ],
)
async def test_an_output_is_kept_byte_by_byte(output: bytes) -> None:
    body = b'{"unknown": {"x": [1]}, "outputData": ' + output + b' , "retryCount": 3}'
    async with (
        serving() as server,
        server.session.post(server.url + "/api/result", data=body) as response,
    ):
        assert response.status == 200
        assert await response.read() == output


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "nonsense", ""])
async def test_content_types_are_not_looked_at(kind: str) -> None:
    headers = {"Content-Type": kind, "Accept": "text/plain"}
    async with serving() as server:
        status, body, _ = await server.call("POST", "/api/result", data=b"{}", headers=headers)
        assert (status, body) == (200, None)


async def test_scalars_are_taken_as_conductor_takes_them() -> None:
    read = bodies.read(
        bodies.reader(bodies.StartBody),
        b'{"name":"n","version":"3","correlationId":7,"priority":null,"createdBy":true,"x":1}',
    )
    assert (read.version, bodies.as_text(read.correlation_id), read.priority) == (3, "7", None)
    assert bodies.as_text(read.created_by) == "true"


async def test_requests_are_counted_by_pattern_and_status() -> None:
    async with serving() as server:
        await server.call("GET", "/api/words/a")
        await server.call("GET", "/api/words/b")
        await server.call("GET", "/api/words/b?n=x")
        await server.call("GET", "/api/words/c")
        await server.call("GET", "/api/nowhere")
        shown = server.metrics.render().decode()
        line = 'http_requests_total{method="GET",route="/api/words/{word}",status="%d"} %d.0'
        assert line % (200, 3) in shown
        assert line % (400, 1) in shown
        assert 'route="/*",status="404"} 1.0' in shown
