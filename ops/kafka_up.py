"""Run a real Kafka from Maven Central, without containers: one broker, its own controller (KRaft).

  python -m ops.kafka_up fetch
  python -m ops.kafka_up start [--folder DIR]

`start` prints the address for `bootStrapServers` and runs until it is interrupted. It listens on
127.0.0.1, on free ports. The version is that of ops/versions.toml; its jars are kept in
${XDG_CACHE_HOME:-~/.cache}/podium. Needs a JDK (17) and mvn.
"""

import argparse
import socket
import subprocess
import tomllib
from pathlib import Path

from ops.children import die_with_starter, free_port, stop, until_interrupted, wait_for
from ops.maven_jars import Jars

VERSION: str = tomllib.loads((Path(__file__).parent / "versions.toml").read_text())["kafka"]
JARS = Jars("kafka", "org.apache.kafka", "kafka_2.13", VERSION)
START_S = 120
STOP_S = 30
CLUSTER_ID = "cG9kaXVtLXRlc3RzLTEyMw"

CONFIG = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


class Broker:
    """One Kafka process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        JARS.fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.properties"
        config.write_text(
            CONFIG.format(folder=self.folder, port=self.port, controller_port=free_port())
        )
        formatting = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(config))
        done = subprocess.run(
            [*java(), *formatting, "--ignore-formatted"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"kafka: {done.stderr.strip() or done.stdout.strip()}")
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*java(), "kafka.Kafka", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_starter,  # noqa: PLW1509
            )
        wait_for(self._answers, f"Kafka on port {self.port}", START_S)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process, STOP_S)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SystemExit(f"Kafka ended: {self.folder / 'log'}")
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True


def java() -> list[str]:
    classes = f"{JARS.folder}/*"
    return ["java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-cp", classes]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["fetch", "start"])
    parser.add_argument("--folder", type=Path, default=Path("build/kafka"))
    arguments = parser.parse_args()
    JARS.fetch()
    if arguments.command == "fetch":
        return
    broker = Broker(arguments.folder.absolute())
    broker.start()
    print(broker.address, flush=True)
    until_interrupted(broker.stop)


if __name__ == "__main__":
    main()
