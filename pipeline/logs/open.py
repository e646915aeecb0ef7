"""Opens the log that a URL names."""

from __future__ import annotations

from pathlib import Path

from pipeline.logs.embedded import SqliteLog
from pipeline.logs.kafka import REQUEST_TIMEOUT_S, KafkaLog
from schemas.clock import Clock
from schemas.errors import InvalidInput
from schemas.log import Log

EMBEDDED_SCHEME = "embedded://"
KAFKA_SCHEME = "kafka://"


def open_log(url: str, clock: Clock, timeout_s: float = REQUEST_TIMEOUT_S) -> Log:
    """The log at `embedded://PATH` (relative or absolute) or `kafka://HOST:PORT[,HOST:PORT…]`. The caller starts it.

    The embedded log takes stream time from `clock`; Kafka's brokers use their own clocks. `timeout_s` bounds each
    request to Kafka. Raises `InvalidInput` for another URL.
    """
    if url.startswith(EMBEDDED_SCHEME):
        return SqliteLog(embedded_path(url), clock)
    return KafkaLog(kafka_servers(url), timeout_s)


def embedded_path(url: str) -> Path:
    """The file of an `embedded://` URL. Raises `InvalidInput` without a file name."""
    path = url.removeprefix(EMBEDDED_SCHEME)
    if not path or path.endswith("/"):
        raise InvalidInput(
            "TIDEMARK_LOG_URL", f"{url!r} names no file: write embedded://PATH, such as embedded://.tidemark/log.db"
        )
    return Path(path)


def kafka_servers(url: str) -> list[str]:
    """The `HOST:PORT` entries of a `kafka://` URL. Raises `InvalidInput` for another URL."""
    servers = [server.strip() for server in url.removeprefix(KAFKA_SCHEME).split(",")]
    if not url.startswith(KAFKA_SCHEME) or not all(_is_server(server) for server in servers):
        raise InvalidInput("TIDEMARK_LOG_URL", f"{url!r} is neither embedded://PATH nor kafka://HOST:PORT[,HOST:PORT]")
    return servers


def _is_server(server: str) -> bool:
    host, _, port = server.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536
