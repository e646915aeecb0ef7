"""Backups of the side tables on real PostgreSQL: the same rows come back, and life goes on from the backup."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import psycopg
import pytest

from aggregators.binding_timeline import overlaps, timeline
from pipeline.local.postgres import LocalPostgres
from pipeline.webhooks.walker import Walker
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from sinks.sql.backup import MANIFEST, back_up, restore
from sinks.sql.store import PostgresSideTables
from tests.services.postgres import LOG_ID, SCOPE
from tests.worlds.billing import SCOPE as WORLD_SCOPE
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS

AT_MS: Final = 1_800_000_000_000
AWAY: Final = "postgresql://127.0.0.1:9/none"
# Of no row's content: when and in which order a process read an object.
OWN = ("fetch_seq", "fetched_ms")


def database(postgres: LocalPostgres) -> str:
    """The URL of an empty database."""
    name = f"backups_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy".encode())
    return postgres.url.removesuffix("/postgres") + f"/{name}"


@pytest.fixture
def another_url(postgres: LocalPostgres) -> str:
    """The URL of a second empty database."""
    return database(postgres)


class Good(NamedTuple):
    """A backup that is whole, of the log `log_id`, and the URL of an empty database."""

    backup: bytes
    log_id: str
    empty_url: str


@pytest.fixture(scope="module")
def good(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """One backup for the tests that spoil it."""
    path, url = tmp_path_factory.mktemp("backups") / "backup.zip", database(postgres)

    async def made() -> str:
        async with business(url) as (world, _):
            await asyncio.to_thread(back_up, url, path, AT_MS)
            return world.log_id

    log_id = asyncio.run(made())
    return Good(path.read_bytes(), log_id, database(postgres))


def rows(url: str, *, but: Sequence[str] = ()) -> Mapping[str, list[str]]:
    """All rows of all tables, as text."""
    with psycopg.connect(url) as connection:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
            )
        ]
        return {
            name: sorted(
                json.dumps({key: value for key, value in row.items() if key not in but}, sort_keys=True)
                for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {name} AS t".encode())
            )
            for name in names
        }


@asynccontextmanager
async def business(url: str) -> AsyncIterator[tuple[BillingWorld, str]]:
    """Two customers who subscribed, with all their events in the tables; and the price."""
    world = BillingWorld(START_MS)
    store = PostgresSideTables(url, timeline, overlaps=overlaps)
    world.tables = cast("Any", store)
    try:
        await world.open()
        price = world.stripe.price(meter=world.stripe.meter())
        for account in ("acme", "a\tb\\\n"):
            customer = world.stripe.customer()
            await world.link(account, customer)
            world.stripe.subscribe(customer, price)
        await world.deliver(world.stripe.happened())
        await world.process()
        yield world, price
    finally:
        await store.close()


async def test_a_restored_copy_has_the_same_rows_and_goes_on_like_the_original(
    postgres_url: str, another_url: str, tmp_path: Path
) -> None:
    """What happened after the backup comes from the log and, where no webhook came, from Stripe's list of events."""
    path = tmp_path / "backup.zip"
    async with business(postgres_url) as (world, price):
        made = await asyncio.to_thread(back_up, postgres_url, path, AT_MS)
        restored = await asyncio.to_thread(restore, another_url, path, WORLD_SCOPE, world.log_id)
        assert (made, rows(postgres_url)) == (restored, rows(another_url))
        assert (path.stat().st_mode & 0o777, made.at_ms) == (0o600, AT_MS)
        assert made.tables["audit"].rows > 2 < made.tables["subscriptions"].rows + 1

        seen = len(world.stripe.happened())
        third = world.stripe.customer()
        await world.link("third", third)
        world.stripe.subscribe(third, price)
        later = world.stripe.happened()[seen:]
        await world.deliver(later[::2])
        await world.process()
        await Walker(world.log, world.stripe, world.tables, world.clock).go_on()
        await world.process()
        original = rows(postgres_url, but=OWN)

        copy = PostgresSideTables(another_url, timeline, overlaps=overlaps)
        world.tables = cast("Any", copy)
        await world.link("third", third)
        await world.process()
        await Walker(world.log, world.stripe, copy, world.clock).go_on()
        await world.process()
        again = rows(another_url, but=OWN)
        await copy.close()
    mirror = ("stripe_customers", "subscriptions", "subscription_items", "invoices", "account_customers", "positions")
    assert {name: again[name] for name in mirror} == {name: original[name] for name in mirror}


