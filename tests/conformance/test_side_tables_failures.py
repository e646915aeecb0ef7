"""What a PostgreSQL that fails, hangs or is shared does to the side tables. Only a real server can show it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import pytest_asyncio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from pipeline.local.postgres import CONNECTIONS_MAX, LocalPostgres
from schemas.billing_events import StripeEvent
from schemas.errors import Fenced, InvalidInput, OperatorNeeded, Transient
from schemas.periods import Binding
from schemas.side_tables import Outcome, Stale
from sinks.sql.schema import _config
from sinks.sql.store import PostgresSideTables, _hung_up_after
from sinks.sql.tables import metadata
from tests.conformance.postgres_faults import stopped, until_waits_for_a_lock
from tests.conformance.side_table_steps import (
    NOW_MS,
    event,
    fetched_invoice,
    fetched_subscription,
    invoice,
    linked,
    step,
    subscription,
)
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays

TIMEOUT_S = 1.5
Open = Callable[..., PostgresSideTables]


class Pause:
    """A timeline that stops within its transaction, after all writes but those of bindings, until it may go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def __call__(self, *_inputs: object, **_named: object) -> Sequence[Binding]:
        self.reached.set()
        await_only(self.go_on.wait())
        return ()


@pytest_asyncio.fixture
async def opened(postgres_url: str) -> AsyncIterator[Open]:
    """Opens stores on one migrated database."""
    stores = []

    def open_store(timeline: Any = last_link_pays, url: str = postgres_url, **options: Any) -> PostgresSideTables:
        stores.append(PostgresSideTables(url, timeline, **options))
        return stores[-1]

    await open_store().migrate(SCOPE, LOG_ID)
    yield open_store
    for store in stores:
        await store.close()


async def test_the_migrations_make_the_tables_that_the_code_uses(opened: Open) -> None:
    def differences(connection: Any) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    assert await opened()._run(differences) == []


async def test_processes_that_migrate_at_once_wait_for_each_other(postgres_url: str) -> None:
    stores = [PostgresSideTables(postgres_url, last_link_pays) for _ in range(4)]
    await asyncio.gather(*(store.migrate(SCOPE, LOG_ID) for store in stores))
    assert await stores[0].position(0) is None
    for store in stores:
        await store.close()


