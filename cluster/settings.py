"""Every setting, with default, unit and meaning; the only reader of the process environment."""

import difflib
import ipaddress
import os
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cluster.urls import (
    CassandraUrl,
    InvalidUrl,
    MemoryUrl,
    parse_login,
    parse_queue_url,
    parse_replication,
    parse_store_url,
    without_password,
)

PREFIX = "PODIUM_"
SECRET_PREFIX = "CONDUCTOR_SECRET_"
ENVIRONMENT_PREFIX = "CONDUCTOR_ENV_"

MIB = 1024 * 1024


class InvalidSettings(Exception):
    """A setting that cannot be used; the message says which, where it was set, and what to do."""


def about(text: str, unit: str = "", **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, extra={"unit": unit}, **limits)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `podium serve` runs with. Make it by `load_settings`, which also checks it."""

    host: Annotated[str, about("Address to listen on; 0.0.0.0 for all.", min_length=1)] = (
        "127.0.0.1"
    )
    port: Annotated[int, about("TCP port of the API; 0 takes a free one.", ge=0, le=65535)] = 8080
    data_dir: Annotated[str, about("Folder for what this node keeps on disk.", min_length=1)] = (
        "./data"
    )
    store_url: Annotated[
        str,
        about(
            "Where workflows are kept: `sqlite:///DIR/podium.db`, "
            "`cassandra://h1,h2:9042/keyspace`, or `memory://`, which forgets all at exit. "
            "Empty: SQLite in `data_dir`."
        ),
    ] = ""
    queue_url: Annotated[
        str,
        about(
            "Where tasks wait for workers: `memory://` (in this process), `redis://h:6379/0`, "
            "`redis-sentinel://h1,h2/master`, `redis-cluster://h1,h2`; beginning with `rediss`: by "
            "TLS. Before the hosts stands the login of the servers: `redis://user:password@h`."
        ),
    ] = "memory://"
    queue_sentinel_login: Annotated[
        str,
        about(
            "`user:password` for the sentinels of a `redis-sentinel` address, as it stands; "
            "`:password` for the default user. Empty: they ask for none."
        ),
    ] = ""
    queue_ca_file: Annotated[
        str,
        about(
            "Authorities, as PEM, that sign the certificates of Redis (`rediss`). Empty: those "
            "that this machine trusts."
        ),
    ] = ""
    queue_cert_file: Annotated[
        str,
        about("Certificate of this node, as PEM, for a Redis that asks for one. Empty: none."),
    ] = ""
    queue_key_file: Annotated[str, about("The key to it, as PEM.")] = ""
    queue_check_hostname: Annotated[
        bool,
        about(
            "Whether the certificate of Redis must name the host it was reached by. False where "
            "a Sentinel group or a Redis Cluster tells addresses that no certificate names."
        ),
    ] = True
    cassandra_replication: Annotated[
        str,
        about(
            "Copies of all data, when `podium schema apply` creates the keyspace: `3`, "
            "`dc1:3,dc2:3`, or the map of CQL. Empty: 3, or as many as there are nodes."
        ),
    ] = ""
    cassandra_consistency: Annotated[
        str,
        about(
            "Replicas that answer each request: `QUORUM`, or `LOCAL_QUORUM` where all nodes of "
            "the engine talk to the same data centre.",
            pattern="^(QUORUM|LOCAL_QUORUM)$",
        ),
    ] = "QUORUM"
    cassandra_serial_consistency: Annotated[
        str,
        about(
            "The same for compare-and-set: `SERIAL` or `LOCAL_SERIAL`.",
            pattern="^(SERIAL|LOCAL_SERIAL)$",
        ),
    ] = "SERIAL"
    queue_partitions: Annotated[
        int,
        about(
            "Parts of Redis that the task types are divided into, the same on all nodes; 0 = one "
            "on a single server or a Sentinel group, 16 in a Redis Cluster. Before it is changed "
            "all nodes stop and Redis is flushed.",
            ge=0,
            le=4096,
        ),
    ] = 0
    node_id: Annotated[
        str,
        about(
            "Name of this node, the same after a restart and unlike any other node's.",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        ),
    ] = "node-1"
    shard_count: Annotated[
        int,
        about(
            "Slices that the workflows are divided into: a power of two, fixed when the store is "
            "first used.",
            ge=1,
            le=65536,
        ),
    ] = 256

    checkpoint_interval_ms: Annotated[
        int, about("Time between two write-backs of changed workflows.", "ms", ge=10)
    ] = 1000
    checkpoint_bytes: Annotated[
        int, about("Changed bytes that start a write-back before its time.", "bytes", ge=4096)
    ] = 8 * MIB
    checkpoint_backlog_bytes: Annotated[
        int,
        about(
            "Changed bytes that may wait to be written back; beyond that starts get 429.",
            "bytes",
            ge=1 * MIB,
        ),
    ] = 256 * MIB
    log_backlog_bytes: Annotated[
        int,
        about(
            "Bytes that may wait for their append to the commit log; beyond that starts get 429, "
            "and beyond twice as much polls find no task.",
            "bytes",
            ge=4096,
        ),
    ] = 32 * MIB
    log_backlog_transitions: Annotated[
        int,
        about("Transitions that may wait for it; the same happens.", "transitions", ge=1),
    ] = 100_000
    admission_delay_ms: Annotated[
        int,
        about(
            "How long starts may take on average, from their arrival until they are durable; "
            "while they take longer, fewer are let in and the others get 429.",
            "ms",
            ge=1,
        ),
    ] = 300
    admission_starts_max: Annotated[
        int,
        about("Starts that may be under way; beyond that they get 429.", "starts", ge=1),
    ] = 4000
    admission_reads_max: Annotated[
        int,
        about("Reads of workflows that may be under way; beyond that they get 429.", "reads", ge=1),
    ] = 4000
    log_entry_bytes: Annotated[
        int, about("Size at which an entry of the commit log is closed.", "bytes", ge=4096)
    ] = 256 * 1024
    log_segment_bytes: Annotated[
        int, about("Size of the piece in which the commit log is dropped.", "bytes", ge=4096)
    ] = 16 * MIB

    lease_ttl_ms: Annotated[
        int, about("Silence after which other nodes take a node for dead.", "ms", ge=100)
    ] = 5000
    lease_renew_ms: Annotated[
        int, about("Time between two renewals of a node's lease.", "ms", ge=10)
    ] = 1500
    heartbeat_ms: Annotated[
        int, about("Time between two signs of life to the other nodes.", "ms", ge=10)
    ] = 1000
    shard_poll_ms: Annotated[
        int, about("Time between two looks at who owns which shard.", "ms", ge=10)
    ] = 2000
    stable_ms: Annotated[
        int,
        about("Nodes must neither come nor go for this long before shards are moved.", "ms", ge=0),
    ] = 3000

    processes: Annotated[
        int,
        about(
            "Nodes that `podium serve` runs behind its port, each a process of its own. More than "
            "one need stores that they can share.",
            "processes",
            ge=1,
            le=256,
        ),
    ] = 1
    link_host: Annotated[
        str,
        about(
            "Address for links of other nodes, `/metrics` and `/health/*`; published with the "
            "heartbeat, so the others must be able to reach it.",
            min_length=1,
        ),
    ] = "127.0.0.1"
    link_port: Annotated[
        int, about("TCP port for the same; 0 takes a free one.", ge=0, le=65535)
    ] = 0
    link_advertise: Annotated[
        str,
        about(
            "`host:port` where other nodes reach `link_host` and `link_port`, if it is another "
            "address than these: behind a proxy, in a container. Empty: these.",
            pattern=r"^$|^\S+:[0-9]{1,5}$",
        ),
    ] = ""
    link_token: Annotated[
        str,
        about(
            "Shared by all nodes of a cluster; who does not know it gets no link. Needed unless "
            "`link_host` is a loopback address.",
            pattern="^[!-~]*$",
        ),
    ] = ""
    route_timeout_ms: Annotated[
        int,
        about("How long a request waits for the owner of its workflow.", "ms", ge=100),
    ] = 15_000

    execution_cache_bytes: Annotated[
        int, about("Memory for open workflows; what is idle is put out.", "bytes", ge=MIB)
    ] = 256 * MIB
    body_bytes_max: Annotated[int, about("Largest request body.", "bytes", ge=1024)] = 10 * MIB
    task_output_bytes_max: Annotated[
        int, about("Largest output of one task, as JSON.", "bytes", ge=1024)
    ] = 3 * MIB
    workflow_payload_bytes_max: Annotated[
        int, about("Largest input, and largest output, of a workflow.", "bytes", ge=1024)
    ] = 5 * MIB
    workflow_messages_max: Annotated[
        int,
        about(
            "Messages that wait for a PULL_WORKFLOW_MESSAGES task of their workflow; beyond "
            "that the sender gets 429.",
            "messages",
            ge=1,
            le=100_000,
        ),
    ] = 1000
    open_tasks_max: Annotated[int, about("Open tasks of one workflow.", "tasks", ge=1)] = 100_000

    script_time_limit_ms: Annotated[
        int, about("Time that one script or jq program may take.", "ms", ge=1)
    ] = 4000
    script_memory_bytes: Annotated[
        int, about("Memory that one script may take.", "bytes", ge=MIB)
    ] = 32 * MIB
    script_workers: Annotated[
        int, about("Processes that evaluate scripts and jq.", "processes", ge=1, le=64)
    ] = 2

    system_task_concurrency: Annotated[
        int,
        about(
            "Tasks of one system task type (HTTP, ...) that this node carries out at a time.",
            "tasks",
            ge=1,
            le=10_000,
        ),
    ] = 100
    system_task_concurrency_by_type: Annotated[
        str,
        about(
            "The same for single types: `HTTP=200, JDBC=20`.",
            pattern=r"^\s*([^=,\s]+=[1-9][0-9]{0,3}\s*(,\s*|$))*$",
        ),
    ] = ""
    system_task_lease_ms: Annotated[
        int,
        about(
            "Silence of a node after which a system task that it carries out goes to another one.",
            "ms",
            ge=300,
        ),
    ] = 30_000
    system_task_time_limit_ms: Annotated[
        int, about("Time that one system task may take.", "ms", ge=1)
    ] = 300_000
    http_private_addresses: Annotated[
        bool,
        about("HTTP tasks may call private addresses: those of services in the same network."),
    ] = True
    http_loopback_addresses: Annotated[
        bool, about("HTTP tasks may call addresses of the machine that this node runs on.")
    ] = False
    http_response_bytes_max: Annotated[
        int, about("Largest body of a response to an HTTP task.", "bytes", ge=1024)
    ] = 3 * MIB
    http_client_certificates: Annotated[
        str,
        about(
            "Client certificates for HTTP tasks, as paths of PEM files: `name=CERT:KEY` or "
            "`name=CERT:KEY:CA`, several with commas between."
        ),
    ] = ""

    sql_connections: Annotated[
        str,
        about(
            "Databases that JDBC tasks may use: `name=URL`, several with blanks between. A URL is "
            "`postgresql://user:password@host/database`, `mysql://...` or `sqlite:///FILE`."
        ),
    ] = ""
    sql_rows_max: Annotated[
        int, about("Rows that one SELECT of a JDBC task may give.", "rows", ge=1)
    ] = 1000
    sql_time_limit_ms: Annotated[
        int, about("Time that one statement of a JDBC task may take.", "ms", ge=1)
    ] = 30_000

    audit_interval_ms: Annotated[
        int, about("Pause between two walks over all open workflows.", "ms", ge=10)
    ] = 120_000
    audit_workflows_per_s: Annotated[
        int, about("Open workflows looked at per second in such a walk.", "workflows", ge=1)
    ] = 50
    audit_grace_ms: Annotated[
        int,
        about("A workflow without a live cause for this long is repaired and counted.", "ms", ge=0),
    ] = 10_000

    schedule_grace_ms: Annotated[
        int,
        about(
            "For how long a missed instant of a schedule is made good. Older ones are left out, "
            "but for the last one, unless the schedule runs catch-up instances.",
            "ms",
            ge=0,
        ),
    ] = 60_000
    schedule_jitter_ms: Annotated[
        int,
        about(
            "Starts of schedules are spread over so much time behind their instants.", "ms", ge=0
        ),
    ] = 0
    idempotency_ttl_days: Annotated[
        int, about("How long an idempotency key is remembered.", "days", ge=1)
    ] = 7
    owner_email_mandatory: Annotated[
        bool, about("Refuse workflow and task definitions without `ownerEmail`.")
    ] = False
    drain_timeout_ms: Annotated[
        int,
        about("Time for handing all shards to other nodes before this one stops.", "ms", ge=0),
    ] = 20_000
    shutdown_timeout_ms: Annotated[
        int, about("Time for requests in flight when the server is told to stop.", "ms", ge=0)
    ] = 10_000

    log_level: Annotated[
        str,
        about(
            "Least urgent log lines to write: `debug`, `info` or `warning`.",
            pattern="^(debug|info|warning)$",
        ),
    ] = "info"

    # Not settings of the server but values for workflows: see SECRET_PREFIX and ENVIRONMENT_PREFIX.
    secrets: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}

    def system_tasks_at_once(self, task_type: str) -> int:
        """How many system tasks of a type this node carries out at a time."""
        for entry in self.system_task_concurrency_by_type.split(","):
            name, _, count = entry.strip().partition("=")
            if name == task_type:
                return int(count)
        return self.system_task_concurrency

    @property
    def is_alone(self) -> bool:
        """Whether the stores are this process's own: there is no cluster around it."""
        return not isinstance(parse_store_url(self.store_url), CassandraUrl)

    def __repr__(self) -> str:
        """Fit for a log: no secrets, no passwords."""
        shown = {name: getattr(self, name) for name in NAMES}
        for name in ("store_url", "queue_url"):
            shown[name] = without_password(shown[name])
        for name in ("link_token", "queue_sentinel_login", "sql_connections"):
            shown[name] = "***" if shown[name] else ""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


