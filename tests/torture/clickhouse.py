"""The ClickHouse server as a process that can be killed, and that loses answers while a file says so.

python -m tests.torture.clickhouse PATH PORT FAULTS SEED
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from pipeline.clickhouse_server import ClickHouseServer, Fault
from pipeline.processes import die_with_parent, free_port
from tests.integration.deployment import ROOT, clean_environment

DROPPED: Final = 0.04
REFUSED: Final = 0.02
LINES: Final = {"d": "answers dropped after success", "r": "inserts refused"}


class LosesAnswers:
    """Drops the answers to some inserts after they were stored, and refuses some, while the file is there; writes
    down each in it."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._chance = random.Random(seed)

    def next(self, statement: bytes) -> Fault:
        """See `pipeline.clickhouse_server.Faults`."""
        if b"INSERT INTO" not in statement[:300] or not self._path.exists():
            return Fault()
        draw = self._chance.random()
        if draw >= DROPPED + REFUSED:
            return Fault()
        with self._path.open("a") as lines:
            lines.write("d" if draw < DROPPED else "r")
        return Fault(drop_answer=True) if draw < DROPPED else Fault(refuse=True)


class LocalClickHouse:
    """The server process on a folder and a port; start it again after a kill."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._faults = folder / "faults"
        self._process: subprocess.Popen[str] | None = None
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and return when it answers."""
        self._seed += 1
        arguments = [str(self._folder / "data"), str(self.port), str(self._faults), str(self._seed)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.clickhouse", *arguments],
                cwd=ROOT, env=clean_environment(TZ="UTC"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=log, text=True, start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc; no lock of ours is held here
            )  # fmt: skip
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the ClickHouse server ended with {self._process.wait()}: see {self._folder}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._process = None

    def lose_answers(self, *, losing: bool) -> None:
        """Begin or end losing answers; what was lost so far stays written down."""
        if losing:
            self._faults.touch()
        elif self._faults.exists():
            self._faults.rename(self._faults.with_suffix(".over"))

    def faults(self) -> Counter[str]:
        """What went wrong on purpose so far."""
        paths = (self._faults, self._faults.with_suffix(".over"))
        letters = "".join(path.read_text() for path in paths if path.exists())
        return Counter(LINES[letter] for letter in letters)


async def serve(path: str, port: int, faults: Path, seed: int) -> None:
    """Serve until killed; one line on stdout when ready."""
    server = ClickHouseServer(path, port=port, faults=LosesAnswers(faults, seed))
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
