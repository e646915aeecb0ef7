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

FORMAT: Final = {"journal": "stripe_simulator", "version": 1}

Applier = Callable[..., None]


class Journal:
    """The open transaction and the file. Used by one event loop; a transaction must not await."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file = -1
        self._appliers: dict[str, Applier] = {}
        # True inside `discarded`.
        self.discards = False
        self._depth = 0
        self._records: list[tuple[object, ...]] = []
        self._undo: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []

    def register(self, operation: str, applier: Applier) -> None:
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
        """`with journal.transaction():` makes and writes all changes of the block or none. A nested one joins."""
        return self

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        try:
            if error is None and self._records:
                os.write(self._file, msgspec.json.encode(self._records) + b"\n")
        except BaseException as failure:
            error = failure
            raise
        finally:
            undo, self._undo = self._undo, []
            after, self._after = self._after, []
            self._records.clear()
            if error is not None:
                for function in reversed(undo):
                    function()
        if error is None:
            for function in after:
                function()

    @contextmanager
    def discarded(self) -> Iterator[None]:
        """Undo the changes of the block when the block ends. Only inside a transaction."""
        marks = len(self._records), len(self._undo), len(self._after)
        self.discards = True
        try:
            yield
        finally:
            self.discards = False
            for function in reversed(self._undo[marks[1] :]):
                function()
            del self._records[marks[0] :], self._undo[marks[1] :], self._after[marks[2] :]

    def open(self) -> None:
        """Restore the state from the file and write to the file from now on; nothing without a path.

        Raises `ValueError` if the file is not a journal. An incomplete last line is cut: its transaction did not end.
        """
        if self._path is None:
            return
        content = self._path.read_bytes() if self._path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        lines = complete.splitlines()
        header = msgspec.json.encode(FORMAT)
        if content and (not lines or lines[0] != header):
            raise ValueError(f"{self._path} is not a journal of this simulator: remove it or name another file")
        for line in lines[1:]:
            for operation, *arguments in msgspec.json.decode(line):
                self._appliers[operation](*arguments)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, len(complete))
        if not lines:
            os.write(self._file, header + b"\n")

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
