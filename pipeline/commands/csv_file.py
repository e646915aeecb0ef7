"""Writes CSV files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from aggregators.csv_lines import csv_line
from schemas.errors import InvalidInput


@contextlib.contextmanager
def csv_file(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Iterable[object]], None]]:
    """Opens a CSV file and writes its columns; what is returned writes a row. Raises `InvalidInput` for a path that
    cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:

            def write(row: Iterable[object]) -> None:
                file.write(csv_line(row))

            write(columns)
            yield write
    except OSError as error:
        raise InvalidInput("--csv", f"cannot write {path}: {error.strerror}") from error
