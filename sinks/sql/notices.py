"""The outbox of notices over any SQL engine. Each call is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from schemas.clock import DAY_MS
from schemas.dunning import DunningState
from schemas.errors import InvalidInput
from schemas.notices import ChannelName, Delivery, DeliveryCounts, DeliveryState, Notice, NoticeKind, StripeFact
from sinks.sql.dunning_tables import dunning_cases, dunning_invoices
from sinks.sql.intents import Run
from sinks.sql.queries import Values, chunks
from sinks.sql.tables import INTEGER, account_customers, mirror, notices

# Until when a fact makes a notice. The walk of a sweep ends there.
TRIAL_MS: Final = 7 * DAY_MS
UNPAID_MS: Final = 30 * DAY_MS
ENDED_MS: Final = 3 * DAY_MS
CARD_MS: Final = 60 * DAY_MS
DETAIL_CHARACTERS_MAX: Final = 500
_FACTS: Final = Notice._fields
# The state of a case that a notice is about.
_STATES: Final = {
    NoticeKind.PAYMENT_URGENT: DunningState.URGENT,
    NoticeKind.DOWNGRADE_WARNING: DunningState.FINAL_WARNING,
    NoticeKind.DOWNGRADED: DunningState.DOWNGRADED,
    NoticeKind.WIN_BACK: DunningState.WIN_BACK,
}
# The texts are in the statements because PostgreSQL finds a partial index only then.
_IS_WAITING: Final = notices.c.state == literal_column(f"'{DeliveryState.WAITING}'")
_IS_DEAD: Final = notices.c.state == literal_column(f"'{DeliveryState.DEAD}'")
# What is found to be true again in such a state waits again.
_REVIVED: Final = DeliveryState.OBSOLETE.value
_IS_CLAIMED: Final = and_(
    notices.c.id == bindparam("key"),
    notices.c.channel == bindparam("by"),
    notices.c.attempts == bindparam("claim"),
    _IS_WAITING,
)


class SqlNotices:
    """Implements `schemas.notices.NoticeOutbox`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def add(self, notices: Sequence[Notice], channels: Sequence[ChannelName]) -> int:
        if not notices or not channels:
            return 0
        return await self._run(lambda connection: add_deliveries(connection, notices, channels))

    async def claim(
        self, now_ms: int, until_ms: int, limit: int, channel: ChannelName | None = None
    ) -> Sequence[Delivery]:
        due = select(notices).where(_IS_WAITING, notices.c.due_ms <= now_ms).order_by(notices.c.due_ms, notices.c.id)
        if channel is not None:
            due = due.where(notices.c.channel == channel.value)
        due = due.limit(limit).with_for_update(skip_locked=True)
        same = (notices.c.id == bindparam("key")) & (notices.c.channel == bindparam("by"))
        claimed = update(notices).where(same).values(attempts=notices.c.attempts + 1, due_ms=until_ms)

        def body(connection: Connection) -> Sequence[Delivery]:
            found = [_delivery(row) for row in connection.execute(due).mappings()]
            if found:
                connection.execute(claimed, [{"key": each.notice.id, "by": each.channel.value} for each in found])
            return [each._replace(attempts=each.attempts + 1, due_ms=until_ms) for each in found]

        return await self._run(body)

    async def settle(self, delivery: Delivery, state: DeliveryState, detail: str, now_ms: int) -> bool:
        return await self._change(delivery, {"state": state.value, "detail": _detail(detail), "settled_ms": now_ms})

    async def postpone(self, delivery: Delivery, due_ms: int, failures: int, detail: str) -> bool:
        return await self._change(delivery, {"due_ms": due_ms, "failures": failures, "detail": _detail(detail)})

    async def _change(self, delivery: Delivery, values: Values) -> bool:
        claim = {"key": delivery.notice.id, "by": delivery.channel.value, "claim": delivery.attempts}
        changed = update(notices).where(_IS_CLAIMED).values(**values)
        return await self._run(lambda connection: connection.execute(changed, claim).rowcount == 1)

    async def retry(self, notice: str, now_ms: int) -> int:
        dead = update(notices).where(_IS_DEAD)
        if notice:
            dead = dead.where(notices.c.id == _text(notice))
        again = dead.values(state=DeliveryState.WAITING.value, failures=0, due_ms=now_ms, settled_ms=None)
        return await self._run(lambda connection: connection.execute(again).rowcount)

    async def listed(
        self,
        state: DeliveryState | None = None,
        account: str = "",
        limit: int = 100,
        before: str = "",
        *,
        but: ChannelName | None = None,
    ) -> Sequence[Delivery]:
        place = notices.c.made_ms, notices.c.id, notices.c.channel
        wanted = select(notices).order_by(*(column.desc() for column in place)).limit(limit)
        if state is not None:
            wanted = wanted.where(notices.c.state == state.value)
        if account:
            wanted = wanted.where(notices.c.account == _text(account))
        if but is not None:
            wanted = wanted.where(notices.c.channel != but.value)
        if before:
            made_ms, identifier, channel = _place(before)
            behind = and_(place[0] == made_ms, place[1] == identifier, place[2] < channel)
            wanted = wanted.where(or_(place[0] < made_ms, and_(place[0] == made_ms, place[1] < identifier), behind))
        return await self._run(lambda connection: [_delivery(row) for row in connection.execute(wanted).mappings()])

    async def counts(self, *, but: ChannelName | None = None) -> DeliveryCounts:
        waiting = select(func.count(), func.min(notices.c.made_ms)).where(_IS_WAITING)
        dead = select(func.count()).select_from(notices).where(_IS_DEAD)
        if but is not None:
            is_other = notices.c.channel != but.value
            waiting, dead = waiting.where(is_other), dead.where(is_other)

        def body(connection: Connection) -> DeliveryCounts:
            count, oldest_ms = connection.execute(waiting).one()
            return DeliveryCounts(count, oldest_ms, connection.execute(dead).scalar_one())

        return await self._run(body)

    async def facts(
        self, kind: NoticeKind, now_ms: int, after: str = "", limit: int = 500, *, subject: str = ""
    ) -> Sequence[StripeFact]:
        wanted = _facts(kind, now_ms, is_old_told=bool(subject))
        if wanted is None:
            return []
        key = wanted.selected_columns["subject"]
        wanted = wanted.where(key == _text(subject)) if subject else wanted.where(key > _text(after))
        wanted = wanted.order_by(key).limit(limit)
        return await self._run(lambda connection: [StripeFact(kind, *row) for row in connection.execute(wanted).all()])

    async def address(self, account: str, now_ms: int) -> str:
        links, customers = account_customers.c, mirror["stripe_customers"].c
        linked = select(links.customer_id).where(links.account == _text(account), links.starts_ms <= now_ms)
        linked = linked.order_by(links.starts_ms.desc()).limit(1)
        wanted = select(customers.email).where(customers.id == linked.scalar_subquery())
        return await self._run(lambda connection: connection.execute(wanted).scalar() or "")

    async def prune(self, before_ms: int, limit: int) -> int:
        old = select(notices.c.id, notices.c.channel).where(notices.c.period_end_ms < before_ms, ~_IS_WAITING)
        same = (notices.c.id == bindparam("key")) & (notices.c.channel == bindparam("by"))

        def body(connection: Connection) -> int:
            found = [{"key": key, "by": channel} for key, channel in connection.execute(old.limit(limit))]
            if found:
                connection.execute(delete(notices).where(same, ~_IS_WAITING), found)
            return len(found)

        return await self._run(body)


