"""Trials and the keys by which nobody gets a second one, in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, and_, delete, exists, func, insert, or_, select, update

from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.plan_changes import OPEN_STATES
from schemas.trials import KEYS_KEPT_MS, Begun, Trial, TrialState, TrialTaken, TrialTerms, TrialWish
from sinks.sql import audit
from sinks.sql.change_tables import operations
from sinks.sql.intents import Run
from sinks.sql.queries import Head, insert_new, lock_accounts, save_heads
from sinks.sql.tables import mirror
from sinks.sql.trial_tables import trial_keys, trials

ENTITY: Final = "trial"
CAUSE: Final = "trial"
# The clocks of this machine and of Stripe need not agree.
_SLACK_MS: Final = HOUR_MS
# A page of checkout lives half an hour; its end is looked at a little later.
_PAGE_MS: Final = 37 * MINUTE_MS
_IN_TRIAL: Final = "trialing"
_NEVER_PAID: Final = ("canceled", "incomplete_expired", "paused")


class SqlTrials:
    """Implements `schemas.trials.TrialStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def due(self, now_ms: int, limit: int) -> Sequence[Trial]:
        trial, row = trials.c, mirror["subscriptions"].c
        has_begun = exists().where(
            row.customer_id == trial.customer, row.trial_end_ms.is_not(None), row.start_ms >= trial.made_ms - _SLACK_MS
        )
        is_reserved = and_(trial.state == TrialState.RESERVED, or_(trial.look_ms <= now_ms, has_begun))
        # Whose operation has not got so far is looked at when it has: an older page says nothing about it.
        is_open = exists().where(operations.c.id == trial.operation, operations.c.state.in_(list(OPEN_STATES)))
        is_placed = and_(or_(trial.session != "", trial.subscription != ""), ~is_open)
        is_ending = and_(trial.state == TrialState.ENDING, or_(trial.look_ms.is_(None), trial.look_ms <= now_ms))
        wanted = select(trials).where(or_(and_(is_reserved, is_placed), is_ending))
        wanted = wanted.order_by(trial.look_ms, trial.id).limit(limit)
        return await self._run(lambda connection: [_trial(row) for row in connection.execute(wanted).mappings()])

    async def begin(self, trial: Trial, begun: Begun, keys: Mapping[str, str], now_ms: int) -> Trial:
        return await self._run(lambda connection: _begin(connection, trial, begun, keys, now_ms))

    async def release(self, trial: Trial, now_ms: int) -> None:
        await self._run(lambda connection: _moved(connection, trial, TrialState.RELEASED, now_ms))

    async def refuse(self, trial: Trial, now_ms: int) -> None:
        await self._run(lambda connection: _moved(connection, trial, TrialState.REFUSED, now_ms))

    async def postpone(self, trial: Trial, look_ms: int) -> None:
        here = (trials.c.id == trial.id) & (trials.c.state == trial.state)
        await self._run(lambda connection: connection.execute(update(trials).where(here).values(look_ms=look_ms)))

    async def settle(self, now_ms: int) -> int:
        return await self._run(lambda connection: _settle(connection, now_ms))

    async def listed(self, account: str = "", limit: int = 100) -> Sequence[Trial]:
        wanted = select(trials).order_by(trials.c.made_ms.desc(), trials.c.id.desc()).limit(limit)
        if account:
            wanted = wanted.where(trials.c.account == account)
        return await self._run(lambda connection: [_trial(row) for row in connection.execute(wanted).mappings()])

    async def flagged(self) -> int:
        wanted = select(func.count()).where(trials.c.is_flagged == 1, trials.c.state == TrialState.RUNNING)
        return await self._run(lambda connection: connection.execute(wanted).scalar_one())

    async def counts(self) -> Mapping[TrialState, int]:
        wanted = select(trials.c.state, func.count()).group_by(trials.c.state)
        return await self._run(
            lambda connection: {TrialState(state): count for state, count in connection.execute(wanted)}
        )


def reserve(connection: Connection, operation: str, account: str, wish: TrialWish, now_ms: int) -> None:
    """Take the keys of a trial for an operation of a locked account. Raises `TrialTaken`.

    A trial that the account reserved and did not begin goes over to the operation. Its page may still be paid: the
    operation ends that page first, and fails if it was paid.
    """
    taken = (trials.c.account == account) & (trials.c.state == TrialState.RESERVED)
    found = [_trial(row) for row in connection.execute(select(trials).where(taken)).mappings()]
    own = next((each for each in found if each.terms.family == wish.terms.family), None)
    if own is None:
        name = f"tr_{operation.removeprefix('op_')}"
        own = Trial(name, account, wish.customer, operation, wish.terms, TrialState.RESERVED, now_ms)
        connection.execute(insert(trials), _row(own))
    else:
        moved = {"operation": operation, "terms_json": _text(wish.terms), "customer": wish.customer, "look_ms": None}
        connection.execute(update(trials).where(trials.c.id == own.id).values(**moved))
    for kind, value in sorted(wish.keys.items()):
        if not _take(connection, own, kind, value, now_ms):
            raise TrialTaken(kind)


def taken_by(connection: Connection, account: str, wish: TrialWish) -> str:
    """The kind of a key that a trial has, but for one that the account reserved and did not begin; or ""."""
    key, trial = trial_keys.c, trials.c
    is_own = and_(trial.account == account, trial.state == TrialState.RESERVED)
    for kind, value in sorted(wish.keys.items()):
        same = (key.family == wish.terms.family, key.kind == kind, key.value_hash == value)
        if connection.execute(select(key.trial).join(trials, trial.id == key.trial).where(*same, ~is_own)).first():
            return kind
    return ""


def placed(connection: Connection, operation: str, subscription: str, session: str, now_ms: int) -> None:
    """Note at what page or subscription an operation's trial is to begin."""
    # A page that was left before says nothing about the trial any more.
    values: dict[str, Any] = {"subscription": subscription, "session": "", "look_ms": now_ms}
    if session:
        values = {"session": session, "look_ms": now_ms + _PAGE_MS}
    here = (trials.c.operation == operation) & (trials.c.state == TrialState.RESERVED)
    connection.execute(update(trials).where(here).values(**values))


def abandoned(connection: Connection, operation: str, head: Head, now_ms: int) -> None:
    """Release the trial of an operation that failed. If an older page of the trial may have been paid, look there."""
    here = (trials.c.operation == operation) & (trials.c.state == TrialState.RESERVED)
    for row in connection.execute(select(trials).where(here)).mappings():
        trial = _trial(row)
        if trial.session:
            connection.execute(update(trials).where(trials.c.id == trial.id).values(look_ms=now_ms))
        else:
            _write(connection, head, trial, trial._replace(state=TrialState.RELEASED), now_ms)


def _take(connection: Connection, trial: Trial, kind: str, value: str, now_ms: int) -> bool:
    """Take one key; False if another trial has it."""
    row = {"family": trial.terms.family, "kind": kind, "value_hash": value, "trial": trial.id, "made_ms": now_ms}
    if insert_new(connection, trial_keys, [row]):
        return True
    key = trial_keys.c
    same = select(key.trial).where(key.family == trial.terms.family, key.kind == kind, key.value_hash == value)
    return connection.execute(same).scalar() == trial.id


def _begin(connection: Connection, trial: Trial, begun: Begun, keys: Mapping[str, str], now_ms: int) -> Trial:
    heads = lock_accounts(connection, {trial.account})
    row = connection.execute(select(trials).where(trials.c.id == trial.id)).mappings().one()
    before = _trial(row)
    if before.state is not TrialState.RESERVED:
        return before
    # All are taken, also if one of them has a trial already.
    taken = [_take(connection, before, kind, value, now_ms) for kind, value in sorted(keys.items())]
    is_new = all(taken)
    ends = not is_new and before.terms.repeated_card == "end" and begun.status == _IN_TRIAL
    after = before._replace(
        state=TrialState.ENDING if ends else TrialState.RUNNING, subscription=begun.subscription, look_ms=None,
        ends_ms=begun.trial_end_ms, is_flagged=not is_new and not ends,
    )  # fmt: skip
    _write(connection, heads[trial.account], before, after, now_ms)
    save_heads(connection, heads)
    return after


def _moved(connection: Connection, trial: Trial, state: TrialState, now_ms: int) -> None:
    heads = lock_accounts(connection, {trial.account})
    row = connection.execute(select(trials).where(trials.c.id == trial.id)).mappings().one()
    if row["state"] == trial.state:
        before = _trial(row)
        _write(connection, heads[trial.account], before, before._replace(state=state, look_ms=None), now_ms)
        save_heads(connection, heads)


def _settle(connection: Connection, now_ms: int) -> int:
    """What became of running trials, by the mirror."""
    connection.execute(delete(trial_keys).where(trial_keys.c.made_ms < now_ms - KEYS_KEPT_MS))
    row = mirror["subscriptions"]
    wanted = select(trials, row.c.status.label("status"), row.c.trial_end_ms.label("now_ends_ms")).join(
        row, row.c.id == trials.c.subscription
    )
    is_other = or_(row.c.status != _IN_TRIAL, row.c.trial_end_ms.is_distinct_from(trials.c.ends_ms))
    wanted = wanted.where(trials.c.state == TrialState.RUNNING, row.c.status.is_not(None), is_other)
    found = list(connection.execute(wanted).mappings())
    heads = lock_accounts(connection, {each["account"] for each in found})
    for each in found:
        before = _trial(each)
        after = before._replace(ends_ms=each["now_ends_ms"] or before.ends_ms)
        if each["status"] != _IN_TRIAL:
            state = TrialState.EXPIRED if each["status"] in _NEVER_PAID else TrialState.CONVERTED
            after = after._replace(state=state)
        _write(connection, heads[before.account], before, after, now_ms)
    save_heads(connection, heads)
    return len(found)


def _write(connection: Connection, head: Head, before: Trial, after: Trial, now_ms: int) -> None:
    """Write a trial of a locked account, with an audit row. A trial that is released gives its keys back."""
    connection.execute(update(trials).where(trials.c.id == after.id).values(**_row(after)))
    if after.state is TrialState.RELEASED:
        connection.execute(delete(trial_keys).where(trial_keys.c.trial == after.id))
    was, now = _row(before), _row(after)
    differs = {name for name in now if was[name] != now[name]}
    trail = audit.next_row(
        head, after.account, now_ms, actor=CAUSE, cause=after.operation, entity=(ENTITY, after.id),
        before={name: was[name] for name in differs}, after={name: now[name] for name in differs}, reason="",
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])


def _row(trial: Trial) -> dict[str, Any]:
    row = trial._asdict()
    del row["terms"]
    return row | {
        "terms_json": _text(trial.terms), "state": trial.state.value, "is_flagged": int(trial.is_flagged),
    }  # fmt: skip


def _trial(row: RowMapping) -> Trial:
    same = {name: row[name] for name in Trial._fields if name not in ("terms", "state", "is_flagged")}
    terms = msgspec.json.decode(row["terms_json"], type=TrialTerms)
    return Trial(terms=terms, state=TrialState(row["state"]), is_flagged=bool(row["is_flagged"]), **same)


def _text(terms: TrialTerms) -> str:
    return msgspec.json.encode(terms).decode()
