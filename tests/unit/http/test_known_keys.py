"""The API keys in SQL as a gateway knows them: new and revoked ones, and a database that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from pipeline.commands.keys import KeyWish, MadeKey, create_in, rotate_in
from pipeline.http.api_keys import Role
from pipeline.http.errors import ApiError
from pipeline.http.known_keys import ENDING_MS, TRUSTED_MS, KnownKeys, ending
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import Transient
from schemas.keys import KeyStore, StoredKey, ValidKeys
from sinks.sql.fake import FakeSideTables
from tests.integration.deployment import until
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.worlds.clock import ManualClock
from tests.worlds.gateway import Gateway, event, running
from tests.worlds.keys import reading

NOW_MS = 1_795_257_000_000
# What a gateway promises for a revoked key.
REVOKED_WITHIN_S = 2.0
FORGED = "tm_" + "0" * 12 + "_" + "x" * 43


class AwayStore:
    """The keys of a database that may be away."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self.is_away = False
        self.reads = 0

    async def known(self, now_ms: int, version: int | None) -> ValidKeys | None:
        self.reads += 1
        if self.is_away:
            raise Transient("PostgreSQL is away")
        return await self._store.known(now_ms, version)

    async def used(self, key_ids: Collection[str], day_ms: int) -> None:
        await self._store.used(key_ids, day_ms)


@dataclass
class Known:
    """The keys of a database, as one gateway knows them."""

    store: KeyStore
    away: AwayStore
    clock: ManualClock
    known: KnownKeys
    ending: list[int]

    async def make(self, role: Role = Role.INGEST, account: str | None = None, days: int | None = None) -> MadeKey:
        return await create_in(self.store, KeyWish(role, account, days), "ann", self.clock.now_ms())


@pytest.fixture
async def keys() -> Known:
    tables = FakeSideTables(last_link_pays)
    await tables.migrate(SCOPE, LOG_ID)
    away, clock, noted = AwayStore(tables.keys), ManualClock(NOW_MS), list[int]()
    # The gateway asks for nothing else.
    store = cast("KeyStore", away)
    return Known(tables.keys, away, clock, KnownKeys(lambda: store, clock, noted.append), noted)


async def test_a_new_key_works_with_its_first_request(keys: Known) -> None:
    async with reading(keys.known):
        await until(lambda: _true(keys.away.reads > 0), "a first read")
        made = await keys.make(account="acme", days=1)
        found = await keys.known.verify(made.text)

    assert found is not None
    assert (found.id, found.role, found.account, found.expires_ms) == (
        made.key.id, Role.INGEST, "acme", NOW_MS + DAY_MS,
    )  # fmt: skip


@pytest.mark.parametrize(
    "forge",
    [lambda text: FORGED, lambda text: text[:-1] + "_" * 1, lambda text: text[:40], lambda text: ""],  # noqa: ARG005
    ids=["an unknown id", "another secret", "a part", "nothing"],
)
async def test_a_forged_key_is_refused(keys: Known, forge: object) -> None:
    assert callable(forge)
    made = await keys.make()
    async with reading(keys.known):
        assert await keys.known.verify(made.text) is not None
        assert await keys.known.verify(forge(made.text)) is None


async def test_a_revoked_key_is_refused_within_the_time_that_is_promised(keys: Known) -> None:
    made = await keys.make()
    async with reading(keys.known):
        assert await keys.known.verify(made.text) is not None
        await keys.store.revoke(made.key.id, "ann", "it leaked", NOW_MS)

        async def refused() -> bool:
            return await keys.known.verify(made.text) is None

        await until(refused, "the revoked key is refused", REVOKED_WITHIN_S)


async def test_forged_keys_do_not_make_reads_without_end(keys: Known) -> None:
    """A hundred at once share one read, and the next read waits a moment."""
    async with reading(keys.known):
        await keys.make()
        await asyncio.gather(*(keys.known.verify(FORGED) for _ in range(100)))

        assert keys.away.reads <= 3


async def test_known_keys_go_on_for_a_day_without_the_database_and_unknown_ones_wait(keys: Known) -> None:
    """A client that gets 503 sends again; one that gets 401 gives up."""
    made = await keys.make()
    async with reading(keys.known):
        assert await keys.known.verify(made.text) is not None
        later = await keys.make()
        keys.away.is_away = True
        with pytest.raises(ApiError) as unknown:
            await keys.known.verify(later.text)
        assert await keys.known.verify(made.text) is not None

        keys.clock.advance(TRUSTED_MS)
        assert await keys.known.verify(made.text) is not None
        keys.clock.advance(1)
        with pytest.raises(ApiError) as too_old:
            await keys.known.verify(made.text)

        keys.away.is_away = False
        assert await keys.known.verify(later.text) is not None
        assert await keys.known.verify(made.text) is not None

    for error in (unknown.value, too_old.value):
        assert (error.status, error.code, error.headers) == (503, "unavailable", {"Retry-After": "1"})