def _facts(kind: NoticeKind, now_ms: int, *, is_old_told: bool) -> Any:
    """The statement that lists the facts of a kind, or None for a kind that the mirror does not tell."""
    ended_ms, unpaid_ms = (0, 0) if is_old_told else (now_ms - ENDED_MS, now_ms - UNPAID_MS)
    subscription, invoice = mirror["subscriptions"].c, mirror["invoices"].c
    nothing: tuple[Any, ...] = (
        literal_column("0"),
        literal_column("''"),
        literal_column("0"),
        *[literal_column("''")] * 2,
    )
    if kind in _STATES:
        return _dunned(_STATES[kind])
    if kind is NoticeKind.TRIAL_ENDS:
        is_so = (subscription.status == "trialing") & subscription.trial_end_ms.between(now_ms + 1, now_ms + TRIAL_MS)
        return _linked(subscription, is_so, now_ms, subscription.trial_end_ms, subscription.start_ms, *nothing)
    if kind is NoticeKind.CARD_EXPIRES:
        customer, card = mirror["stripe_customers"].c, mirror["payment_methods"].c
        # Stripe tries the subscription's own card, and the customer's where the subscription has none.
        paying = func.coalesce(subscription.default_payment_method, customer.default_payment_method)
        is_so = (customer.id == subscription.customer_id) & (card.id == paying)
        is_so &= subscription.status.in_(["active", "trialing", "past_due"])
        is_so &= card.expires_ms.between(now_ms + 1, now_ms + CARD_MS)
        is_so &= func.coalesce(subscription.cancel_at_ms > card.expires_ms, literal_column("TRUE"))
        return _linked(subscription, is_so, now_ms, card.expires_ms, subscription.start_ms, *nothing)
    if kind is NoticeKind.SUBSCRIPTION_ENDED:
        is_so = (subscription.status == "canceled") & subscription.ended_ms.between(ended_ms, now_ms)
        return _linked(subscription, is_so, now_ms, subscription.ended_ms, subscription.start_ms, *nothing)
    if kind is NoticeKind.PAYMENT_FAILED:
        is_so = (invoice.status == "open") & (invoice.attempt_count > 0)
        is_so &= invoice.created_ms.between(unpaid_ms, now_ms)
        url = func.coalesce(invoice.hosted_url, "")
        code = func.coalesce(invoice.decline_code, "")
        owed = (invoice.remaining_minor, func.coalesce(invoice.currency, ""), invoice.exponent, url, code)
        return _linked(invoice, is_so, now_ms, invoice.created_ms, invoice.created_ms, *owed)
    return None


