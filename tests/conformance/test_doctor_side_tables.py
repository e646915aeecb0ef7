"""What `doctor` says of PostgreSQL, the canary, and the events that wait: on PostgreSQL and a log in a file."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
import pytest_asyncio

from pipeline.commands.doctor_webhooks import CANARY_AGE_S_MAX, check_side_tables
from pipeline.commands.finding import Finding
from pipeline.local.postgres import LocalPostgres
from pipeline.open import open_base, open_side_tables
from pipeline.settings import Settings
from pipeline.webhooks.walker import CANARY_CURSOR
from schemas.billing_events import StripeEvent, Via
from schemas.clock import HOUR_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.intent_ledger import IntentState
from schemas.side_tables import Fetched
from sinks.sql.store import PostgresSideTables
from tests.conformance.side_table_steps import event, fetched_invoice, fetched_subscription, step, subscription
from tests.worlds.sender import make_intent

CANARY = "cus_canary"


class Deployed(NamedTuple):
    """A deployment with one partition, its store, and what `doctor` says."""

    settings: Settings
    tables: PostgresSideTables

    async def says(self) -> dict[str, Finding]:
        return {finding.what: finding for finding in await check_side_tables(self.settings)}


async def settings_of(folder: Path, url: str) -> Settings:
    """The settings of a deployment whose log exists."""
    settings = Settings.model_validate(
        {
            "log_url": f"embedded://{folder}/log.db",
            "partitions": 1,
            "secret": "x" * 32,
            "sql_url": url,
            "stripe_account": "acct_simulator",
            "stripe_api_key": "sk_test_x",
            "canary_customer": CANARY,
        }
    )
    base = await open_base(settings)
    await base.log.close()
    return settings


@pytest_asyncio.fixture
async def deployed(tmp_path: Path, postgres_url: str) -> AsyncIterator[Deployed]:
    settings = await settings_of(tmp_path, postgres_url)
    base = await open_base(settings, create=False)
    tables = await open_side_tables(base)
    yield Deployed(settings, tables)
    await tables.close()
    await base.log.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_nothing_waits_in_an_empty_database(deployed: Deployed) -> None:
    found = await deployed.says()
    assert {name: each.status for name, each in found.items()} == {
        "sql": "ok", "canary": "wrong", "held_events": "ok", "held_reports": "ok", "set_aside_events": "ok",
        "unknown_events": "ok",
    }  # fmt: skip
    assert found["canary"].remedy == "start `tidemark mirror`"


CANARIES = {
    "heard": (60, 60, "ok", "heard 6"),
    "just changed": (None, 10, "note", "just now"),
    "never heard": (None, 600, "wrong", "never heard, although"),
    "too long ago": (CANARY_AGE_S_MAX + 60, 60, "wrong", "although cus_canary is changed"),
    "nobody changes it": (CANARY_AGE_S_MAX + 60, CANARY_AGE_S_MAX + 60, "wrong", "nobody changes cus_canary"),
}


@pytest.mark.parametrize(("heard_s", "touched_s", "status", "detail"), CANARIES.values(), ids=CANARIES)
async def test_the_age_of_the_canary(
    deployed: Deployed, heard_s: int | None, touched_s: int, status: str, detail: str
) -> None:
    """Nobody needs to ask how long a silence is too long."""
    if heard_s is not None:
        heard = StripeEvent("evt_1", "customer.updated", 1_750_000_000, CANARY, ())
        await deployed.tables.commit(step(0, [heard], now_ms=now_ms() - heard_s * 1000))
    touched_ms = now_ms() - touched_s * 1000
    await deployed.tables.move_cursor(CANARY_CURSOR, touched_ms // 1000, touched_ms)
    canary = (await deployed.says())["canary"]
    assert (canary.status, detail in canary.detail) == (status, True), canary
    assert canary.remedy or status == "ok"


def metered(period_end_ms: int, ended_ms: int | None = None) -> Fetched:
    """A subscription of `cus_1` with a metered item."""
    found = fetched_subscription(ended_ms=ended_ms)
    (item,) = found.rows["subscription_items"]
    row = {**item, "usage_type": "metered", "period_end_ms": period_end_ms}
    return found._replace(rows={**found.rows, "subscription_items": [row]})


def draft(finalizes_ms: int) -> Fetched:
    """A draft of `cus_1`."""
    found = fetched_invoice()
    (row,) = found.rows["invoices"]
    return found._replace(rows={**found.rows, "invoices": [{**row, "finalizes_ms": finalizes_ms}]})


# What was fetched, made at the test's own instant.
DEADLINES: dict[str, tuple[Callable[[int], list[Fetched]], str, str]] = {
    "days": (lambda now_ms: [metered(now_ms + 60 * HOUR_MS)], "note", "in 61.0 hours"),
    "a night": (lambda now_ms: [metered(now_ms + 8 * HOUR_MS)], "wrong", "in 9.0 hours"),
    "a draft": (lambda now_ms: [metered(now_ms + 700 * HOUR_MS), draft(now_ms + 2 * HOUR_MS)], "wrong", "in 2.0 hours"),
    "passed": (lambda now_ms: [metered(now_ms - 3 * HOUR_MS)], "wrong", "2.0 hours ago"),
    "ended": (lambda now_ms: [metered(now_ms + 8 * HOUR_MS, ended_ms=1)], "", ""),
    "not metered": (lambda _: [fetched_subscription()], "", ""),
}


@pytest.mark.parametrize(("made", "status", "detail"), DEADLINES.values(), ids=DEADLINES)
async def test_held_events_are_named_with_the_hours_that_are_left(
    deployed: Deployed, made: Callable[[int], list[Fetched]], status: str, detail: str
) -> None:
    """Stripe finalizes an invoice an hour after its period by default; then it bills no usage that comes later."""
    fetched = made(now_ms())
    happened = [event(number, each.name) for number, each in enumerate(fetched)]
    await deployed.tables.commit(step(0, happened, fetched))
    found = await deployed.says()
    assert found["held_events"].detail == f"{len(fetched)} events of cus_1, who belong to no account"
    assert found["held_events"].remedy.startswith("tidemark account link NAME --customer cus_1")
    deadline = found.get("unmapped_deadline", Finding("", "", ""))
    assert deadline.status == status
    assert detail in deadline.detail


REPORTS = {
    "a night": (8, "unmapped", "wrong", "in 9.0 hours", "unmapped-accounts"),
    "days": (60, "unmapped", "note", "in 61.0 hours", "unmapped-accounts"),
    "passed": (-3, "unmapped", "wrong", "2.0 hours ago", "unmapped-accounts"),
    "a meter": (8, "meter", "wrong", "in 9.0 hours", "stripe-dead-letters"),
    "nothing": (8, "", "ok", "none", ""),
    "not begun": (8, "early", "ok", "none", ""),
}


@pytest.mark.parametrize(("hours", "hold", "status", "detail", "page"), REPORTS.values(), ids=REPORTS)
async def test_reports_that_wait_are_counted_with_the_hours_that_are_left(
    deployed: Deployed, hours: int, hold: str, status: str, detail: str, page: str
) -> None:
    """Whatever holds a report, its invoice is finalized hours after the period's end, not 35 days."""
    ends_ms = now_ms() + hours * HOUR_MS
    for number, later_ms in enumerate((0, 100 * HOUR_MS)):
        intent = make_intent(f"one-{number}").model_copy(update={"period_end_ms": ends_ms + later_ms})
        await deployed.tables.intents.apply(0, number or None, number + 1, [(number, intent)])
    waiting = [each._replace(hold=hold) for each in await deployed.tables.intents.listed([IntentState.PENDING])]
    await deployed.tables.intents.waits(0, waiting)
    found = (await deployed.says())["held_reports"]
    assert (found.status, detail in found.detail, page in found.remedy) == (status, True, True), found
    assert found.detail.startswith(f"2 reports wait ({hold})") == (status != "ok")