TYPES = {
    name: hint
    for name, hint in typing.get_type_hints(Settings, include_extras=True).items()
    if name not in ("secrets", "environment")
}
NAMES = tuple(TYPES)


def load_settings(
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    for_node: bool = True,
) -> Settings:
    """Defaults, overridden by the TOML file, by PODIUM_… variables, by flags, in this order.

    `environ` defaults to that of the process; a flag that is None was not given. `for_node` False:
    no node is going to run with it, so that the queues may be anywhere.
    Raises InvalidSettings.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    if config is not None:
        for name, value in read_toml(config).items():
            refuse_unknown(name, source=f"{config}: {name}")
            values[name] = checked(name, value, f"{config}: {name}")
    for variable, text in environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            refuse_unknown(name, source=variable, spell=lambda name: PREFIX + name.upper())
            values[name] = checked(name, text, variable, is_text=True)
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = checked(name, value, name)
    values["store_url"] = values.get("store_url") or default_store_url(
        values.get("data_dir", "./data")
    )
    settings = Settings(
        **values,
        secrets=with_prefix(environ, SECRET_PREFIX),
        environment=with_prefix(environ, ENVIRONMENT_PREFIX),
    )
    check_together(settings)
    if for_node:
        check_store_and_queue(settings)
        check_certificates(settings)
    return settings


def default_store_url(data_dir: str) -> str:
    return f"sqlite:///{data_dir.rstrip('/')}/podium.db"


def read_toml(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text())
    except OSError as error:
        raise InvalidSettings(f"cannot read {config}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{config} is not TOML: {error}") from error


def refuse_unknown(name: str, *, source: str, spell: Callable[[str], str] = str) -> None:
    if name in TYPES:
        return
    close = difflib.get_close_matches(name, NAMES, n=1)
    advice = f"did you mean {spell(close[0])}?" if close else "`podium settings` lists them all"
    raise InvalidSettings(f"{source}: there is no such setting; {advice}")


def checked(name: str, value: Any, source: str, *, is_text: bool = False) -> Any:
    """The value in the setting's type. `is_text`: "8080" is a number and "true" a truth value."""
    try:
        return msgspec.convert(value, TYPES[name], strict=not is_text)
    except msgspec.ValidationError as error:
        shown = without_password(value) if isinstance(value, str) else value
        raise InvalidSettings(f"{source} is {shown!r}: {error}") from error


