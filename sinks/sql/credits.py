"""Credits in SQL. The transactions of an account come one after the other, under the lock of the account's row.

Grants and voids by people have an audit row. Draws have none: the ledger of credits is their record, and an audit row
would have the account's entitlements computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, and_, case, delete, func, insert, or_, select, update

from aggregators.credits import (
    RETURNED,
    Move,
    Payer,
    Spent,
    grant_id,
    included_changes,
    moved,
    paid_back,
    spend,
    undo,
    with_parts,
)
from schemas.credits import (
    CREDITS_MAX,
    GRANTS_MAX,
    AccountCredits,
    Allocated,
    Category,
    Coverage,
    CreditEntry,
    CreditGrant,
    Credits,
    Debt,
    EntryKind,
    Granted,
    KeptAllocation,
    NewGrant,
    Terms,
    Usage,
)
from schemas.errors import Fenced, InvalidInput
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS
from sinks.sql import audit
from sinks.sql.credit_rows import (
    debts_of,
    entry_of,
    grant_of,
    grant_row,
    grants_where,
    of_account,
    save_debt,
    save_grant,
)
from sinks.sql.credit_tables import (
    credit_allocations,
    credit_coverage,
    credit_debts,
    credit_grants,
    credit_ledger,
)
from sinks.sql.entitlements import billed_now
from sinks.sql.intents import Run
from sinks.sql.queries import Head, insert_new, lock_accounts, rows_where, save_heads, storable
from sinks.sql.tables import accounts, catalog_versions

CAUSE: Final = "credits"


class SqlCredits(Credits):
    """Implements `schemas.credits.Credits`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def allocate(self, usage: Usage, terms: Terms, now_ms: int) -> Allocated:
        return await self._run(lambda connection: _allocate(connection, _storable(usage), terms, now_ms))

    async def take_back(self, usage: Usage, now_ms: int) -> None:
        await self._run(lambda connection: _take_back(connection, _storable(usage), now_ms))

    async def include(self, account: str, start_ms: int, end_ms: int, terms: Terms, now_ms: int) -> None:
        def body(connection: Connection) -> None:
            # An account that nobody made has no plan, and may be a mistake in writing.
            if lock_accounts(connection, {storable(account)}):
                _include(connection, storable(account), start_ms, end_ms, terms, now_ms)

        await self._run(body)

    async def grant(self, new: NewGrant, actor: str, reason: str, now_ms: int) -> Granted:
        return await self._run(lambda connection: _grant(connection, new, actor, reason, now_ms))

    async def void(self, account: str, grant: str, actor: str, reason: str, now_ms: int, *, owes: bool) -> CreditGrant:
        return await self._run(lambda connection: _void(connection, account, grant, actor, reason, now_ms, owes))

    async def lacks_included(self, account: str, pool: str, terms: Terms, now_ms: int) -> bool:
        grant = credit_grants.c
        of_now = and_(grant.effective_ms <= now_ms, grant.expires_ms > now_ms)
        is_it = and_(grant.account == account, grant.pool == pool, grant.category == Category.INCLUDED.value, of_now)

        def body(connection: Connection) -> bool:
            gives = pool in terms.included(billed_now(connection, account, now_ms))
            return gives and connection.execute(select(grant.id).where(is_it).limit(1)).first() is None

        return await self._run(body)

    async def of_account(self, account: str) -> AccountCredits:
        return await self._run(lambda connection: of_account(connection, storable(account)))

    async def entries(self, account: str, limit: int, *, after: int = 0, newest: bool = False) -> Sequence[CreditEntry]:
        number = credit_ledger.c.number
        wanted = select(credit_ledger).where(credit_ledger.c.account == storable(account), number > after)
        wanted = wanted.order_by(number.desc() if newest else number).limit(limit)
        found = await self._run(lambda connection: list(map(entry_of, connection.execute(wanted).mappings())))
        return found[::-1] if newest else found

    async def allocations(self, after: str, limit: int) -> Sequence[KeptAllocation]:
        row = credit_allocations.c
        wanted = select(row.identifier, row.drawn_minor, row.is_taken_back).where(row.identifier > after)
        wanted = wanted.order_by(row.identifier).limit(limit)
        return await self._run(
            lambda connection: [
                KeptAllocation(name, drawn, bool(is_taken_back))
                for name, drawn, is_taken_back in connection.execute(wanted)
            ]
        )

    async def wrong(self, limit: int = 100, account: str = "") -> Sequence[str]:
        grant, entry = credit_grants.c, credit_ledger.c
        wanted = select(grant.id, grant.remaining, func.sum(func.coalesce(entry.credits, 0)))
        wanted = wanted.select_from(credit_grants.outerjoin(credit_ledger, entry.grant_id == grant.id))
        wanted = wanted.group_by(grant.id, grant.remaining).order_by(grant.id)
        if account:
            wanted = wanted.where(grant.account == account)
        found = await self._run(lambda connection: connection.execute(wanted).all())
        unequal = [(row[0], row[1], int(row[2] or 0)) for row in found if row[1] != int(row[2] or 0)]
        return [f"{name}: {left} left, the ledger says {total}" for name, left, total in unequal[:limit]]