async def test_events_that_are_set_aside_or_unknown_are_counted(deployed: Deployed) -> None:
    aside = step(0, [event(1, subscription())])._replace(set_aside=frozenset({"evt_1"}))
    await deployed.tables.commit(aside)
    charge = StripeEvent("evt_2", "charge.succeeded", 1, "cus_1", ())
    paid = StripeEvent("evt_3", "invoice.paid", 1, "", ())
    again = StripeEvent("evt_4", "charge.succeeded", 1, "cus_2", ())
    beat = StripeEvent("evt_5", "customer.updated", 1, CANARY, ())
    await deployed.tables.commit(step(1, [charge, paid, again, beat], via=Via.WEBHOOK))
    found = await deployed.says()
    assert found["set_aside_events"].detail.startswith("1 events, such as evt_1")
    assert found["unknown_events"].detail == "2 events of types that nothing reads: charge.succeeded"
    assert found["unreadable_events"].detail == "read, but name no object: 1 invoice.paid"
    assert {"note"} == {found[each].status for each in ("set_aside_events", "unknown_events", "unreadable_events")}


async def test_an_empty_database_is_left_empty(tmp_path: Path, postgres_url: str) -> None:
    """Who looks must not make the tables, perhaps with another version than the roles."""
    settings = await settings_of(tmp_path, postgres_url)
    with pytest.raises(OperatorNeeded, match="has no tables yet: start `tidemark mirror`"):
        await check_side_tables(settings)
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert found == (0,)


