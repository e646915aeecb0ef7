"""Marks of tables. A table's comment says which rebuild made it; EXCHANGE moves the comment with the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sinks.clickhouse.client import ClickHouse

_COMMENT: Final = re.compile(r"^rebuild (\d+) (.*)$", re.S)


class Mark(NamedTuple):
    """The content of a table's comment: the number of the rebuild that made the table (0: none), and its note."""

    number: int
    note: str

    @property
    def comment(self) -> str:
        """The text of the comment."""
        return f"rebuild {self.number} {self.note}"


UNMARKED: Final = Mark(0, "")


def beside_name(table: str, token: str = "") -> str:
    """The name of a table's staging table, built by the rebuild command with this token."""
    return f"{table}_building" + (f"_{token}" if token else "")


def new_name(table: str, token: str = "") -> str:
    """The preliminary name under which a staging table is created, before it gets the name of `beside_name`."""
    return f"{table}_new" + (f"_{token}" if token else "")


def names_of(name: str, tables: Iterable[str]) -> list[str]:
    """The tables that have this name of `beside_name` or `new_name`, with any token or none."""
    return sorted(table for table in tables if table == name or table.startswith(name + "_"))


def beside_of(table: str, marks: Mapping[str, Mark]) -> Mark | None:
    """The mark of a table's staging table, whichever command builds it; None without a staging table."""
    return max((marks[name] for name in names_of(beside_name(table), marks)), default=None)


def mark_of(comment: str) -> Mark:
    """The mark in a table's comment."""
    match = _COMMENT.match(comment)
    return Mark(int(match[1]), match[2]) if match else UNMARKED


async def read_marks(clickhouse: ClickHouse) -> dict[str, Mark]:
    """The marks of all tables of the database."""
    rows = await clickhouse.rows(
        "SELECT name, comment FROM system.tables WHERE database = {database:String}",
        {"database": clickhouse.database},
    )
    return {str(name): mark_of(str(comment)) for name, comment in rows}


def whole_number(table: str, marks: Mapping[str, Mark]) -> int | None:
    """The number of the rebuild that made a table; None while rows written around its exchange are still missing."""
    live, beside = marks.get(table, UNMARKED), beside_of(table, marks)
    return None if beside is not None and beside.number < live.number else live.number
