"""The transactions that link an account to a customer, and end a link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, insert, update

from aggregators.instants import format_instant_ms
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS
from schemas.side_tables import Link
from sinks.sql import audit
from sinks.sql.bindings import Planner, plan_bindings
from sinks.sql.queries import Head, insert_new, links_of, lock_accounts, lock_customers, rows_where, save_heads
from sinks.sql.tables import account_customers, accounts

COMMAND: Final = "account link"
UNLINK_COMMAND: Final = "account unlink"
NOBODY: Final = ""


def link(
    connection: Connection,
    planner: Planner,
    account: str,
    customer: str,
    starts_ms: int,
    actor: str,
    reason: str,
    now_ms: int,
) -> Link:
    """Link an account to a customer and plan its bindings. See `schemas.side_tables.SideTables.link`."""
    for field, value in (("account", account), ("customer", customer), ("actor", actor)):
        if not value or "\0" in value:
            raise InvalidInput(field, "must not be empty or have a NUL")
    if not INSTANT_MIN_MS <= starts_ms <= INSTANT_MAX_MS:
        raise InvalidInput("starts_ms", f"must be from {INSTANT_MIN_MS} to {INSTANT_MAX_MS}")
    lock_customers(connection, {customer})
    new = {"account": account, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    heads = lock_accounts(connection, {account})
    before = links_of(connection, {account})[account]
    for own in before:
        if own.customer == customer and own.starts_ms <= starts_ms and (own.ends_ms is None or starts_ms < own.ends_ms):
            return own
        if own.starts_ms == starts_ms and own.customer:
            raise InvalidInput(
                "starts_ms",
                f"account {account} has {own.customer} from {format_instant_ms(starts_ms)} on, and has one customer in "
                f"a minute: if {customer} follows it, link from {format_instant_ms(starts_ms + MINUTE_MS)} or later on",
            )
    if before and starts_ms < _minute(now_ms):
        raise InvalidInput(
            "starts_ms",
            f"account {account} has been linked before, so another link begins at {format_instant_ms(_minute(now_ms))} "
            "or later: usage before that stays with the payer before. Leave the instant out to link from now on",
        )
    _make_room(connection, account, before, starts_ms)
    connection.execute(insert(account_customers), {"account": account, "customer_id": customer, "starts_ms": starts_ms})
    after = links_of(connection, {account})[account]
    (made,) = (own for own in after if own.starts_ms == starts_ms)
    _check_free(connection, made)
    _finish(connection, planner, heads, COMMAND, made, before, actor, reason, now_ms)
    return made


def unlink(connection: Connection, planner: Planner, account: str, actor: str, reason: str, now_ms: int) -> Link:
    """End an account's link and plan its bindings. See `schemas.side_tables.SideTables.unlink`."""
    if not actor or "\0" in actor:
        raise InvalidInput("actor", "must not be empty or have a NUL")
    # A step that goes on at the same time either comes before, or finds the customers unlinked.
    lock_customers(connection, {own.customer for own in links_of(connection, {account})[account] if own.customer})
    heads = lock_accounts(connection, {account})
    before = links_of(connection, {account})[account]
    if not before:
        raise InvalidInput("account", f"{account!r} is linked to no customer")
    if not before[-1].customer and before[-1].starts_ms <= now_ms:
        return before[-1]
    made = Link(account, NOBODY, _minute(now_ms))
    _forget(connection, account, account_customers.c.starts_ms >= made.starts_ms)
    row = {"account": account, "customer_id": NOBODY, "starts_ms": made.starts_ms}
    connection.execute(insert(account_customers), row)
    _finish(connection, planner, heads, UNLINK_COMMAND, made, before, actor, reason, now_ms)
    return made


def _minute(instant_ms: int) -> int:
    return instant_ms // MINUTE_MS * MINUTE_MS


def _make_room(connection: Connection, account: str, before: Sequence[Link], starts_ms: int) -> None:
    """Make room for a link where the account was unlinked in the same minute: the link to nobody moves a millisecond
    back, because it says that the customer before was the wrong one."""
    same = [number for number, own in enumerate(before) if own.starts_ms == starts_ms]
    if same and same[0] and before[same[0] - 1].customer:
        here = (account_customers.c.account == account) & (account_customers.c.starts_ms == starts_ms)
        connection.execute(update(account_customers).where(here).values(starts_ms=starts_ms - 1))
    else:
        _forget(connection, account, account_customers.c.starts_ms == starts_ms)


def _forget(connection: Connection, account: str, which: ColumnElement[bool]) -> None:
    connection.execute(delete(account_customers).where(account_customers.c.account == account, which))


def _finish(
    connection: Connection,
    planner: Planner,
    heads: dict[str, Head],
    command: str,
    made: Link,
    before: Sequence[Link],
    actor: str,
    reason: str,
    now_ms: int,
) -> None:
    """Write the audit row of changed links, and plan what follows from them."""
    account = made.account
    after = links_of(connection, {account})[account]
    entity_id = made.customer or next((own.customer for own in reversed(before) if own.starts_ms <= now_ms), NOBODY)
    row = audit.next_row(
        heads[account],
        account,
        now_ms,
        actor=actor,
        cause=command,
        entity=("account_customer", entity_id),
        before=[own._asdict() for own in before if own not in after],
        after=[own._asdict() for own in after if own not in before],
        reason=reason,
    )
    audit.append(connection, [(row, heads[account].audit_hash)])
    plan_bindings(connection, heads, planner, now_ms)
    save_heads(connection, heads)


def _check_free(connection: Connection, made: Link) -> None:
    """Raise `InvalidInput` if the customer belongs to another account within the link's time."""
    rows = rows_where(connection, account_customers, "customer_id", {made.customer})
    others = links_of(connection, {row["account"] for row in rows} - {made.account})
    for own in others.values():
        for other in own:
            if other.customer != made.customer:
                continue
            before_end = made.ends_ms is None or other.starts_ms < made.ends_ms
            if before_end and (other.ends_ms is None or made.starts_ms < other.ends_ms):
                raise InvalidInput(
                    "customer",
                    f"{made.customer} belongs to account {other.account} from {format_instant_ms(other.starts_ms)} on, "
                    "and a customer has one account at a time: end that with "
                    f"`tidemark account unlink {other.account}` or link {other.account} to another customer, then link "
                    f"{made.account} from that instant on",
                )
