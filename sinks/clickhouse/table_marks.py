"""A table's comment says which rebuild made it; the table takes it along when it is exchanged for another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sinks.clickhouse.client import ClickHouse

_COMMENT: Final = re.compile(r"^rebuild (\d+) (.*)$", re.S)


class Mark(NamedTuple):
    """What a table's comment says: the number of the rebuild that made it (0: none), and its note."""

    number: int
    note: str

    @property
    def comment(self) -> str:
        """The comment."""
        return f"rebuild {self.number} {self.note}"


UNMARKED: Final = Mark(0, "")


def beside_name(table: str, token: str = "") -> str:
    """The name of the table that is built beside one, by the rebuild command of a token."""
    return f"{table}_building" + (f"_{token}" if token else "")


def new_name(table: str, token: str = "") -> str:
    """The name under which such a table is made: it counts only once it bears the other one."""
    return f"{table}_new" + (f"_{token}" if token else "")


def names_of(name: str, tables: Iterable[str]) -> list[str]:
    """Those of the tables whose name is that of `beside_name` or `new_name` (`name`), of whichever token."""
    return sorted(each for each in tables if each == name or each.startswith(name + "_"))


def beside_of(table: str, marks: Mapping[str, Mark]) -> Mark | None:
    """The mark of what stands beside a table, whoever builds it."""
    return max((marks[name] for name in names_of(beside_name(table), marks)), default=None)


def mark_of(comment: str) -> Mark:
    """What a table's comment says."""
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
    """The number of the rebuild that made a table; None while what it missed around its exchange is caught up with."""
    live, beside = marks.get(table, UNMARKED), beside_of(table, marks)
    return None if beside is not None and beside.number < live.number else live.number
