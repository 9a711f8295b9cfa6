"""The addresses of stores and queues, and their copies: text to parts; nothing is opened here."""

import re
from urllib.parse import unquote

import msgspec


class InvalidUrl(ValueError):
    """Not an address of a store or a queue; the message says what one looks like."""


class Host(msgspec.Struct, frozen=True):
    name: str
    port: int


class Login(msgspec.Struct, frozen=True):
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login(user={self.user!r}, password='***')"


class MemoryUrl(msgspec.Struct, frozen=True):
    """Everything is in this process and gone when it ends."""


class SqliteUrl(msgspec.Struct, frozen=True):
    path: str
    """As written: relative to the working directory unless it begins with a slash."""


class CassandraUrl(msgspec.Struct, frozen=True):
    hosts: tuple[Host, ...]
    keyspace: str
    login: Login | None


class RedisUrl(msgspec.Struct, frozen=True):
    host: Host
    database: int
    login: Login | None
    tls: bool = False


class RedisSentinelUrl(msgspec.Struct, frozen=True):
    sentinels: tuple[Host, ...]
    master: str
    login: Login | None
    """That of the data servers."""
    tls: bool = False
    """To them, and to the sentinels too."""


class RedisClusterUrl(msgspec.Struct, frozen=True):
    hosts: tuple[Host, ...]
    login: Login | None
    tls: bool = False


StoreUrl = SqliteUrl | CassandraUrl | MemoryUrl
QueueUrl = MemoryUrl | RedisUrl | RedisSentinelUrl | RedisClusterUrl

STORES = "memory://, sqlite:///DIR/podium.db or cassandra://h1,h2:9042/keyspace"
QUEUES = (
    "memory://, redis://h:6379/0, redis-sentinel://h1,h2/master or redis-cluster://h1,h2,"
    " or one of these that begins with rediss for TLS"
)

REPLICATION = "3, dc1:3,dc2:3 or {'class': 'SimpleStrategy', 'replication_factor': 1}"
NETWORK = "NetworkTopologyStrategy"

SHAPE = re.compile(r"^([a-z][a-z-]*)://(?:([^@/]*)@)?([^/]*)(?:/(.*))?$", re.DOTALL)
HOST_NAME = re.compile(r"^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])$")
KEYSPACE = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,47}$")
CASSANDRA_PORT, REDIS_PORT, SENTINEL_PORT = 9042, 6379, 26379


def parse_store_url(url: str) -> StoreUrl:
    """Raises InvalidUrl."""
    scheme, login, hosts, path = split(url, STORES)
    match scheme:
        case "memory":
            if login or hosts or path:
                raise wrong(url, STORES)
            return MemoryUrl()
        case "sqlite":
            if login or hosts or not path or path.endswith("/"):
                raise wrong(
                    url, "sqlite:///DIR/podium.db, or sqlite:////DIR/podium.db from the root"
                )
            return SqliteUrl(path)
        case "cassandra":
            if not KEYSPACE.match(path):
                raise wrong(url, "cassandra://h1,h2:9042/keyspace")
            return CassandraUrl(parse_hosts(url, hosts, CASSANDRA_PORT), path, login)
        case _:
            raise wrong(url, STORES)


def parse_queue_url(url: str) -> QueueUrl:
    """Raises InvalidUrl."""
    scheme, login, hosts, path = split(url, QUEUES)
    tls = scheme.startswith("rediss")
    match scheme.replace("rediss", "redis", 1):
        case "memory":
            if login or hosts or path:
                raise wrong(url, QUEUES)
            return MemoryUrl()
        case "redis":
            found = parse_hosts(url, hosts, REDIS_PORT)
            if len(found) != 1 or not re.fullmatch(r"[0-9]{0,4}", path):
                raise wrong(url, "redis://h:6379/0 (one host, and the number of a database)")
            return RedisUrl(found[0], int(path or 0), login, tls)
        case "redis-sentinel":
            if not path or "/" in path:
                raise wrong(url, "redis-sentinel://h1,h2/master")
            return RedisSentinelUrl(parse_hosts(url, hosts, SENTINEL_PORT), path, login, tls)
        case "redis-cluster":
            if path:
                raise wrong(url, "redis-cluster://h1,h2 (a Redis Cluster has no databases)")
            return RedisClusterUrl(parse_hosts(url, hosts, REDIS_PORT), login, tls)
        case _:
            raise wrong(url, QUEUES)


def parse_replication(text: str) -> dict[str, str]:
    """What a keyspace of Cassandra is replicated by, as CQL takes it. Raises InvalidUrl.

    `3` copies in each data centre, `dc1:3,dc2:3`, or the map of CQL itself; empty gives nothing.
    """
    if not text:
        return {}
    if text.startswith("{"):
        try:
            found = msgspec.json.decode(text.replace("'", '"'), type=dict[str, str | int])
        except msgspec.DecodeError as error:
            raise InvalidUrl(f"{text!r}: {error}; wanted: {REPLICATION}") from None
        copies = {name: str(value) for name, value in found.items()}
    elif text.isdigit():
        copies = {"class": NETWORK, "replication_factor": text}
    else:
        parts = (part.partition(":") for part in text.split(","))
        copies = {"class": NETWORK, **{name.strip(): count for name, _, count in parts}}
    counts = [value for name, value in copies.items() if name != "class"]
    if (
        "class" not in copies
        or not counts
        or not all(re.fullmatch(r"[1-9][0-9]?", count) for count in counts)
        or not all(re.fullmatch(r"[A-Za-z0-9_.-]+", word) for word in (*copies, copies["class"]))
    ):
        raise InvalidUrl(f"{text!r} is no replication; wanted: {REPLICATION}")
    return copies


def without_password(url: str) -> str:
    """The address as it may be shown."""
    # Up to the last @: a password may hold what its writer forgot to encode.
    return re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)


def split(url: str, wanted: str) -> tuple[str, Login | None, str, str]:
    found = SHAPE.match(url)
    if found is None:
        raise wrong(url, wanted)
    scheme, login, hosts, path = found.groups(default="")
    if not login:
        return scheme, None, hosts, path
    user, _, password = login.partition(":")
    return scheme, Login(unquote(user), unquote(password)), hosts, path


def parse_login(text: str) -> Login | None:
    """`user:password`, as it stands; empty: none. Raises InvalidUrl, which does not show it."""
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not colon or not password:
        raise InvalidUrl("what it is set to is no login; wanted: user:password or :password")
    return Login(user, password)


def parse_hosts(url: str, hosts: str, default_port: int) -> tuple[Host, ...]:
    """`h1,h2:9042`: a port counts for its own host; the others get the default."""
    return tuple(parse_host(url, host, default_port) for host in hosts.split(","))


def parse_host(url: str, host: str, default_port: int) -> Host:
    name, port = host, str(default_port)
    if re.search(r":[0-9]*$", host) and (host.count(":") == 1 or "]:" in host):
        name, _, port = host.rpartition(":")
    if not HOST_NAME.match(name):
        raise wrong(url, f"a host where {host!r} stands")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise wrong(url, f"a port between 1 and 65535 where {host!r} stands")
    return Host(name, int(port))


def wrong(url: str, wanted: str) -> InvalidUrl:
    return InvalidUrl(f"{without_password(url)!r} is no address; wanted: {wanted}")
