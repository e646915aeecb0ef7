"""The ledger of intents over any SQL engine. Each call is one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Context, Decimal
from typing import Any, Final, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Integer, RowMapping, bindparam, func, literal_column, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from aggregators.report_records import recorded
from schemas.clock import SECOND_MS
from schemas.intent_ledger import IntentState, IntentTotals, LedgerIntent, Waiting
from schemas.log import REPORTS_TOPIC
from schemas.reports import Attempt, Intent, ReportEntry
from sinks.sql.queries import Values, chunks, move_position, next_offset, rows_where, storable
from sinks.sql.tables import intents

READER: Final = REPORTS_TOPIC
# Enough for any sum of quantities of any scale; the default of 28 digits is not.
EXACT: Final = Context(prec=100)
_INTENT: Final = tuple(name for name in Intent.model_fields if name not in {"kind", "livemode"})
# Of free and replaced usage the credits came back; the next revision stands for a redriven intent.
_PAYING: Final = ("accepted", "credited", "late", "dead", "pending")
_PROGRESS: Final = ("stripe_customer", "hold", "detail", "not_before_ms", "failures", "absent_at_ms")
# The text is in the statements because PostgreSQL finds a partial index only then.
_IS_PENDING: Final = intents.c.state == literal_column("'pending'")
_COLUMNS: Final = list(intents.c.keys())
# Statements that run very often are made once: to make one takes longer than to execute it.
_DUE: Final = (
    select(intents)
    .where(
        intents.c.log_partition == bindparam("partition"), _IS_PENDING, intents.c.not_before_ms <= bindparam("now_ms")
    )
    .order_by(intents.c.not_before_ms, intents.c.log_offset)
    .limit(bindparam("at_most", type_=Integer))
)
_ROWS: Final = text("SELECT * FROM json_populate_recordset(NULL::intents, CAST(:rows AS json))").columns(*intents.c)

Answer = TypeVar("Answer")


class Run(Protocol):
    """Runs a function in a transaction of its own."""

    def __call__(self, body: Callable[[Connection], Answer]) -> Awaitable[Answer]: ...


class SqlIntentLedger:
    """Implements `schemas.intent_ledger.IntentLedger`, whose docstrings hold.

    An `apply` whose answer was lost raises `Transient`, and may have been written: `position` says so.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    async def position(self, partition: int) -> int | None:
        return await self._run(lambda connection: next_offset(connection, READER, partition))

    async def apply(
        self, partition: int, believed_offset: int | None, next_offset: int, entries: Sequence[tuple[int, ReportEntry]]
    ) -> Sequence[LedgerIntent]:
        def body(connection: Connection) -> Sequence[LedgerIntent]:
            # The lock of the position orders the writers of a partition, so what is read now holds until the end.
            is_new = believed_offset is None
            move_position(connection, READER, partition, believed_offset, next_offset, may_begin=is_new)
            known = {
                each.intent.identifier: each for each in _found(connection, {one.identifier for _, one in entries})
            }
            changed: dict[str, LedgerIntent] = {}
            for offset, entry in entries:
                identifier = storable(entry.identifier)
                before = changed.get(identifier) or known.get(identifier)
                after = recorded(before, partition, offset, entry)
                if after is not None and after != before:
                    changed[identifier] = after
            _write(connection, changed.values())
            return list(changed.values())

        return await self._run(body)

    async def due(self, partition: int, now_ms: int, limit: int) -> Sequence[LedgerIntent]:
        return await self._selected(_DUE, {"partition": partition, "now_ms": now_ms, "at_most": limit})

    async def waits(self, partition: int, waiting: Sequence[LedgerIntent]) -> None:
        same = func.coalesce(intents.c.attempted_at_ms, -1) == bindparam("attempt_was")
        row = (intents.c.identifier == bindparam("key")) & (intents.c.log_partition == partition) & _IS_PENDING & same
        marks = [
            {name: storable(getattr(each, name)) for name in _PROGRESS}
            | {
                "key": storable(each.intent.identifier),
                "attempt_was": each.attempt.attempted_at_ms if each.attempt else -1,
            }
            for each in waiting
        ]
        # Rows are locked in one order, so that two processes do not wait for each other.
        marks.sort(key=lambda mark: mark["key"])
        changes = update(intents).where(row).values({name: bindparam(name) for name in _PROGRESS})
        if marks:
            await self._run(lambda connection: connection.execute(changes, marks))

    async def end_waits(self, partition: int, after_ms: int) -> None:
        is_late = (intents.c.log_partition == partition) & _IS_PENDING & (intents.c.not_before_ms > after_ms)
        await self._run(lambda connection: connection.execute(update(intents).where(is_late).values(not_before_ms=0)))

    async def waiting(self, partition: int) -> Sequence[Waiting]:
        column = intents.c
        wanted = select(column.hold, func.count(), func.min(column.period_end_ms), func.min(column.log_offset))
        wanted = wanted.where(column.log_partition == partition, _IS_PENDING).group_by(column.hold)
        return await self._run(
            lambda connection: [Waiting(*row) for row in connection.execute(wanted.order_by(column.hold)).all()]
        )

    async def totals(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> IntentTotals:
        column = intents.c
        drawn_minor = func.sum(func.coalesce(column.drawn_minor, 0))
        wanted = (
            select(column.state, column.scale, func.sum(column.delta_minor), drawn_minor)
            .where(
                column.stripe_customer == storable(stripe_customer), column.event_name == storable(event_name),
                column.at_ms >= start_ms, column.at_ms < end_ms,
            )
            .group_by(column.state, column.scale)
        )  # fmt: skip

        def body(connection: Connection) -> IntentTotals:
            sums = dict.fromkeys(IntentState, Decimal(0))
            for state, scale, minor, drawn in connection.execute(wanted).all() if stripe_customer else ():
                billed = EXACT.scaleb(Decimal(minor) - Decimal(drawn), -scale)
                sums[IntentState(state)] = EXACT.add(sums[IntentState(state)], billed)
            state = IntentState
            return IntentTotals(sums[state.ACCEPTED], sums[state.LATE], sums[state.DEAD], sums[state.PENDING])

        return await self._run(body)

    async def drawn(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> Decimal:
        column = intents.c
        wanted = (
            select(column.scale, func.sum(func.coalesce(column.drawn_minor, 0)))
            .where(
                column.stripe_customer == storable(stripe_customer), column.event_name == storable(event_name),
                column.at_ms >= start_ms, column.at_ms < end_ms, column.state.in_(_PAYING),
            )
            .group_by(column.scale)
        )  # fmt: skip

        def body(connection: Connection) -> Decimal:
            found = Decimal(0)
            for scale, minor in connection.execute(wanted).all() if stripe_customer else ():
                found = EXACT.add(found, EXACT.scaleb(Decimal(minor), -scale))
            return found

        return await self._run(body)

    async def listed(
        self, states: Sequence[IntentState], account: str = "", limit: int = 1_000, *, after: str = ""
    ) -> Sequence[LedgerIntent]:
        is_wanted = intents.c.state.in_([literal_column(f"'{IntentState(state)}'") for state in states])
        wanted = select(intents).where(is_wanted, intents.c.identifier > storable(after)).order_by(intents.c.identifier)
        if account:
            wanted = wanted.where(intents.c.account == storable(account))
        return await self._selected(wanted.limit(limit))

    async def found(self, identifiers: Sequence[str]) -> Sequence[LedgerIntent]:
        return await self._run(lambda connection: list(_found(connection, set(identifiers))))

    async def _selected(self, wanted: Any, values: Values | None = None) -> Sequence[LedgerIntent]:
        return await self._run(
            lambda connection: [_intent_of(row) for row in connection.execute(wanted, values).mappings()]
        )


def _found(connection: Connection, identifiers: set[str]) -> Iterable[LedgerIntent]:
    return map(_intent_of, rows_where(connection, intents, "identifier", set(map(storable, identifiers))))


def _write(connection: Connection, changed: Iterable[LedgerIntent]) -> None:
    """Insert or update rows, in one order, so that two processes do not wait for each other."""
    rows = sorted(map(_row_of, changed), key=lambda row: row["identifier"])
    for chunk in chunks(rows):
        if connection.dialect.name == "postgresql":
            connection.execute(_UPSERT_ROWS, {"rows": msgspec.json.encode(chunk).decode()})
        else:
            connection.execute(_UPSERT, chunk)


def _upsert(insert: Any) -> Any:
    others = {name: insert.excluded[name] for name in _COLUMNS if name != "identifier"}
    return insert.on_conflict_do_update(index_elements=["identifier"], set_=others)


# One value with all rows is several times as fast as a statement for each row.
_UPSERT_ROWS: Final = _upsert(postgresql.insert(intents).from_select(_COLUMNS, _ROWS))
_UPSERT: Final = _upsert(sqlite.insert(intents))


def _row_of(known: LedgerIntent) -> Values:
    intent, attempt = known.intent, known.attempt
    row = {
        **{name: getattr(intent, name) for name in _INTENT},
        **{name: getattr(known, name) for name in _PROGRESS},
        "livemode": int(intent.livemode),
        "log_partition": known.partition,
        "log_offset": known.offset,
        "state": known.state.value,
        "attempt_customer": attempt.stripe_customer if attempt else None,
        "timestamp_s": attempt.timestamp_s if attempt else None,
        "value": attempt.value if attempt else None,
        "attempted_at_ms": attempt.attempted_at_ms if attempt else None,
        "replaces_ms": attempt.replaces_ms if attempt else None,
        "at_ms": attempt.timestamp_s * SECOND_MS if attempt else intent.instant_ms,
        "settled_at_ms": known.settled_at_ms,
        "in_doubt": int(known.in_doubt),
        "drawn_minor": known.drawn_minor,
    }
    return {name: storable(value) for name, value in row.items()}


def _intent_of(row: RowMapping | Values) -> LedgerIntent:
    attempt = None
    if row["attempted_at_ms"] is not None:
        attempt = Attempt(
            identifier=row["identifier"],
            stripe_customer=row["attempt_customer"],
            timestamp_s=row["timestamp_s"],
            value=row["value"],
            attempted_at_ms=row["attempted_at_ms"],
            replaces_ms=row["replaces_ms"],
        )
    return LedgerIntent(
        partition=row["log_partition"],
        offset=row["log_offset"],
        intent=Intent(livemode=bool(row["livemode"]), **{name: row[name] for name in _INTENT}),
        state=IntentState(row["state"]),
        attempt=attempt,
        settled_at_ms=row["settled_at_ms"],
        in_doubt=bool(row["in_doubt"]),
        drawn_minor=row["drawn_minor"],
        **{name: row[name] for name in _PROGRESS},
    )
