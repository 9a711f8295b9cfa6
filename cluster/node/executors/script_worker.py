"""Evaluates scripts in a process of its own: started by file name, without the rest of Podium.

Reads requests from standard input and answers them in order on standard output. A request is
(id, language, length of source, length of input) with the source and the JSON input behind it; an
answer is (id, status, CPU ms, length) with the result's JSON or the failure's message behind it.
"""

import os
import re
import resource
import select
import signal
import struct
import sys
from collections import OrderedDict, deque
from typing import Any

import jq
import quickjs

REQUEST = struct.Struct("<IBII")
ANSWER = struct.Struct("<IBII")

# Languages of a request. DROP is none: it throws away the requests read and not yet begun.
JAVASCRIPT, FUNCTION, JQ, DROP = 0, 1, 2, 255
# Statuses of an answer. READY and DROPPED belong to no request.
DONE, FAILED, TIMED_OUT, READY, DROPPED = 0, 1, 2, 3, 4

RESULT_BYTES_MAX = 5 * 1024 * 1024
_CONTEXTS_MAX = 32
_PROGRAMS_MAX = 64
_KEPT_SOURCE_CHARS_MAX = 8_192
# A context is kept for the same source only. Sources that could run text from their input, or mean
# to change what all objects share, get a fresh one each time.
_KEEPS_NO_STATE = re.compile(r"(?!.*(?:eval|Function|constructor|global|proto|\\[ux]))", re.DOTALL)
# Every harness function is captured before the script runs, so a script that replaces them
# deceives only itself.
_HARNESS = """(function () {
  const parse = JSON.parse, stringify = JSON.stringify, finite = Number.isFinite;
  const fromEntries = Object.fromEntries, toArray = Array.from, isView = ArrayBuffer.isView;
  const keys = Reflect.ownKeys, text = String, number = Number, all = globalThis, TheMap = Map;
  const integral = Number.isSafeInteger, whole = Number.isInteger, toExponential =
    Function.prototype.call.bind(Number.prototype.toExponential);
  const plain = function (key, value) {
    switch (typeof value) {
      case "number": return finite(value) ? value : text(value);
      case "undefined": return null;
      case "function": case "symbol": return {};
      case "bigint": return number(value);
      case "object":
        if (value instanceof TheMap) return fromEntries(value);
        if (isView(value)) return toArray(value);
    }
    return value;
  };
  const encode = function (value) {
    if (typeof value === "number" && finite(value)) {
      if (value === 0 && 1 / value < 0) return "-0.0";
      return whole(value) && !integral(value) ? toExponential(value) : text(value);
    }
    return stringify(value === undefined ? null : value, plain);
  };
  const globals = keys(all).length;
  return [
    function (run, input, source) { return encode(run(parse(input), source)); },
    function () { return keys(all).length === globals; },
  ];
})()"""
_RUN_SCRIPT = "(function ($) { return eval(arguments[1]); })"


class Failed(Exception):
    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.timed_out = timed_out


class Scripts:
    """JavaScript contexts and jq programs, kept for sources that come again."""

    def __init__(self, time_limit_ms: int, memory_bytes: int) -> None:
        self.time_limit_ms = time_limit_ms
        self.memory_bytes = memory_bytes
        self.contexts: OrderedDict[tuple[int, str], JavaScript] = OrderedDict()
        self.programs: OrderedDict[str, Any] = OrderedDict()

    def evaluate(self, language: int, source: str, value_json: str) -> bytes:
        if language == JQ:
            return self._jq(source, value_json)
        key = (language, source)
        context = self.contexts.pop(key, None)
        if context is None:
            context = JavaScript(language, source, self.time_limit_ms, self.memory_bytes)
        result = context.run(value_json)
        if context.may_be_kept and context.is_clean():
            self.contexts[key] = context
            if len(self.contexts) > _CONTEXTS_MAX:
                self.contexts.popitem(last=False)
        return result

    def _jq(self, source: str, value_json: str) -> bytes:
        program = self.programs.pop(source, None)
        try:
            if program is None:
                program = jq.compile(jq_program(source))
            results = program.input_text(value_json).all()
        except ValueError as error:
            raise Failed(jq_message(str(error))) from None
        if len(source) <= _KEPT_SOURCE_CHARS_MAX:
            self.programs[source] = program
            if len(self.programs) > _PROGRAMS_MAX:
                self.programs.popitem(last=False)
        return bounded("[" + ",".join(results) + "]")


