"""The two servers a run talks to: given by environment variables, else started for the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ops.children import free_port, wait_until_served
from tests.conformance.harness import Endpoint

ROOT = Path(__file__).parents[2]
READY_S = 60

# Both servers see these, so that cases can ask for secrets and environment values. A server given
# by CONDUCTOR_URL may lack them: cases that need them are recorded ones.
ENVIRONMENT = {
    "CONDUCTOR_ENV_CONFORMANCE": "from-env",
    "CONDUCTOR_ENV_CONFORMANCE_JSON": '{"a": {"b": 7}}',
    "CONDUCTOR_SECRET_CONFORMANCE": "from-secret",
}
# The service that HTTP tasks call runs in the process of the tests.
OURS = {"PODIUM_HTTP_LOOPBACK_ADDRESSES": "true"}


@contextmanager
def conductor() -> Iterator[Endpoint]:
    """The real server: the one at CONDUCTOR_URL, or one started here."""
    url = os.environ.get("CONDUCTOR_URL")
    if url:
        with endpoint_of("conductor", url) as endpoint:
            yield endpoint
        return
    port = free_port()
    script = ROOT / "ops" / "conductor_up.sh"
    started = subprocess.run(
        [str(script), str(port)],
        # With its default of 1 GB it ran out of memory after some hundred cases.
        env={"HEAP": "3g", "PYTHON": sys.executable} | os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    found = re.search(r"pid (\d+)", started.stdout)
    assert found, started.stdout
    try:
        with endpoint_of("conductor", f"http://127.0.0.1:{port}") as endpoint:
            yield endpoint
    finally:
        os.kill(int(found.group(1)), signal.SIGTERM)


@contextmanager
def podium(tree: Path | None = None) -> Iterator[Endpoint]:
    """Our server, started here on a temporary folder, or the one at PODIUM_URL.

    `tree`: a folder with another copy of cluster/ to start it from.
    """
    url = os.environ.get("PODIUM_URL")
    if url and tree is None:
        with endpoint_of("podium", url) as endpoint:
            yield endpoint
        return
    port = free_port()
    source = str(tree or ROOT)
    with tempfile.TemporaryDirectory(prefix="podium-conformance-") as data:
        log_path = Path(data) / "server.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "serve", "--port", str(port), "--data", data],
                cwd=source,
                env=os.environ | ENVIRONMENT | OURS | {"PYTHONPATH": source},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if not wait_until_served(process, f"http://127.0.0.1:{port}/health", READY_S):
                raise RuntimeError(f"podium does not serve:\n{log_path.read_text()[-3000:]}")
            with endpoint_of("podium", f"http://127.0.0.1:{port}") as endpoint:
                yield endpoint
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def endpoint_of(kind: str, url: str) -> Iterator[Endpoint]:
    base = url.rstrip("/")
    base = base if base.endswith("/api") else f"{base}/api"
    limits = httpx.Limits(max_connections=64)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as client:
        yield Endpoint("podium" if kind == "podium" else "conductor", base, client)


def version_of(endpoint: Endpoint) -> str:
    """What the server says its version is."""
    return endpoint.client.get(f"{endpoint.base}/version").text.strip()
