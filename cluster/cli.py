"""The command `podium`. Each command checks what it was given and calls one function."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import click

from cluster import __version__
from cluster.errors import ClusterError
from cluster.logs import set_up_logs
from cluster.settings import InvalidSettings, Settings, load_settings, settings_page


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """An engine for Conductor workflows."""


@main.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="TCP port of the API.  [default: 8080]")
@click.option("--data", metavar="DIR", help="Folder for the state of this node.  [default: ./data]")
@click.option("--store", metavar="URL", help="Where workflows are kept.  [default: SQLite in DIR]")
@click.option("--queue", metavar="URL", help="Where tasks wait.  [default: memory://]")
@click.option("--processes", type=int, help="Nodes behind the port, a process each.  [default: 1]")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings as TOML.")
def serve(
    host: str | None,
    port: int | None,
    data: str | None,
    store: str | None,
    queue: str | None,
    processes: int | None,
    config: Path | None,
) -> None:
    """Run the engine until SIGTERM or Ctrl-C."""
    flags = {
        "host": host,
        "port": port,
        "data_dir": data,
        "store_url": store,
        "queue_url": queue,
        "processes": processes,
    }
    try:
        settings = load_settings(config=config, flags=flags)
    except InvalidSettings as error:
        give_up(str(error))
    set_up_logs(node_id=settings.node_id, level=settings.log_level)
    # Late: `podium version` need not load the whole engine.
    from cluster.node.processes import supervise

    try:
        if settings.processes > 1:
            sys.exit(supervise(settings, serve_node))
        serve_node(settings)
    except OSError as error:
        give_up(str(error))


def serve_node(settings: Settings) -> None:
    from cluster.node.app import serve as run

    try:
        run(settings)
    except (OSError, ClusterError, InvalidSettings) as error:
        # The port is taken, the data folder is in use, a package is broken: the user's to mend.
        give_up(str(error))


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


@main.command()
def settings() -> None:
    """Print every setting with its default and meaning, as Markdown."""
    click.echo(settings_page(), nl=False)


@main.group()
def schema() -> None:
    """The tables of a cluster in Cassandra."""


def schema_command(name: Literal["apply", "status", "diff"], summary: str) -> None:
    @schema.command(name, help=summary)
    @click.option("--store", metavar="URL", help="cassandra://h1,h2:9042/keyspace")
    @click.option(
        "--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings as TOML."
    )
    def act(store: str | None, config: Path | None) -> None:
        try:
            settings = load_settings(config=config, flags={"store_url": store}, for_node=False)
        except InvalidSettings as error:
            give_up(str(error))
        # What the driver logs on the way, the error says too.
        set_up_logs(node_id=settings.node_id, level="warning")
        logging.getLogger("cassandra").setLevel(logging.CRITICAL)
        from cluster.node.ground import schema as act_on_schema

        try:
            lines = act_on_schema(settings, name)
        except ClusterError as error:
            give_up(str(error))
        for line in lines:
            click.echo(line)
        if name == "diff" and lines:
            sys.exit(1)


schema_command("apply", "Create the keyspace and its tables, or bring them up to date.")
schema_command("status", "What is applied and what is missing.")
schema_command("diff", "Where the tables are not as they should be; exit status 1 if anywhere.")


@main.group()
def cluster() -> None:
    """The nodes of a cluster and their shards, as any of them sees it."""


NODE_URL = click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="Any node of the cluster."
)


@cluster.command()
@NODE_URL
def status(url: str) -> None:
    """The nodes, and how many shards each serves."""
    from cluster.node import console

    tell(lambda: console.status(url))


@cluster.command()
@NODE_URL
def shards(url: str) -> None:
    """Every shard and its owner."""
    from cluster.node import console

    tell(lambda: console.shards(url))


@cluster.command()
@click.argument("node")
@NODE_URL
def drain(node: str, url: str) -> None:
    """Have NODE hand its shards to the others; it stays up until it is stopped."""
    from cluster.node import console

    tell(lambda: console.drain(url, node))


def tell(answer: Callable[[], Sequence[str]]) -> None:
    try:
        for line in answer():
            click.echo(line)
    except ClusterError as error:
        give_up(error.message)


def give_up(message: str) -> NoReturn:
    click.echo(f"podium: {message}", err=True)
    sys.exit(2)