def _linked(
    table: Any,
    is_so: Any,
    now_ms: int,
    at_ms: Any,
    since_ms: Any,
    minor: Any,
    currency: Any,
    exponent: Any,
    *texts: Any,
) -> Any:
    """The rows of a mirror table that are so, each with the account that is linked to its customer now."""
    links, later = account_customers.c, account_customers.alias().c
    is_newer = (later.account == links.account) & (later.starts_ms > links.starts_ms) & (later.starts_ms <= now_ms)
    is_linked = (links.starts_ms <= now_ms) & ~exists().where(is_newer)
    numbers = (func.coalesce(since_ms, 0), func.coalesce(minor, 0), currency, func.coalesce(exponent, 0), *texts)
    wanted = select(links.account, table.id.label("subject"), at_ms, *numbers)
    return wanted.where(links.customer_id == table.customer_id, is_linked, is_so, table.deleted.is_distinct_from(1))


def _dunned(state: DunningState) -> Any:
    """The open cases in a state, each with what is open of its invoices. Of a customer who is linked to no account any
    more, nothing is due next, and nobody is told. Of a subscription that has ended, that is what is told: a payment
    brings nothing back."""
    found, of, invoice = dunning_cases.c, dunning_invoices.c, mirror["invoices"].c
    subscription = mirror["subscriptions"].c
    has_ended = exists().where(
        subscription.id == found.subscription_id, or_(subscription.ended_ms.is_not(None), subscription.deleted == 1)
    )
    is_owed = (of.case_id == found.id) & (invoice.id == of.invoice_id) & invoice.status.in_(["open", "uncollectible"])
    minor = select(cast(func.sum(func.coalesce(invoice.remaining_minor, 0)), INTEGER)).where(is_owed).scalar_subquery()
    url, code = (
        select(column).where(is_owed, column.is_not(None)).order_by(of.first_failed_ms, invoice.id).limit(1)
        for column in (invoice.hosted_url, invoice.decline_code)
    )
    wanted = select(
        found.account, found.subscription_id.label("subject"), func.coalesce(found.downgrade_ms, 0), found.opened_ms,
        func.coalesce(minor, 0), found.currency, found.exponent, func.coalesce(url.scalar_subquery(), ""),
        func.coalesce(code.scalar_subquery(), ""),
    )  # fmt: skip
    return wanted.where(found.state == state.value, found.closed_ms.is_(None), found.next_ms.is_not(None), ~has_ended)


def add_deliveries(connection: Connection, made: Sequence[Notice], channels: Sequence[ChannelName]) -> int:
    """See `schemas.notices.NoticeOutbox.add`; within a transaction of the caller."""
    unique = {(notice.id, channel): _row(notice, channel) for notice in made for channel in channels}
    # Rows are locked in one order, so that two processes do not wait for each other.
    rows = [unique[key] for key in sorted(unique)]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new: Any = insert(notices)
    again = ("state", "body", "made_ms", "due_ms", "settled_ms", "failures")
    written = new.on_conflict_do_update(
        index_elements=list(notices.primary_key),
        set_={name: new.excluded[name] for name in again},
        where=notices.c.state == _REVIVED,
    ).returning(notices.c.id)
    return sum(len(connection.execute(written, chunk).all()) for chunk in chunks(rows))


def _row(notice: Notice, channel: ChannelName) -> Values:
    return {
        **notice._asdict(), "kind": notice.kind.value, "channel": channel.value, "state": DeliveryState.WAITING.value,
        "attempts": 0, "failures": 0, "due_ms": notice.made_ms, "detail": "", "settled_ms": None,
    }  # fmt: skip


def _delivery(row: RowMapping) -> Delivery:
    notice = Notice(**{**{name: row[name] for name in _FACTS}, "kind": NoticeKind(row["kind"])})
    return Delivery(
        notice, ChannelName(row["channel"]), DeliveryState(row["state"]), row["attempts"], row["failures"],
        row["due_ms"], row["detail"], row["settled_ms"],
    )  # fmt: skip


def _place(cursor: str) -> tuple[int, str, str]:
    made_ms, _, rest = cursor.partition(".")
    identifier, _, channel = rest.partition(".")
    if not (made_ms.isascii() and made_ms.isdigit() and len(made_ms) < 16) or not channel or "\0" in cursor:
        raise InvalidInput("cursor", "is not the next_cursor of an answer")
    return int(made_ms), identifier, channel


def _detail(value: str) -> str:
    """What a receiver said, which may be of any length, as far as it is kept."""
    return _text(value[:DETAIL_CHARACTERS_MAX])


def _text(value: str) -> str:
    """A text that PostgreSQL stores: it has no NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
