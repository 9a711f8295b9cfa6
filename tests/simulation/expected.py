"""What has to happen again and again in a run of many seeds."""

from tests.simulation import faults
from tests.simulation.schedules import SCHEDULES

KINDS = (
    *(f"fault: {kind}" for kind in faults.KINDS),
    *(
        f"{service}: {what}"
        for service in ("store", "redis")
        for what in (
            "slow",
            "refused",
            "request lost",
            "answer lost",
            "late",
            "doubled",
            "down",
            "cut off",
        )
    ),
    *(f"schedule: {name}" for name in SCHEDULES),
    "request: doubled",
    "redis: failed over",
    "link: connection broken",
    "link: no connection",
    "link: frame held up",
    "link: frame to a paused node",
    "link: late frame carried out",
    "link: late frame dropped",
    "takeover: by another node",
    "takeover: by the same node",
    "takeover: of nobody's shard",
    "takeover: handed over",
    "log: sealed",
    "log: truncated",
    "log: deleted",
    "log: lost by a living process",
)
