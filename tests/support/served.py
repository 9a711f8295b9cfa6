"""`podium serve` as a process of its own, with its address and what it logs."""

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PODIUM = Path(sys.executable).parent / "podium"
STOPS_S = 30


class Server:
    """A node that serves on a free port; its state is in `data`."""

    def __init__(self, data: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [str(PODIUM), "serve", "--port", "0", "--data", str(data), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.log: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self._reader.start()
        self.client = httpx.Client(timeout=30, trust_env=False)
        line = self.process.stdout.readline()
        found = re.search(r"listening on (http://\S+)", line)
        if found is None:
            self.stop()
            raise RuntimeError(f"the node did not start: {line}{''.join(self.log)}")
        self.url = found[1]

    def stop(self, *, kill: bool = False) -> int:
        """End the process, by SIGTERM or SIGKILL; returns its exit status."""
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        status = self.process.wait(STOPS_S)
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.client.close()
        return status

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, self.url + path, **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The decoded answer, None for an empty one; fails on an error."""
        response = self.call(method, path, **options)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def carry_out(self, step: dict[str, Any], *, patience_s: float = 60) -> dict[str, Any]:
        """The task of a workflow of this one step, when that has ended."""
        name = step["name"]
        body = {"name": name, "workflowDef": {"name": name, "version": 1, "tasks": [step]}}
        workflow_id = self.call("POST", "/api/workflow", json=body).text
        deadline = time.monotonic() + patience_s
        while True:
            shown = self.json("GET", f"/api/workflow/{workflow_id}")
            if shown["status"] != "RUNNING":
                task: dict[str, Any] = shown["tasks"][0]
                return task
            assert time.monotonic() < deadline, shown
            time.sleep(0.02)

    def raw(self, request: bytes, *, hang_up: bool = False) -> bytes:
        """Send bytes that need not be HTTP; returns all that comes until the server hangs up."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
            return answer

    def refused(self, method: str, path: str, status: int, **options: Any) -> str:
        """The message of a refusal, whose shape is Conductor's."""
        response = self.call(method, path, **options)
        assert response.status_code == status, (response.status_code, response.text[:500])
        body = response.json()
        assert body["status"] == status
        assert body["retryable"] is False
        assert "Traceback" not in response.text
        return str(body["message"])


@contextmanager
def serving(data: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A node for as long as the context; it must stop as it should."""
    server = Server(data, *options, env=env)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0, "".join(server.log)
