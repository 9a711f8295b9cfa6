"""The jars of a server from Maven Central, with all that it depends on, kept in a cache."""

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podium"
_FETCH_S = 540
_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>{name}-server</artifactId><version>1</version>
<packaging>pom</packaging>
<dependencies><dependency>
<groupId>{group}</groupId><artifactId>{artifact}</artifactId>
<version>{version}</version>
</dependency></dependencies>
</project>
"""


@dataclass(frozen=True)
class Jars:
    """One version of a server. `unwanted`: parts of the names of jars that are not kept."""

    name: str
    group: str
    artifact: str
    version: str
    unwanted: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return CACHE / f"{self.name}-{self.version}"

    def fetch(self) -> None:
        """Bring them into the cache, once. Needs a JDK and mvn. CalledProcessError."""
        if self.folder.exists():
            return
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{self.name}.lock").open("w") as lock:
            # Test suites that begin at the same time fetch once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.folder.exists():
                return
            fresh = self.folder.with_name(f"{self.folder.name}.part")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            pom = fresh / "pom.xml"
            pom.write_text(
                _POM.format(
                    name=self.name, group=self.group, artifact=self.artifact, version=self.version
                )
            )
            command = ["mvn", "-q", "-B", "-ntp", "-f", str(pom), _GOAL]
            subprocess.run(
                [*command, "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"],
                check=True,
                timeout=_FETCH_S,
            )
            for jar in fresh.iterdir():
                if any(part in jar.name for part in self.unwanted):
                    jar.unlink()
            # Under its name only when it is whole.
            fresh.rename(self.folder)