def check_together(settings: Settings) -> None:
    """What no single value shows."""
    for name, parse in (
        ("store_url", parse_store_url),
        ("queue_url", parse_queue_url),
        ("cassandra_replication", parse_replication),
        ("queue_sentinel_login", parse_login),
    ):
        try:
            parse(getattr(settings, name))
        except InvalidUrl as error:
            raise InvalidSettings(f"{name}: {error}") from error
    if settings.processes > 1 and settings.link_advertise:
        raise InvalidSettings(
            f"processes is {settings.processes} and link_advertise is {settings.link_advertise}: "
            "each process has an address of its own for links; leave link_advertise empty"
        )
    if settings.link_port and settings.link_port + settings.processes > 65536:
        raise InvalidSettings(
            f"link_port is {settings.link_port} and processes is {settings.processes}: each takes "
            "the next port, and there are not so many"
        )
    if settings.shard_count & (settings.shard_count - 1):
        raise InvalidSettings(f"shard_count is {settings.shard_count}: it must be a power of two")
    if settings.lease_renew_ms * 2 > settings.lease_ttl_ms:
        raise InvalidSettings(
            f"lease_renew_ms is {settings.lease_renew_ms}: it must be at most half of "
            f"lease_ttl_ms ({settings.lease_ttl_ms}), or one lost renewal loses the lease"
        )
    if settings.link_host in ("0.0.0.0", "::"):
        raise InvalidSettings(
            f"link_host is {settings.link_host}: it must be an address or a name of this machine "
            "under which the other nodes can reach it"
        )
    if settings.queue_url != "memory://" and not (settings.link_token or is_loopback(settings)):
        raise InvalidSettings(
            f"link_host is {settings.link_host}: nodes that others can reach over the network need "
            f"a link_token ({PREFIX}LINK_TOKEN), the same on all of them"
        )
    if settings.log_entry_bytes > settings.log_segment_bytes:
        raise InvalidSettings(
            f"log_entry_bytes is {settings.log_entry_bytes}: it must be at most "
            f"log_segment_bytes ({settings.log_segment_bytes})"
        )


