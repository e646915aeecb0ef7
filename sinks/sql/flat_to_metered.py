"""Migrations to a price for usage, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from schemas.catalog import PlanId
from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Figures, Item, ItemState, Migration, WaveRule, Who
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.migration_tables import migration_items, migrations
from sinks.sql.queries import insert_new, lock_accounts, save_heads
from sinks.sql.tables import accounts

CAUSE: Final = "flat to metered"
_WHAT: Final = ("source", "shadow", "target", "notice_days", "rule")


class SqlMigrations:
    """Implements `schemas.flat_to_metered.Migrations`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def add(self, migration: Migration, items: Sequence[Item]) -> Migration:
        return await self._run(lambda connection: _add(connection, migration, items))

    async def migration(self, name: str) -> Migration | None:
        return await self._run(lambda connection: _migration(connection, name))

    async def listed(self) -> Sequence[Migration]:
        wanted = select(migrations).order_by(migrations.c.made_ms.desc(), migrations.c.name)
        return await self._run(lambda connection: [_read(row) for row in connection.execute(wanted).mappings()])

    async def items(self, name: str) -> Sequence[Item]:
        column = migration_items.c
        wanted = select(migration_items).where(column.migration == name).order_by(column.wave, column.subscription)
        return await self._run(lambda connection: [_read_item(row) for row in connection.execute(wanted).mappings()])

    async def change(self, before: Item, after: Item, who: Who, now_ms: int) -> Item:
        return await self._run(lambda connection: _change(connection, before, after, who, now_ms))

    async def halt(self, name: str, why: str, who: Who, now_ms: int) -> Migration:
        return await self._run(lambda connection: _halt(connection, name, why, who, now_ms))


def _add(connection: Connection, migration: Migration, items: Sequence[Item]) -> Migration:
    who = Who(migration.made_by, migration.reason)
    audit.check_said(("--by", who.by), ("--reason", who.why))
    if "\0" in migration.name:
        raise InvalidInput("NAME", "must not have a NUL")
    insert_new(connection, migrations, [_row(migration)])
    kept = _migration(connection, migration.name) or migration
    for field in _WHAT:
        if getattr(kept, field) != getattr(migration, field):
            message = f"has {field.replace('_', ' ')} {getattr(kept, field)}: choose another name"
            raise InvalidInput("NAME", f"the migration {migration.name} {message}")
    _account(connection, {item.account for item in items}, migration.made_ms)
    heads = lock_accounts(connection, {item.account for item in items})
    known = select(migration_items.c.subscription).where(migration_items.c.migration == migration.name)
    have = set(connection.execute(known).scalars())
    for item in items:
        if item.subscription not in have:
            connection.execute(insert(migration_items), _item_row(item))
            _audit(connection, heads, item, {}, {"state": item.state, "wave": item.wave}, who, migration.made_ms)
    save_heads(connection, heads)
    return kept


def _change(connection: Connection, before: Item, after: Item, who: Who, now_ms: int) -> Item:
    audit.check_said(("--by", who.by), ("--reason", who.why))
    heads = lock_accounts(connection, {before.account})
    here = (migration_items.c.migration == before.migration) & (migration_items.c.subscription == before.subscription)
    row = connection.execute(select(migration_items).where(here)).mappings().one()
    found = _read_item(row)
    if found != before:
        return found
    if after == before:
        return before
    after = after._replace(touched_ms=now_ms)
    connection.execute(update(migration_items).where(here).values(**_item_row(after)))
    was, will = _said(before), _said(after)
    differs = [name for name in will if was[name] != will[name]]
    if differs:
        _audit(
            connection, heads, after, {name: was[name] for name in differs}, {name: will[name] for name in differs},
            who, now_ms,
        )  # fmt: skip
        save_heads(connection, heads)
    return after


def _halt(connection: Connection, name: str, why: str, who: Who, now_ms: int) -> Migration:
    audit.check_said(("--by", who.by), ("--reason", who.why))
    _account(connection, {NO_ACCOUNT}, now_ms)
    heads = lock_accounts(connection, {NO_ACCOUNT})
    kept = _migration(connection, name)
    if kept is None:
        raise InvalidInput("NAME", f"there is no migration {name}: see `tidemark migration status`")
    # The first reason stays until somebody lets the waves go on.
    if bool(kept.halted) == bool(why):
        return kept
    connection.execute(update(migrations).where(migrations.c.name == name).values(halted=why))
    head = heads[NO_ACCOUNT]
    row = audit.next_row(
        head, NO_ACCOUNT, now_ms, actor=who.by, cause=CAUSE, entity=("migration", name),
        before={"halted": kept.halted}, after={"halted": why}, reason=who.why,
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])
    save_heads(connection, heads)
    return kept._replace(halted=why)


def _account(connection: Connection, names: set[str], now_ms: int) -> None:
    blank = {"created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [{"account": name, **blank} for name in sorted(names)])


def _audit(
    connection: Connection, heads: Any, item: Item, before: dict[str, Any], after: dict[str, Any], who: Who, ms: int
) -> None:
    head = heads[item.account]
    row = audit.next_row(
        head, item.account, ms, actor=who.by, cause=CAUSE,
        entity=("migration_item", f"{item.migration}/{item.subscription}"), before=before, after=after, reason=who.why,
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])


def _said(item: Item) -> dict[str, Any]:
    """What the audit keeps of a subscription."""
    wish = item.wish.value if item.wish else ""
    return {"state": item.state.value, "wish": wish, "problem": item.problem, "notified_ms": item.notified_ms}


def _migration(connection: Connection, name: str) -> Migration | None:
    wanted = select(migrations).where(migrations.c.name == name.replace("\0", ""))
    row = connection.execute(wanted).mappings().first()
    return None if row is None else _read(row)


def _row(migration: Migration) -> dict[str, Any]:
    plans = {field: str(getattr(migration, field)) for field in ("source", "shadow", "target")}
    return {**migration._asdict(), **plans, "rule": migration.rule.value}


def _read(row: RowMapping) -> Migration:
    plans = {field: _plan(row[field]) for field in ("source", "shadow", "target")}
    return Migration(**{**row, **plans, "rule": WaveRule(row["rule"])})


def _plan(text: str) -> PlanId:
    name, _, version = text.rpartition("@")
    return PlanId(name, int(version))


def _item_row(item: Item) -> dict[str, Any]:
    row = item._asdict()
    del row["figures"]
    figures = msgspec.json.encode(item.figures).decode()
    return {**row, "state": item.state.value, "wish": item.wish.value if item.wish else "", "figures_json": figures}


def _read_item(row: RowMapping) -> Item:
    values = dict(row)
    figures = msgspec.json.decode(values.pop("figures_json"), type=Figures)
    wish = ItemState(row["wish"]) if row["wish"] else None
    return Item(**{**values, "state": ItemState(row["state"]), "wish": wish, "figures": figures})
