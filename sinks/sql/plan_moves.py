"""Moves of subscriptions to another version of their plan, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from schemas.catalog import PlanId
from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import InvalidInput
from schemas.plan_moves import Move, MoveState, Subscribed, SubscribedItem
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.queries import insert_new, lock_accounts, rows_where, save_heads
from sinks.sql.tables import account_customers, accounts, mirror, plan_moves

COMMAND: Final = "catalog migrate"
_ENDED: Final = ("canceled", "incomplete_expired")
_OPEN: Final = ("not_started", "active")


class SqlPlanMoves:
    """Implements `schemas.plan_moves.PlanMoves`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def subscribed(self, prices: Collection[str], limit: int) -> Sequence[Subscribed]:
        return await self._run(lambda connection: _subscribed(connection, set(prices), limit))

    async def last(self, subscriptions: Collection[str]) -> Mapping[str, Move]:
        return await self._run(lambda connection: _last(connection, set(subscriptions)))

    async def intend(self, subscribed: Subscribed, source: PlanId, target: PlanId, who: str, why: str, ms: int) -> Move:
        return await self._run(lambda connection: _intend(connection, subscribed, source, target, who, why, ms))

    async def sent(self, move: Move, now_ms: int) -> Move:
        first_ms = func.coalesce(plan_moves.c.sent_ms, now_ms)
        await self._run(lambda connection: _change(connection, move, sent_ms=first_ms))
        return (await self.last([move.subscription]))[move.subscription]

    async def settle(self, move: Move, state: MoveState, schedule: str, detail: str, now_ms: int) -> None:
        def body(connection: Connection) -> None:
            heads = lock_accounts(connection, {move.account})
            if _last(connection, {move.subscription})[move.subscription].state is state:
                return
            _change(connection, move, state=state.value, stripe_schedule=schedule, detail=detail)
            after = {"state": state.value, "schedule": schedule}
            row = audit.next_row(
                heads[move.account], move.account, now_ms, actor="stripe", cause=COMMAND,
                entity=("plan_move", move.mark), before={"state": move.state.value}, after=after, reason=detail,
            )  # fmt: skip
            audit.append(connection, [(row, heads[move.account].audit_hash)])
            save_heads(connection, heads)

        await self._run(body)


def _subscribed(connection: Connection, prices: set[str], limit: int) -> list[Subscribed]:
    subscriptions, items = mirror["subscriptions"], mirror["subscription_items"]
    having = select(items.c.subscription_id).where(items.c.price_id.in_(prices))
    wanted = select(subscriptions).where(
        subscriptions.c.id.in_(having),
        subscriptions.c.status.not_in(_ENDED),
        subscriptions.c.deleted.is_distinct_from(1),
    )
    rows = [dict(row) for row in connection.execute(wanted.order_by(subscriptions.c.id).limit(limit)).mappings()]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows_where(connection, items, "subscription_id", {row["id"] for row in rows}):
        found[row["subscription_id"]].append(row)
    schedules = _states(connection, {row["schedule_id"] for row in rows if row["schedule_id"]})
    owners = _accounts(connection, {row["customer_id"] for row in rows if row["customer_id"]})
    return [
        Subscribed(
            row["id"],
            row["status"],
            row["schedule_id"] if schedules.get(row["schedule_id"] or "", "") in _OPEN else "",
            max((item["period_end_ms"] or 0 for item in found[row["id"]]), default=0),
            row["cancel_at_ms"] is not None,
            row["pending_update_until_ms"] is not None,
            False,
            tuple(
                SubscribedItem(item["price_id"], None if item["usage_type"] == "metered" else item["quantity"])
                for item in sorted(found[row["id"]], key=lambda item: str(item["id"]))
            ),
            owners.get(row["customer_id"], NO_ACCOUNT),
            row["customer_id"] or "",
        )
        for row in rows
    ]


def _states(connection: Connection, schedules: set[str]) -> dict[str, str]:
    """The status of each schedule that the mirror knows. One that it does not know yet is taken for open."""
    known = rows_where(connection, mirror["subscription_schedules"], "id", schedules)
    return dict.fromkeys(schedules, _OPEN[1]) | {row["id"]: row["status"] for row in known}


def _accounts(connection: Connection, customers: set[str]) -> dict[str, str]:
    """The account of each customer, by the newest link."""
    rows = rows_where(connection, account_customers, "customer_id", customers)
    return {row["customer_id"]: row["account"] for row in sorted(rows, key=lambda row: row["starts_ms"])}


def _last(connection: Connection, subscriptions: set[str]) -> dict[str, Move]:
    rows = rows_where(connection, plan_moves, "subscription", subscriptions)
    rows.sort(key=lambda row: (row["subscription"], row["number"]))
    newest = {row["subscription"]: row for row in rows}
    known = rows_where(
        connection, mirror["subscription_schedules"], "id", {row["stripe_schedule"] for row in newest.values()} - {""}
    )
    over = {row["id"] for row in known if row["status"] not in _OPEN}
    return {
        name: Move(
            name, row["number"], PlanId(row["plan"], row["from_version"]), PlanId(row["plan"], row["to_version"]),
            row["account"], MoveState(row["state"]), row["made_ms"], row["stripe_schedule"], row["sent_ms"],
            row["detail"], row["stripe_schedule"] in over,
        )
        for name, row in newest.items()
    }  # fmt: skip


def _intend(
    connection: Connection, subscribed: Subscribed, source: PlanId, target: PlanId, who: str, why: str, ms: int
) -> Move:
    audit.check_said(("--by", who), ("--reason", why))
    account = subscribed.account
    new = {"account": account, "created_ms": ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    heads = lock_accounts(connection, {account})
    last = _last(connection, {subscribed.id}).get(subscribed.id)
    if last is not None and last.state is not MoveState.GIVEN_UP and not last.is_over:
        if (last.source, last.target) != (source, target):
            raise InvalidInput("subscription", f"{subscribed.id} is being moved to {last.target}: release its schedule")
        return last
    move = Move(subscribed.id, last.number + 1 if last else 1, source, target, account, MoveState.INTENDED, ms)
    row = {
        "subscription": move.subscription, "number": move.number, "plan": source.name, "from_version": source.version,
        "to_version": target.version, "account": account, "state": move.state.value, "made_ms": ms, "sent_ms": None,
        "stripe_schedule": "", "detail": "",
    }  # fmt: skip
    connection.execute(insert(plan_moves), row)
    after = {"plan": str(target), "renews_ms": subscribed.renews_ms}
    trail = audit.next_row(
        heads[account], account, ms, actor=who, cause=COMMAND, entity=("plan_move", move.mark),
        before={"plan": str(source)}, after=after, reason=why,
    )  # fmt: skip
    audit.append(connection, [(trail, heads[account].audit_hash)])
    save_heads(connection, heads)
    return move


def _change(connection: Connection, move: Move, **values: Any) -> None:
    here = (plan_moves.c.subscription == move.subscription) & (plan_moves.c.number == move.number)
    connection.execute(update(plan_moves).where(here).values(**values))
