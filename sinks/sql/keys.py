"""API keys in SQL. Every change locks the account without a name, which also has the audit of the keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import InvalidInput
from schemas.keys import KEY_ENTITY, KEYS_MAX, StoredKey, ValidKeys
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.key_tables import api_keys
from sinks.sql.queries import Head, chunks, insert_new, lock_accounts, save_heads
from sinks.sql.tables import accounts

CREATE: Final = "key create"
ROTATE: Final = "key rotate"
REVOKE: Final = "key revoke"
_SHOWN: Final = ("role", "account", "events_per_s", "expires_ms", "successor", "note")


class SqlKeys:
    """Implements `schemas.keys.KeyStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def add(self, key: StoredKey) -> None:
        def body(connection: Connection) -> None:
            head = lock_audit(connection, key.created_ms)
            _insert(connection, key)
            _note(connection, head, CREATE, key.created_by, key.created_ms, key.note, None, key)

        await self._run(body)

    async def rotate(self, key_id: str, successor: StoredKey, ends_ms: int) -> StoredKey:
        by, now_ms = successor.created_by, successor.created_ms

        def body(connection: Connection) -> StoredKey:
            head = lock_audit(connection, now_ms)
            before = _existing(connection, key_id)
            if before.revoked_ms is not None or before.successor:
                why = "is revoked" if before.revoked_ms is not None else f"is replaced by {before.successor} already"
                raise InvalidInput("id", f"the key {key_id} {why}: rotate another one, or create one")
            _insert(connection, successor)
            end_ms = ends_ms if before.expires_ms is None else min(ends_ms, before.expires_ms)
            after = before._replace(expires_ms=end_ms, successor=successor.id)
            _save(connection, after)
            _note(connection, head, ROTATE, by, now_ms, successor.note, None, successor)
            _note(connection, head, ROTATE, by, now_ms, successor.note, before, after)
            return after

        return await self._run(body)

    async def revoke(self, key_id: str, actor: str, reason: str, now_ms: int) -> StoredKey:
        def body(connection: Connection) -> StoredKey:
            head = lock_audit(connection, now_ms)
            before = _existing(connection, key_id)
            if before.revoked_ms is not None:
                return before
            after = before._replace(revoked_ms=now_ms)
            _save(connection, after)
            _note(connection, head, REVOKE, actor, now_ms, reason, before, after)
            return after

        return await self._run(body)

    async def key(self, key_id: str) -> StoredKey | None:
        return await self._run(lambda connection: _found(connection, key_id))

    async def listed(self, limit: int) -> Sequence[StoredKey]:
        column = api_keys.c
        wanted = select(api_keys).order_by(column.created_ms.desc(), column.id.desc()).limit(limit)
        return await self._run(lambda connection: [_key(row) for row in connection.execute(wanted).mappings()][::-1])

    async def known(self, now_ms: int, version: int | None) -> ValidKeys | None:
        newest = select(accounts.c.audit_seq).where(accounts.c.account == NO_ACCOUNT)
        wanted = select(api_keys).where(_valid(now_ms)).limit(KEYS_MAX)

        def body(connection: Connection) -> ValidKeys | None:
            # The version first: keys of a later transaction make the next call read them again.
            current = connection.execute(newest).scalar() or 0
            if current == version:
                return None
            return ValidKeys(current, [_key(row) for row in connection.execute(wanted).mappings()])

        return await self._run(body)

    async def used(self, key_ids: Collection[str], day_ms: int) -> None:
        column = api_keys.c

        def body(connection: Connection) -> None:
            for chunk in chunks(set(key_ids)):
                is_older = or_(column.used_ms.is_(None), column.used_ms < day_ms)
                connection.execute(update(api_keys).where(column.id.in_(chunk), is_older).values(used_ms=day_ms))

        await self._run(body)


def lock_audit(connection: Connection, now_ms: int) -> Head:
    """Lock the end of the audit of no account until the transaction ends."""
    new = {"account": NO_ACCOUNT, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    return lock_accounts(connection, {NO_ACCOUNT})[NO_ACCOUNT]


def _valid(now_ms: int) -> Any:
    column = api_keys.c
    return and_(column.revoked_ms.is_(None), or_(column.expires_ms.is_(None), column.expires_ms > now_ms))


def _insert(connection: Connection, key: StoredKey) -> None:
    audit.check_said(("by", key.created_by))
    for field, value in (("account", key.account), ("note", key.note)):
        if "\0" in value:
            raise InvalidInput(field, "must not have a NUL")
    count = connection.execute(select(func.count()).select_from(api_keys).where(_valid(key.created_ms))).scalar_one()
    if count >= KEYS_MAX:
        raise InvalidInput("id", f"{KEYS_MAX} keys are valid: revoke those not used any more")
    connection.execute(insert(api_keys), key._asdict())


def _found(connection: Connection, key_id: str) -> StoredKey | None:
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).mappings().first()
    return None if row is None else _key(row)


def _existing(connection: Connection, key_id: str) -> StoredKey:
    found = _found(connection, key_id)
    if found is None:
        raise InvalidInput("id", f"there is no key {key_id!r}: `tidemark key list` prints the ids")
    return found


def _save(connection: Connection, key: StoredKey) -> None:
    changed = {name: getattr(key, name) for name in ("expires_ms", "revoked_ms", "successor")}
    connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(changed))


def _note(
    connection: Connection, head: Head, cause: str, actor: str, now_ms: int, reason: str,
    before: StoredKey | None, after: StoredKey,
) -> None:  # fmt: skip
    audit.check_said(("by", actor))
    row = audit.next_row(
        head, NO_ACCOUNT, now_ms, actor=actor, cause=cause, entity=(KEY_ENTITY, after.id),
        before=None if before is None else _shown(before), after=_shown(after), reason=reason,
    )  # fmt: skip
    audit.append(connection, [(row, head.audit_hash)])
    save_heads(connection, {NO_ACCOUNT: head})


def _shown(key: StoredKey) -> dict[str, Any]:
    """What the audit keeps of a key: not its hash."""
    shown = {name: getattr(key, name) for name in (*_SHOWN, "revoked_ms")}
    return {name: value for name, value in shown.items() if value not in (None, "")}


def _key(row: Mapping[Any, Any]) -> StoredKey:
    return StoredKey(**{name: row[name] for name in StoredKey._fields})
