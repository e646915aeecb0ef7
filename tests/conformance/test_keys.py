"""API keys in SQL: on the fake and on PostgreSQL."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schemas.catalog_changes import NO_ACCOUNT
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput
from schemas.keys import KEY_ENTITY, KeyStore, StoredKey, ValidKeys
from schemas.side_tables import SideTables
from sinks.sql import keys as sql_keys
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import NOW_MS, linked

KEY = StoredKey(
    "0123456789ab", "a" * 64, "ingest", "acme", 500, NOW_MS, "ann", "the importer", NOW_MS + 30 * DAY_MS
)  # fmt: skip
NEXT = KEY._replace(id="ba9876543210", hash="b" * 64, created_ms=NOW_MS + 1, expires_ms=NOW_MS + 90 * DAY_MS)


@pytest.fixture
def keys(side_tables: SideTables) -> KeyStore:
    return cast("SqlSideTables", side_tables).keys


async def valid(keys: KeyStore, now_ms: int, version: int | None = None) -> dict[str, StoredKey] | None:
    """The valid keys by id; None if they did not change since a version."""
    known = await keys.known(now_ms, version)
    return None if known is None else {key.id: key for key in known.keys}


async def test_a_key_is_kept_as_it_is_until_it_ends(keys: KeyStore) -> None:
    await keys.add(KEY)
    await keys.add(StoredKey("0" * 12, "c" * 64, "admin", created_ms=NOW_MS - 1, created_by="bob"))

    assert (await keys.key(KEY.id), await keys.key("nothing")) == (KEY, None)
    assert [key.id for key in await keys.listed(10)] == ["0" * 12, KEY.id]
    assert [key.id for key in await keys.listed(1)] == [KEY.id]
    assert (await valid(keys, NOW_MS) or {}).keys() == {KEY.id, "0" * 12}
    assert (await valid(keys, NOW_MS + 30 * DAY_MS) or {}).keys() == {"0" * 12}


async def test_a_rotated_key_ends_after_the_overlap_and_is_not_rotated_twice(keys: KeyStore) -> None:
    await keys.add(KEY)
    old = await keys.rotate(KEY.id, NEXT, NOW_MS + 24 * HOUR_MS)

    assert old == KEY._replace(expires_ms=NOW_MS + 24 * HOUR_MS, successor=NEXT.id)
    assert await valid(keys, NOW_MS) == {KEY.id: old, NEXT.id: NEXT}
    with pytest.raises(InvalidInput, match=f"is replaced by {NEXT.id} already"):
        await keys.rotate(KEY.id, NEXT._replace(id="1" * 12), NOW_MS)
    assert await keys.key("1" * 12) is None


async def test_an_overlap_does_not_make_a_key_valid_for_longer(keys: KeyStore) -> None:
    await keys.add(KEY)

    assert (await keys.rotate(KEY.id, NEXT, NOW_MS + 60 * DAY_MS)).expires_ms == KEY.expires_ms


async def test_a_revoked_key_stays_revoked(keys: KeyStore) -> None:
    await keys.add(KEY)
    revoked = await keys.revoke(KEY.id, "bob", "it leaked", NOW_MS + 5)

    assert revoked == KEY._replace(revoked_ms=NOW_MS + 5)
    assert await keys.revoke(KEY.id, "eve", "again", NOW_MS + 9) == revoked
    assert await valid(keys, NOW_MS) == {}
    with pytest.raises(InvalidInput, match="is revoked"):
        await keys.rotate(KEY.id, NEXT, NOW_MS)


@pytest.mark.parametrize("call", ["rotate", "revoke"])
async def test_an_unknown_key_is_refused(keys: KeyStore, call: str) -> None:
    with pytest.raises(InvalidInput, match="there is no key 'nothing'"):
        await (
            keys.rotate("nothing", NEXT, NOW_MS) if call == "rotate" else keys.revoke("nothing", "ann", "why", NOW_MS)
        )


async def test_the_version_tells_every_change_and_nothing_else(side_tables: SideTables, keys: KeyStore) -> None:
    """A gateway asks every second, and reads the keys only after a change."""
    assert await keys.known(NOW_MS, None) == ValidKeys(0, [])
    versions = [0]
    for change in (
        keys.add(KEY), keys.rotate(KEY.id, NEXT, NOW_MS + HOUR_MS), keys.revoke(KEY.id, "ann", "", NOW_MS),
    ):  # fmt: skip
        await change
        known = await keys.known(NOW_MS, versions[-1])
        assert known is not None
        versions.append(known.version)
    assert len(set(versions)) == 4
    await linked(side_tables)
    await keys.used([NEXT.id], NOW_MS)
    assert await keys.known(NOW_MS, versions[-1]) is None


async def test_the_last_day_of_use_only_rises(keys: KeyStore) -> None:
    """Gateways note it on their own, and one may be late."""
    await keys.add(KEY)
    for day_ms in (2 * DAY_MS, DAY_MS):
        await keys.used([KEY.id, "nothing"], day_ms)

    assert await keys.key(KEY.id) == KEY._replace(used_ms=2 * DAY_MS)


async def test_every_change_is_in_the_audit_without_the_hash(side_tables: SideTables, keys: KeyStore) -> None:
    await keys.add(KEY)
    await keys.rotate(KEY.id, NEXT._replace(created_by="bob"), NOW_MS + HOUR_MS)
    await keys.revoke(KEY.id, "eve", "it leaked", NOW_MS + 5)

    rows = [row for row in await side_tables.audit(NO_ACCOUNT) if row.entity == KEY_ENTITY]
    assert [(row.cause, row.entity_id, row.actor, row.reason) for row in rows] == [
        ("key create", KEY.id, "ann", "the importer"), ("key rotate", NEXT.id, "bob", "the importer"),
        ("key rotate", KEY.id, "bob", "the importer"), ("key revoke", KEY.id, "eve", "it leaked"),
    ]  # fmt: skip
    assert not any(KEY.hash in f"{row.before}{row.after}" or NEXT.hash in f"{row.after}" for row in rows)


async def test_there_are_no_more_valid_keys_than_a_gateway_holds(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_keys, "KEYS_MAX", 1)
    await keys.add(KEY)
    with pytest.raises(InvalidInput, match="1 keys are valid: revoke"):
        await keys.add(NEXT)
    await keys.revoke(KEY.id, "ann", "", NOW_MS)
    await keys.add(NEXT)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"created_by": " "}, "by"), ({"note": "a\0b"}, "note"), ({"account": "\0"}, "account")],
    ids=["without who", "a NUL in the note", "a NUL in the account"],
)
async def test_what_cannot_be_kept_is_refused(keys: KeyStore, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await keys.add(KEY._replace(**changes))

    assert refused.value.field == field