async def test_a_backup_is_of_one_instant_and_holds_nobody_up(
    postgres_url: str, another_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is committed between the copies of two tables is in none of them."""
    path = tmp_path / "backup.zip"
    async with business(postgres_url) as (world, _):
        before = rows(postgres_url)
        opened = zipfile.ZipFile.open

        def open_(self: zipfile.ZipFile, name: Any, *arguments: Any, **more: Any) -> Any:
            if name == "audit":
                with psycopg.connect(postgres_url, autocommit=True) as connection:
                    connection.execute("INSERT INTO cursors (name, until_s, moved_ms) VALUES ('late', 1, 1)")
            return opened(self, name, *arguments, **more)

        monkeypatch.setattr(zipfile.ZipFile, "open", open_)
        back_up(postgres_url, path, AT_MS)
        monkeypatch.undo()
        restore(another_url, path, WORLD_SCOPE, world.log_id)
    assert rows(another_url) == before != rows(postgres_url)


def _rewritten(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change one file of an archive, such that the archive itself stays whole."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)


def _forged(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the audit, and make the manifest fit."""
    _rewritten(path, "audit", change)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("audit")

    def fitting(text: bytes) -> bytes:
        manifest = json.loads(text)
        manifest["tables"]["audit"] |= {"sha256": hashlib.sha256(content).hexdigest(), "rows": content.count(b"\n")}
        return json.dumps(manifest).encode()

    _rewritten(path, MANIFEST, fitting)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        pytest.param(
            lambda path: _forged(path, lambda rows: rows.replace(b"tester", b"nobody")), InvalidInput,
            "the audit of account '.*' was changed", id="an audit row was changed",
        ),
        pytest.param(
            lambda path: _forged(path, lambda rows: b"".join(rows.splitlines(keepends=True)[:-1])), InvalidInput,
            "the audit of account '.*' was changed", id="an audit row is missing",
        ),
        pytest.param(
            lambda path: _rewritten(path, "cursors", lambda _: b"x\t1\t1\n"), InvalidInput,
            "the table cursors is not what was copied", id="a table was changed",
        ),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-100]), InvalidInput, "damaged, or no backup", id="cut"
        ),
        pytest.param(lambda path: path.write_bytes(b""), InvalidInput, "damaged, or no backup", id="empty"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"\x00" * 4, b"\x01" * 4)), InvalidInput,
            "damaged", id="bytes changed",
        ),
        pytest.param(lambda path: path.unlink(), InvalidInput, "cannot be read: No such file", id="no file"),
        pytest.param(
            lambda path: _rewritten(path, MANIFEST, lambda text: text.replace(b'"format": 1', b'"format": 2')),
            InvalidInput, "use the version that made it", id="another format",
        ),
        pytest.param(
            lambda path: _rewritten(path, MANIFEST, lambda text: re.sub(rb'"00\d\d"', b'"9999"', text)), OperatorNeeded,
            "which this version does not know", id="a later migration",
        ),
        pytest.param(
            lambda path: _rewritten(path, MANIFEST, lambda text: text.replace(SCOPE.encode(), b"live:acct_9")),
            OperatorNeeded, "backup of the Stripe account live:acct_9", id="another account",
        ),
    ],
)  # fmt: skip
def test_what_is_no_whole_backup_restores_nothing(
    good: Good, tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    path = tmp_path / "backup.zip"
    path.write_bytes(good.backup)
    spoil(path)
    with pytest.raises(error, match=said):
        restore(good.empty_url, path, WORLD_SCOPE, good.log_id)
    assert rows(good.empty_url) == {}


def test_a_file_or_a_database_that_is_in_the_way_stays(good: Good, postgres_url: str, tmp_path: Path) -> None:
    path, other = tmp_path / "backup.zip", tmp_path / "other.zip"
    path.write_bytes(good.backup)
    restore(postgres_url, path, WORLD_SCOPE, good.log_id)
    with pytest.raises(OperatorNeeded, match="has no tables"):
        back_up(good.empty_url, other, AT_MS)
    with pytest.raises(InvalidInput, match="exists: name a new file"):
        back_up(postgres_url, path, AT_MS)
    with pytest.raises(InvalidInput, match="cannot be written: No such file"):
        back_up(postgres_url, tmp_path / "missing" / "backup.zip", AT_MS)
    with pytest.raises(OperatorNeeded, match="tables, such as"):
        restore(postgres_url, path, WORLD_SCOPE, good.log_id)
    with pytest.raises(OperatorNeeded, match=f"backup of the log {good.log_id}"):
        restore(good.empty_url, path, WORLD_SCOPE, LOG_ID)
    with pytest.raises(Transient, match="check that the server runs"):
        restore(AWAY, path, WORLD_SCOPE, good.log_id)
    with pytest.raises(Transient, match="check that the server runs"):
        back_up(AWAY, other, AT_MS)
    # Nothing half-written stays either.
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("backup.zip", good.backup)]
