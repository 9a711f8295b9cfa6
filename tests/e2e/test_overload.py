"""A node that may hardly do anything, and the official SDK: starts wait, workers never notice."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conductor.client.http.rest import ApiException

from tests.e2e.test_sdk import ROOT, Sdk, simple, wait_until
from tests.support.served import Server, serving

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
TINY = {
    "PODIUM_ADMISSION_STARTS_MAX": "1",
    "PODIUM_ADMISSION_DELAY_MS": "1",
    "PODIUM_LOG_BACKLOG_TRANSITIONS": "2",
}
PRODUCERS, STARTS_EACH = 12, 10


def refused(server: Server, pattern: str) -> float:
    """The sum of a family's samples whose labels match."""
    page = server.call("GET", "/metrics").text
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", page, re.MULTILINE))


def test_starts_come_back_and_no_result_is_refused(tmp_path: Path) -> None:
    refusals: list[ApiException] = []
    is_working = threading.Event()

    def produce(_number: int) -> list[str]:
        # A client of its own per thread, as producers have.
        mine = Sdk(server.url)
        is_working.wait()
        ids: list[str] = []
        while len(ids) < STARTS_EACH:
            try:
                ids.append(mine.start("sdk_hard", input={"n": len(ids)}))
            except ApiException as refusal:
                refusals.append(refusal)
                time.sleep(json.loads(refusal.body)["retryAfterMs"] / 50_000)
        return ids

    with serving(tmp_path, env={**os.environ, **TINY}) as server:
        sdk = Sdk(server.url)
        inputs = {"left": "${workflow.input.n}", "right": 2}
        sdk.register(
            "sdk_hard", *(simple(f"a{n}", "sdk_add", inputParameters=inputs) for n in "12")
        )
        command = [sys.executable, "-m", "tests.support.sdk_workers"]
        workers = subprocess.Popen(
            [*command, "--server", f"{server.url}/api"], cwd=ROOT, start_new_session=True
        )
        try:
            wait_until(lambda: bool(sdk.tasks.get_task_poll_data("sdk_add")), deadline_s=90)
            with ThreadPoolExecutor(PRODUCERS) as producers:
                running = [producers.submit(produce, number) for number in range(PRODUCERS)]
                is_working.set()
                ids = [one for started in running for one in started.result(300)]
            assert len(set(ids)) == PRODUCERS * STARTS_EACH
            wait_until(
                lambda: all(sdk.status_of(one) == "COMPLETED" for one in ids), deadline_s=180
            )
        finally:
            workers.terminate()
            assert workers.wait(30) == 0
        assert refusals
        assert {one.status for one in refusals} == {429}
        assert all(int(dict(one.headers)["retry-after"]) >= 1 for one in refusals)
        by_reason = r'requests_refused_total\{kind="start",reason="\w+"\}'
        assert refused(server, by_reason) == len(refusals)
        results = r'http_requests_total\{method="\w+",route="/api/tasks[^"]*",status="%s"\}'
        assert refused(server, results % "200") >= 2 * len(ids)
        assert refused(server, results % "(?:4..|5..)") == 0
