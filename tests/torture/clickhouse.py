"""The ClickHouse server as a process that can be killed, and that loses answers when a file says so.

python -m tests.torture.clickhouse PATH PORT FAULTS
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from pipeline.local.clickhouse_server import ClickHouseServer, Fault
from pipeline.local.processes import LocalProcess, free_port, python
from tests.integration.deployment import ROOT, clean_environment

DROPPED, REFUSED = "d", "r"
LINES: Final = {DROPPED: "ClickHouse: answer dropped after success", REFUSED: "ClickHouse: insert refused"}


class LosesAnswers:
    """What is to befall the next inserts stands in files of a folder, a letter each; what befell is written down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def next(self, statement: bytes) -> Fault:
        """See `pipeline.local.clickhouse_server.Faults`."""
        if b"INSERT INTO" not in statement[:300]:
            return Fault()
        for path in sorted(self._folder.glob("*.next")):
            letters = path.read_text()
            path.write_text(letters[1:])
            if len(letters) <= 1:
                path.unlink()
            if letters:
                with (self._folder / "happened").open("a") as happened:
                    happened.write(letters[0])
                return Fault(drop_answer=True) if letters[0] == DROPPED else Fault(refuse=True)
        return Fault()


class LocalClickHouse(LocalProcess):
    """The server process on a folder and a port; start it again after a kill."""

    def __init__(self, folder: Path) -> None:
        self._faults = folder / "faults"
        self._planned = 0
        self.port = free_port()
        self._faults.mkdir(parents=True, exist_ok=True)
        command = python("tests.torture.clickhouse", str(folder / "data"), str(self.port), str(self._faults))
        super().__init__(
            "the ClickHouse server", command, folder / "server.log", environment=clean_environment(TZ="UTC"), cwd=ROOT
        )

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return when it answers."""
        super().start()
        self.wait_line("ready")

    def go_wrong(self, letters: str) -> None:
        """What befalls the next inserts, one letter each."""
        self._planned += 1
        fresh = self._faults / f"{self._planned:04d}"
        fresh.write_text(letters)
        fresh.rename(fresh.with_suffix(".next"))

    def be_well(self) -> None:
        """Forget the faults that have not happened."""
        for path in self._faults.glob("*.next"):
            path.unlink(missing_ok=True)

    def faults(self) -> Counter[str]:
        """What went wrong on purpose so far."""
        happened = self._faults / "happened"
        return Counter(LINES[letter] for letter in (happened.read_text() if happened.exists() else ""))


async def serve(path: str, port: int, faults: Path) -> None:
    """Serve until killed; one line on stdout when ready."""
    server = ClickHouseServer(path, port=port, faults=LosesAnswers(faults))
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
