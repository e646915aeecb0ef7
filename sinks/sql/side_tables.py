"""The side tables over any SQL engine: each call is one transaction, each transaction one synchronous function.

`PostgresSideTables` and the simulation's fake differ only in how they run a function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, bindparam, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from schemas.billing_events import ObjectKind, ObjectName, Via
from schemas.side_tables import (
    PARTS_OF,
    TABLE_OF,
    WAITING,
    AuditRow,
    Cursor,
    Due,
    DueBinding,
    HeldCustomer,
    HeldEvent,
    Link,
    Outcome,
    Overlap,
    Overlaps,
    Row,
    Step,
    Timeline,
    Unstorable,
)
from sinks.sql import links, step
from sinks.sql.account_records import SqlAccountRecords
from sinks.sql.acknowledgements import SqlAcknowledgements
from sinks.sql.bills import SqlBills
from sinks.sql.bindings import Planner, binding_of, overlaps_now
from sinks.sql.catalog import SqlCatalog
from sinks.sql.credits import SqlCredits
from sinks.sql.dunning import SqlDunning
from sinks.sql.duplicates import SqlDuplicates
from sinks.sql.entitlements import SqlEntitlements
from sinks.sql.flat_to_metered import SqlMigrations
from sinks.sql.grant_orders import SqlGrantOrders
from sinks.sql.holds import SqlHolds
from sinks.sql.intents import SqlIntentLedger
from sinks.sql.invoice_books import SqlInvoiceBooks
from sinks.sql.journal import SqlJournal
from sinks.sql.keys import SqlKeys
from sinks.sql.notices import SqlNotices
from sinks.sql.packs import SqlPacks
from sinks.sql.payers import SqlPayers
from sinks.sql.plan_changes import SqlPlanChanges
from sinks.sql.plan_moves import SqlPlanMoves
from sinks.sql.queries import links_of, mirror_row, mirror_rows, next_offset, rows_where
from sinks.sql.redrives import SqlRedrives
from sinks.sql.revenue import SqlRevenue
from sinks.sql.seats import SqlSeats
from sinks.sql.tables import account_bindings, audit, cursors, customer_column, mirror, processed_events
from sinks.sql.trials import SqlTrials
from sinks.sql.unfinalized import SqlUnfinalized

Answer = TypeVar("Answer")

# Stripe begins the next period of these when one is over.
BILLING: Final = ("active", "trialing", "past_due")
# Made once, because it runs very often. The texts are in it because PostgreSQL finds the partial index only then.
_HEARD_MS: Final = select(func.max(processed_events.c.processed_ms)).where(
    processed_events.c.type == literal_column("'customer.updated'"),
    processed_events.c.via == literal_column("'webhook'"),
    processed_events.c.customer_id == bindparam("of_customer"),
    processed_events.c.processed_ms >= bindparam("since_ms"),
)


def no_overlaps(mirror: Mapping[str, Sequence[Row]], now_ms: int) -> Sequence[Overlap]:  # noqa: ARG001  # a protocol
    """Finds none."""
    return ()


class SqlSideTables(ABC):
    """What both stores share. Implements `schemas.side_tables.SideTables`, whose docstrings hold.

    A commit whose answer was lost raises `Transient`, and may have been written. The caller reads `position` before a
    repeat: the position is either the believed one (nothing was written) or the next one (all was). A caller that
    repeats the step without looking gets `Fenced` if all was written, and `Transient` or the outcomes otherwise. The
    outcomes of a lost answer are in `processed_events`: a step with the same events returns them.
    """

    def __init__(self, timeline: Timeline, overlaps: Overlaps = no_overlaps) -> None:
        """`timeline` derives bindings; see `schemas.side_tables.Timeline`. Its `mirror` has no invoices and no lines:
        an account may have years of them, and they decide no binding. `sent` is in the order of the numbers."""
        self._planner = Planner(timeline, overlaps)

    @property
    def acknowledgements(self) -> SqlAcknowledgements:
        """What people acknowledged, in the same database."""
        return SqlAcknowledgements(self._run)

    @property
    def account_records(self) -> SqlAccountRecords:
        """What there is of one account, in the same database."""
        return SqlAccountRecords(self._run)

    @property
    def bills(self) -> SqlBills:
        """The bills in the same database."""
        return SqlBills(self._run)

    @property
    def intents(self) -> SqlIntentLedger:
        """The ledger of intents in the same database."""
        return SqlIntentLedger(self._run)

    @property
    def catalog(self) -> SqlCatalog:
        """The catalog in the same database."""
        return SqlCatalog(self._run)

    @property
    def payers(self) -> SqlPayers:
        """Who subscribes to what, in the same database."""
        return SqlPayers(self._run)

    @property
    def entitlements(self) -> SqlEntitlements:
        """Overrides, and the versions of accounts' entitlements, in the same database."""
        return SqlEntitlements(self._run)

    @property
    def holds(self) -> SqlHolds:
        """Holds of limits and seats, in the same database."""
        return SqlHolds(self._run)

    @property
    def credits(self) -> SqlCredits:
        """The ledger of credits, in the same database."""
        return SqlCredits(self._run)

    @property
    def dunning(self) -> SqlDunning:
        """Dunning cases, in the same database."""
        return SqlDunning(self._run)

    @property
    def revenue(self) -> SqlRevenue:
        """The audit as revenue reads it."""
        return SqlRevenue(self._run)

    @property
    def invoice_books(self) -> SqlInvoiceBooks:
        """Final invoices as revenue reads them."""
        return SqlInvoiceBooks(self._run)

    @property
    def journal(self) -> SqlJournal:
        """The journal for the finance system, in the same database."""
        return SqlJournal(self._run)

    @property
    def notices(self) -> SqlNotices:
        """The outbox of notices in the same database."""
        return SqlNotices(self._run)

    @property
    def plan_moves(self) -> SqlPlanMoves:
        """Moves of subscriptions to another version of their plan, in the same database."""
        return SqlPlanMoves(self._run)

    @property
    def migrations(self) -> SqlMigrations:
        """Migrations from a flat price to a price for usage, in the same database."""
        return SqlMigrations(self._run)

    @property
    def plan_changes(self) -> SqlPlanChanges:
        """Quotes and operations of plan changes, in the same database."""
        return SqlPlanChanges(self._run)

    @property
    def trials(self) -> SqlTrials:
        """Trials and their keys, in the same database."""
        return SqlTrials(self._run)

    @property
    def duplicates(self) -> SqlDuplicates:
        """Subscriptions that are one too many, in the same database."""
        return SqlDuplicates(self._run)

    @property
    def seats(self) -> SqlSeats:
        """Seats and who holds them, in the same database."""
        return SqlSeats(self._run)

    @property
    def grant_orders(self) -> SqlGrantOrders:
        """Credit grants at Stripe, ordered and mirrored, in the same database."""
        return SqlGrantOrders(self._run)

    @property
    def packs(self) -> SqlPacks:
        """Packs of credits that are bought, in the same database."""
        return SqlPacks(self._run)

    @property
    def unfinalized(self) -> SqlUnfinalized:
        """Invoices that cannot become final, in the same database."""
        return SqlUnfinalized(self._run)

    @property
    def keys(self) -> SqlKeys:
        """API keys, in the same database."""
        return SqlKeys(self._run)

    @property
    def redrives(self) -> SqlRedrives:
        """Redrives of the quarantine, in the same database."""
        return SqlRedrives(self._run)

    @abstractmethod
    async def _run(self, body: Callable[[Connection], Answer]) -> Answer:
        """Run a function in a transaction of its own."""

    async def position(self, partition: int) -> int | None:
        return await self._run(lambda connection: next_offset(connection, step.READER, partition))

    async def unknown(self, event_ids: Sequence[str]) -> set[str]:
        def body(connection: Connection) -> set[str]:
            rows = rows_where(connection, processed_events, "event_id", set(event_ids))
            return set(event_ids) - {row["event_id"] for row in rows if row["outcome"] not in WAITING}

        return await self._run(body)

    async def held_among(self, event_ids: Sequence[str]) -> set[str]:
        def body(connection: Connection) -> set[str]:
            rows = rows_where(connection, processed_events, "event_id", set(event_ids))
            return {row["event_id"] for row in rows if row["outcome"] == Outcome.HELD}

        return await self._run(body)

    async def seen(self, event_ids: Sequence[str]) -> dict[str, Via]:
        def body(connection: Connection) -> dict[str, Via]:
            rows = rows_where(connection, processed_events, "event_id", set(event_ids))
            return {row["event_id"]: Via(row["via"]) for row in rows}

        return await self._run(body)

    async def fetch_seqs(self, names: Sequence[ObjectName]) -> dict[ObjectName, int]:
        return await self._run(lambda connection: step.fetch_seqs(connection, names))

    async def commit(self, step_: Step) -> Mapping[str, Outcome]:
        try:
            return await self._run(lambda connection: step.commit(connection, step_, self._planner))
        except (IntegrityError, DataError, UnicodeEncodeError, OverflowError) as error:
            raise Unstorable(_refused(error)) from error

    async def link(self, account: str, customer: str, starts_ms: int, actor: str, reason: str, now_ms: int) -> Link:
        return await self._run(
            lambda connection: links.link(
                connection, self._planner, account, customer, starts_ms, actor, reason, now_ms
            )
        )

    async def unlink(self, account: str, actor: str, reason: str, now_ms: int) -> Link:
        return await self._run(
            lambda connection: links.unlink(connection, self._planner, account, actor, reason, now_ms)
        )

    async def links(self, account: str) -> Sequence[Link]:
        return await self._run(lambda connection: links_of(connection, {account})[account])

    async def held(self, customer: str = "", limit: int = 1_000) -> Sequence[HeldEvent]:
        return await self._waiting(Outcome.HELD, customer, limit)

    async def set_aside(self, limit: int = 1_000) -> Sequence[HeldEvent]:
        return await self._waiting(Outcome.SET_ASIDE, "", limit)

    async def _waiting(self, outcome: Outcome, customer: str, limit: int) -> Sequence[HeldEvent]:
        found = processed_events.c
        wanted = select(found.event_id, found.type, found.customer_id, found.log_partition, found.log_offset)
        # The text is in the statement because PostgreSQL finds the partial index only then.
        wanted = wanted.where(found.outcome == literal_column(f"'{outcome}'")).order_by(
            found.processed_ms, found.log_partition, found.log_offset, found.event_id
        )
        if customer:
            wanted = wanted.where(found.customer_id == customer)
        return await self._run(
            lambda connection: [HeldEvent(*row) for row in connection.execute(wanted.limit(limit)).all()]
        )

    async def held_customers(self, limit: int = 1_000) -> Sequence[HeldCustomer]:
        found, items = processed_events.c, mirror["subscription_items"].c
        subscriptions, invoices = mirror["subscriptions"].c, mirror["invoices"].c
        # The text is in the statement because PostgreSQL finds the partial index only then.
        is_held = found.outcome == literal_column(f"'{Outcome.HELD}'")
        held = select(found.customer_id).where(is_held).distinct().order_by(found.customer_id).limit(limit).subquery()
        period_end_ms = (
            select(func.min(items.period_end_ms))
            .where(items.subscription_id == subscriptions.id, items.usage_type == "metered")
            .where(subscriptions.customer_id == held.c.customer_id, subscriptions.ended_ms.is_(None))
        )
        finalizes_ms = select(func.min(invoices.finalizes_ms)).where(
            invoices.customer_id == held.c.customer_id, invoices.status == "draft"
        )
        wanted = select(held.c.customer_id, period_end_ms.scalar_subquery(), finalizes_ms.scalar_subquery())
        return await self._run(lambda connection: [HeldCustomer(*row) for row in connection.execute(wanted).all()])

    async def overdue(self, ended_ms: int, limit: int = 1_000) -> Sequence[tuple[ObjectName, str]]:
        each, items = mirror["subscriptions"].c, mirror["subscription_items"].c
        period = select(items.subscription_id, func.max(items.period_end_ms).label("end_ms"))
        ended = period.group_by(items.subscription_id).subquery()
        wanted = select(each.id, each.customer_id).join(ended, ended.c.subscription_id == each.id)
        wanted = wanted.where(ended.c.end_ms < ended_ms, each.deleted == 0, each.ended_ms.is_(None))
        wanted = wanted.where(each.status.in_(BILLING)).order_by(ended.c.end_ms.desc(), each.id).limit(limit)
        return await self._run(
            lambda connection: [
                (ObjectName(ObjectKind.SUBSCRIPTION, name), of) for name, of in connection.execute(wanted)
            ]
        )

    async def ignored(self, canary: str = "", limit: int = 10_000) -> Mapping[str, int]:
        found = processed_events.c
        some = select(found.type).where(found.outcome == Outcome.IGNORED.value)
        # "" is an event without a customer, not the canary.
        some = some.where(found.customer_id != canary) if canary else some
        counted = some.limit(limit).subquery()
        wanted = select(counted.c.type, func.count()).group_by(counted.c.type)
        return await self._run(lambda connection: {row[0]: row[1] for row in connection.execute(wanted)})

    async def due_bindings(self, limit: int = 500, *, account: str = "", after: str = "") -> Sequence[DueBinding]:
        due = account_bindings.c
        wanted = select(account_bindings).where(due.sent_ms.is_(None)).order_by(due.account, due.number).limit(limit)
        if account:
            wanted = wanted.where(due.account == account)
        elif after:
            wanted = wanted.where(due.account > after)
        return await self._run(
            lambda connection: [
                DueBinding(row["account"], row["number"], binding_of(row))
                for row in connection.execute(wanted).mappings()
            ]
        )

    async def due(self) -> Due:
        column = account_bindings.c
        wanted = select(func.count(), func.min(column.planned_ms)).where(column.sent_ms.is_(None))
        return await self._run(lambda connection: Due(*connection.execute(wanted).one()))

    async def sent(self, bindings: Sequence[DueBinding], now_ms: int) -> None:
        table = account_bindings
        is_due = (table.c.account == bindparam("a")) & (table.c.number == bindparam("n")) & table.c.sent_ms.is_(None)
        marks = [{"a": due.account, "n": due.number, "sent_ms": now_ms} for due in bindings]
        if marks:
            await self._run(lambda connection: connection.execute(update(table).where(is_due), marks))

    async def overlaps(self, now_ms: int, limit: int = 1_000) -> Sequence[Overlap]:
        return await self._run(lambda connection: overlaps_now(connection, self._planner, now_ms, limit))

    async def audit(self, account: str, limit: int = 1_000) -> Sequence[AuditRow]:
        row = audit.c
        wanted = select(
            row.account, row.seq, row.at_ms, row.actor, row.cause, row.entity, row.entity_id, row.before_json,
            row.after_json, row.reason,
        ).where(row.account == account).order_by(row.account, row.seq).limit(limit)  # fmt: skip
        rows: Sequence[Any] = await self._run(lambda connection: connection.execute(wanted).all())
        return [AuditRow(*found) for found in rows]

    async def mirror(self) -> Mapping[str, Sequence[Row]]:
        return await self._run(mirror_rows)

    async def mirrored(self, kind: ObjectKind, ids: Sequence[str]) -> Mapping[str, Sequence[Row]]:
        places = [(TABLE_OF[kind], "id"), *([PARTS_OF[kind]] if kind in PARTS_OF else [])]

        def body(connection: Connection) -> Mapping[str, Sequence[Row]]:
            return {
                name: [mirror_row(name, row) for row in rows_where(connection, mirror[name], column, ids)]
                for name, column in places
            }

        return await self._run(body)

    async def counts(self) -> Mapping[str, int]:
        def body(connection: Connection) -> dict[str, int]:
            counted = {name: select(func.count()).select_from(table) for name, table in mirror.items()}
            return {name: connection.execute(wanted).scalar_one() for name, wanted in counted.items()}

        return await self._run(body)

    async def known(
        self, kind: ObjectKind, after: str = "", customer: str = "", limit: int = 1_000
    ) -> Sequence[tuple[ObjectName, str]]:
        table = mirror[TABLE_OF[kind]]
        owner = table.c[customer_column(kind)]
        wanted = select(table.c.id, owner).where(table.c.id > after).order_by(table.c.id).limit(limit)
        if customer:
            wanted = wanted.where(owner == customer)
        rows: Sequence[Any] = await self._run(lambda connection: connection.execute(wanted).all())
        return [(ObjectName(kind, identifier), of or "") for identifier, of in rows]

    async def heard_ms(self, customer: str, since_ms: int) -> int | None:
        asked = {"of_customer": customer, "since_ms": since_ms}
        return await self._run(lambda connection: connection.execute(_HEARD_MS, asked).scalar())

    async def cursor(self, name: str) -> Cursor | None:
        wanted = select(cursors.c.until_s, cursors.c.moved_ms).where(cursors.c.name == name)

        def body(connection: Connection) -> Cursor | None:
            row = connection.execute(wanted).first()
            return None if row is None else Cursor(*row)

        return await self._run(body)

    async def move_cursor(self, name: str, until_s: int, now_ms: int) -> None:
        values = {"until_s": until_s, "moved_ms": now_ms}

        def body(connection: Connection) -> None:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            row = insert(cursors).values(name=name, **values)
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=values))

        await self._run(body)


def _refused(error: Exception) -> str:
    """Why a database refused a row, without the row's values: they are people's data."""
    cause = getattr(error, "orig", None) or error
    said = getattr(getattr(cause, "diag", None), "message_primary", None)
    if said is None and isinstance(error, UnicodeEncodeError):
        said = "a text has a character that is not Unicode"
    return str(said or type(cause).__name__)
