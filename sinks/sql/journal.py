"""The journal over any SQL engine: written with what it is about, numbered and read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, update

from aggregators.journal import journal_notice, money_entries, plan_entries, recognized_entry
from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import DAY_MS
from schemas.journal import Heard, JournalEntry, JournalKind, PlanItem
from schemas.notices import ChannelName
from schemas.side_tables import PARTS_OF, TABLE_OF
from sinks.sql.intents import Run
from sinks.sql.journal_tables import journal
from sinks.sql.notices import add_deliveries
from sinks.sql.queries import Values, chunks, insert_new, rows_where
from sinks.sql.tables import meta, stripe_objects

_JOURNALED: Final = {
    kind: place
    for place, kind in enumerate(
        (ObjectKind.SUBSCRIPTION, ObjectKind.CREDIT_NOTE, ObjectKind.INVOICE, ObjectKind.REFUND, ObjectKind.DISPUTE)
    )
}
_SUBSCRIPTIONS: Final = TABLE_OF[ObjectKind.SUBSCRIPTION]
_ITEMS: Final = PARTS_OF[ObjectKind.SUBSCRIPTION][0]


class Told(NamedTuple):
    """An object of an account with the rows that the store has from now on, and from what that is known."""

    name: ObjectName
    rows: Mapping[str, Mapping[str, Values]]
    heard: Heard


def write(connection: Connection, told: Sequence[Told]) -> None:
    """Write the entries that follow from objects and that the journal lacks. The caller holds the locks of the objects'
    customers, so no other transaction writes entries of the same objects."""
    # What a void takes back follows from the credit notes.
    told = sorted((each for each in told if each.name.kind in _JOURNALED), key=lambda each: _JOURNALED[each.name.kind])
    known = _known(connection, told)
    plans = _plans(connection, told)
    made: list[JournalEntry] = []
    for each in told:
        kind, name = each.name
        row, own = each.rows[TABLE_OF[kind]][name], [*known[name], *(one for one in made if name in _about(one))]
        if kind is ObjectKind.SUBSCRIPTION:
            made += plan_entries(row, each.rows[_ITEMS].values(), own, plans, each.heard)
        else:
            made += money_entries(kind, row, own, each.heard)
    for chunk in chunks([_encoded(entry) for entry in made]):
        connection.execute(insert(journal), chunk)


def _about(entry: JournalEntry) -> set[str]:
    """The objects whose further entries depend on an entry."""
    return {entry.object, entry.invoice}


def _known(connection: Connection, told: Sequence[Told]) -> Mapping[str, list[JournalEntry]]:
    """The entries about objects, by object; an invoice has those of its credit notes too."""
    known: dict[str, list[JournalEntry]] = defaultdict(list)
    names = {each.name.id for each in told}
    rows = {
        row["id"]: row for column in ("object", "invoice") for row in rows_where(connection, journal, column, names)
    }
    for row in rows.values():
        entry = _decoded(row)
        for name in _about(entry):
            known[name].append(entry)
    return known


def _plans(connection: Connection, told: Sequence[Told]) -> Mapping[str, str]:
    """The plan of each price of the objects, as the catalog has it."""
    prices = {str(row["price_id"]) for each in told for row in each.rows.get(_ITEMS, {}).values()}
    rows = rows_where(connection, stripe_objects, "stripe_id", prices)
    return {row["stripe_id"]: row["plan"] for row in rows if row["plan"]}


def _encoded(entry: JournalEntry) -> Values:
    row = entry._asdict() | {"number": None}
    return row | {f"{side}_json": msgspec.json.encode(row.pop(side)).decode() for side in ("before", "after")}


def _decoded(row: Values) -> JournalEntry:
    values = {column: row[column] for column in JournalEntry._fields if column in row}
    items = {side: msgspec.json.decode(row[f"{side}_json"], type=tuple[PlanItem, ...]) for side in ("before", "after")}
    return JournalEntry(**{**values, **items, "number": row["number"] or 0, "kind": JournalKind(row["kind"])})


class SqlJournal:
    """Implements `schemas.journal.JournalStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def number(self, now_ms: int, limit: int, *, delivers: bool) -> int:
        return await self._run(lambda connection: _number(connection, now_ms, limit, delivers=delivers))

    async def add_recognized(self, day: int, totals: Mapping[str, int], now_ms: int) -> int:
        return await self._run(lambda connection: _add_recognized(connection, day, totals, now_ms))

    async def entries(self, after: int = 0, limit: int = 1_000, account: str = "") -> Sequence[JournalEntry]:
        wanted = select(journal).where(journal.c.number > after).order_by(journal.c.number).limit(limit)
        if account:
            wanted = wanted.where(journal.c.account == account)
        return await self._run(
            lambda connection: [_decoded(dict(row)) for row in connection.execute(wanted).mappings()]
        )


def _add_recognized(connection: Connection, day: int, totals: Mapping[str, int], now_ms: int) -> int:
    # The next one sees these entries.
    connection.execute(select(meta.c.log_id).with_for_update())
    own = (journal.c.account == "", journal.c.kind == JournalKind.RECOGNIZED.value)
    sums = select(journal.c.currency, func.sum(journal.c.amount_minor)).where(*own).group_by(journal.c.currency)
    booked = {currency: int(minor) for currency, minor in connection.execute(sums)}
    if (connection.execute(select(func.max(journal.c.at_ms)).where(*own)).scalar() or 0) >= day * DAY_MS:
        return 0
    found = [
        recognized_entry(currency, day, minor, booked.get(currency, 0), now_ms)
        for currency, minor in sorted(totals.items())
    ]
    return insert_new(connection, journal, [_encoded(each) for each in found if each is not None])


def _number(connection: Connection, now_ms: int, limit: int, *, delivers: bool) -> int:
    # Who numbers holds this row: the next one sees these numbers.
    log_id = connection.execute(select(meta.c.log_id).with_for_update()).scalar_one()
    waiting = select(journal).where(journal.c.number.is_(None))
    waiting = waiting.order_by(journal.c.made_ms, journal.c.at_ms, journal.c.id).limit(limit)
    rows = [_decoded(dict(row)) for row in connection.execute(waiting).mappings()]
    if not rows:
        return 0
    last = connection.execute(select(func.max(journal.c.number))).scalar() or 0
    found = [entry._replace(number=number) for number, entry in enumerate(rows, start=last + 1)]
    given = update(journal).where(journal.c.id == bindparam("key")).values(number=bindparam("given"))
    connection.execute(given, [{"key": entry.id, "given": entry.number} for entry in found])
    if delivers:
        notices = [journal_notice(log_id, entry, now_ms) for entry in found]
        add_deliveries(connection, notices, [ChannelName.FINANCE])
    return len(found)
