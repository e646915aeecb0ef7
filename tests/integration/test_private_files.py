"""Files that hold a secret or usage are for their owner only, from their creation on and whatever the umask is."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from pipeline.clock import SystemClock
from pipeline.http.api_keys import Role, create_key, revoke_key
from pipeline.local.dev import private_folder, write_private
from pipeline.local.processes import LocalProcess, python
from tests.integration.deployment import clean_environment


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process whose files everybody could read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


class Watch:
    """Looks at a folder again and again, and notes each path that others than the owner can reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()
        self.wide: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.look()

    def look(self) -> None:
        """Look at all paths once."""
        for root, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                path = os.path.join(root, name)  # noqa: PTH118  # a Path for each would be too slow to see a moment
                try:
                    mode = os.lstat(path).st_mode
                except FileNotFoundError:
                    continue
                self.seen.add(name)
                if not stat.S_ISLNK(mode) and mode & 0o077:
                    self.wide[path] = oct(mode & 0o777)


@pytest.mark.usefixtures("open_umask")
def test_all_files_of_dev_are_private_from_their_creation_on(tmp_path: Path) -> None:
    """Its json, its secret, the keys, the logs of the roles, and the data of every local service."""
    (tmp_path / "deployment").mkdir(mode=0o755)
    ports = ("--port", "0", "--clickhouse-port", "0")
    process = LocalProcess(
        "tidemark dev", python("pipeline.cli", "dev", *ports), tmp_path / "output", environment=clean_environment(),
        cwd=tmp_path / "deployment",
    )  # fmt: skip
    with Watch(tmp_path / "deployment") as watch:
        process.start()
        try:
            process.wait_line("Press ctrl-C")
        finally:
            process.kill()

    assert watch.wide == {}
    expected = {"dev.json", "identity.json", "log.db", "valkey", "clickhouse", "stripe.db", "gateway.log", "valkey.log"}
    assert expected <= watch.seen, watch.seen


@pytest.mark.usefixtures("open_umask")
def test_secrets_that_a_library_call_writes_are_private_too(tmp_path: Path) -> None:
    """Without the umask of the commands, and over files of other modes."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o777)
    (folder / "dev.json").write_text("{}")
    with Watch(folder) as watch:
        watch.wide.clear()
        private_folder(folder)
        for _ in range(50):
            write_private(folder / "identity.json", {"secret": "x" * 1_000})
            created, key = create_key(folder / "keys.json", Role.READ, SystemClock())
            revoke_key(folder / "keys.json", key.id)
            assert created

    assert set(watch.wide) <= {str(folder / "dev.json")}
    assert folder.stat().st_mode & 0o777 == 0o700
