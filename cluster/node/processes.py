"""`podium serve --processes N`: N nodes behind one port, each a process of its own.

The parent does nothing but watch. It forks before it has started anything, so that a child that
died is replaced by one just like it.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

from msgspec.structs import replace

from cluster.clock import Clock, SystemClock
from cluster.logs import get_log, set_up_logs
from cluster.settings import Settings

log = get_log(__name__)

CANNOT_BEGIN = 2
"""Exit status of a node whose settings or stores do not let it begin: the user's to mend."""

_PAUSE_MS, _PAUSE_MS_MAX = 500, 30_000
_HEALTHY_MS = 60_000
"""A process that lived so long begins anew with the shortest pause."""
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1

Serve = Callable[[Settings], None]


def supervise(settings: Settings, serve: Serve, clock: Clock | None = None) -> int:
    """Run `settings.processes` nodes until SIGTERM or SIGINT; returns the exit status.

    OSError: the port cannot be used.
    """
    with ExitStack() as stack:
        # Held, not listened on: the children share it, and nobody else can take it.
        held = stack.enter_context(_hold(settings.host, settings.port))
        settings = replace(settings, port=held.getsockname()[1])
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            return _Supervisor(settings, serve, clock or SystemClock()).run()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def settings_of(settings: Settings, number: int) -> Settings:
    """Those of process `number` (1…N): a node with a name and a folder of its own."""
    node_id = f"{settings.node_id}-{number}"
    return replace(
        settings,
        node_id=node_id,
        data_dir=os.path.join(settings.data_dir, node_id),
        link_port=settings.link_port and settings.link_port + number - 1,
    )


def _hold(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error
    return held


class _Child:
    """One of the nodes: its process, or when the next one begins."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        """0: none is running."""
        self.began_ms = 0
        self.begin_ms = 0
        self.pause_ms = _PAUSE_MS


class _Supervisor:
    def __init__(self, settings: Settings, serve: Serve, clock: Clock) -> None:
        self._settings = settings
        self._serve = serve
        self._clock = clock
        self._children = [_Child(number) for number in range(1, settings.processes + 1)]
        self._status = 0
        self._is_stopping = False

    def run(self) -> int:
        while True:
            self._begin_those_due()
            if self._is_stopping and not any(child.pid for child in self._children):
                return self._status
            waits = [
                child.begin_ms
                for child in self._children
                if not child.pid and not self._is_stopping
            ]
            left_ms = min(waits, default=1 << 40) - self._clock.monotonic_ms()
            found = signal.sigtimedwait(_WATCHED, max(0.0, min(left_ms / 1000, 3600)))
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._stop()
            self._bury()

    def _begin_those_due(self) -> None:
        now_ms = self._clock.monotonic_ms()
        for child in self._children:
            if not self._is_stopping and not child.pid and child.begin_ms <= now_ms:
                child.began_ms = now_ms
                child.pid = self._fork(child.number)

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            # The parent dies of a SIGKILL: what it watched over ends in order.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)
            _be_a_node(settings_of(self._settings, number), self._serve)
        return pid

    def _stop(self) -> None:
        self._is_stopping = True
        for child in self._children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)

    def _bury(self) -> None:
        """Note who has ended; several deaths may come as one signal."""
        for child in self._children:
            if not child.pid:
                continue
            pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = 0
            status = os.waitstatus_to_exitcode(wait_status)
            if self._is_stopping:
                self._status = self._status or max(0, status)
                continue
            if status == CANNOT_BEGIN:
                # It has said why, and the others would say the same.
                self._status = CANNOT_BEGIN
                self._stop()
                continue
            self._begin_later(child, status)

    def _begin_later(self, child: _Child, status: int) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - child.began_ms >= _HEALTHY_MS:
            child.pause_ms = _PAUSE_MS
        child.begin_ms = now_ms + child.pause_ms
        log.error(
            "a node's process ended and is begun again",
            process=child.number,
            status=status,
            pause_ms=child.pause_ms,
        )
        child.pause_ms = min(2 * child.pause_ms, _PAUSE_MS_MAX)


def _be_a_node(settings: Settings, serve: Serve) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    set_up_logs(node_id=settings.node_id, level=settings.log_level)
    status = 1
    try:
        serve(settings)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        log.exception("a node ended")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the parent was about to do when it forked is not this one's to do.
        os._exit(status)
