"""The transaction of a step, from the locks to the outcomes. Objects are compared before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from schemas.billing_events import ObjectKind, ObjectName, Via
from schemas.clock import SECOND_MS
from schemas.journal import Heard
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.side_tables import (
    MIRROR_COLUMNS,
    PARTS_OF,
    PERSONAL,
    TABLE_OF,
    WAITING,
    Arrived,
    AuditRow,
    Fetched,
    Outcome,
    Stale,
    Step,
)
from sinks.sql import audit, journal
from sinks.sql.bindings import Planner, plan_bindings
from sinks.sql.queries import (
    Head,
    Values,
    chunks,
    insert_new,
    links_of,
    lock_accounts,
    lock_customers,
    mirror_row,
    move_position,
    rows_where,
    save_heads,
)
from sinks.sql.tables import account_customers, customer_column, mirror, processed_events

READER: Final = BILLING_EVENTS_TOPIC
STRIPE: Final = "stripe"
MASK: Final = "(not kept)"
# Made once, because they run very often.
_FETCH_SEQS: Final = {
    kind: select(mirror[name].c.id, mirror[name].c.fetch_seq).where(
        mirror[name].c.id.in_(bindparam("ids", expanding=True))
    )
    for kind, name in TABLE_OF.items()
}

# The rows of one object: by table, then by key.
Rows = dict[str, dict[str, Values]]


class Stored(NamedTuple):
    """What the store has of an object."""

    fetch_seq: int
    rows: Rows


class Work(NamedTuple):
    """An object that the step writes: what the store has and what Stripe has. `cause` is the event that is named in the
    audit."""

    name: ObjectName
    stored: Stored
    rows: Rows
    cause: str


def commit(connection: Connection, step: Step, planner: Planner) -> dict[str, Outcome]:
    """Apply a step. See `schemas.side_tables.SideTables.commit`."""
    # Read before the locks, because the rows say which customers to lock. `_write` refuses a row that moved since.
    named = {name for each in step.arrived if each.event.id not in step.set_aside for name in each.event.objects}
    left = named - {fetched.name for fetched in step.fetched}
    stored = stored_objects(connection, [*left, *(fetched.name for fetched in step.fetched)])
    kept = {name: stored[name].fetch_seq for name in left if stored[name].fetch_seq}
    step = step._replace(fetched=[*step.fetched, *(_as_fetched(name, stored[name]) for name in sorted(kept))])
    owners = {fetched.name: _owners(fetched, stored) for fetched in step.fetched}
    customers = {arrived.event.id: _customers(arrived, owners) for arrived in step.arrived}
    concerned = set().union(*customers.values(), *owners.values())
    lock_customers(connection, concerned)
    account_of, names = _accounts(connection, concerned, step.now_ms)
    heads = lock_accounts(connection, names)
    move_position(connection, READER, step.partition, step.believed_offset, step.next_offset)
    if kept and fetch_seqs(connection, kept) != kept:
        raise Stale("an object of a held event was fetched meanwhile")

    processed = _processed(connection, [arrived.event.id for arrived in step.arrived])
    new: dict[str, Arrived] = {}
    for arrived in step.arrived:
        if processed.get(arrived.event.id, Outcome.HELD) in WAITING:
            new.setdefault(arrived.event.id, arrived)
    works = _works(step, stored, owners, new, customers)
    works_of: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        works_of[work.cause].append(work)
    outcomes = dict(processed)
    rows, told = [], list[journal.Told]()
    for event_id, arrived in new.items():
        account = min((account_of[customer] for customer in customers[event_id] if customer in account_of), default="")
        own = works_of[event_id]
        was_held = processed.get(event_id) is Outcome.HELD
        outcomes[event_id] = (
            Outcome.SET_ASIDE
            if event_id in step.set_aside
            else _outcome(arrived, account, customers[event_id], own, was_held=was_held)
        )
        row = _audit_row(arrived, account, heads, own, outcomes[event_id], step.now_ms, was_held=was_held)
        if row is not None:
            rows.append((row, heads[account].audit_hash))
        if account:
            heard = Heard(account, event_id, arrived.event.created_s * SECOND_MS, step.now_ms)
            told += [journal.Told(work.name, work.rows, heard) for work in own]
    _claim(connection, new, processed, outcomes, customers, step)
    _write(connection, [work for work in works if work.name not in kept], step.now_ms)
    audit.append(connection, rows)
    journal.write(connection, told)
    if new:
        plan_bindings(connection, heads, planner, step.now_ms)
        save_heads(connection, heads)
    return outcomes


def _as_fetched(name: ObjectName, stored: Stored) -> Fetched:
    """What the store has of an object of a held event, which was not fetched again."""
    return Fetched(name, stored.fetch_seq, {table: list(rows.values()) for table, rows in stored.rows.items()})


def stored_objects(connection: Connection, names: Collection[ObjectName]) -> dict[ObjectName, Stored]:
    """What the store has of each object; `fetch_seq` is 0 without a row."""
    stored = {name: Stored(0, {table: {} for table in _tables(name.kind)}) for name in names}
    for kind in ObjectKind:
        wanted = {name.id for name in names if name.kind is kind}
        for row in rows_where(connection, mirror[TABLE_OF[kind]], "id", wanted):
            name, table = ObjectName(kind, row["id"]), TABLE_OF[kind]
            stored[name] = Stored(row["fetch_seq"], {**stored[name].rows, table: {name.id: mirror_row(table, row)}})
        if kind in PARTS_OF:
            part, owner = PARTS_OF[kind]
            for row in rows_where(connection, mirror[part], owner, wanted):
                stored[ObjectName(kind, row[owner])].rows[part][row["id"]] = mirror_row(part, row)
    return stored


def fetch_seqs(connection: Connection, names: Collection[ObjectName]) -> dict[ObjectName, int]:
    """The `fetch_seq` of each object, 0 without a row."""
    seqs = dict.fromkeys(names, 0)
    for kind in ObjectKind:
        for chunk in chunks({name.id for name in names if name.kind is kind}):
            rows = connection.execute(_FETCH_SEQS[kind], {"ids": chunk})
            seqs |= {ObjectName(kind, row.id): row.fetch_seq for row in rows}
    return seqs


def _tables(kind: ObjectKind) -> tuple[str, ...]:
    return (TABLE_OF[kind], PARTS_OF[kind][0]) if kind in PARTS_OF else (TABLE_OF[kind],)


def _rows(fetched: Fetched, stored: Stored) -> Rows:
    """The rows that the store will have. Of an object that is gone the own row stays, with `deleted` 1: a slower fetch
    from before the deletion then finds that `fetch_seq` moved. What names a person goes."""
    name, own = fetched.name, TABLE_OF[fetched.name.kind]
    for table, given in fetched.rows.items():
        if unknown := {column for row in given for column in row} - set(MIRROR_COLUMNS[table]):
            raise ValueError(f"{name.id}: {table} has no column {min(unknown)}; see MIRROR_COLUMNS")
    rows: Rows = {
        table: {str(row["id"]): mirror_row(table, row) for row in fetched.rows.get(table, ())}
        for table in _tables(name.kind)
    }
    if not rows[own]:
        kept = mirror_row(own, stored.rows[own].get(name.id, {"id": name.id}))
        rows[own] = {name.id: {**kept, **dict.fromkeys(PERSONAL & kept.keys()), "deleted": 1}}
    return rows


def _owners(fetched: Fetched, stored: Mapping[ObjectName, Stored]) -> set[str]:
    """The customer of an object, as Stripe and the store have it."""
    table, column = TABLE_OF[fetched.name.kind], customer_column(fetched.name.kind)
    rows = [*fetched.rows.get(table, ()), *stored[fetched.name].rows[table].values()]
    if fetched.name.kind is ObjectKind.CUSTOMER:
        return {fetched.name.id}
    return {str(row[column]) for row in rows if row.get(column)}


def _customers(arrived: Arrived, owners: Mapping[ObjectName, set[str]]) -> set[str]:
    """The customer that an event names, or else those of its objects."""
    if arrived.event.customer:
        return {arrived.event.customer}
    return set().union(*(owners.get(name, set()) for name in arrived.event.objects))


def _accounts(connection: Connection, customers: set[str], now_ms: int) -> tuple[dict[str, str], set[str]]:
    """The account of each customer that has one, and all accounts that ever had one of the customers.

    A customer from whom the account was unlinked has none. One whom the account left for another customer stays the
    account's: the last invoices bill the account's usage.
    """
    rows = rows_where(connection, account_customers, "customer_id", customers)
    names = {row["account"] for row in rows}
    links = []
    for own in links_of(connection, names).values():
        for link, after in zip_longest(own, own[1:]):
            was_unlinked = after is not None and not after.customer and after.starts_ms <= now_ms
            if link.customer in customers and not was_unlinked:
                links.append(link)
    # The last link that has started, or else the one that starts first.
    links.sort(key=lambda link: (link.starts_ms <= now_ms, -abs(now_ms - link.starts_ms)))
    return {link.customer: link.account for link in links}, names


def _processed(connection: Connection, event_ids: Collection[str]) -> dict[str, Outcome]:
    rows = rows_where(connection, processed_events, "event_id", set(event_ids))
    return {row["event_id"]: Outcome(row["outcome"]) for row in rows}


def _works(
    step: Step,
    stored: Mapping[ObjectName, Stored],
    owners: Mapping[ObjectName, set[str]],
    new: Mapping[str, Arrived],
    customers: Mapping[str, set[str]],
) -> list[Work]:
    """The objects to write. Raises `Stale` if one of them was fetched again since.

    The cause is the first new event that names the object. An object that only processed events name is left out. An
    object that no event names came along with its customer's events, or else with those of the step.
    """
    named: dict[ObjectName, list[str]] = defaultdict(list)
    for arrived in step.arrived:
        for name in arrived.event.objects:
            named[name].append(arrived.event.id)
    first: dict[str, str] = {}
    for event_id in new:
        for customer in customers[event_id]:
            first.setdefault(customer, event_id)
    works = []
    for fetched in step.fetched:
        if fetched.name in named:
            cause = next((event_id for event_id in named[fetched.name] if event_id in new), None)
        else:
            causes = (first[owner] for owner in sorted(owners[fetched.name]) if owner in first)
            cause = next(causes, next(iter(new), None))
        if cause is None:
            continue
        was = stored[fetched.name]
        if fetched.fetch_seq != was.fetch_seq:
            raise Stale(f"{fetched.name.id} was fetched again: {was.fetch_seq}, not {fetched.fetch_seq}")
        works.append(Work(fetched.name, was, _rows(fetched, was), cause))
    return works


def _changes(before: Rows, after: Rows) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an object's rows had and have, only of what differs: by table, key and column. A row that is new or gone is
    whole on one side and missing on the other."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for table in after:
        for key in sorted(before[table].keys() | after[table].keys()):
            was, now = before[table].get(key), after[table].get(key)
            if was == now:
                continue
            differ = {column for column in (was or now or {}) if not was or not now or was[column] != now[column]}
            for row, side in ((was, old), (now, new)):
                if row is not None:
                    side.setdefault(table, {})[key] = {column: _audited(column, row[column]) for column in differ}
    return old, new


def _audited(column: str, value: object) -> object:
    """The value of a column as the audit has it. The audit is a chain of hashes, of which nothing can be taken out
    later, so what names a person never gets in."""
    return MASK if column in PERSONAL and value is not None else value


def _outcome(arrived: Arrived, account: str, customers: set[str], works: Sequence[Work], *, was_held: bool) -> Outcome:
    if not arrived.event.objects:
        return Outcome.IGNORED
    if customers and not account:
        return Outcome.HELD
    if was_held or any(work.rows != work.stored.rows for work in works):
        return Outcome.APPLIED
    return Outcome.UNCHANGED


def _audit_row(
    arrived: Arrived,
    account: str,
    heads: Mapping[str, Head],
    works: Sequence[Work],
    outcome: Outcome,
    now_ms: int,
    *,
    was_held: bool,
) -> AuditRow | None:
    """The audit row of an event of an account. A resync that finds nothing to change needs none."""
    event = arrived.event
    if outcome in {Outcome.IGNORED, Outcome.HELD} or not account:
        return None
    if outcome is Outcome.SET_ASIDE and not any(work.rows != work.stored.rows for work in works):
        return None
    if outcome is Outcome.UNCHANGED and arrived.via is Via.RESYNC:
        return None
    before: dict[str, dict[str, Any]] = {}
    after: dict[str, dict[str, Any]] = {}
    for work in works:
        # The account never had the rows of an event that was stored.
        known: Rows = {table: {} for table in work.rows} if was_held else work.stored.rows
        for side, changed in zip((before, after), _changes(known, work.rows), strict=True):
            for table, rows in changed.items():
                side.setdefault(table, {}).update(rows)
    return audit.next_row(
        heads[account],
        account,
        now_ms,
        actor=STRIPE,
        cause=event.id,
        entity=event.objects[0],
        before=before,
        after=after,
        reason=event.type,
    )


def _claim(
    connection: Connection,
    new: Mapping[str, Arrived],
    processed: Mapping[str, Outcome],
    outcomes: Mapping[str, Outcome],
    customers: Mapping[str, set[str]],
    step: Step,
) -> None:
    """Record the events. Raises `Stale` if another step recorded one of them first: it is processed by now."""
    first = [arrived for event_id, arrived in new.items() if event_id not in processed]
    rows = [
        {
            "event_id": event.id,
            "type": event.type,
            "customer_id": min(customers[event.id], default=""),
            "created_s": event.created_s,
            "via": via,
            "outcome": outcomes[event.id],
            "log_partition": step.partition,
            "log_offset": offset,
            "processed_ms": step.now_ms,
        }
        for event, via, offset in first
    ]
    if insert_new(connection, processed_events, rows) != len(rows):
        raise Stale("another step processed one of the events")
    again = [
        {
            "id": event_id,
            "outcome": outcomes[event_id],
            "processed_ms": step.now_ms,
            # The log deletes old records: what waits on is kept at its last place.
            "log_partition": step.partition,
            "log_offset": arrived.offset,
        }
        for event_id, arrived in new.items()
        if event_id in processed and not processed[event_id] is outcomes[event_id] is Outcome.HELD
    ]
    if again:
        outcome = processed_events.c.outcome
        # A list of values cannot be in a statement that is executed for many rows.
        waits = (processed_events.c.event_id == bindparam("id")) & or_(*(outcome == one for one in sorted(WAITING)))
        if connection.execute(update(processed_events).where(waits), again).rowcount != len(again):
            raise Stale("another step processed one of the events that waited")


def _write(connection: Connection, works: Sequence[Work], now_ms: int) -> None:
    """Write the objects' rows and count the fetch. Raises `Stale` if a row moved since it was read."""
    for kind in ObjectKind:
        own, table = [work for work in works if work.name.kind is kind], mirror[TABLE_OF[kind]]
        counts = {"fetched_ms": now_ms}
        rows = [
            {**work.rows[TABLE_OF[kind]][work.name.id], **counts, "fetch_seq": 1}
            for work in own
            if not work.stored.fetch_seq
        ]
        if insert_new(connection, table, rows) != len(rows):
            raise Stale(f"another step fetched one of {len(rows)} objects of the kind {kind} first")
        changed = [
            {
                **{f"new_{column}": value for column, value in work.rows[TABLE_OF[kind]][work.name.id].items()},
                "new_fetched_ms": now_ms,
                "new_fetch_seq": work.stored.fetch_seq + 1,
                "key": work.name.id,
                "seen": work.stored.fetch_seq,
            }
            for work in own
            if work.stored.fetch_seq
        ]
        if changed:
            is_seen = (table.c.id == bindparam("key")) & (table.c.fetch_seq == bindparam("seen"))
            values: Values = {column.name: bindparam(f"new_{column.name}") for column in table.c if column.name != "id"}
            if connection.execute(update(table).where(is_seen).values(values), changed).rowcount != len(changed):
                raise Stale(f"another step fetched one of {len(changed)} objects of the kind {kind} again")
        if kind in PARTS_OF:
            _replace_parts(connection, kind, own)


def _replace_parts(connection: Connection, kind: ObjectKind, works: Sequence[Work]) -> None:
    part, owner = PARTS_OF[kind]
    replaced = [work for work in works if work.rows[part] != work.stored.rows[part]]
    for chunk in chunks([work.name.id for work in replaced if work.stored.rows[part]]):
        connection.execute(delete(mirror[part]).where(mirror[part].c[owner].in_(chunk)))
    for chunk in chunks([row for work in replaced for row in work.rows[part].values()]):
        connection.execute(insert(mirror[part]), chunk)