async def test_tables_of_another_version_are_not_read(deployed: Deployed) -> None:
    """A query could fail at a column that is not there yet."""
    with psycopg.connect(deployed.settings.sql_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(OperatorNeeded, match="has migration 0000, this version needs"):
        await check_side_tables(deployed.settings)


async def test_the_database_of_another_log_is_refused(tmp_path: Path, deployed: Deployed) -> None:
    other = await settings_of(tmp_path / "other", deployed.settings.sql_url)
    with pytest.raises(OperatorNeeded, match="the SQL database belongs to the log"):
        await check_side_tables(other)


@pytest.fixture
def guarded(own_postgres: LocalPostgres) -> LocalPostgres:
    """A server that asks the user `ada` for a password."""
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE ada LOGIN PASSWORD 'right'")
        (path,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        rules = Path(path).read_text()
        Path(path).write_text(f"host all ada 127.0.0.1/32 scram-sha-256\n{rules}")
        connection.execute("SELECT pg_reload_conf()")
    return own_postgres


REFUSED = {
    "password": ("ada:wrong@HERE/postgres", "correct the password of the user ada in TIDEMARK_SQL_URL"),
    "no password": ("ada@HERE/postgres", "correct the password of the user ada in TIDEMARK_SQL_URL"),
    "database": ("postgres@HERE/absent", "create the database absent, or correct its name in TIDEMARK_SQL_URL"),
    "user": ("eve@HERE/postgres", "create the user eve, or correct its name in TIDEMARK_SQL_URL"),
}


async def test_a_refused_connection_says_which_setting_is_wrong(tmp_path: Path, guarded: LocalPostgres) -> None:
    """And names the host and the user, but never the password."""
    for number, (address, remedy) in enumerate(REFUSED.values()):
        url = "postgresql://" + address.replace("HERE", f"127.0.0.1:{guarded.port}")
        settings = await settings_of(tmp_path / str(number), url)
        with pytest.raises(Transient) as failed:
            await check_side_tables(settings)
        said = str(failed.value)
        assert said.startswith(f"PostgreSQL at 127.0.0.1:{guarded.port}: "), said
        assert said.endswith(remedy), said
        assert "wrong" not in said.replace("authentication failed", "")


@pytest.mark.parametrize(("key", "status"), [("", "note"), ("sk_test_x", "wrong")], ids=["no key", "a key"])
async def test_without_a_server_nothing_is_billed(key: str, status: str) -> None:
    """The sink keeps its intents in PostgreSQL. Who only counts needs neither."""
    settings = Settings.model_validate({"sql_url": "pgserver://.tidemark/postgres", "stripe_api_key": key})
    (finding,) = await check_side_tables(settings)
    assert (finding.status, finding.what) == (status, "sql")
