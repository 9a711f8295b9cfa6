"""What goes wrong, for callers to act on."""

from typing import Any


class ApiError(Exception):
    """The server refused a request: `status` is that of HTTP, `message` its reason."""

    def __init__(
        self, status: int, message: str, *, retryable: bool, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.message = message
        self.retryable = retryable
        """The same request may be taken later."""
        self.retry_after_s = retry_after_s
        """When to come back, if the server has said so."""


class Unreachable(ApiError):
    """No answer came. `was_sent` False: the server has not even seen the request."""

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(0, message, retryable=True)
        self.was_sent = was_sent


class TaskFailed(Exception):
    """Raised by a worker's function: the task failed, for this reason.

    `terminal` True: no further attempt can succeed.
    """

    def __init__(
        self, reason: str, *, terminal: bool = False, output: dict[str, Any] | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.terminal = terminal
        self.output = output or {}
