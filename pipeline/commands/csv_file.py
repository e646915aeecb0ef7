"""Writes CSV files for people, who open them in a spreadsheet: the only place that writes any."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from schemas.errors import InvalidInput

# What a spreadsheet takes for the begin of a formula. An account may have any name, also that of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


def csv_cell(value: object) -> str:
    """A value as a cell. A text that a spreadsheet would run as a formula begins with an apostrophe; a number does
    not."""
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


@contextlib.contextmanager
def csv_file(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Iterable[object]], None]]:
    """Opens a CSV file and writes its columns; what is returned writes a row. Raises `InvalidInput` for a path that
    cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            yield lambda row: writer.writerow(map(csv_cell, row))
    except OSError as error:
        raise InvalidInput("--csv", f"cannot write {path}: {error.strerror}") from error
