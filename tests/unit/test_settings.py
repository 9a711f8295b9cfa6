"""Where a setting comes from, what is refused, and that the page in docs/ is the present one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli import main
from cluster.settings import NAMES, InvalidSettings, Settings, load_settings, settings_page
from cluster.urls import (
    CassandraUrl,
    Host,
    InvalidUrl,
    Login,
    MemoryUrl,
    QueueUrl,
    RedisClusterUrl,
    RedisSentinelUrl,
    RedisUrl,
    SqliteUrl,
    StoreUrl,
    parse_login,
    parse_queue_url,
    parse_replication,
    parse_store_url,
    without_password,
)

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "podium.toml"
    path.write_text(text)
    return path


def test_defaults_make_a_server_that_keeps_its_state_in_data() -> None:
    settings = load_settings(environ={})
    assert settings.store_url == "sqlite:///./data/podium.db"
    assert settings == Settings(store_url="sqlite:///./data/podium.db")


@pytest.mark.parametrize(
    ("data_dir", "store_url"),
    [
        ("x", "sqlite:///x/podium.db"),
        ("/srv/podium/", "sqlite:////srv/podium/podium.db"),
        ("/", "sqlite:////podium.db"),
    ],
)
def test_the_default_store_lies_in_the_data_folder(data_dir: str, store_url: str) -> None:
    settings = load_settings(environ={}, flags={"data_dir": data_dir})
    assert settings.store_url == store_url
    assert parse_store_url(store_url) == SqliteUrl(f"{data_dir.rstrip('/')}/podium.db")


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = write(tmp_path, "port = 1\nhost = 'h'\nscript_workers = 3")
    environ = {"PODIUM_PORT": "2", "PODIUM_HOST": "i"}
    flags = {"port": 4, "host": None}
    settings = load_settings(config=config, environ=environ, flags=flags)
    assert (settings.port, settings.host, settings.script_workers) == (4, "i", 3)


def test_text_of_the_environment_becomes_numbers_and_truth_values() -> None:
    environ = {"PODIUM_SHARD_COUNT": "16", "PODIUM_OWNER_EMAIL_MANDATORY": "true"}
    settings = load_settings(environ=environ)
    assert settings.shard_count == 16
    assert settings.owner_email_mandatory is True


def test_secrets_and_environment_are_the_variables_with_conductors_prefixes() -> None:
    environ = {"CONDUCTOR_SECRET_key": "s", "CONDUCTOR_ENV_REGION": "eu", "HOME": "/root"}
    settings = load_settings(environ=environ)
    assert settings.secrets == {"key": "s"}
    assert settings.environment == {"REGION": "eu"}


def test_neither_secrets_nor_passwords_are_in_what_a_log_would_show() -> None:
    environ = {
        "CONDUCTOR_SECRET_KEY": "hush-1",
        "PODIUM_QUEUE_URL": "redis://u:hush-2@h/0",
        "PODIUM_STORE_URL": "cassandra://u:hush-3@h/ks",
    }
    assert "hush" not in repr(load_settings(environ=environ))


@pytest.mark.parametrize(
    ("environ", "toml", "message"),
    [
        (
            {"PODIUM_PROT": "1"},
            "",
            "PODIUM_PROT: there is no such setting; did you mean PODIUM_PORT?",
        ),
        ({}, "shard_cont = 1", "shard_cont: there is no such setting; did you mean shard_count?"),
        ({}, "zzz = 1", "zzz: there is no such setting; `podium settings` lists them all"),
        ({"PODIUM_SECRETS": "{}"}, "", "PODIUM_SECRETS: there is no such setting"),
        ({"PODIUM_PORT": "eighty"}, "", "PODIUM_PORT is 'eighty': Expected `int`"),
        ({"PODIUM_PORT": "65536"}, "", "PODIUM_PORT is '65536': Expected `int` <= 65535"),
        ({}, "port = '8080'", "port is '8080': Expected `int`, got `str`"),
        ({}, "port = true", "port is True: Expected `int`, got `bool`"),
        ({}, "[port]\na = 1", "Expected `int`, got `object`"),
        ({}, "port = = 1", "is not TOML"),
        ({"PODIUM_SHARD_COUNT": "100"}, "", "shard_count is 100: it must be a power of two"),
        ({"PODIUM_LEASE_RENEW_MS": "2501"}, "", "lease_renew_ms is 2501: it must be at most half"),
        ({"PODIUM_LOG_ENTRY_BYTES": "99999999"}, "", "log_entry_bytes is 99999999: it must be at"),
        ({"PODIUM_NODE_ID": "a b"}, "", "PODIUM_NODE_ID is 'a b'"),
        ({"PODIUM_STORE_URL": "postgres://h/d"}, "", "store_url: 'postgres://h/d' is no address"),
        ({"PODIUM_QUEUE_URL": "redis://h/x"}, "", "queue_url: 'redis://h/x' is no address"),
        ({"PODIUM_LOG_LEVEL": "chatty"}, "", "PODIUM_LOG_LEVEL is 'chatty'"),
    ],
)
def test_what_cannot_be_used_is_refused_and_named(
    tmp_path: Path, environ: dict[str, str], toml: str, message: str
) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load_settings(config=write(tmp_path, toml), environ=environ)
    assert message in str(refused.value)


def test_a_node_that_others_can_reach_needs_the_token_of_its_cluster() -> None:
    flags = {
        "store_url": "cassandra://h/ks",
        "queue_url": "redis://h:6379/0",
        "link_host": "10.0.0.7",
    }
    with pytest.raises(InvalidSettings, match="need a link_token"):
        load_settings(environ={}, flags=flags)
    settings = load_settings(environ={"PODIUM_LINK_TOKEN": "hush"}, flags=flags)
    assert settings.link_token == "hush"
    assert "hush" not in repr(settings)
    for host in ("127.0.0.1", "localhost", "::1"):
        load_settings(environ={}, flags=flags | {"link_host": host})


def test_logins_and_certificates_of_redis(tmp_path: Path) -> None:
    pem = write(tmp_path, "")
    flags = {"store_url": "cassandra://h/ks", "queue_url": "rediss-sentinel://h1/m"}
    files = {"queue_cert_file": str(pem), "queue_key_file": str(pem)}
    login = {"PODIUM_QUEUE_SENTINEL_LOGIN": "watcher:hush:hush"}
    settings = load_settings(environ=login, flags=flags | files)
    assert parse_login(settings.queue_sentinel_login) == Login("watcher", "hush:hush")
    assert "hush" not in repr(settings)
    for wrong, message in (
        ({"queue_sentinel_login": "hush"}, "queue_sentinel_login: "),
        ({"queue_key_file": str(pem)}, "need each other"),
        ({"queue_ca_file": "/nowhere/ca.pem"}, "no such file"),
        ({"queue_ca_file": str(pem), "queue_url": "redis://h:6379/0"}, "begins with rediss"),
    ):
        with pytest.raises(InvalidSettings, match=message) as refused:
            load_settings(environ={}, flags=flags | wrong)
        assert "hush" not in str(refused.value)


def test_an_address_that_nobody_can_dial_is_no_address_for_links() -> None:
    with pytest.raises(InvalidSettings, match="under which the other nodes can reach it"):
        load_settings(environ={}, flags={"link_host": "0.0.0.0"})


def test_a_config_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"cannot read .*absent.toml: No such file"):
        load_settings(config=tmp_path / "absent.toml", environ={})


def test_the_page_in_docs_is_the_present_one() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_page(), "run: .venv/bin/podium settings > docs/settings.md"
    assert all(f"| `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("memory://", MemoryUrl()),
        ("sqlite:///data/podium.db", SqliteUrl("data/podium.db")),
        ("sqlite:////srv/podium.db", SqliteUrl("/srv/podium.db")),
        ("cassandra://h/ks", CassandraUrl((Host("h", 9042),), "ks", None)),
        (
            "cassandra://u:p%40ss@h1,h2:19042/podium",
            CassandraUrl((Host("h1", 9042), Host("h2", 19042)), "podium", Login("u", "p@ss")),
        ),
    ],
)
def test_store_urls(url: str, parts: StoreUrl) -> None:
    assert parse_store_url(url) == parts


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("memory://", MemoryUrl()),
        ("redis://h", RedisUrl(Host("h", 6379), 0, None)),
        ("redis://:pw@h:1/7", RedisUrl(Host("h", 1), 7, Login("", "pw"))),
        ("redis://[::1]:6380/0", RedisUrl(Host("[::1]", 6380), 0, None)),
        (
            "redis-sentinel://h1,h2/master",
            RedisSentinelUrl((Host("h1", 26379), Host("h2", 26379)), "master", None),
        ),
        (
            "redis-cluster://h1:7000,h2",
            RedisClusterUrl((Host("h1", 7000), Host("h2", 6379)), None),
        ),
        ("rediss://h/1", RedisUrl(Host("h", 6379), 1, None, tls=True)),
        (
            "rediss-sentinel://u:pw@h1:1,h2/master",
            RedisSentinelUrl(
                (Host("h1", 1), Host("h2", 26379)), "master", Login("u", "pw"), tls=True
            ),
        ),
        ("rediss-cluster://h1", RedisClusterUrl((Host("h1", 6379),), None, tls=True)),
    ],
)
def test_queue_urls(url: str, parts: QueueUrl) -> None:
    assert parse_queue_url(url) == parts


@pytest.mark.parametrize(
    ("parse", "urls"),
    [
        (
            parse_store_url,
            [
                "", "podium.db", "sqlite://", "sqlite:///", "sqlite:///dir/", "sqlite://h/x.db",
                "memory://x", "memory:///x", "cassandra://h", "cassandra:///ks", "cassandra://h/k-s",
                "cassandra://h,/ks", "cassandra://h:0/ks", "cassandra://h:99999/ks", "redis://h/0",
                "cassandra://h h/ks", "CASSANDRA://h/ks",
            ],
        ),
        (
            parse_queue_url,
            [
                "", "memory://h", "redis://", "redis://h1,h2/0", "redis://h/-1", "redis://h:/0",
                "redis-sentinel://h1", "redis-sentinel://h1/a/b", "redis-cluster://h1/0",
                "redis-cluster://", "redissentinel://h/m", "redisss://h/0", "rediss-sentinel://h",
                "sqlite:///x.db",
            ],
        ),
    ],
)  # fmt: skip
def test_other_urls_are_refused(parse: Callable[[str], object], urls: list[str]) -> None:
    for url in urls:
        with pytest.raises(InvalidUrl, match="wanted"):
            parse(url)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for parse in (parse_store_url, parse_queue_url):
        try:
            parse(text)
        except InvalidUrl:
            pass


def test_a_password_is_hidden_even_in_an_address_that_is_none() -> None:
    assert without_password("redis://u:a@b/c@h/0") == "redis://***@h/0"
    with pytest.raises(InvalidUrl) as refused:
        parse_queue_url("redis://u:a@b/hush@h/0")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "port is 99999: Expected `int` <= 65535"),
        (["--store", "cassandra://h/ks"], "a cluster needs both Cassandra and Redis"),
        (["--queue", "redis://:hush@h/0"], "queue_url is redis://***@h/0: a cluster needs both"),
        (["--config", "absent.toml"], "cannot read absent.toml"),
        (["--store", "nonsense"], "'nonsense' is no address"),
    ],
)
def test_a_mistake_of_the_user_is_answered_by_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("podium: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_version_and_settings_are_printed() -> None:
    from cluster import __version__

    assert CliRunner().invoke(main, ["version"]).stdout == f"{__version__}\n"
    assert CliRunner().invoke(main, ["settings"]).stdout == settings_page()


@pytest.mark.parametrize(
    ("text", "replication"),
    [
        ("", {}),
        ("3", {"class": "NetworkTopologyStrategy", "replication_factor": "3"}),
        ("dc1:3, dc2:2", {"class": "NetworkTopologyStrategy", "dc1": "3", "dc2": "2"}),
        (
            "{'class': 'SimpleStrategy', 'replication_factor': 1}",
            {"class": "SimpleStrategy", "replication_factor": "1"},
        ),
    ],
)
def test_replication_in_three_forms(text: str, replication: dict[str, str]) -> None:
    assert parse_replication(text) == replication


@pytest.mark.parametrize(
    "text", ["0", "three", "dc1", "dc1:0", "dc1:3,", "{}", "{'dc1': 3}", "{x", "d'c:3", "-1"]
)
def test_a_replication_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"cassandra_replication: .*wanted: 3, dc1:3,dc2:3"):
        load_settings(environ={"PODIUM_CASSANDRA_REPLICATION": text})
