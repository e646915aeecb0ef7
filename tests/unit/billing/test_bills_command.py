"""`tidemark billing bills`, and what the role `sink` shows of the period's close."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from pipeline.billing.closing import ClosingStatus
from pipeline.cli import cli
from pipeline.commands import bills as command
from pipeline.metrics import Metrics
from pipeline.roles.closing import OWNER_GAUGES, show
from schemas.bills import BillState
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput
from tests.worlds.closing import ClosingWorld

NOVEMBER = ("2027-11-01", "2027-12-01")
DECEMBER = ("2027-12-01", "2028-01-01")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[ClosingWorld]:
    """December 10: of `acme`, 125 calls are not on the invoice of November; `other` has never subscribed."""
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    world.customers["other"] = world.stripe.customer()
    await world.publish(world.used("acme", 1_000, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.pump()
    await world.jump("2027-12-10 12:00")
    await world.publish(
        world.used("acme", 125, "2027-12-10 12:00", NOVEMBER),
        world.used("acme", 30, "2027-12-10 12:00", DECEMBER),
        world.used("other", 4, "2027-12-10 12:00", DECEMBER),
    )
    await world.pump()
    yield world
    await world.close()


async def rows(world: ClosingWorld, account: str = "", customer: str = "", *, unbilled: bool = False) -> Any:
    tables = world.tables
    found = await command.rows(
        tables, tables.bills, tables.intents, world.clock.ms, account, customer, 50, unbilled=unbilled
    )
    return [(row["state"], row["customer"], row["reported"], row["unbilled"]) for row in found]


async def test_bills_of_an_account_from_open_to_confirmed(world: ClosingWorld) -> None:
    acme, other = world.customers["acme"], world.customers["other"]
    await world.controller.turn()
    assert await rows(world, "acme") == [("open", acme, "30", "30"), ("unbilled", acme, "1125", "0")]
    assert await rows(world, customer=acme) == await rows(world, "acme") == await rows(world)
    assert await rows(world, unbilled=True) == [("unbilled", acme, "1125", "0"), ("not sold", other, "4", "4")]
    await world.turns(2)
    assert await rows(world, "acme") == [("open", acme, "30", "30"), ("confirmed", acme, "1125", "0")]
    assert await rows(world, unbilled=True) == [("not sold", other, "4", "4")]
    assert await rows(world, customer=acme, unbilled=True) == []
    assert world.controller.status().not_sold == 1
    with pytest.raises(InvalidInput, match="is linked to no customer"):
        await rows(world, "nobody")


async def test_usage_before_the_first_subscription_is_not_sold(world: ClosingWorld) -> None:
    """Stripe has it and bills none of it. From the subscription on, usage is sold."""
    other = world.customers["other"]
    world.stripe.subscribe(other, world.per_call("3"))
    await world.jump("2027-12-10 13:30")
    await world.publish(world.used("other", 9, "2027-12-10 13:00", DECEMBER))
    await world.pump()
    await world.turns(2)
    assert await rows(world, customer=other, unbilled=True) == [("not sold", other, "4", "4")]
    assert (await rows(world, customer=other))[0][0] == "open"


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param(
            [],
            "2027-11-01 to 2027-12-01  cus_1  calls  unbilled\n"
            "    reported 1125; on in_1 1000; on invoice items 120; unbilled 5\n"
            "    invoice item ii_1: 100, created\n"
            "    invoice item (not at Stripe): 20, held\n"
            "    why\n"
            "2027-12-01 to 2028-01-01  cus_1  calls  draft, finalized 2028-01-01T01:00:00Z\n"
            "    reported 7; on in_2 7; on invoice items 0; unbilled 0\n"
            "2028-01-01 to 2028-02-01  cus_1  calls  open\n"
            "    reported 3 so far\n"
            "2026-01-01 to 2026-02-01  cus_1  calls  not sold\n"
            "    reported 4: nobody billed it\n",
            id="text",
        ),
        pytest.param(["--customer", "cus_none"], "no bills\n", id="none"),
        pytest.param(["--customer", "cus_none", "--unbilled"], "all usage is billed\n", id="nothing unbilled"),
    ],
)
def test_what_a_person_reads(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], printed: str) -> None:
    shown = _shown(monkeypatch)
    result = CliRunner().invoke(cli, ["billing", "bills", *arguments])
    assert result.output == printed
    as_json = CliRunner().invoke(cli, ["billing", "bills", "--json", *arguments]).output.splitlines()
    assert [json.loads(line) for line in as_json] == ([] if arguments else shown)


def _shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the command find four rows, and none of `cus_none`."""
    common: dict[str, Any] = {
        "customer": "cus_1",
        "meter": "calls",
        "reason": "",
        "items": [],
        "invoice": "",
        "deadline": "",
    }
    items = [{"item": "ii_1", "quantity": "100", "state": "created"}, {"item": "", "quantity": "20", "state": "held"}]
    found: list[dict[str, Any]] = [
        {
            **common, "state": "unbilled", "start": "2027-11-01T00:00:00Z", "end": "2027-12-01T00:00:00Z",
            "invoice": "in_1", "reported": "1125", "billed_by_invoice": "1000", "billed_by_items": "120",
            "unbilled": "5", "items": items, "reason": "why",
        },
        {
            **common, "state": "draft", "start": "2027-12-01T00:00:00Z", "end": "2028-01-01T00:00:00Z",
            "invoice": "in_2", "reported": "7", "billed_by_invoice": "7", "billed_by_items": "0", "unbilled": "0",
            "deadline": "2028-01-01T01:00:00Z",
        },
        {**common, "state": "open", "start": "2028-01-01T00:00:00Z", "end": "2028-02-01T00:00:00Z", "reported": "3"},
        {
            "state": "not sold", "customer": "cus_1", "meter": "calls", "start": "2026-01-01T00:00:00Z",
            "end": "2026-02-01T00:00:00Z", "reported": "4", "unbilled": "4", "reason": "nobody billed it",
        },
    ]  # fmt: skip

    async def listed(
        _settings: object, _account: str, customer: str, _limit: int, *, unbilled: bool
    ) -> list[dict[str, Any]]:
        assert unbilled in (True, False)
        return [] if customer else found

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(command, "list_bills", listed)
    return found


def test_gauges_end_with_the_ownership() -> None:
    metrics = Metrics()
    status = ClosingStatus(DAY_MS, 3, 2, 1, {BillState.HELD: 4, BillState.DRAFT: 9}, 5)
    show(metrics, status, is_owner=True)
    lines = [line for line in metrics.render()[0].decode().splitlines() if not line.startswith("#")]
    assert lines == [
        "tidemark_billing_turn_seconds 86400.0", "tidemark_billing_drafts 3.0", "tidemark_billing_late_drafts 2.0",
        "tidemark_billing_unequal_drafts 1.0", 'tidemark_billing_invoices{state="waiting"} 0.0',
        'tidemark_billing_invoices{state="unbilled"} 0.0', 'tidemark_billing_invoices{state="held"} 4.0',
        "tidemark_billing_not_sold 5.0",
    ]  # fmt: skip
    assert {line.split("{")[0].split(" ")[0] for line in lines} == set(OWNER_GAUGES)
    show(metrics, status, is_owner=False)
    assert b"tidemark_billing" not in metrics.render()[0]
    show(metrics, status._replace(turned_ms=None), is_owner=True)
    assert b"tidemark_billing" not in metrics.render()[0]