@pytest.mark.parametrize(
    ("status", "invoice_status", "attempts", "is_stale"),
    [
        ("past_due", "open", 1, True),
        ("active", "open", 2, True),
        ("past_due", "open", 0, False),
        ("past_due", "paid", 1, False),
        ("unpaid", "open", 4, False),
        ("canceled", "open", 4, False),
    ],
)
async def test_who_owes_and_has_the_plan_when_dunning_comes_is_looked_at(
    postgres_url: str, status: str, invoice_status: str, attempts: int, is_stale: bool
) -> None:
    """The database is that of the version before, and all its accounts are fresh."""
    store = PostgresSideTables(postgres_url, last_link_pays)

    def before(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        for statement in (
            (
                "INSERT INTO accounts (account, created_ms, audit_seq, audit_hash, binding_number, entitled_seq)"
                " VALUES ('acme', 0, 1, '', 0, 1)"
            ),
            "INSERT INTO account_customers (account, starts_ms, customer_id) VALUES ('acme', 0, 'cus_1')",
            (
                "INSERT INTO subscriptions (id, customer_id, status, fetch_seq, fetched_ms)"
                f" VALUES ('sub_1', 'cus_1', '{status}', 0, 0)"
            ),
            (
                "INSERT INTO invoices (id, customer_id, subscription_id, status, attempt_count, fetch_seq, fetched_ms)"
                f" VALUES ('in_1', 'cus_1', 'sub_1', '{invoice_status}', {attempts}, 0, 0)"
            ),
        ):
            connection.execute(text(statement))

    await store._run(before)
    await store.migrate(SCOPE, LOG_ID)
    stale = await store.entitlements.stale()
    await store.close()
    assert stale == (["acme"] if is_stale else [])


async def test_a_newer_version_of_the_schema_is_refused(opened: Open, postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(OperatorNeeded, match="migration 9999, which this version does not know"):
        await opened().migrate(SCOPE, LOG_ID)


async def test_a_link_and_an_event_of_its_customer_wait_for_each_other(opened: Open, postgres_url: str) -> None:
    """Otherwise the event is held after the link has looked for held events, and nobody reads it again."""
    pause = Pause()
    linking = asyncio.create_task(linked(opened(pause)))
    await pause.reached.wait()
    committing = asyncio.create_task(opened().commit(step(0, [event(1, invoice())], [fetched_invoice()])))
    await until_waits_for_a_lock(postgres_url)
    pause.go_on.set()
    await linking
    assert await committing == {"evt_1": Outcome.APPLIED}


@pytest.mark.parametrize("known", [False, True])
async def test_the_slower_of_two_steps_that_fetched_one_object_is_stale(
    opened: Open, postgres_url: str, known: bool
) -> None:
    await linked(opened())
    if known:
        await opened().commit(step(0, [event(1, invoice())], [fetched_invoice()], partition=2))
    pause = Pause()
    seq = int(known)
    first = step(0, [event(2, invoice())], [fetched_invoice(seq, total_minor=5)])
    second = step(0, [event(3, invoice())], [fetched_invoice(seq, total_minor=7)], partition=1)
    winner = asyncio.create_task(opened(pause).commit(first))
    await pause.reached.wait()
    loser = asyncio.create_task(opened().commit(second))
    await until_waits_for_a_lock(postgres_url)
    pause.go_on.set()
    assert await winner == {"evt_2": Outcome.APPLIED}
    with pytest.raises(Stale):
        await loser
    assert [row["total_minor"] for row in (await opened().mirror())["invoices"]] == [5]
    assert await opened().position(1) is None


@pytest.mark.parametrize("position", [None, 0])
async def test_one_of_two_processes_with_the_same_partition_is_fenced(
    opened: Open, postgres_url: str, position: int | None
) -> None:
    await linked(opened())
    if position is not None:
        await opened().commit(step(-1))
    pause = Pause()
    winner = asyncio.create_task(opened(pause).commit(step(0, [event(1, invoice())], [fetched_invoice()])))
    await pause.reached.wait()
    other = step(0, [event(2, invoice(2), customer="cus_2")], [fetched_invoice(number=2, customer="cus_2")])
    loser = asyncio.create_task(opened().commit(other))
    await until_waits_for_a_lock(postgres_url)
    pause.go_on.set()
    assert await winner == {"evt_1": Outcome.APPLIED}
    with pytest.raises(Fenced):
        await loser
    assert await opened().unknown(["evt_2"]) == {"evt_2"}


async def test_steps_of_two_customers_of_one_account_wait_for_each_other(opened: Open, postgres_url: str) -> None:
    """Otherwise both would write the account's next audit row."""
    await linked(opened(), customer="cus_1")
    await linked(opened(), customer="cus_2", starts_ms=NOW_MS)
    pause = Pause()
    first = asyncio.create_task(opened(pause).commit(step(0, [event(1, invoice())], [fetched_invoice()])))
    await pause.reached.wait()
    other = step(0, [event(2, invoice(2), customer="cus_2")], [fetched_invoice(0, 2, customer="cus_2")], partition=1)
    second = asyncio.create_task(opened().commit(other))
    await until_waits_for_a_lock(postgres_url)
    pause.go_on.set()
    await asyncio.gather(first, second)
    rows = [(row.seq, row.cause) for row in await opened().audit("acme")]
    assert rows[2:] == [(3, "evt_1"), (4, "evt_2")]


async def test_many_links_and_steps_at_once_do_not_deadlock(opened: Open) -> None:
    stores = [opened(), opened()]

    async def commit(partition: int) -> int:
        done = 0
        for number in range(10):
            events = [
                StripeEvent(
                    f"evt_{partition}_{number}_{index}", "invoice.created", 1, f"cus_{index}", (invoice(index),)
                )
                for index in range(8)
            ]
            while True:
                seqs = await stores[partition % 2].fetch_seqs([invoice(index) for index in range(8)])
                fetched = [fetched_invoice(seqs[invoice(index)], index, number, f"cus_{index}") for index in range(8)]
                try:
                    await stores[partition % 2].commit(step(done, events, fetched, partition=partition))
                except Stale:
                    continue
                done += len(events)
                break
        return done

    links = [linked(stores[index % 2], f"account {index % 4}", f"cus_{index}", NOW_MS + index) for index in range(8)]
    done = await asyncio.gather(commit(0), commit(1), commit(2), *links)
    assert done[:3] == [80, 80, 80]
    rows = [row for index in range(4) for row in await stores[0].audit(f"account {index}")]
    causes = [row.cause for row in rows if row.actor == "stripe"]
    held = [one.event_id for one in await stores[0].held()]
    assert len(causes) + len(held) == len({*causes, *held}) == 240


async def test_a_server_killed_in_a_transaction_leaves_nothing_of_it(own_postgres: LocalPostgres) -> None:
    pause = Pause()
    store = PostgresSideTables(own_postgres.url, pause)
    await store.migrate(SCOPE, LOG_ID)
    pause.go_on.set()
    await linked(store)
    pause.reached.clear()
    pause.go_on.clear()
    first = step(0, [event(1, subscription())], [fetched_subscription()])
    committing = asyncio.create_task(store.commit(first))
    await pause.reached.wait()
    await asyncio.to_thread(own_postgres.kill)
    await asyncio.to_thread(own_postgres.start)
    pause.go_on.set()
    with pytest.raises(Transient):
        await committing
    assert await eventually(lambda: store.position(0)) is None
    assert not (await store.mirror())["subscriptions"]
    assert len(await store.audit("acme")) == 1
    assert await store.commit(first) == {"evt_1": Outcome.APPLIED}
    await store.close()


async def eventually(call: Callable[[], Any]) -> Any:
    """The answer of the first call that is not `Transient`; connections from before a restart fail once."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Transient):
                return await call()


async def test_a_server_killed_after_a_commit_has_all_of_it(own_postgres: LocalPostgres) -> None:
    store = PostgresSideTables(own_postgres.url, last_link_pays)
    await store.migrate(SCOPE, LOG_ID)
    await linked(store)
    await store.commit(step(0, [event(1, subscription())], [fetched_subscription()]))
    mirror = await store.mirror()
    await asyncio.to_thread(own_postgres.kill)
    with pytest.raises(Transient):
        await store.position(0)
    await asyncio.to_thread(own_postgres.start)
    assert await eventually(lambda: store.position(0)) == 1
    assert await store.mirror() == mirror
    assert len(await store.due_bindings()) == 1
    await store.close()


async def test_a_commit_whose_answer_is_lost_is_there_and_its_repeat_is_fenced(
    opened: Open, postgres: LocalPostgres, postgres_url: str
) -> None:
    """The connection ends after the server has taken the COMMIT and before its answer reaches the client."""
    lose = False

    async def serve(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", postgres.port)
        is_committed = False

        async def requests() -> None:
            nonlocal is_committed
            while data := await from_client.read(1 << 16):
                is_committed = is_committed or (lose and b"COMMIT" in data)
                to_server.write(data)
            to_server.close()

        async def answers() -> None:
            while data := await from_server.read(1 << 16):
                if is_committed:
                    break
                to_client.write(data)
            to_client.close()

        await asyncio.gather(requests(), answers())

    await linked(opened())
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        store = opened(url=postgres_url.replace(str(postgres.port), str(port)))
        assert await store.position(0) is None
        lose = True
        first = step(0, [event(1, subscription())], [fetched_subscription()])
        with pytest.raises(Transient):
            await store.commit(first)
        lose = False
        assert await store.position(0) == 1
        with pytest.raises(Fenced):
            await store.commit(first)
        assert await store.commit(first._replace(believed_offset=1)) == {"evt_1": Outcome.APPLIED}
        await store.close()
    assert [row.cause for row in await opened().audit("acme")] == ["account link", "evt_1"]
    assert len(await opened().due_bindings()) == 1


async def test_used_up_connections_are_transient(own_postgres: LocalPostgres) -> None:
    store = PostgresSideTables(own_postgres.url, last_link_pays)
    taken = [await psycopg.AsyncConnection.connect(own_postgres.url) for _ in range(CONNECTIONS_MAX)]
    with pytest.raises(Transient, match="too many clients"):
        await store.migrate(SCOPE, LOG_ID)
    for connection in taken:
        await connection.close()
    await eventually(lambda: store.migrate(SCOPE, LOG_ID))
    await store.close()


async def test_a_call_that_gets_no_connection_of_the_pool_is_transient(opened: Open) -> None:
    pause = Pause()
    store = opened(pause, connections_max=1, timeout_s=TIMEOUT_S)
    linking = asyncio.create_task(linked(store))
    await pause.reached.wait()
    with pytest.raises(Transient):
        await store.position(0)
    pause.go_on.set()
    with contextlib.suppress(Transient):
        await linking
    assert await store.position(0) is None


async def test_a_lock_that_another_process_keeps_is_transient(opened: Open) -> None:
    pause = Pause()
    linking = asyncio.create_task(linked(opened(pause)))
    await pause.reached.wait()
    started_s = time.monotonic()
    with pytest.raises(Transient):
        await opened(timeout_s=TIMEOUT_S).commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    assert time.monotonic() - started_s < TIMEOUT_S + 5
    pause.go_on.set()
    await linking


@pytest.mark.parametrize("is_connected", [True, False])
async def test_a_server_that_hangs_is_transient_in_time(own_postgres: LocalPostgres, is_connected: bool) -> None:
    store = PostgresSideTables(own_postgres.url, last_link_pays, timeout_s=TIMEOUT_S)
    await eventually(lambda: store.migrate(SCOPE, LOG_ID))
    if not is_connected:
        await store.close()
    with stopped(own_postgres):
        started_s = time.monotonic()
        with pytest.raises(Transient):
            await store.commit(step(0))
        assert time.monotonic() - started_s < TIMEOUT_S + 3
    assert await eventually(lambda: store.position(0)) is None
    await store.close()


async def test_a_full_disk_is_transient_and_nothing_is_written(opened: Open, postgres_url: str) -> None:
    """The server's error for a full disk, raised in the middle of a step. A disk that is really full needs a small file
    system, which not every machine lets a test make."""
    store = opened()
    await linked(store)
    fault = """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON invoice_lines EXECUTE FUNCTION full_disk()
    """
    first = step(0, [event(1, invoice())], [fetched_invoice()])
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(fault)
        with pytest.raises(Transient, match="No space left"):
            await store.commit(first)
        assert await store.position(0) is None
        assert not (await store.mirror())["invoices"]
        await connection.execute("DROP FUNCTION full_disk CASCADE")
    assert await store.commit(first) == {"evt_1": Outcome.APPLIED}


@pytest.mark.parametrize(
    ("state", "is_transient"),
    [
        ("08006", True), ("40001", True), ("40P01", True), ("53100", True), ("53200", True), ("53300", True),
        ("55P03", True), ("57014", True), ("57P01", True), ("57P03", True), ("22003", False), ("23505", False),
        ("42P01", False), ("42501", False), ("57P04", False), ("58030", False), ("XX001", False),
    ],
)  # fmt: skip
async def test_only_errors_that_may_pass_are_transient(opened: Open, state: str, is_transient: bool) -> None:
    statement = text(f"DO $$ BEGIN RAISE EXCEPTION 'an error' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(Transient if is_transient else DBAPIError, match="an error"):
        await opened()._run(lambda connection: connection.execute(statement))


async def test_an_error_does_not_show_the_values(opened: Open) -> None:
    statement = text("SELECT CAST(:email AS text) / 0")
    with pytest.raises(DBAPIError) as caught:
        await opened()._run(lambda connection: connection.execute(statement, {"email": "ada@example.org"}))
    assert "ada@example.org" not in str(caught.value)


async def test_hanging_up_on_a_server_that_hung_up_before_is_no_error() -> None:
    """The server may close the connection in the moment in which the call's time is over."""
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    with socket.socket() as unconnected:
        connection = cast("psycopg.AsyncConnection", SimpleNamespace(closed=False, fileno=unconnected.fileno))
        with _hung_up_after(0, connection):
            over = asyncio.Event()
            loop.call_later(0, over.set)
            await over.wait()
    assert errors == []


async def test_no_server_is_transient_and_names_the_address() -> None:
    store = PostgresSideTables("postgresql://ada:secret@127.0.0.1:1/tidemark", last_link_pays)
    with pytest.raises(Transient, match=r"127\.0\.0\.1:1") as caught:
        await store.position(0)
    assert "secret" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("url", ["nothing", "postgresql://ada:secret@host:port/tidemark"])
async def test_a_url_that_is_none_is_an_input_error(url: str) -> None:
    with pytest.raises(InvalidInput, match="TIDEMARK_SQL_URL") as caught:
        PostgresSideTables(url, last_link_pays)
    assert "secret" not in str(caught.value)
