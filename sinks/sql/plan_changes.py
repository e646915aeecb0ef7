"""Quotes and operations of plan changes, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, func, insert, select, update

from schemas.errors import InvalidInput
from schemas.plan_changes import (
    OPEN_STATES,
    Calls,
    Operation,
    OperationState,
    PreviewLine,
    Quote,
    SubscriptionView,
)
from schemas.trials import TrialWish
from schemas.upgrades import Money
from sinks.sql import audit
from sinks.sql.change_tables import operations, quotes
from sinks.sql.intents import Run
from sinks.sql.queries import insert_new, lock_accounts, save_heads
from sinks.sql.tables import accounts
from sinks.sql.trials import abandoned, placed, reserve, taken_by

CAUSE: Final = "plan change"
_OPEN: Final = [state.value for state in OPEN_STATES]


class SqlPlanChanges:
    """Implements `schemas.plan_changes.PlanChanges`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def add_quote(self, quote: Quote) -> Quote:
        return await self._run(lambda connection: _add(connection, quote))

    async def quote(self, account: str, identifier: str) -> Quote | None:
        def body(connection: Connection) -> Quote | None:
            found = _quote(connection, identifier)
            return found if found is not None and found.account == account else None

        return await self._run(body)

    async def intend(
        self, quote: Quote, by: str, now_ms: int, return_url: str = "", trial: TrialWish | None = None
    ) -> Operation:
        return await self._run(lambda connection: _intend(connection, quote, by, now_ms, return_url, trial))

    async def trial_taken(self, account: str, trial: TrialWish) -> str:
        return await self._run(lambda connection: taken_by(connection, account, trial))

    async def operation(self, quote: str) -> Operation | None:
        return await self._run(lambda connection: _of_quote(connection, quote))

    async def sent(self, operation: Operation, now_ms: int) -> Operation:
        first_ms = func.coalesce(operations.c.sent_ms, now_ms)
        values = {"sent_ms": first_ms, "state": OperationState.SENT.value, "touched_ms": now_ms}
        return await self._run(lambda connection: _change(connection, operation, **values))

    async def stepped(
        self, operation: Operation, subscription: str, now_ms: int, session: str = "", url: str = ""
    ) -> Operation:
        values: dict[str, Any] = {"step": operation.step + 1, "sent_ms": None, "touched_ms": now_ms}
        values |= {"subscription": subscription, "state": OperationState.SENT.value}
        if session:
            values |= {"session": session, "url": url}

        def body(connection: Connection) -> Operation:
            stepped = _change(connection, operation, **values)
            if session and stepped.session == session:
                placed(connection, operation.id, "", session, now_ms)
            return stepped

        return await self._run(body)

    async def doubt(self, operation: Operation, now_ms: int) -> Operation:
        values = {"state": OperationState.UNKNOWN.value, "touched_ms": now_ms}
        return await self._run(lambda connection: _change(connection, operation, **values))

    async def settle(
        self, operation: Operation, state: OperationState, detail: str, invoice: str, charged_minor: int | None, ms: int
    ) -> Operation:
        return await self._run(
            lambda connection: _settle(connection, operation, state, detail, invoice, charged_minor, ms)
        )

    async def open_before(self, touched_ms: int, limit: int) -> Sequence[Operation]:
        wanted = (
            select(operations)
            .where(operations.c.state.in_(_OPEN), operations.c.touched_ms <= touched_ms)
            .order_by(operations.c.touched_ms, operations.c.id)
            .limit(limit)
        )
        return await self._run(lambda connection: [_operation(row) for row in connection.execute(wanted).mappings()])

    async def oldest_open_ms(self) -> int | None:
        wanted = select(func.min(operations.c.made_ms)).where(operations.c.state.in_(_OPEN))
        return await self._run(lambda connection: connection.execute(wanted).scalar())

    async def differing(self, since_ms: int) -> int:
        wanted = select(func.count()).where(
            quotes.c.accepted_ms >= since_ms,
            func.abs(quotes.c.charged_minor - quotes.c.total_minor) > quotes.c.drift_minor,
        )
        return await self._run(lambda connection: connection.execute(wanted).scalar_one())


def _add(connection: Connection, quote: Quote) -> Quote:
    audit.check_said(("by", quote.made_by))
    insert_new(connection, quotes, [_quote_row(quote)])
    found = _quote(connection, quote.id)
    if found is None or (found.account, found.request) != (quote.account, quote.request):
        raise InvalidInput("Idempotency-Key", "was sent before with another request: use another key for this one")
    return found


def _quote(connection: Connection, identifier: str) -> Quote | None:
    # No quote's id has a NUL, which PostgreSQL does not take.
    row = connection.execute(select(quotes).where(quotes.c.id == identifier.replace("\0", ""))).mappings().first()
    return None if row is None else _read_quote(row)


