"""Transactions over the state in memory, and the optional file from which the state is restored.

Each component changes its state only in functions that it registers as appliers. A live change calls the applier and
records its arguments; a replay calls the same applier with the recorded arguments. The file has one JSON line for each
transaction. A line survives the death of the process once the transaction ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

FORMAT: Final = {"journal": "stripe_simulator", "version": 2}


class Journal:
    """The open transaction and the file. Used by one event loop; a transaction must not await.

    `with journal.transaction():` makes and writes all changes of the block or none. A nested transaction joins.
    """

    def __init__(self, path: Path | None = None) -> None:
        # True inside `discarded`.
        self.discards = False
        self._path = path
        self._file = -1
        self._appliers: dict[str, Callable[..., None]] = {}
        self._depth = 0
        self._records: list[tuple[object, ...]] = []
        self._undo: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []

    def register(self, operation: str, applier: Callable[..., None]) -> None:
        """Name the function that makes one kind of change."""
        self._appliers[operation] = applier

    def change(self, operation: str, *arguments: object) -> None:
        """Make a change and record it. The arguments must be JSON values. Only inside a transaction."""
        self._appliers[operation](*arguments)
        if self._file >= 0:
            self._records.append((operation, *arguments))

    def undo(self, function: Callable[[], None]) -> None:
        """What restores the state if the transaction fails. Called by appliers; the newest runs first."""
        if self._depth:
            self._undo.append(function)

    def after(self, function: Callable[[], None]) -> None:
        """What runs when the transaction has ended well."""
        self._after.append(function)

    def transaction(self) -> Journal:
        """The context manager of a transaction."""
        return self

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        after = []
        try:
            if error is None and self._records:
                os.write(self._file, msgspec.json.encode(self._records) + b"\n")
            if error is None:
                self._undo, after = [], self._after
        finally:
            # What is still there after a failure is undone.
            self._take_back(0)
            self._records, self._after = [], []
        for function in after:
            function()

    def _take_back(self, mark: int) -> None:
        while len(self._undo) > mark:
            self._undo.pop()()

    @contextmanager
    def discarded(self) -> Iterator[None]:
        """Undo the changes of the block when the block ends. Only inside a transaction."""
        records, undo, after = len(self._records), len(self._undo), len(self._after)
        self.discards = True
        try:
            yield
        finally:
            self.discards = False
            self._take_back(undo)
            del self._records[records:], self._after[after:]

    def open(self) -> None:
        """Restore the state from the file and write to the file from now on; nothing without a path.

        Raises `ValueError` if the file is not a journal. An incomplete last line is cut: its transaction did not end.
        """
        if self._path is None:
            return
        content = self._path.read_bytes() if self._path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        header, *lines = complete.splitlines() or [b""]
        if content and header != msgspec.json.encode(FORMAT):
            raise ValueError(f"{self._path} is not a journal of this simulator: remove it or name another file")
        for line in lines:
            for operation, *arguments in msgspec.json.decode(line):
                self._appliers[operation](*arguments)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, len(complete))
        if not content:
            os.write(self._file, msgspec.json.encode(FORMAT) + b"\n")

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
