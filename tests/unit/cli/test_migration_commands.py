"""What `tidemark migration` hands on, prints and ends with."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.changes.migrating import Stores
from pipeline.commands import migration as commands
from schemas.flat_to_metered import Migration
from tests.unit.cli.command_lines import Result, run
from tests.worlds.migrating import NAME, Migrating, at_ms

PLANS = ["--from", "flat@1", "--shadow", "shadow@1", "--to", "metered@1"]
SAID = ["--by", "ann", "--reason", "usage is fairer"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """Two customers with the flat price, whose stores the commands open."""
    made = Migrating("2026-12-15")
    asyncio.run(made.customers_join(2, billing_cycle_anchor=at_ms("2027-01-01") // 1_000))

    @contextlib.asynccontextmanager
    async def opened(_settings: Any) -> AsyncIterator[Stores]:
        yield made.stores()

    async def listed(_settings: Any) -> list[Migration]:
        return list(await made.sql.migrations.listed())

    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)
    monkeypatch.setattr(commands, "opened", opened)
    monkeypatch.setattr(commands, "listed", listed)
    return made


def migration(*words: str) -> Result:
    """Run one of the commands."""
    return run(["migration", *words])


def test_a_migration_by_its_commands(world: Migrating, tmp_path: Path) -> None:
    """From the plan to the comparison that halts, and back."""
    planned = migration("plan", NAME, *PLANS, *SAID)
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.splitlines()[:2] == [f"{NAME}: flat@1 → metered@1, shadow@1 before", "ann: usage is fairer"]
    shadow = migration("shadow", NAME, *SAID)
    assert [line.split(": ")[1] for line in shadow.out.splitlines()[:2]] == ["shadow", "shadow"]
    assert "shadow" not in migration("shadow", NAME, *SAID, "--json").out.splitlines()[0].partition("{")[0]

    asyncio.run(world.until("2027-01-20"))
    for account in world.customers:
        asyncio.run(world.use(account, 240_000))
    asyncio.run(world.until("2027-01-31 23:30"))
    assert migration("compare", NAME).code == 0
    asyncio.run(world.until("2027-02-01 02:00"))
    world.usages.lost["account001"] = 1
    halted = migration("compare", NAME, "--json")
    assert (halted.code, "account001" in json.loads(halted.out)["halted"]) == (1, True)
    refused = migration("resume", NAME, *SAID)
    assert (refused.code, "differs" in refused.err) == (2, True)
    assert "HALTED: " in migration("status").out

    world.usages.lost.clear()
    assert migration("compare", NAME).code == 1
    assert "not halted" in migration("resume", NAME, *SAID).out
    wave = ["--wave", "1", "--notified", "2027-01-28T00:00:00Z", *SAID]
    refused = migration("approve", NAME, *wave, "--accept-month-without-cash", "usd=98.99")
    assert (refused.code, "must be usd=99.00" in refused.err) == (2, True)
    assert migration("approve", NAME, *wave, "--accept-month-without-cash", "usd=99").code == 0
    promoted = migration("promote", NAME, "--wave", "1", *SAID)
    assert (promoted.code, promoted.out.splitlines()[0].endswith(": scheduled")) == (0, True)
    back = migration("revert", NAME, "--all", *SAID, "--json")
    assert {row["state"] for row in json.loads(back.out)["subscriptions"]} == {"reverted"}
    status = migration("status", NAME, "--csv", str(tmp_path / "all.csv"))
    assert status.code == 0
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["reverted", "reverted"]


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "other"], "NAME: there is no migration 'other'"),
        (["plan", NAME, "--from", "flat", "--shadow", "shadow@1", "--to", "metered@1", *SAID], "--from: 'flat' is no "),
        (
            ["plan", NAME, "--from", "flat@1", "--shadow", "flat@1", "--to", "metered@1", *SAID],
            "PLAN: flat@1 is no sha",
        ),
        (["revert", NAME, *SAID], "--account: name the accounts, or say --all"),
        (["revert", NAME, "--all", "--account", "acme", *SAID], "--account: name the accounts, or say --all"),
    ],
    ids=["unknown", "no version", "no shadow", "nobody", "both"],
)
def test_what_is_refused(words: list[str], said: str) -> None:
    found = migration(*words)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"tidemark: {said}")


def test_an_account_that_is_not_in_the_migration(world: Migrating) -> None:
    asyncio.run(world.plan())
    found = migration("revert", NAME, "--account", "nobody", *SAID)
    assert (found.code, found.err) == (2, "tidemark: --account: nobody is not in the migration\n")
