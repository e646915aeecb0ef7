"""Dunning cases in SQL. A case moves in the transaction that renews its account's entitlements: both are from the same
facts, so they never disagree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, RowMapping, and_, case, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from aggregators.dunning import CANCELED_UNPAID, OPEN, PAUSED_UNPAID, advanced, closed
from schemas.catalog import Dunning
from schemas.clock import DAY_MS
from schemas.dunning import (
    Collecting,
    Debt,
    DunningCase,
    DunningCounts,
    DunningOutcome,
    DunningState,
    ListedCase,
    Owing,
    Recovery,
)
from schemas.errors import InvalidInput, Transient
from schemas.side_tables import Link, Row
from sinks.sql import audit
from sinks.sql.dunning_tables import dunning_cases, dunning_invoices, dunning_steps
from sinks.sql.intents import Run
from sinks.sql.queries import Head, chunks, insert_new, lock_accounts, save_heads
from sinks.sql.tables import mirror

ENTITY: Final = "dunning"
# The actor of what time brings, and its cause if nothing else happened to the account.
ACTOR: Final = "dunning"
WRITE_OFF_COMMAND: Final = "dunning write-off"
# What a payment counts as recovered in, from the first failure.
RECOVERED_MS: Final = 30 * DAY_MS
# A case that is found later tells nothing about how many recover: those that had, were never found.
WITNESSED_MS: Final = 3 * DAY_MS
# A first payment that fails makes no customer, and Stripe does not try it again.
_NEVER_BEGAN: Final = frozenset({"incomplete", "incomplete_expired"})
# Stripe makes drafts, or no invoices, and nobody pays.
_UNBILLED: Final = frozenset({"unpaid", "paused"})
_AUTOMATIC: Final = "charge_automatically"
_COLUMNS: Final = [column.name for column in dunning_cases.columns]
_SUBSCRIPTION: Final = "subscription_id"
# A case that was given up, or was paid and is not billed, still withholds the plan.
_HOLDS: Final = or_(dunning_cases.c.closed_ms.is_(None), dunning_cases.c.downgrade_ms.is_not(None))


class SqlDunning:
    """Implements `schemas.dunning.DunningStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def listed(
        self, *, account: str = "", is_open: bool | None = None, limit: int = 100, before: str = ""
    ) -> Sequence[ListedCase]:
        found = dunning_cases.c
        wanted = select(dunning_cases).order_by(found.opened_ms.desc(), found.id.desc()).limit(limit)
        if account:
            wanted = wanted.where(found.account == account.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        if is_open is not None:
            wanted = wanted.where(found.closed_ms.is_(None) if is_open else found.closed_ms.is_not(None))
        if before:
            opened_ms, identifier = _place(before)
            behind = and_(found.opened_ms == opened_ms, found.id < identifier)
            wanted = wanted.where(or_(found.opened_ms < opened_ms, behind))

        def body(connection: Connection) -> Sequence[ListedCase]:
            cases = [_case(row) for row in connection.execute(wanted).mappings()]
            return _with_invoices(connection, cases)

        return await self._run(body)

    async def write_off(self, case: str, actor: str, reason: str, now_ms: int) -> DunningCase:
        return await self._run(lambda connection: _write_off(connection, case, actor, reason, now_ms))

    async def collecting(self, after: str, limit: int) -> Sequence[Collecting]:
        return await self._run(lambda connection: _collecting(connection, after, limit))

    async def tried(self, case: str, card: str) -> None:
        def body(connection: Connection) -> None:
            known = connection.execute(select(dunning_cases.c.cards).where(dunning_cases.c.id == case)).scalar() or ""
            if card not in known.split():
                noted = update(dunning_cases).where(dunning_cases.c.id == case)
                connection.execute(noted.values(cards=f"{known} {card}".strip()))

        await self._run(body)

    async def steps(self, case: str) -> Mapping[DunningState, int]:
        step = dunning_steps.c
        wanted = select(step.step, step.reached_ms).where(step.case_id == case).order_by(step.reached_ms)
        return await self._run(
            lambda connection: {DunningState(row.step): row.reached_ms for row in connection.execute(wanted)}
        )

    async def counts(self) -> DunningCounts:
        found, subscription = dunning_cases.c, mirror["subscriptions"].c
        is_open = found.closed_ms.is_(None)
        by_state = select(found.state, func.count()).where(is_open).group_by(found.state)
        is_canceled = subscription.cancellation_reason == CANCELED_UNPAID
        canceled = select(func.count()).join_from(
            dunning_cases, mirror["subscriptions"], subscription.id == found.subscription_id
        ).where(is_open, is_canceled)  # fmt: skip

        def body(connection: Connection) -> DunningCounts:
            states = {DunningState(state): count for state, count in connection.execute(by_state)}
            return DunningCounts(states, connection.execute(canceled).scalar_one())

        return await self._run(body)

    async def recoveries(self, starts_ms: Sequence[int]) -> Sequence[Recovery]:
        return await self._run(
            lambda connection: [
                recovery for span in pairwise(sorted(starts_ms)) for recovery in _recoveries(connection, *span)
            ]
        )


def due(connection: Connection, now_ms: int, limit: int) -> Sequence[str]:
    """The accounts of cases that time alone moves on now, the longest due first; an account may be named twice."""
    wanted = select(dunning_cases.c.account).where(dunning_cases.c.next_ms <= now_ms)
    return list(connection.execute(wanted.order_by(dunning_cases.c.next_ms).limit(limit)).scalars())


class Look(NamedTuple):
    """Who is looked at, and when. `cause`: what happened to the account last, or `ACTOR`."""

    account: str
    links: Sequence[Link]
    policy: Dunning
    cause: str
    now_ms: int


def advance(connection: Connection, head: Head, look: Look, subscriptions: Sequence[Row]) -> None:
    """Open and move the cases of a locked account. `subscriptions` are the mirror's rows of its customers."""
    customer = next((link.customer for link in reversed(look.links) if link.starts_ms <= look.now_ms), "")
    own = [row for row in subscriptions if customer and row["customer_id"] == customer]
    cases = _holding(connection, {str(row["id"]) for row in own})
    debts, joined = _debts(connection, customer, own, {held.id for held in cases.values()})
    for row in own:
        subscription = str(row["id"])
        before = cases.get(subscription)
        new = [debt for debt in debts[subscription] if debt.invoice not in joined]
        if before is not None and before.outcome is DunningOutcome.RECOVERED and new:
            # Another payment failed: that is another case.
            before, debts = None, {**debts, subscription: new}
        if before is None and (row["status"] in _NEVER_BEGAN or row["collection_method"] not in (None, _AUTOMATIC)):
            continue
        # A customer may belong to another account by now.
        taken = before and before._replace(account=look.account)
        after = advanced(taken, _owing(look, row, debts[subscription]), look.policy, look.now_ms)
        if after is not None:
            if after.cards is None:
                after = after._replace(cards=" ".join(_cards(connection, row)))
            _save(connection, head, look, before, after, new)
    # Nobody is asked for the money of a customer who is linked to no account, until it is linked again.
    left = (dunning_cases.c.account == look.account) & dunning_cases.c.next_ms.is_not(None)
    left &= dunning_cases.c.subscription_id.not_in([str(row["id"]) for row in own])
    connection.execute(update(dunning_cases).where(left).values(next_ms=None))


def _cards(connection: Connection, subscription: Row) -> list[str]:
    """The payment methods that a subscription is paid with: its own, and its customer's default one."""
    customer = mirror["stripe_customers"].c
    wanted = select(customer.default_payment_method).where(customer.id == subscription["customer_id"])
    found = (subscription["default_payment_method"], connection.execute(wanted).scalar())
    return list(dict.fromkeys(str(card) for card in found if card))


def _collecting(connection: Connection, after: str, limit: int) -> list[Collecting]:
    found, of, newer = dunning_cases.c, mirror["subscriptions"].c, dunning_cases.alias().c
    customer, invoice, owed = mirror["stripe_customers"].c, mirror["invoices"].c, dunning_invoices.c
    has_ended = or_(of.ended_ms.is_not(None), of.deleted == 1)
    is_open = and_(owed.case_id == found.id, invoice.status == OPEN, invoice.deleted.is_distinct_from(1))
    is_owed = select(owed.case_id).join(mirror["invoices"], invoice.id == owed.invoice_id).where(is_open).exists()
    has_newer = select(newer.id).where(newer.subscription_id == found.subscription_id, newer.found_ms > found.found_ms)
    # Whoever canceled did not stop paying: what that customer owes is the business' own matter.
    was_given_up = and_(
        found.outcome == DunningOutcome.CHURNED.value,
        # Who pays late keeps the subscription.
        or_(
            and_(~has_ended, found.downgrade_ms.is_not(None)),
            and_(is_owed, of.cancellation_reason == CANCELED_UNPAID),
        ),
    )
    is_left = and_(
        found.outcome == DunningOutcome.RECOVERED.value, of.status == "paused", of.pause_reason == PAUSED_UNPAID,
        ~has_ended,
    )  # fmt: skip
    may_be_paid = and_(found.closed_ms.is_(None), found.next_ms.is_not(None), ~has_ended)
    period = mirror["subscription_items"].c
    until_ms = select(func.max(period.period_end_ms)).where(period.subscription_id == of.id).scalar_subquery()
    wanted = (
        select(
            dunning_cases, of.customer_id, of.status, of.default_payment_method.label("own_card"),
            customer.default_payment_method.label("customer_card"), until_ms.label("until_ms"),
            has_ended.label("has_ended"),
        )
        .join(mirror["subscriptions"], of.id == found.subscription_id)
        .outerjoin(mirror["stripe_customers"], customer.id == of.customer_id)
        .where(found.id > after, or_(may_be_paid, was_given_up, is_left), ~has_newer.exists())
        .order_by(found.id)
        .limit(limit)
    )  # fmt: skip
    rows = connection.execute(wanted).mappings().all()
    open_ = _open_invoices(connection, [row["id"] for row in rows])
    return [
        Collecting(
            _case(row), str(row["customer_id"] or ""), str(row["status"] or ""), str(row["own_card"] or ""),
            str(row["customer_card"] or ""), row["until_ms"] or 0, bool(row["has_ended"]),
            tuple(each.id for each in open_[row["id"]]),
        )
        for row in rows
    ]  # fmt: skip


def deciding(connection: Connection, subscriptions: Collection[str]) -> list[Row]:
    """The newest case of each subscription, which says whether and from when on the subscription gives the fallback
    plan only. One that was written off says nothing."""
    newest: dict[str, Row] = {}
    found = dunning_cases.c
    for chunk in chunks(set(subscriptions)):
        wanted = select(found.subscription_id, found.downgrade_ms, found.outcome)
        wanted = wanted.where(found.subscription_id.in_(chunk)).order_by(found.found_ms, found.opened_ms)
        for subscription, downgrade_ms, outcome in connection.execute(wanted):
            newest[subscription] = {
                "subscription_id": subscription, "downgrade_ms": downgrade_ms, "outcome": outcome,
            }  # fmt: skip
    return [row for row in newest.values() if row["outcome"] != DunningOutcome.WRITTEN_OFF]


def _holding(connection: Connection, subscriptions: Collection[str]) -> dict[str, DunningCase]:
    """The open case of each subscription, or the newest closed one that withholds its plan."""
    found: dict[str, DunningCase] = {}
    for chunk in chunks(set(subscriptions)):
        wanted = select(dunning_cases).where(dunning_cases.c.subscription_id.in_(chunk), _HOLDS)
        for row in connection.execute(
            wanted.order_by(dunning_cases.c.closed_ms.is_(None), dunning_cases.c.found_ms)
        ).mappings():
            found[row["subscription_id"]] = _case(row)
    return found


def _debts(
    connection: Connection, customer: str, subscriptions: Sequence[Row], cases: Collection[str]
) -> tuple[Mapping[str, Sequence[Debt]], set[str]]:
    """The invoices of each subscription that count (`schemas.dunning.Owing`), and those that belong to a case."""
    debts: dict[str, list[Debt]] = defaultdict(list)
    joined: set[str] = set()
    if not customer or not subscriptions:
        return debts, joined
    invoice, of = mirror["invoices"].c, dunning_invoices.c
    is_new = and_(of.case_id.is_(None), invoice.status == OPEN, invoice.attempt_count > 0)
    wanted = select(
        invoice.id, invoice.subscription_id, invoice.status, invoice.finalized_ms, invoice.created_ms,
        invoice.attempt_count, invoice.next_attempt_ms, invoice.remaining_minor, invoice.currency, invoice.exponent,
        of.case_id,
    ).outerjoin(dunning_invoices, of.invoice_id == invoice.id)  # fmt: skip
    wanted = wanted.where(invoice.customer_id == customer, invoice.deleted.is_distinct_from(1))
    wanted = wanted.where(invoice.subscription_id.is_not(None), or_(of.case_id.in_(cases), is_new)).order_by(invoice.id)
    # Stripe voids the invoice of a change that is not paid, and the change is not made.
    tried = {row["latest_invoice_id"] for row in subscriptions if row["pending_update_until_ms"] is not None}
    for row in connection.execute(wanted):
        if row.case_id is not None:
            joined.add(row.id)
        elif row.id in tried:
            continue
        first_ms = row.finalized_ms if row.finalized_ms is not None else row.created_ms or 0
        debts[row.subscription_id].append(
            Debt(
                row.id, row.status, first_ms, row.attempt_count or 0, row.next_attempt_ms, row.remaining_minor or 0,
                row.currency or "", row.exponent or 0,
            )
        )  # fmt: skip
    return debts, joined


def _owing(look: Look, row: Row, debts: Sequence[Debt]) -> Owing:
    ended_ms = row["ended_ms"] if not row["deleted"] else row["ended_ms"] or look.now_ms
    return Owing(
        look.account, str(row["id"]), str(row["status"] or ""), _text(row["pause_reason"]),
        _text(row["cancellation_reason"]), None if ended_ms is None else int(ended_ms), tuple(debts),
    )  # fmt: skip


def _save(
    connection: Connection,
    head: Head,
    look: Look,
    before: DunningCase | None,
    after: DunningCase,
    new: Sequence[Debt],
) -> None:
    """Write what differs, with the audit row that says so. What fails after a case was given up is of that case too, so
    that nobody is asked for it once the case is written off."""
    rows = [{"invoice_id": debt.invoice, "case_id": after.id, "first_failed_ms": debt.first_failed_ms} for debt in new]
    insert_new(connection, dunning_invoices, rows)
    if after != before:
        _write(connection, head, look, before, after, reason=str(after.outcome or after.state))


def _write(
    connection: Connection,
    head: Head,
    look: Look,
    before: DunningCase | None,
    after: DunningCase,
    *,
    reason: str,
    actor: str = ACTOR,
) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    written = insert(dunning_cases).values(_row(after))
    changed = {name: written.excluded[name] for name in _COLUMNS if name != "id"}
    connection.execute(written.on_conflict_do_update(index_elements=["id"], set_=changed))
    if before is None or before.state is not after.state:
        step = {"case_id": after.id, "step": after.state.value, "reached_ms": look.now_ms}
        insert_new(connection, dunning_steps, [step])
    was, now = (_row(before) if before else {}), _row(after)
    differs = {name for name in now if was.get(name) != now[name]}
    row = audit.next_row(
        head,
        look.account,
        look.now_ms,
        actor=actor,
        cause=look.cause,
        entity=(ENTITY, after.id),
        before={name: was[name] for name in differs if name in was},
        after={name: now[name] for name in differs},
        reason=reason,
    )
    audit.append(connection, [(row, head.audit_hash)])


def _write_off(connection: Connection, name: str, actor: str, reason: str, now_ms: int) -> DunningCase:
    audit.check_said(("actor", actor), ("reason", reason))
    wanted = select(dunning_cases).where(dunning_cases.c.id == name.replace("\0", ""))
    row = connection.execute(wanted).mappings().first()
    if row is None:
        raise InvalidInput("case", f"there is no case {name!r}: see `tidemark dunning list`")
    heads = lock_accounts(connection, {row["account"]})
    # Read again: the case may have moved before the lock.
    before = _case(connection.execute(wanted).mappings().one())
    if before.account not in heads:
        raise Transient(f"{name} has just moved to account {before.account}: send the same again")
    if before.outcome is DunningOutcome.WRITTEN_OFF:
        return before
    if before.outcome is DunningOutcome.RECOVERED:
        raise InvalidInput("case", f"{name} was paid: nothing of it is left to write off")
    after = closed(before, DunningOutcome.WRITTEN_OFF, now_ms)
    look = Look(before.account, (), Dunning(), WRITE_OFF_COMMAND, now_ms)
    _write(connection, heads[before.account], look, before, after, reason=reason, actor=actor)
    save_heads(connection, heads)
    return after


def _with_invoices(connection: Connection, cases: Sequence[DunningCase]) -> list[ListedCase]:
    """Each case with its open invoices, and what became of its subscription."""
    found = _open_invoices(connection, [each.id for each in cases])
    subscribed: dict[str, tuple[bool, str]] = {}
    subscription = mirror["subscriptions"].c
    newest = {row["subscription_id"]: row for row in deciding(connection, {each.subscription for each in cases})}
    paid = {name for name, row in newest.items() if row["outcome"] == DunningOutcome.RECOVERED}
    for chunk in chunks({each.subscription for each in cases}):
        theirs = select(subscription.id, subscription.ended_ms, subscription.deleted, subscription.status)
        for row in connection.execute(theirs.where(subscription.id.in_(chunk))):
            unbilled = row.status if row.id in paid and row.status in _UNBILLED else ""
            subscribed[row.id] = row.ended_ms is not None or row.deleted == 1, unbilled
    return [
        ListedCase(
            each, tuple(row.id for row in found[each.id]), sum(row.remaining_minor or 0 for row in found[each.id]),
            next((row.hosted_url or "" for row in found[each.id]), ""),
            *subscribed.get(each.subscription, (False, "")),
        )
        for each in cases
    ]  # fmt: skip


def _open_invoices(connection: Connection, cases: Sequence[str]) -> Mapping[str, list[Any]]:
    """The open invoices of each case, oldest first."""
    found: dict[str, list[Any]] = defaultdict(list)
    of, invoice = dunning_invoices.c, mirror["invoices"].c
    for chunk in chunks(cases):
        wanted = select(of.case_id, invoice.id, invoice.remaining_minor, invoice.hosted_url)
        wanted = wanted.join(mirror["invoices"], invoice.id == of.invoice_id)
        wanted = wanted.where(of.case_id.in_(chunk), invoice.status == OPEN, invoice.deleted.is_distinct_from(1))
        for row in connection.execute(wanted.order_by(of.first_failed_ms, invoice.id)):
            found[row.case_id].append(row)
    return found


def _recoveries(connection: Connection, from_ms: int, until_ms: int) -> list[Recovery]:
    found = dunning_cases.c
    is_recovered = and_(
        found.outcome == DunningOutcome.RECOVERED.value, found.closed_ms - found.opened_ms <= RECOVERED_MS
    )
    wanted = select(
        found.currency, found.exponent, func.count().label("opened"),
        func.sum(case((is_recovered, 1), else_=0)).label("recovered"), func.sum(found.amount_minor).label("minor"),
        func.sum(case((is_recovered, found.amount_minor), else_=0)).label("recovered_minor"),
        func.sum(case((found.closed_ms.is_(None), 1), else_=0)).label("running"),
    ).where(found.opened_ms >= from_ms, found.opened_ms < until_ms)  # fmt: skip
    wanted = wanted.where(found.found_ms - found.opened_ms <= WITNESSED_MS)
    wanted = wanted.group_by(found.currency, found.exponent).order_by(found.currency, found.exponent)
    return [
        Recovery(
            from_ms, row.currency, row.exponent, row.opened, int(row.recovered), int(row.minor),
            int(row.recovered_minor), int(row.running),
        )
        for row in connection.execute(wanted)
    ]  # fmt: skip


def _case(row: RowMapping) -> DunningCase:
    values = {"subscription" if name == _SUBSCRIPTION else name: row[name] for name in _COLUMNS}
    outcome = values["outcome"] and DunningOutcome(values["outcome"])
    return DunningCase(**{**values, "state": DunningState(values["state"]), "outcome": outcome})


def _row(found: DunningCase) -> dict[str, Any]:
    values = {**found._asdict(), "state": found.state.value, "outcome": found.outcome and found.outcome.value}
    return {_SUBSCRIPTION if name == "subscription" else name: value for name, value in values.items()}


def _place(cursor: str) -> tuple[int, str]:
    opened_ms, _, identifier = cursor.partition(".")
    if not (opened_ms.isascii() and opened_ms.isdigit() and len(opened_ms) < 16) or not identifier or "\0" in cursor:
        raise InvalidInput("cursor", "is not the next_cursor of an answer")
    return int(opened_ms), identifier


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)
