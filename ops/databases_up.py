"""Run real PostgreSQL and MariaDB servers from Debian's packages, without containers.

  python -m ops.databases_up postgresql|mariadb --folder DIR

Prints the address for PODIUM_SQL_CONNECTIONS and runs until it is interrupted. Everything listens
on 127.0.0.1, on a free port, and keeps its files in the folder. Nothing is fsynced: for tests.
"""

import argparse
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from ops.children import die_with_starter, free_port, stop, until_interrupted, wait_for

START_S = 60
STOP_S = 20
# Debian keeps server programs in sbin and PostgreSQL's in a folder per version.
PLACES = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin"]
POSTGRES_PLACES = "/usr/lib/postgresql"


class Database:
    """One server. `url` is that of its only database, whose user needs no password."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.kind == "postgresql":
            return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        return f"mysql://podium:podium@127.0.0.1:{self.port}/podium"

    def start(self) -> None:
        """Create and start it, and wait until it can be used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "postgresql":
            self._start_postgresql()
        else:
            self._start_mariadb()

    def stop(self) -> None:
        if self.process is None:
            return
        # PostgreSQL takes this for "at once, in order"; MariaDB takes it as well.
        number = signal.SIGINT if self.kind == "postgresql" else signal.SIGTERM
        stop(self.process, STOP_S, number=number)
        self.process = None

    def _start_postgresql(self) -> None:
        data = self.folder / "data"
        if os.geteuid() == 0:
            # It does not run as root.
            os.chmod(self.folder, 0o755)
            user = pwd.getpwnam("postgres")
            data.mkdir(exist_ok=True)
            os.chown(data, user.pw_uid, user.pw_gid)
        if not (data / "PG_VERSION").exists():
            self._run(
                postgres_program("initdb"),
                *("-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"),
                *("--locale", "C.UTF-8"),
            )
        self._serve(
            postgres_program("postgres"),
            *("-D", str(data), "-p", str(self.port), "-h", "127.0.0.1"),
            *("-c", "fsync=off", "-c", "unix_socket_directories=", "-c", "shared_buffers=16MB"),
        )
        self._wait(postgres_program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port))

    def _start_mariadb(self) -> None:
        data = self.folder / "data"
        user = f"--user={pwd.getpwuid(os.geteuid()).pw_name}"
        if not data.exists():
            data.mkdir()
            self._run(
                program("mariadb-install-db"),
                *("--no-defaults", f"--datadir={data}", user, "--skip-test-db"),
                "--auth-root-authentication-method=normal",
            )
        options = (f"--datadir={data}", user, f"--socket={data}/socket", f"--port={self.port}")
        first = self.folder / "first.sql"
        first.write_text(
            "CREATE DATABASE IF NOT EXISTS podium CHARACTER SET utf8mb4;\n"
            "CREATE USER IF NOT EXISTS podium@'127.0.0.1' IDENTIFIED BY 'podium';\n"
            "GRANT ALL ON podium.* TO podium@'127.0.0.1';\n"
        )
        self._serve(
            program("mariadbd"),
            *("--no-defaults", *options, "--bind-address=127.0.0.1", "--skip-name-resolve"),
            *(f"--init-file={first}", "--innodb-flush-log-at-trx-commit=0"),
            *("--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"),
        )
        self._wait(
            program("mariadb-admin"),
            *("--no-defaults", "--protocol=tcp", "-h127.0.0.1", f"-P{self.port}"),
            *("-upodium", "-ppodium", "ping"),
        )

    def _serve(self, *command: str) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_starter,  # noqa: PLW1509
                **self._identity(),
            )

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, **self._identity()
        )
        if done.returncode:
            raise SystemExit(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")

    def _wait(self, *command: str) -> None:
        def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise SystemExit(f"{self.kind} ended: {self.folder / 'log'}")
            done = subprocess.run(command, capture_output=True, check=False)
            return done.returncode == 0

        wait_for(answers, f"{self.kind} on port {self.port}", START_S)

    def _identity(self) -> dict[str, str]:
        if self.kind == "postgresql" and os.geteuid() == 0:
            return {"user": "postgres", "group": "postgres"}
        return {}


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join(PLACES))
    if found is None:
        raise SystemExit(f"there is no {name}: make services installs it")
    return found


def postgres_program(name: str) -> str:
    versions = sorted(Path(POSTGRES_PLACES).glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else program(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=["postgresql", "mariadb"])
    parser.add_argument("--folder", type=Path, default=Path("build/databases"))
    arguments = parser.parse_args()
    database = Database(arguments.kind, arguments.folder.absolute() / arguments.kind)
    database.start()
    print(database.url, flush=True)
    until_interrupted(database.stop)


if __name__ == "__main__":
    main()
