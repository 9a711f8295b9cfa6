"""What was asked of the servers behind the stores: plain numbers that somebody else shows."""


class Flow:
    """Requests of one kind. The numbers only grow."""

    __slots__ = ("items", "requests", "sent_bytes")

    def __init__(self) -> None:
        self.requests = 0
        """What such a request costs hardly depends on what it carries."""
        self.items = 0
        """Rows, or operations: many to a request."""
        self.sent_bytes = 0
        """Of values, without what frames them."""


class Traffic:
    """All flows of one process, by server and kind."""

    def __init__(self) -> None:
        self.flows: dict[tuple[str, str], Flow] = {}

    def of(self, server: str, kind: str) -> Flow:
        """The flow of this kind to a server; the same one whenever it is asked for."""
        return self.flows.setdefault((server, kind), Flow())
