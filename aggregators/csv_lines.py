"""Lines of CSV for people, who open them in a spreadsheet: the only place that makes any."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Final

# What a spreadsheet takes for the begin of a formula. An account may have any name, also that of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


def csv_cell(value: object) -> str:
    """A value as a cell. A text that a spreadsheet would run as a formula begins with an apostrophe; a number does
    not."""
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def csv_line(values: Iterable[object]) -> str:
    """A row with its end."""
    line = io.StringIO()
    csv.writer(line).writerow(map(csv_cell, values))
    return line.getvalue()