class JavaScript:
    """One script in a context of its own."""

    def __init__(self, language: int, source: str, time_limit_ms: int, memory_bytes: int) -> None:
        self.source = source
        self.time_limit_ms = time_limit_ms
        context = quickjs.Context()
        context.set_memory_limit(memory_bytes)
        context.set_time_limit(time_limit_ms / 1000)
        harness = context.eval(_HARNESS)
        # Lists come over as objects of the engine: their items are read by name.
        context.set("harness", harness)
        self.call, self.unchanged = context.eval("harness[0]"), context.eval("harness[1]")
        context.eval("delete globalThis.harness")
        if language == FUNCTION:
            self.text = "function scriptFun(){" + source + "\n} scriptFun();"
        else:
            self.text = source
        self.run_script = context.eval(_RUN_SCRIPT)
        self.may_be_kept = (
            len(source) <= _KEPT_SOURCE_CHARS_MAX and _KEEPS_NO_STATE.match(source) is not None
        )

    def run(self, value_json: str) -> bytes:
        try:
            result = self.call(self.run_script, value_json, self.text)
        except quickjs.JSException as error:
            raise self._failure(str(error)) from None
        return bounded(result)

    def is_clean(self) -> bool:
        return self.unchanged() is True

    def _failure(self, raw: str) -> Failed:
        message, _, stack = raw.partition("\n")
        if message == "InternalError: interrupted":
            return Failed(timeout_message(self.time_limit_ms), timed_out=True)
        if message.startswith("TypeError: cannot "):
            message = "TypeError: Cannot " + message[len("TypeError: cannot ") :]
        elif message == "[object Object]":
            message = "Error"
        where = ""
        if not message.startswith("Error: "):
            line = re.search(r":(\d+)(?::\d+)?\)?(?:\n|\Z)", stack)
            number = int(line.group(1)) if line is not None else 1
            # A line beyond the source is one of the harness.
            where = f" at line {number if number <= self.source.count(chr(10)) + 1 else 1}"
        return Failed(f"Error evaluating the script `{message}`{where}")


def timeout_message(time_limit_ms: int) -> str:
    return f"Script not evaluated within {time_limit_ms / 1000:g} seconds, interrupted."


def bounded(text: str) -> bytes:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > RESULT_BYTES_MAX:
        raise Failed(f"The result of the script is larger than {RESULT_BYTES_MAX} bytes")
    return encoded


def jq_program(source: str) -> str:
    """The program between definitions that hide the process: its environment and its files."""
    hidden = "def env: {}; def input_filename: null; {} as $ENV | ("
    # tojson keeps numbers as they were written; as Python values they would lose digits.
    return f"{hidden}{source}\n) | tojson"


def jq_message(raw: str) -> str:
    first = raw.partition("\n")[0].removeprefix("jq: error: ")
    return first.partition(" at <top-level>")[0]


class Connection:
    """The two pipes; requests are read ahead so that DROP finds those not yet begun."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.requests: deque[tuple[int, int, bytes, bytes]] = deque()
        os.set_blocking(0, False)

    def next_request(self) -> tuple[int, int, bytes, bytes] | None:
        """The oldest request, None when the other side has gone."""
        while self._read():
            if self.requests:
                return self.requests.popleft()
            select.select([0], [], [])
        return None

    def _read(self) -> bool:
        while True:
            try:
                chunk = os.read(0, 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.received += chunk
            self._parse()

    def _parse(self) -> None:
        at = 0
        received = self.received
        while len(received) - at >= REQUEST.size:
            number, language, source_bytes, input_bytes = REQUEST.unpack_from(received, at)
            start = at + REQUEST.size
            middle, end = start + source_bytes, start + source_bytes + input_bytes
            if end > len(received):
                break
            if language == DROP:
                self.requests.clear()
                self.answer(number, DROPPED, b"")
            else:
                source, value = bytes(received[start:middle]), bytes(received[middle:end])
                self.requests.append((number, language, source, value))
            at = end
        del received[:at]

    @staticmethod
    def answer(number: int, status: int, payload: bytes, cpu_ms: int = 0) -> None:
        out = ANSWER.pack(number, status, cpu_ms, len(payload)) + payload
        while out:
            out = out[os.write(1, out) :]


def limit_process(memory_bytes: int) -> None:
    """No more memory than one script may use on top of what Python has now; no files, no core."""
    with open("/proc/self/statm", encoding="ascii") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    total = in_use + 2 * memory_bytes + 32 * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (total, total))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def main(time_limit_ms: int, memory_bytes: int) -> None:
    limit_process(memory_bytes)
    scripts = Scripts(time_limit_ms, memory_bytes)
    connection = Connection()
    connection.answer(0, READY, b"")
    # The owner kills a script that is over its limit. Should the owner be gone, the alarm does.
    alarm_s = time_limit_ms / 1000 + 2
    while (request := connection.next_request()) is not None:
        number, language, source, value = request
        signal.setitimer(signal.ITIMER_REAL, alarm_s)
        started = cpu_seconds()
        try:
            payload = scripts.evaluate(language, source.decode(), value.decode())
            status = DONE
        except Failed as failure:
            payload = failure.message.encode("utf-8", "replace")
            status = TIMED_OUT if failure.timed_out else FAILED
        except (MemoryError, RecursionError, ValueError, TypeError) as error:
            scripts = Scripts(time_limit_ms, memory_bytes)
            payload = f"Error evaluating the script `{type(error).__name__}: {error}`".encode()
            status = FAILED
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.answer(number, status, payload, int((cpu_seconds() - started) * 1000))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