def _intend(
    connection: Connection, quote: Quote, by: str, now_ms: int, return_url: str, trial: TrialWish | None
) -> Operation:
    audit.check_said(("by", by))
    new = {"account": quote.account, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    heads = lock_accounts(connection, {quote.account})
    same = _of_quote(connection, quote.id)
    here = (operations.c.account == quote.account) & operations.c.state.in_(_OPEN)
    other = connection.execute(select(operations).where(here)).mappings().first()
    if same is not None or other is not None:
        return same or _operation(other)  # type: ignore[arg-type]  # one of the two is there
    made = Operation(
        f"op_{quote.id.removeprefix('qt_')}", quote.account, quote.id, OperationState.PLANNED, 0, now_ms, now_ms, by,
        subscription=quote.base.id, return_url=return_url,
    )  # fmt: skip
    if trial is not None:
        reserve(connection, made.id, quote.account, trial, now_ms)
    row = {**made._asdict(), "state": made.state.value, "requested_by": by}
    del row["by"]
    connection.execute(insert(operations), row)
    connection.execute(update(quotes).where(quotes.c.id == quote.id).values(accepted_ms=now_ms, accepted_by=by))
    head = heads[quote.account]
    trail = audit.next_row(
        head, quote.account, now_ms, actor=by, cause=CAUSE, entity=("operation", made.id), before=None,
        after={"quote": quote.id, "row": quote.decided.row, "words": quote.words}, reason="",
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])
    save_heads(connection, heads)
    return made


def _of_quote(connection: Connection, quote: str) -> Operation | None:
    row = connection.execute(select(operations).where(operations.c.quote == quote)).mappings().first()
    return None if row is None else _operation(row)


def _change(connection: Connection, operation: Operation, **values: Any) -> Operation:
    """Change an operation that is at the same step and open; returns it as it is then."""
    here = (operations.c.id == operation.id) & (operations.c.step == operation.step)
    connection.execute(update(operations).where(here, operations.c.state.in_(_OPEN)).values(**values))
    return _operation(connection.execute(select(operations).where(operations.c.id == operation.id)).mappings().one())


def _settle(
    connection: Connection,
    operation: Operation,
    state: OperationState,
    detail: str,
    invoice: str,
    charged_minor: int | None,
    now_ms: int,
) -> Operation:
    heads = lock_accounts(connection, {operation.account})
    row = connection.execute(select(operations).where(operations.c.id == operation.id)).mappings().one()
    if row["state"] not in _OPEN or row["step"] != operation.step:
        # Another process has gone on.
        return _operation(row)
    settled = _change(connection, operation, state=state.value, detail=detail, touched_ms=now_ms)
    connection.execute(
        update(quotes).where(quotes.c.id == operation.quote).values(invoice=invoice, charged_minor=charged_minor)
    )
    if state is OperationState.FAILED:
        abandoned(connection, operation.id, heads[operation.account], now_ms)
    elif settled.subscription and not settled.session:
        placed(connection, operation.id, settled.subscription, "", now_ms)
    after = {"state": state.value, "invoice": invoice, "charged_minor": charged_minor}
    head = heads[operation.account]
    trail = audit.next_row(
        head, operation.account, now_ms, actor="stripe", cause=CAUSE, entity=("operation", operation.id),
        before={"state": row["state"]}, after=after, reason=detail,
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])
    save_heads(connection, heads)
    return settled


def _quote_row(quote: Quote) -> dict[str, Any]:
    row = quote._asdict()
    for name in ("base", "decided", "lines", "total"):
        del row[name]
    return row | {
        "base_json": _text(quote.base), "calls_json": _text(quote.decided), "lines_json": _text(quote.lines),
        "currency": quote.total.currency, "exponent": quote.total.exponent, "total_minor": quote.total.minor,
    }  # fmt: skip


def _read_quote(row: RowMapping) -> Quote:
    same = {name: row[name] for name in Quote._fields if name not in ("base", "decided", "lines", "total")}
    return Quote(
        base=msgspec.json.decode(row["base_json"], type=SubscriptionView),
        decided=msgspec.json.decode(row["calls_json"], type=Calls),
        lines=msgspec.json.decode(row["lines_json"], type=tuple[PreviewLine, ...]),
        total=Money(row["total_minor"], row["currency"], row["exponent"]),
        **same,
    )


def _operation(row: RowMapping) -> Operation:
    return Operation(
        row["id"], row["account"], row["quote"], OperationState(row["state"]), row["step"], row["made_ms"],
        row["touched_ms"], row["requested_by"], row["sent_ms"], row["subscription"], row["detail"],
        row["return_url"], row["session"], row["url"],
    )  # fmt: skip


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