def is_loopback(settings: Settings) -> bool:
    """Whether only this machine can ask for links."""
    try:
        return ipaddress.ip_address(settings.link_host).is_loopback
    except ValueError:
        return settings.link_host == "localhost"


def check_store_and_queue(settings: Settings) -> None:
    """Both of a cluster, or both of a node on its own."""
    if settings.is_alone and settings.processes > 1:
        raise InvalidSettings(
            f"processes is {settings.processes} and store_url is "
            f"{without_password(settings.store_url)}: only one process can use that store; several "
            "need Cassandra and Redis (store_url, queue_url)"
        )
    if settings.is_alone != isinstance(parse_queue_url(settings.queue_url), MemoryUrl):
        raise InvalidSettings(
            f"store_url is {without_password(settings.store_url)} and queue_url is "
            f"{without_password(settings.queue_url)}: a cluster needs both Cassandra and Redis, "
            "a node on its own keeps its queues in memory://"
        )


def check_certificates(settings: Settings) -> None:
    """Files that cannot be used show when the node starts, not with every call that fails."""
    if bool(settings.queue_cert_file) != bool(settings.queue_key_file):
        raise InvalidSettings(
            "queue_cert_file and queue_key_file: a certificate and its key need each other"
        )
    for name in ("queue_ca_file", "queue_cert_file", "queue_key_file"):
        path = getattr(settings, name)
        if path and not settings.queue_url.startswith("rediss"):
            raise InvalidSettings(
                f"{name} is {path}: only an address that begins with rediss needs it, and "
                f"queue_url is {without_password(settings.queue_url)}"
            )
        if path and not os.access(path, os.R_OK):
            raise InvalidSettings(f"{name} is {path}: there is no such file, or it is not readable")