def _storable(usage: Usage) -> Usage:
    return usage._replace(
        identifier=storable(usage.identifier), account=storable(usage.account), meter=storable(usage.meter)
    )


def _locked(connection: Connection, account: str, now_ms: int) -> dict[str, Head]:
    """Lock an account, which is made if nobody has heard of it."""
    heads = lock_accounts(connection, {account})
    if not heads:
        new = {"account": account, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
        insert_new(connection, accounts, [new])
        heads = lock_accounts(connection, {account})
    return heads


# Usage.


def _allocate(connection: Connection, usage: Usage, terms: Terms, now_ms: int) -> Allocated:
    _locked(connection, usage.account, now_ms)
    known = _allocation(connection, usage)
    if known is not None:
        return _allocated(connection, known)
    _include(connection, usage.account, usage.period_start_ms, usage.period_end_ms, terms, now_ms)
    coverage = _coverage(connection, usage)
    if usage.delta_minor >= 0:
        grants, entries = _drawable(connection, usage.account, usage.instant_ms), list[CreditEntry]()
    else:
        grants, entries = _used(connection, usage)
    spent = spend(usage, terms.pools, grants, coverage, entries)
    _move(connection, usage, {grant.id: grant for grant in grants}, spent.moves, now_ms)
    _write_coverage(connection, usage, with_parts(coverage, spent.parts))
    connection.execute(insert(credit_allocations), _allocation_row(usage, spent, now_ms))
    return spent.allocated


def _take_back(connection: Connection, usage: Usage, now_ms: int) -> None:
    _locked(connection, usage.account, now_ms)
    known = _allocation(connection, usage)
    if known is not None and known["is_taken_back"]:
        return
    if known is None:
        # Another process may still be about to draw.
        nothing = Spent(Allocated(0, usage.delta_minor, {}), (), ())
        connection.execute(insert(credit_allocations), _allocation_row(usage, nothing, now_ms) | {"is_taken_back": 1})
        return
    coverage = _coverage(connection, usage)
    used, entries = _used(connection, usage)
    grants = {grant.id: grant for grant in (*_drawable(connection, usage.account, usage.instant_ms), *used)}
    moves, gained = undo(usage, _parts(known), list(grants.values()), coverage, entries)
    _move(connection, usage, grants, moves, now_ms)
    _write_coverage(connection, usage, with_parts(coverage, gained))
    is_it = credit_allocations.c.identifier == usage.identifier
    connection.execute(update(credit_allocations).where(is_it).values(is_taken_back=1))


def _allocation(connection: Connection, usage: Usage) -> RowMapping | None:
    wanted = select(credit_allocations).where(credit_allocations.c.identifier == usage.identifier)
    return connection.execute(wanted).mappings().first()


def _allocated(connection: Connection, row: RowMapping) -> Allocated:
    wanted = select(credit_ledger.c.grant_id, credit_ledger.c.credits).where(
        credit_ledger.c.source_key == row["identifier"], credit_ledger.c.kind.in_(["draw", "return"])
    )
    draws: dict[str, int] = {}
    for grant, gained in connection.execute(wanted):
        draws[grant] = draws.get(grant, 0) - gained
    return Allocated(row["drawn_minor"], row["remainder_minor"], {key: value for key, value in draws.items() if value})


def _allocation_row(usage: Usage, spent: Spent, now_ms: int) -> dict[str, Any]:
    parts = [[part.pool, str(part.rate), str(part.covered)] for part in spent.parts]
    return {
        "identifier": usage.identifier, "account": usage.account, "meter": usage.meter,
        "period_start_ms": usage.period_start_ms, "drawn_minor": spent.allocated.drawn_minor,
        "remainder_minor": spent.allocated.remainder_minor, "parts_json": msgspec.json.encode(parts).decode(),
        "at_ms": now_ms, "is_taken_back": 0,
    }  # fmt: skip


def _parts(row: RowMapping) -> list[Coverage]:
    return [
        Coverage(pool, Fraction(rate), int(covered)) for pool, rate, covered in msgspec.json.decode(row["parts_json"])
    ]  # fmt: skip


def _include(connection: Connection, account: str, start_ms: int, end_ms: int, terms: Terms, now_ms: int) -> None:
    """Make the grants that an account's plans include in a period, and end those of the period before."""
    active = select(catalog_versions.c.sha256).where(catalog_versions.c.state == "active")
    if (connection.execute(active).scalar() or "") != terms.catalog_sha256:
        raise Fenced("another catalog is active than the one of these credits")
    is_included = (credit_grants.c.account == account) & (credit_grants.c.category == Category.INCLUDED.value)
    is_of_period = (credit_grants.c.effective_ms == start_ms) & (credit_grants.c.expires_ms == end_ms)
    wanted = select(credit_grants.c.pool, func.max(case((is_of_period, 1), else_=0))).where(is_included)
    pools = connection.execute(wanted.group_by(credit_grants.c.pool)).all()
    # What the account pays is read only if a pool of its plans may lack this period.
    if pools and all(has_period for _, has_period in pools):
        return
    included = terms.included(billed_now(connection, account, now_ms))
    changes = included_changes(account, start_ms, end_ms, included, grants_where(connection, is_included))
    for new in changes.new:
        _insert(connection, new, now_ms)
    for grant in changes.changed:
        values = {"expires_ms": grant.expires_ms, "rolls_until_ms": grant.rolls_until_ms}
        connection.execute(update(credit_grants).where(credit_grants.c.id == grant.id).values(values))


def _drawable(connection: Connection, account: str, instant_ms: int) -> list[CreditGrant]:
    grant = credit_grants.c
    is_open = or_(grant.expires_ms.is_(None), grant.expires_ms > instant_ms, grant.rolls_until_ms > instant_ms)
    return grants_where(
        connection, (grant.account == account) & (grant.remaining > 0) & grant.voided_ms.is_(None) & is_open
    )


def _used(connection: Connection, usage: Usage) -> tuple[list[CreditGrant], list[CreditEntry]]:
    """The rows of the ledger of a meter and period, and the grants that they are of."""
    entry = credit_ledger.c
    wanted = select(credit_ledger).where(
        entry.account == usage.account, entry.meter == usage.meter, entry.period_start_ms == usage.period_start_ms
    )
    entries = [entry_of(row) for row in connection.execute(wanted.order_by(entry.number)).mappings()]
    rows = rows_where(connection, credit_grants, "id", {each.grant for each in entries})
    return [grant_of(row) for row in rows], entries


def _move(
    connection: Connection, usage: Usage, grants: dict[str, CreditGrant], moves: Iterable[Move], now_ms: int
) -> None:
    """Write what usage draws from grants and returns to them. What returns to a grant that is void stays void, and is
    not owed any more; if another grant has paid it, it is a grant again."""
    again: list[NewGrant] = []
    total: dict[str, int] = {}
    for move in moves:
        total[move.grant] = total.get(move.grant, 0) + move.credits
    entries: list[tuple[str, EntryKind, int]] = []
    for name, lost in total.items():
        grant = moved(grants[name], lost, usage.instant_ms)
        if not lost:
            continue
        entries.append((name, EntryKind.DRAW if lost > 0 else EntryKind.RETURN, -lost))
        if grant.voided_ms is not None:
            entries.append((name, EntryKind.VOID, -grant.remaining))
            if paid := _forgive(connection, grant, -lost, now_ms):
                again += paid_back(grant, paid, _payers(connection, grant), usage.identifier)
            grant = grant._replace(remaining=0)
        save_grant(connection, grant)
    _append(connection, usage.account, entries, usage.identifier, now_ms, usage)
    for new in again:
        _insert(connection, new, now_ms)


def _payers(connection: Connection, grant: CreditGrant) -> list[Payer]:
    """What other grants have paid of the debt of a void grant and did not get back, in the order of the payments."""
    entry = credit_ledger.c
    wanted = select(entry.grant_id, entry.credits).where(
        entry.account == grant.account, entry.kind == EntryKind.DEBT.value, entry.source_key == _debt_key(grant)
    )
    found = [(name, -credits_) for name, credits_ in connection.execute(wanted.order_by(entry.number))]
    grants = {each.id: each for each in of_account(connection, grant.account).grants}
    back: dict[str, int] = {}
    for each in grants.values():
        for name, _ in found:
            if each.source_key.startswith(RETURNED) and each.source_key.endswith(f":{grant.id}:{name}"):
                back[name] = back.get(name, 0) + each.credits
    return [Payer(grants[name], paid - back.get(name, 0)) for name, paid in found]


def _append(
    connection: Connection,
    account: str,
    entries: Sequence[tuple[str, EntryKind, int]],
    source_key: str,
    now_ms: int,
    usage: Usage | None = None,
) -> None:
    if not entries:
        return
    last = connection.execute(select(func.max(credit_ledger.c.number)).where(credit_ledger.c.account == account))
    first = int(last.scalar() or 0) + 1
    meter, start_ms = (usage.meter, usage.period_start_ms) if usage else ("", None)
    rows = [
        {
            "account": account, "number": number, "grant_id": grant, "kind": kind.value, "credits": gained,
            "source_key": source_key, "at_ms": now_ms, "meter": meter, "period_start_ms": start_ms,
        }
        for number, (grant, kind, gained) in enumerate(entries, first)
    ]  # fmt: skip
    connection.execute(insert(credit_ledger), rows)


def _coverage(connection: Connection, usage: Usage) -> list[Coverage]:
    row = credit_coverage.c
    wanted = select(row.pool, row.rate, row.covered).where(
        row.account == usage.account, row.meter == usage.meter, row.period_start_ms == usage.period_start_ms
    )
    return [Coverage(pool, Fraction(rate), covered) for pool, rate, covered in connection.execute(wanted)]


def _write_coverage(connection: Connection, usage: Usage, coverage: Sequence[Coverage]) -> None:
    row = credit_coverage.c
    here = {"account": usage.account, "meter": usage.meter, "period_start_ms": usage.period_start_ms}
    connection.execute(delete(credit_coverage).where(*(row[name] == value for name, value in here.items())))
    rows = [
        {**here, "pool": each.pool, "rate": str(each.rate), "covered": each.covered}
        for each in coverage
        if each.covered
    ]
    if rows:
        connection.execute(insert(credit_coverage), rows)


# Grants.


def _grant(connection: Connection, new: NewGrant, actor: str, reason: str, now_ms: int) -> Granted:
    audit.check_said(("actor", actor), ("reason", reason))
    _check(new)
    heads = _locked(connection, new.account, now_ms)
    here = (credit_grants.c.account == new.account) & (credit_grants.c.source_key == new.source_key)
    for known in grants_where(connection, here):
        if (known.pool, known.credits) != (new.pool, new.credits):
            said = f"{known.credits} credits of {known.pool}"
            raise InvalidInput("source_key", f"was given before with {said}: give another key")
        return Granted(known, is_new=False)
    if len(_drawable(connection, new.account, now_ms)) >= GRANTS_MAX:
        message = f"the account has {GRANTS_MAX} grants that can be drawn: void some, or wait until some are used"
        raise InvalidInput("credits", message)
    grant = _insert(connection, new, now_ms)
    after = {"pool": grant.pool, "credits": grant.credits, "category": grant.category.value, "key": grant.source_key}
    _note(connection, heads, grant, None, after, actor, reason, now_ms)
    return Granted(grant, is_new=True)


def _check(new: NewGrant) -> None:
    """Raise `InvalidInput` for a grant that makes no sense."""
    if not 1 <= new.credits <= CREDITS_MAX:
        raise InvalidInput("credits", f"must be a whole number from 1 to {CREDITS_MAX}")
    for field, value in (("pool", new.pool), ("source_key", new.source_key), ("account", new.account)):
        if not value or "\0" in value or len(value) > 500:
            raise InvalidInput(field, "must have 1 to 500 characters and no NUL")
    if not 0 <= new.priority <= 1_000:
        raise InvalidInput("priority", "must be a whole number from 0 to 1000; what has the lowest is drawn first")
    if not INSTANT_MIN_MS <= new.effective_ms <= INSTANT_MAX_MS:
        raise InvalidInput("effective_ms", "must lie between the years 1 and 9999")
    if new.expires_ms is not None and not new.effective_ms < new.expires_ms <= INSTANT_MAX_MS:
        raise InvalidInput("expires_ms", "must come after the start")


def _insert(connection: Connection, new: NewGrant, now_ms: int) -> CreditGrant:
    """Insert a grant of a locked account. It first pays the oldest debts of its pool."""
    name = grant_id(new.account, new.source_key)
    grant = CreditGrant(
        name, new.account, new.pool, new.category, new.credits, new.credits, new.priority, new.effective_ms,
        new.expires_ms, new.source_key, now_ms, new.rollover_max, new.rolls_until_ms, paid=new.paid,
    )  # fmt: skip
    connection.execute(insert(credit_grants), grant_row(grant))
    _append(connection, grant.account, [(name, EntryKind.GRANT, grant.credits)], grant.source_key, now_ms)
    for debt in debts_of(connection, grant.account):
        paid = min(debt.open, grant.remaining) if debt.pool == grant.pool else 0
        if paid:
            grant = grant._replace(remaining=grant.remaining - paid)
            _append(connection, grant.account, [(name, EntryKind.DEBT, -paid)], debt.source_key, now_ms)
            save_debt(connection, debt._replace(open=debt.open - paid), now_ms)
    save_grant(connection, grant)
    return grant


def _void(
    connection: Connection, account: str, name: str, actor: str, reason: str, now_ms: int, owes: bool
) -> CreditGrant:
    audit.check_said(("actor", actor), ("reason", reason))
    heads = lock_accounts(connection, {storable(account)})
    here = (credit_grants.c.account == storable(account)) & (credit_grants.c.id == storable(name))
    found = grants_where(connection, here)
    if not found:
        message = f"the account has no grant {name[:100]!r}: see `tidemark credits balance`"
        raise InvalidInput("grant", message)
    before = found[0]
    if before.voided_ms is not None:
        return before
    after = before._replace(remaining=0, voided_ms=now_ms)
    key = _debt_key(before)
    if before.remaining:
        _append(connection, account, [(name, EntryKind.VOID, -before.remaining)], key, now_ms)
    save_grant(connection, after)
    used = before.credits - before.remaining
    if owes and used:
        debt = Debt(account, key, before.pool, used, used, now_ms)
        connection.execute(insert(credit_debts), debt._asdict())
    left = {"remaining": before.remaining}
    _note(connection, heads, after, left, {"remaining": 0, "owed": used if owes else 0}, actor, reason, now_ms)
    return after


def _debt_key(grant: CreditGrant) -> str:
    return f"void:{grant.id}"


def _forgive(connection: Connection, grant: CreditGrant, amount: int, now_ms: int) -> int:
    """Credits came back to a grant that is void: its debt, if there is one, gets smaller by as much. Returns how many
    of them other grants have paid."""
    for debt in debts_of(connection, grant.account, is_open=False):
        if debt.source_key == _debt_key(grant):
            forgiven = min(debt.open, amount)
            if forgiven:
                save_debt(connection, debt._replace(open=debt.open - forgiven), now_ms)
            return amount - forgiven
    return 0


def _note(
    connection: Connection,
    heads: Mapping[str, Head],
    grant: CreditGrant,
    before: object,
    after: object,
    actor: str,
    reason: str,
    now_ms: int,
) -> None:
    head = heads[grant.account]
    row = audit.next_row(
        head, grant.account, now_ms, actor=actor, cause=CAUSE, entity=("credit_grant", grant.id),
        before=before, after=after, reason=reason,
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])
    save_heads(connection, heads)
