"""Subscriptions that are one too many, in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, RowMapping, and_, func, or_, select, update
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from schemas.catalog_changes import CatalogKind
from schemas.duplicates import Duplicate, DuplicateState
from schemas.errors import InvalidInput
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.queries import insert_new, links_of, lock_accounts, save_heads
from sinks.sql.tables import account_customers, mirror, plan_versions, stripe_objects
from sinks.sql.trial_tables import duplicates

CAUSE: Final = "duplicate subscription"
_BILLED: Final = ("trialing", "active", "past_due")


class SqlDuplicates:
    """Implements `schemas.duplicates.DuplicateStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def suspects(self, now_ms: int, limit: int) -> Sequence[Duplicate]:
        return await self._run(lambda connection: _suspects(connection, now_ms, limit))

    async def note(self, duplicate: Duplicate, now_ms: int) -> None:
        await self._run(lambda connection: _note(connection, duplicate, now_ms, CAUSE))

    async def listed(self, states: Sequence[DuplicateState] = (), limit: int = 100) -> Sequence[Duplicate]:
        wanted = select(duplicates).order_by(duplicates.c.found_ms.desc(), duplicates.c.subscription).limit(limit)
        if states:
            wanted = wanted.where(duplicates.c.state.in_([state.value for state in states]))
        return await self._run(lambda connection: [_read(row) for row in connection.execute(wanted).mappings()])

    async def settle(self, subscription: str, by: str, reason: str, now_ms: int) -> Duplicate:
        for field, value in (("by", by), ("reason", reason)):
            if not value.strip() or "\0" in value:
                raise InvalidInput(field, "must not be empty or have a NUL: the audit keeps who decided, and why")
        here = duplicates.c.subscription == subscription.replace("\0", "")

        def body(connection: Connection) -> Duplicate:
            row = connection.execute(select(duplicates).where(here)).mappings().first()
            if row is None:
                message = f"{subscription!r} is no second subscription: see `tidemark billing duplicates`"
                raise InvalidInput("subscription", message)
            before = _read(row)
            after = before._replace(
                state=DuplicateState.SETTLED, settled_by=by, reason=reason, settled_ms=now_ms
            )  # fmt: skip
            if before.state is DuplicateState.SETTLED:
                return before
            _note(connection, after, now_ms, by)
            return after

        return await self._run(body)

    async def counts(self) -> Mapping[DuplicateState, int]:
        wanted = select(duplicates.c.state, func.count()).group_by(duplicates.c.state)
        return await self._run(
            lambda connection: {DuplicateState(state): count for state, count in connection.execute(wanted)}
        )


def _suspects(connection: Connection, now_ms: int, limit: int) -> list[Duplicate]:
    """The later ones of two subscriptions of a customer to plans that nobody noted yet. An account whose customer
    changed has two as well, and pays for one after the other: that is what its links say."""
    row, older = mirror["subscriptions"].c, mirror["subscriptions"].alias().c
    is_older = or_(older.start_ms < row.start_ms, and_(older.start_ms == row.start_ms, older.id < row.id))
    is_kept = and_(older.customer_id == row.customer_id, is_older, *_billed(older))
    kept = select(older.id).where(is_kept).order_by(older.start_ms, older.id).limit(1).scalar_subquery()
    is_new = row.id.not_in(select(duplicates.c.subscription))
    is_linked = row.customer_id.in_(select(account_customers.c.customer_id))
    wanted = select(row.id, row.customer_id, kept.label("kept"))
    wanted = wanted.where(*_billed(row), is_new, is_linked, select(older.id).where(is_kept).exists())
    found = []
    for each in connection.execute(wanted.order_by(row.customer_id, row.start_ms, row.id).limit(limit)):
        if account := _account(connection, each.customer_id, now_ms):
            state = DuplicateState.FOUND
            found.append(Duplicate(each.id, each.kept, account, each.customer_id, state, now_ms))
    return found


def _billed(row: ReadOnlyColumnCollection[str, Column[Any]]) -> tuple[ColumnElement[bool], ...]:
    """That a subscription to a plan is billed."""
    item, price, plan = mirror["subscription_items"].c, stripe_objects.c, plan_versions.c
    of_plan = (
        select(item.subscription_id)
        .join(stripe_objects, price.stripe_id == item.price_id)
        .join(plan_versions, (plan.plan == price.plan) & (plan.version == price.plan_version))
        .where(price.kind == CatalogKind.PRICE.value, plan.kind == "plan")
    )
    return row.status.in_(_BILLED), or_(row.deleted.is_(None), row.deleted == 0), row.id.in_(of_plan)


def _account(connection: Connection, customer: str, now_ms: int) -> str:
    """The account that is linked to a customer now, or ""."""
    wanted = select(account_customers.c.account).where(account_customers.c.customer_id == customer)
    names = set(connection.execute(wanted).scalars())
    for own in links_of(connection, names).values():
        for link, after in zip_longest(own, own[1:]):
            is_now = link.starts_ms <= now_ms and (after is None or now_ms < after.starts_ms)
            if link.customer == customer and is_now:
                return link.account
    return ""


def _note(connection: Connection, duplicate: Duplicate, now_ms: int, actor: str) -> None:
    heads = lock_accounts(connection, {duplicate.account})
    row = {**duplicate._asdict(), "state": duplicate.state.value}
    here = duplicates.c.subscription == duplicate.subscription
    old = connection.execute(select(duplicates).where(here)).mappings().first()
    before: dict[str, Any] = dict(old) if old else {}
    if before == row or before.get("state") == DuplicateState.SETTLED:
        return
    if not insert_new(connection, duplicates, [row]):
        connection.execute(update(duplicates).where(here).values(**row))
    head, differs = heads[duplicate.account], {name for name in row if before.get(name) != row[name]}
    trail = audit.next_row(
        head, duplicate.account, now_ms, actor=actor, cause=CAUSE, entity=("subscription", duplicate.subscription),
        before={name: before[name] for name in differs if name in before},
        after={name: row[name] for name in differs}, reason=duplicate.reason,
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])
    save_heads(connection, heads)


def _read(row: RowMapping) -> Duplicate:
    return Duplicate(**{**row, "state": DuplicateState(row["state"])})