async def test_a_gateway_that_starts_without_the_database_refuses_nobody(keys: Known) -> None:
    made = await keys.make()
    nothing = KnownKeys(lambda: None, keys.clock)
    async with reading(nothing):
        with pytest.raises(ApiError, match="PostgreSQL does not answer"):
            await nothing.verify(made.text)


async def test_a_key_of_a_role_of_a_later_version_opens_nothing(keys: Known) -> None:
    """The other keys work."""
    made = await keys.make()
    await keys.store.add(StoredKey("1" * 12, "a" * 64, "sorcerer", created_by="ann", created_ms=NOW_MS))
    await keys.known.read()

    assert await keys.known.verify(made.text) is not None


async def test_the_day_of_the_last_use_is_noted_once_a_day(keys: Known) -> None:
    made, silent = await keys.make(), await keys.make()

    async def days() -> list[int | None]:
        await keys.known.read()
        stored = [await keys.store.key(each.key.id) for each in (made, silent)]
        return [each and each.used_ms for each in stored]

    await keys.known.read()
    await keys.known.verify(made.text)
    today_ms = NOW_MS // DAY_MS * DAY_MS
    assert await days() == [today_ms, None]
    keys.clock.advance(DAY_MS)
    await keys.known.verify(made.text)
    assert await days() == [today_ms + DAY_MS, None]


@pytest.mark.parametrize(
    ("key", "count"),
    [
        pytest.param(StoredKey("a", "", "read"), 0, id="without an end"),
        pytest.param(StoredKey("a", "", "read", expires_ms=NOW_MS + ENDING_MS), 0, id="in 14 days"),
        pytest.param(StoredKey("a", "", "read", expires_ms=NOW_MS + ENDING_MS - 1), 1, id="in less than 14 days"),
        pytest.param(StoredKey("a", "", "read", expires_ms=NOW_MS), 0, id="ended"),
        pytest.param(StoredKey("a", "", "read", expires_ms=NOW_MS + 1, successor="b"), 0, id="rotated"),
        pytest.param(StoredKey("a", "", "read", expires_ms=NOW_MS + 1, revoked_ms=NOW_MS), 0, id="revoked"),
    ],
)
def test_which_keys_end_soon(key: StoredKey, count: int) -> None:
    assert ending([key], NOW_MS) == count


async def test_each_read_tells_how_many_keys_end_soon(keys: Known) -> None:
    await keys.make(days=13)
    await keys.known.read()
    keys.away.is_away = True
    await keys.known.read()

    assert keys.ending == [1]


async def test_a_rotation_has_both_keys_valid_for_the_overlap(keys: Known) -> None:
    """The application changes its key within the overlap, and no request fails."""
    old = await keys.make(Role.READ, "acme", 90)
    keys.clock.advance(80 * DAY_MS)
    now_ms = keys.clock.now_ms()
    rotated = await rotate_in(keys.store, old.key.id, 24, None, "bob", now_ms)
    await keys.known.read()

    first, second = await keys.known.verify(old.text), await keys.known.verify(rotated.made.text)
    assert first is not None
    assert second is not None
    assert (first.expires_ms, second.expires_ms) == (now_ms + 24 * HOUR_MS, now_ms + 90 * DAY_MS)
    assert (second.role, second.account) == (Role.READ, "acme")


@pytest.fixture
async def gateway(keys: Known, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with the keys of the file and those of the database."""
    async with reading(keys.known), running(tmp_path, known_keys=keys.known) as running_gateway:
        yield running_gateway


async def test_a_gateway_takes_the_keys_of_the_file_and_of_the_database(gateway: Gateway, keys: Known) -> None:
    """Those of the file also while the database is away: 503 for an unknown key, and never 401."""
    made = await keys.make()
    stored = replace(gateway, keys={**gateway.keys, "sql": made.text, "later": (await keys.make()).text})
    assert (await stored.post(event("op-1"), key="sql")).status_code == 202
    assert (await stored.get("/v1/usage", key="sql", account="acme")).status_code == 403
    unknown = FORGED.replace("0", "9", 1)
    assert (await replace(gateway, keys={"x": unknown}).post(event("op-2"), key="x")).status_code == 401

    keys.away.is_away = True
    answers = [await replace(gateway, keys={"x": unknown}).post(event("op-2"), key="x")]
    answers += [await stored.post(event("op-2"), key=name) for name in ("sql", "ingest")]
    assert [answer.status_code for answer in answers] == [503, 202, 202]


async def _true(value: bool) -> bool:
    return value