def with_prefix(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        variable.removeprefix(prefix): value
        for variable, value in environ.items()
        if variable.startswith(prefix) and variable != prefix
    }


def settings_page() -> str:
    """docs/settings.md, whole."""
    rows = [row(name) for name in NAMES]
    return PAGE.format(rows="\n".join(rows))


def row(name: str) -> str:
    meta = next(part for part in typing.get_args(TYPES[name]) if isinstance(part, msgspec.Meta))
    kind = typing.get_args(TYPES[name])[0].__name__
    default = next(
        field.default for field in msgspec.structs.fields(Settings) if field.name == name
    )
    shown = "empty" if default == "" else f"`{str(default).lower() if kind == 'bool' else default}`"
    unit = (meta.extra or {}).get("unit") or {"int": "number", "str": "text", "bool": "yes/no"}[
        kind
    ]
    return f"| `{name}` | {shown} | {unit} | {meta.description} |"


PAGE = """# Settings

Written by `podium settings`; change `cluster/settings.py`, not this page.

Each setting can stand in a TOML file (`podium serve --config FILE`) under the name given here, in
the environment as `PODIUM_` and the name in capitals (`PODIUM_PORT=9090`), and some as a flag
(`podium serve --help`). A flag beats the environment, the environment beats the file, the file
beats the default. A name that is not in this list is refused.

| Setting | Default | Unit | Meaning |
|---|---|---|---|
{rows}

Workflows may read two more groups of environment variables of the server, and no others:
`CONDUCTOR_SECRET_NAME` is `${{workflow.secrets.NAME}}`, and `CONDUCTOR_ENV_NAME` is
`${{workflow.env.NAME}}`.
"""
