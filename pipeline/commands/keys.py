"""Creating, listing, rotating and revoking API keys in SQL, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pipeline.http.api_keys import Role, check_account, new_key
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.catalog_changes import NO_ACCOUNT
from schemas.clock import DAY_MS, HOUR_MS
from schemas.keys import KEY_ENTITY, KeyStore, StoredKey
from schemas.side_tables import AuditRow

# Ten times as many as may be valid at once.
LISTED_MAX: Final = 100_000


class KeyWish(NamedTuple):
    """A key to make. `valid_days` None: it does not expire."""

    role: Role
    account: str | None = None
    valid_days: int | None = None
    events_per_s: int | None = None
    note: str = ""


class MadeKey(NamedTuple):
    """A key's text, which is stored nowhere, and what is stored of it."""

    text: str
    key: StoredKey


class Rotated(NamedTuple):
    """The new key, and the old one with its end."""

    made: MadeKey
    old: StoredKey


async def create_in(store: KeyStore, wish: KeyWish, by: str, now_ms: int) -> MadeKey:
    """Make a key. Raises `InvalidInput` and `Transient`."""
    check_account(wish.account)
    new = new_key()
    key = StoredKey(
        new.id, new.hash, wish.role.value, wish.account or "", wish.events_per_s, now_ms, by, wish.note,
        None if wish.valid_days is None else now_ms + wish.valid_days * DAY_MS,
    )  # fmt: skip
    await store.add(key)
    return MadeKey(new.text, key)


async def rotate_in(
    store: KeyStore, key_id: str, overlap_hours: int, valid_days: int | None, by: str, now_ms: int
) -> Rotated:
    """Make a key with the rights, limits and note of another one, which ends after the overlap.

    The new key is valid as long as the old one was when it was made, if `valid_days` is None. Raises `InvalidInput` and
    `Transient`.
    """
    new, old = new_key(), await store.key(key_id) or StoredKey(key_id, "", "")
    valid_ms = None if old.expires_ms is None else old.expires_ms - old.created_ms
    valid_ms = valid_ms if valid_days is None else valid_days * DAY_MS
    key = old._replace(
        id=new.id, hash=new.hash, created_ms=now_ms, created_by=by, revoked_ms=None, successor="", used_ms=None,
        expires_ms=None if valid_ms is None else now_ms + valid_ms,
    )  # fmt: skip
    return Rotated(MadeKey(new.text, key), await store.rotate(key_id, key, now_ms + overlap_hours * HOUR_MS))


async def create(settings: Settings, wish: KeyWish, by: str) -> MadeKey:
    """See `create_in`."""
    async with side_tables_of(settings) as (base, tables):
        return await create_in(tables.keys, wish, by, base.clock.now_ms())


async def rotate(settings: Settings, key_id: str, overlap_hours: int, valid_days: int | None, by: str) -> Rotated:
    """See `rotate_in`."""
    async with side_tables_of(settings) as (base, tables):
        return await rotate_in(tables.keys, key_id, overlap_hours, valid_days, by, base.clock.now_ms())


async def revoke(settings: Settings, key_id: str, by: str, reason: str) -> StoredKey:
    """Revoke a key. Raises `InvalidInput` and `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.keys.revoke(key_id, by, reason, base.clock.now_ms())


async def listed(settings: Settings) -> tuple[Sequence[StoredKey], int]:
    """The newest `LISTED_MAX` keys, oldest first, and the present."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.keys.listed(LISTED_MAX), base.clock.now_ms()


async def history(settings: Settings) -> Sequence[AuditRow]:
    """Who created, rotated and revoked which key, and when, oldest first."""
    async with side_tables_of(settings) as (_, tables):
        return [row for row in await tables.audit(NO_ACCOUNT) if row.entity == KEY_ENTITY]
