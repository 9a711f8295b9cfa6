"""Scripts run in processes of their own: what they yield, and what they cannot do to others."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.node.executors import script_worker as worker
from cluster.node.executors.scripts import (
    Language,
    ScriptFailed,
    ScriptPool,
    check_javascript,
)

JAVASCRIPT, FUNCTION, JQ = Language.JAVASCRIPT, Language.FUNCTION, Language.JQ
MEMORY_BYTES = 32 * 1024 * 1024
INPUT = {"x": 7, "l": [1, 2, 3], "o": {"a": 1}, "s": "str", "f": 1.0, "z": None}


@asynccontextmanager
async def running(
    *, workers: int = 2, time_limit_ms: int = 4_000, memory_bytes: int = MEMORY_BYTES
) -> AsyncIterator[ScriptPool]:
    pool = ScriptPool(workers=workers, time_limit_ms=time_limit_ms, memory_bytes=memory_bytes)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def outcome(
    pool: ScriptPool, source: str, language: Language = JAVASCRIPT, value: Any = INPUT
) -> Any:
    """The decoded result, or the failure."""
    try:
        return json.loads(await pool.evaluate(language, source, json.dumps(value).encode()))
    except ScriptFailed as failure:
        return failure


# What the real server answers for the same scripts, unless a comment says otherwise.
RESULTS = [
    (JAVASCRIPT, "1+1", 2),
    (JAVASCRIPT, "1.0", 1),
    (JAVASCRIPT, "1.5", 1.5),
    (JAVASCRIPT, "2**31", 2**31),
    (JAVASCRIPT, "1e21", 1e21),
    (JAVASCRIPT, "100000000000000000000", 1e20),
    (JAVASCRIPT, "0.1+0.2", 0.1 + 0.2),
    (JAVASCRIPT, "NaN", "NaN"),
    (JAVASCRIPT, "-1/0", "-Infinity"),
    (JAVASCRIPT, "-0", -0.0),
    (JAVASCRIPT, "undefined", None),
    (JAVASCRIPT, "null", None),
    (JAVASCRIPT, "true", True),
    (JAVASCRIPT, "'ü\\ud83d\\ude00'", "ü😀"),
    (JAVASCRIPT, "[1,2,undefined,NaN]", [1, 2, None, "NaN"]),
    (JAVASCRIPT, "[,1]", [None, 1]),
    (
        JAVASCRIPT,
        "({a:1,b:undefined,c:function(){},d:Symbol('x')})",
        {"a": 1, "b": None, "c": {}, "d": {}},
    ),
    (JAVASCRIPT, "(function(){return 1})", {}),
    (JAVASCRIPT, "Symbol('x')", {}),
    (JAVASCRIPT, "10n", 10),
    (JAVASCRIPT, "/a/g", {}),
    (JAVASCRIPT, "new Map([[1,2]])", {"1": 2}),
    (JAVASCRIPT, "new Set([1])", {}),
    (JAVASCRIPT, "new Uint8Array([1,2])", [1, 2]),
    (JAVASCRIPT, "new String('a')", "a"),
    (JAVASCRIPT, "new Error('x')", {}),
    (JAVASCRIPT, "Object.create({a:1})", {}),
    (JAVASCRIPT, "({1:2,'b':3})", {"1": 2, "b": 3}),
    (JAVASCRIPT, "var x = 1; x + 1", 2),
    (JAVASCRIPT, "let a = 3; a", 3),
    (JAVASCRIPT, "if ($.x > 3) { true; } else { false; }", True),
    (JAVASCRIPT, "function e(){ return $.x } e();", 7),
    (JAVASCRIPT, "function f(){}", None),
    (JAVASCRIPT, "for(var i=0;i<3;i++){i}", 2),
    (JAVASCRIPT, "for(i=0;i<3;i++){i}", 2),
    (JAVASCRIPT, "$.x = 10; $.x", 10),
    (JAVASCRIPT, "{a:1}", 1),
    (JAVASCRIPT, "{}", None),
    (JAVASCRIPT, "// c", None),
    (JAVASCRIPT, "'use strict'; 5", 5),
    (JAVASCRIPT, "globalThis.foo = 1; foo", 1),
    (JAVASCRIPT, "eval('1+1')", 2),
    (JAVASCRIPT, "$.l.map(function(i){return i*2})", [2, 4, 6]),
    (JAVASCRIPT, "[3,1,2].toSorted()", [1, 2, 3]),
    (JAVASCRIPT, "typeof console", "undefined"),
    (JAVASCRIPT, "typeof require + typeof process + typeof fetch + typeof std", "undefined" * 4),
    # There the input is an object of Java, whose keys are methods and whose JSON is empty.
    (JAVASCRIPT, "Object.keys($)", list(INPUT)),
    (JAVASCRIPT, "JSON.stringify($.o)", '{"a":1}'),
    (JAVASCRIPT, "$", {**INPUT, "f": 1}),
    # There a date is an empty object.
    (JAVASCRIPT, "new Date(0)", "1970-01-01T00:00:00.000Z"),
    (FUNCTION, "return 5", 5),
    (FUNCTION, "5", None),
    (FUNCTION, "if ($.x>3) {return {v: true} } else { return {v: false} }", {"v": True}),
    (FUNCTION, "function e(){return $.x} return e()", 7),
    (FUNCTION, "return $.x // the end", 7),
    (FUNCTION, "return function(){}", {}),
    (JQ, ".x", [7]),
    (JQ, ".l[]", [1, 2, 3]),
    (JQ, ".nope", [None]),
    (JQ, "empty", []),
    (JQ, "{a:.x}", [{"a": 7}]),
    (JQ, ".f", [1.0]),
    (JQ, "def f: 1; f", [1]),
    (JQ, ".x # c", [7]),
    (JQ, "12345678901234567890", [12345678901234567890]),
]

FAILURES = [
    (
        JAVASCRIPT,
        "$.nope.a",
        "Error evaluating the script `TypeError: Cannot read property 'a' of undefined` at line 1",
    ),
    (
        JAVASCRIPT,
        "var a=null;\n\na.x",
        "Error evaluating the script `TypeError: Cannot read property 'x' of null` at line 3",
    ),
    (JAVASCRIPT, "throw new Error('boom')", "Error evaluating the script `Error: boom`"),
    (JAVASCRIPT, "throw 'str'", "Error evaluating the script `str` at line 1"),
    (JAVASCRIPT, "throw null", "Error evaluating the script `null` at line 1"),
    (JAVASCRIPT, "throw {a:1}", "Error evaluating the script `Error` at line 1"),
    (JAVASCRIPT, "x", "Error evaluating the script `ReferenceError: x is not defined` at line 1"),
    (
        JAVASCRIPT,
        "function f(){return f()} f()",
        "Error evaluating the script `RangeError: Maximum call stack size exceeded` at line 1",
    ),
    (JAVASCRIPT, "a b", "Error evaluating the script `SyntaxError: expecting ';'` at line 1"),
    (
        JAVASCRIPT,
        "return 5",
        "Error evaluating the script `SyntaxError: return not in a function` at line 1",
    ),
    (
        JAVASCRIPT,
        "var o={};o.o=o;o",
        "Error evaluating the script `TypeError: circular reference` at line 1",
    ),
    (
        JAVASCRIPT,
        "var a=[];while(true)a.push('xxxxxxxxxx'+a.length)",
        "Error evaluating the script `InternalError: out of memory` at line 1",
    ),
    (JAVASCRIPT, "'x'.repeat(6e6)", "The result of the script is larger than 5242880 bytes"),
    (JAVASCRIPT, "1\0", "Error evaluating the script `ValueError: embedded null character`"),
    (FUNCTION, "return (", None),
    (FUNCTION, "return 5; }, function(){", None),
    (JQ, ".x.y", 'Cannot index number with string ("y")'),
    (JQ, 'error("boom")', "boom"),
    (JQ, "nope(1)", "nope/1 is not defined"),
    (JQ, ". |", None),
    (JQ, 'import "a" as a; 1', None),
]


@pytest.mark.asyncio
async def test_results_are_those_of_the_real_server() -> None:
    async with running() as pool:
        # Twice, because the second run of a source meets a context that was kept.
        for _ in range(2):
            for language, source, expected in RESULTS:
                result = await outcome(pool, source, language)
                assert repr(result) == repr(expected), source


@pytest.mark.asyncio
async def test_failures_tell_what_is_wrong() -> None:
    async with running() as pool:
        for _ in range(2):
            for language, source, message in FAILURES:
                failure = await outcome(pool, source, language)
                assert isinstance(failure, ScriptFailed), source
                assert not failure.timed_out
                if message is not None and "\0" not in source:
                    assert failure.message == message


@pytest.mark.asyncio
async def test_nothing_passes_from_one_run_to_the_next() -> None:
    async with running(workers=1) as pool:
        for source in (
            "typeof left + (left = 1)",
            "typeof this.left + (this.left = 1)",
            "typeof globalThis.left + (globalThis.left = 1)",
            "var s = typeof left; eval('var left = 1'); s + left",
            "typeof [].left + (Array.prototype.left = 1)",
            "typeof [].left + (eval($.code))",
            "var left; let other; typeof left + (left = 1)",
        ):
            for _ in range(3):
                value = {"code": "Array.prototype.left = 1"}
                assert await outcome(pool, source, value=value) == "undefined1", source


@pytest.mark.asyncio
async def test_a_script_that_replaces_builtins_harms_only_itself() -> None:
    async with running(workers=1) as pool:
        source = "JSON.stringify = JSON.parse = Reflect.ownKeys = function () { throw 1 }; $.x"
        assert [await outcome(pool, source) for _ in range(3)] == [7, 7, 7]
        assert await outcome(pool, "JSON.stringify($.l)") == "[1,2,3]"


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.asyncio
async def test_jq_sees_nothing_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_SECRET", "s3cret")
    async with running(workers=1) as pool:
        for source, expected in [
            ("env", [{}]),
            ("$ENV", [{}]),
            ("env.PODIUM_SECRET", [None]),
            ('.) | ($ENV.PODIUM_SECRET // "none"', ["none"]),
            ("def f: env; f", [{}]),
            ("input_filename", [None]),
            ("[inputs]", [[]]),
            ("get_search_list", [[]]),
        ]:
            assert await outcome(pool, source, JQ) == expected, source
        for source in ('include "x"; 1', 'import "d" as $d {search:"/tmp"}; $d', "input"):
            assert isinstance(await outcome(pool, source, JQ), ScriptFailed)
        for process in pool._steady:
            assert process.transport is not None
            assert environment_of(process.transport.get_pid()) == b""


@pytest.mark.asyncio
async def test_many_at_once_each_get_their_own_result() -> None:
    async with running() as pool:
        texts = [f"$.x * {number}" for number in range(7)]
        results = await asyncio.gather(
            *(
                outcome(pool, texts[n % 7], value={"x": n, "pad": "p" * (n % 5_000)})
                for n in range(1_500)
            )
        )
        assert results == [n * (n % 7) for n in range(1_500)]


@pytest.mark.asyncio
async def test_an_endless_script_fails_and_says_so() -> None:
    async with running(time_limit_ms=300) as pool:
        for language, source in [
            (JAVASCRIPT, "while(true){}"),
            (FUNCTION, "while(true){}"),
            (JAVASCRIPT, "/(a+)+$/.test('a'.repeat(40) + 'b')"),
            (JAVASCRIPT, "Array(2**28).join('x')"),
            (JQ, "def f: f; f"),
        ]:
            failure = await outcome(pool, source, language)
            assert isinstance(failure, ScriptFailed)
            assert failure.timed_out
            assert failure.message == "Script not evaluated within 0.3 seconds, interrupted."
        assert await outcome(pool, "$.x") == 7


@pytest.mark.asyncio
async def test_a_flood_of_endless_scripts_does_not_stop_the_others() -> None:
    async with running(time_limit_ms=3_000) as pool:
        assert await outcome(pool, "$.x + 1") == 8
        same = [asyncio.create_task(outcome(pool, "while(true){}")) for _ in range(20)]
        different = [
            asyncio.create_task(outcome(pool, f"while({n}){{}}", language=JAVASCRIPT))
            for n in range(1, 9)
        ]
        in_jq = [asyncio.create_task(outcome(pool, "def f: f; f", JQ)) for _ in range(3)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(20):
            assert (
                await asyncio.gather(*(outcome(pool, "$.x + 1") for _ in range(300))) == [8] * 300
            )
            # A source that nobody has seen yet goes its way too.
            assert await outcome(pool, "$.x + 2") == 9
        assert sum(task.done() for task in (*same, *different, *in_jq)) < len(same)
        assert len(pool._steady) + len(pool._suspects) <= 5
        for task in (*same, *different, *in_jq):
            task.cancel()


@pytest.mark.asyncio
async def test_what_waits_behind_a_slow_script_goes_to_another_process() -> None:
    async with running(workers=1, time_limit_ms=5_000) as pool:
        slow = asyncio.create_task(outcome(pool, "while(true){}", value={}))
        # All of these were sent to the only process before anybody knew that the first is slow.
        behind = [asyncio.create_task(outcome(pool, f"$.x + {n}")) for n in range(20)]
        assert await asyncio.gather(*behind) == [7 + n for n in range(20)]
        assert not slow.done()
        slow.cancel()


@pytest.mark.asyncio
async def test_a_slow_script_that_ends_has_its_result_and_may_come_again() -> None:
    slow = "var n = 0; for (var i = 0; i < $.n; i++) n += i % 7; n > 0"
    async with running(workers=1) as pool:
        # Kept out of the steady process only while it is slow.
        for size in (4_000_000, 4_000_000, 10, 10):
            assert await outcome(pool, slow, value={"n": size}) is True
        assert pool._quick[(JAVASCRIPT, slow)] is True
        assert await outcome(pool, "$.x") == 7


@pytest.mark.asyncio
async def test_memory_that_a_script_may_not_have_costs_only_that_script() -> None:
    async with running(workers=1) as pool:
        others = [asyncio.create_task(outcome(pool, "$.x", value={"x": n})) for n in range(10)]
        failure = await outcome(pool, 'reduce range(40) as $i ("x"; . + .)', JQ)
        assert isinstance(failure, ScriptFailed)
        assert failure.message == "The script used too much memory or crashed its process"
        assert await asyncio.gather(*others) == list(range(10))
        assert await outcome(pool, "$.x") == 7


@pytest.mark.asyncio
async def test_a_process_that_dies_is_replaced_and_its_work_done_elsewhere() -> None:
    async with running(workers=1) as pool:
        process = pool._steady[0]
        assert process.transport is not None
        tasks = [asyncio.create_task(outcome(pool, "$.x", value={"x": n})) for n in range(30)]
        await asyncio.sleep(0)
        os.kill(process.transport.get_pid(), 9)
        assert await asyncio.gather(*tasks) == list(range(30))
        assert pool._steady[0] is not process


@pytest.mark.asyncio
async def test_a_pool_that_closes_lets_nobody_wait_and_leaves_no_process() -> None:
    pool = ScriptPool(workers=2, time_limit_ms=5_000, memory_bytes=MEMORY_BYTES)
    await pool.start()
    tasks = [asyncio.create_task(outcome(pool, "while(true){}")) for _ in range(50)]
    await asyncio.sleep(0.1)
    pids = [
        process.transport.get_pid()
        for process in (*pool._steady, *pool._suspects)
        if process.transport is not None
    ]
    await pool.close()
    assert all(isinstance(failure, ScriptFailed) for failure in await asyncio.gather(*tasks))
    assert isinstance(await outcome(pool, "1"), ScriptFailed)
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.asyncio
async def test_who_gives_up_waiting_disturbs_nobody() -> None:
    async with running(workers=1) as pool:
        for _ in range(20):
            tasks = [asyncio.create_task(outcome(pool, "$.x")) for _ in range(5)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[3].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [done[1], done[2], done[4]] == [7, 7, 7]


def start_worker(time_limit_ms: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, worker.__file__, str(time_limit_ms), str(MEMORY_BYTES)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})


def request(number: int, language: int, source: bytes, value: bytes = b"{}") -> bytes:
    return worker.REQUEST.pack(number, language, len(source), len(value)) + source + value


def answers(process: "subprocess.Popen[bytes]", count: int) -> list[tuple[int, int, bytes]]:
    assert process.stdout is not None
    found = []
    for _ in range(count):
        header = process.stdout.read(worker.ANSWER.size)
        number, status, _, size = worker.ANSWER.unpack(header)
        found.append((number, status, process.stdout.read(size)))
    return found


def test_a_worker_reads_requests_in_any_pieces_and_ends_with_its_owner() -> None:
    with start_worker(1_000) as process:
        assert process.stdin is not None
        sent = request(1, worker.JAVASCRIPT, b"1+1") + request(2, worker.JQ, b".a", b'{"a":5}')
        for byte in sent:
            process.stdin.write(bytes([byte]))
            process.stdin.flush()
        assert answers(process, 3) == [
            (0, worker.READY, b""),
            (1, worker.DONE, b"2"),
            (2, worker.DONE, b"[5]"),
        ]
        process.stdin.close()
        assert process.wait(5) == 0


def test_a_worker_drops_what_it_has_not_begun() -> None:
    with start_worker(1_000) as process:
        assert process.stdin is not None
        sent = request(1, worker.JAVASCRIPT, b"1") + request(2, worker.JAVASCRIPT, b"2")
        sent += request(0, worker.DROP, b"", b"") + request(3, worker.JAVASCRIPT, b"3")
        process.stdin.write(sent)
        process.stdin.flush()
        # All of it arrives at once, so not even the first has begun when the DROP is read.
        assert answers(process, 3) == [
            (0, worker.READY, b""),
            (0, worker.DROPPED, b""),
            (3, worker.DONE, b"3"),
        ]
        process.stdin.close()


def test_a_worker_ends_by_itself_when_nobody_kills_it() -> None:
    with start_worker(100) as process:
        assert process.stdin is not None
        process.stdin.write(request(1, worker.JQ, b"def f: f; f"))
        process.stdin.flush()
        assert process.wait(20) == -signal.SIGALRM


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("syntax err", "SyntaxError: inline:1:7 expecting ';'\nsyntax err\n       ^\n"),
        ("1 +", "SyntaxError: inline:1:3 unexpected token in expression: ''\n1 +\n   ^\n"),
        (" \n a b", "SyntaxError: inline:2:3 expecting ';'\n a b\n   ^\n"),
        ("return 5", "SyntaxError: inline:1:0 return not in a function\nreturn 5\n^\n"),
        ("/(/", "SyntaxError: expecting ')'"),
        ("(" * 100_000, "RangeError: Maximum call stack size exceeded"),
        ("1\0", "SyntaxError: embedded null character"),
        ("x" * 200_000, "SyntaxError: the script is longer than 131072 characters"),
    ],
)
def test_a_broken_script_is_told_where_it_breaks(source: str, error: str) -> None:
    assert check_javascript(source) == error


@pytest.mark.parametrize(
    "source", ["}); globalThis.x = 1; (function(){", "} while(true){} {", "'a"]
)
def test_what_breaks_out_of_a_wrapper_is_broken_itself(source: str) -> None:
    assert check_javascript(source) is not None


@pytest.mark.parametrize(
    "source",
    [
        "",
        "$.x > 3",
        "x.y.z",
        "while(true){}",
        "throw new Error('boom')",
        "function f(){return f()} f()",
        "let a = 1; a",
        "if ($.x) { true; } else { false; }",
        "for(;;){}",
        "class A { static { while(true){} } }",
        "'use strict'; 5",
    ],
)
def test_a_script_is_checked_without_running_it(source: str) -> None:
    assert check_javascript(source) is None
