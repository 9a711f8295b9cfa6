"""Processes that the scripts here start: waiting for them, ending them, telling whose they are."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


def die_with_starter() -> None:
    """Called in the new process: a test run that is killed leaves no servers behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_timer_slack(slack_us: int) -> None:
    """Called in the new process: how late a timer of its threads may fire. systemd's TimerSlackNSec
    does the same for a service."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1_000 * slack_us), 0, 0, 0)


def is_ours(pid: int, mark: str) -> bool:
    """Whether that process runs and has the mark in its command line: a pid is used again."""
    try:
        return bool(pid) and mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_for(is_so: Callable[[], bool], what: str, limit_s: float) -> None:
    """Ask again and again; an OSError is a no. SystemExit after the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if is_so():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {limit_s} s in vain for {what}")
        time.sleep(0.05)


def wait_until_served(process: subprocess.Popen[bytes], url: str, limit_s: float) -> bool:
    """Whether the address answers with success within the limit and the process still runs.

    Somebody else's server on that port would answer too; ours would then have ended.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                time.sleep(0.2)
                return process.poll() is None
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def stop(process: subprocess.Popen[bytes], limit_s: float, *, number: int = signal.SIGTERM) -> bool:
    """End it in good order, by that signal; False if it had to be killed."""
    process.send_signal(number)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def until_interrupted(end: Callable[[], None]) -> None:
    """Wait for SIGINT or SIGTERM, then `end` what runs."""
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        end()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
