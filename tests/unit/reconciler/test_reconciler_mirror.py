"""The mirror compared with Stripe's lists, which the simulator gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from reconciler.causes import Cause, Pair, Verdict
from reconciler.mirror import DELAY_MS
from reconciler.report import Report
from reconciler.views import ReconcilePolicy
from schemas.billing_events import ObjectKind
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.side_tables import TABLE_OF, Row, SideTables
from tests.worlds.billed import BilledDeployment, billed_deployment, mirrored, remirror
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS


@pytest_asyncio.fixture
async def billed() -> AsyncIterator[BilledDeployment]:
    """A customer with three kinds of lines, a schedule, a canceled subscription, a customer who was deleted, and one
    who got something back."""
    async with billed_deployment(BilledDeployment) as deployment:
        metered = await deployment.price((10, "0"), ("inf", "2"))
        flat = await flat_price(deployment)
        subscription = await deployment.subscribe("ada", flat, metered)
        await deployment.subscribe("bob", flat)
        await deployment.sdk("v1.customers.delete", await deployment.customer("gone"))
        await give_back(deployment, flat)
        await deployment.until(NOVEMBER_MS + 9 * DAY_MS)
        await deployment.sdk("v1.subscription_schedules.create", {"from_subscription": subscription})
        (owned,) = (await deployment.sdk("v1.subscriptions.list", {"customer": deployment.customers["bob"]}))["data"]
        await deployment.sdk("v1.subscriptions.cancel", owned["id"], {"prorate": True, "invoice_now": True})
        await deployment.until(DECEMBER_MS + 3 * HOUR_MS)
        await deployment.settle()
        yield deployment


async def flat_price(deployment: BilledDeployment) -> str:
    params = {"currency": "usd", "product_data": {"name": "Flat"}, "recurring": {"interval": "month"}}
    return str((await deployment.sdk("v1.prices.create", {**params, "unit_amount": 3_000}))["id"])


class Changed:
    """Side tables whose rows a test changes on the way out."""

    def __init__(self, tables: SideTables, change: Callable[[str, Row], Row | None]) -> None:
        self._tables = tables
        self._change = change

    async def mirrored(self, kind: ObjectKind, ids: Sequence[str]) -> Mapping[str, Sequence[Row]]:
        found = await self._tables.mirrored(kind, ids)
        changed = {name: [self._change(name, row) for row in rows] for name, rows in found.items()}
        return {name: [row for row in rows if row is not None] for name, rows in changed.items()}

    async def known(self, *arguments: Any, **options: Any) -> Any:
        return await self._tables.known(*arguments, **options)


async def compared(deployment: BilledDeployment, tables: Any, reads_max: int = 1_000) -> Report:
    """A reconciliation an hour later."""
    deployment.views = replace(deployment.views, tables=tables)
    return await deployment.reconcile(policy=ReconcilePolicy(archive_wait_s=1.0, stripe_reads_max=reads_max))


async def give_back(deployment: BilledDeployment, price: str) -> None:
    """A credit note with a refund, and a dispute, of a new customer's first invoice."""
    customer = await deployment.customer("disputed", "pm_card_createDispute")
    made = await deployment.sdk("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
    note = {"invoice": made["latest_invoice"], "amount": 200, "refund_amount": 200}
    await deployment.sdk("v1.credit_notes.create", note)


def about_mirror(report: Report) -> list[tuple[Cause, str]]:
    return [(row.cause, row.detail) for row in report.rows if row.pair is Pair.MIRROR]


async def test_a_mirror_that_has_what_stripe_has_is_equal(billed: BilledDeployment) -> None:
    """Every kind, also ended subscriptions; two pieces of code read each column alike."""
    tables = await mirrored(billed)

    report = await compared(billed, tables)

    counts = await tables.counts()
    assert (counts["credit_notes"], counts["refunds"], counts["disputes"]) == (1, 1, 2)
    objects = sum(counts[name] for name in TABLE_OF.values())
    (summary,) = (each for each in report.summaries if each.pair is Pair.MIRROR)
    assert ([], objects) == (about_mirror(report), summary.equal)
    assert objects >= 7
    assert counts["invoice_lines"] >= 5
    assert Verdict.EQUAL is report.verdict


@pytest.mark.parametrize(
    ("table", "column", "value", "named"),
    [
        pytest.param("stripe_customers", "email", "someone@example.com", "email", id="customer"),
        pytest.param("subscriptions", "status", "past_due", "status", id="subscription"),
        pytest.param("subscriptions", "discounts_json", '["di_1"]', "discounts_json", id="discounts"),
        pytest.param("subscription_items", "period_end_ms", 5, "subscription_items.period_end_ms", id="item"),
        pytest.param("subscription_schedules", "phases_json", "[]", "phases_json", id="schedule"),
        pytest.param("invoices", "remaining_minor", 1, "remaining_minor", id="invoice"),
        pytest.param("credit_notes", "status", "void", "status", id="credit note"),
        pytest.param("refunds", "amount_minor", 7, "amount_minor", id="refund"),
        pytest.param("disputes", "reason", "duplicate", "reason", id="dispute"),
        pytest.param("invoice_lines", "quantity", "1000001", "invoice_lines.quantity", id="line"),
    ],
)
async def test_a_column_that_differs_is_named_without_its_value(
    billed: BilledDeployment, table: str, column: str, value: str | int, named: str
) -> None:
    """Ids and columns say enough; the values may be personal."""
    tables = Changed(
        await mirrored(billed), lambda name, row: {**row, column: value} if name == table else row
    )  # fmt: skip

    report = await compared(billed, tables)

    found = about_mirror(report)
    assert found
    assert {Cause.DIFFERING} == {cause for cause, _ in found}
    assert all(f"differs in {named}; run `tidemark billing resync`" in detail for _, detail in found)
    assert not [detail for _, detail in found if len(str(value)) > 2 and str(value) in detail]
    assert Verdict.DRIFT is report.verdict


async def test_an_object_that_one_side_lacks_is_named(billed: BilledDeployment) -> None:
    """A lost webhook, and an object that the mirror should have marked as deleted."""
    tables = await mirrored(billed)
    dora = await billed.customer("dora")
    await billed.until(billed.clock.ms + DELAY_MS + MINUTE_MS)
    missing = about_mirror(await compared(billed, tables))
    await remirror(billed, tables)
    await billed.sdk("v1.customers.delete", dora)
    soon = about_mirror(await compared(billed, tables))
    await billed.until(billed.clock.ms + DELAY_MS + MINUTE_MS)
    extra = about_mirror(await compared(billed, tables))

    assert [(Cause.MISSING, True)] == [(cause, f"customer {dora}: the mirror lacks" in text) for cause, text in missing]
    assert [(Cause.IN_FLIGHT, True)] == [(cause, "changed it a moment ago" in text) for cause, text in soon]
    assert [(Cause.EXTRA, True)] == [(cause, f"customer {dora}: Stripe does not list" in text) for cause, text in extra]


async def test_without_reads_or_tables_nothing_is_called_equal(billed: BilledDeployment) -> None:
    """The reason is in the report. A deployment without side tables is not incomplete."""
    tables = await mirrored(billed)
    few = await compared(billed, tables, reads_max=4)
    absent = await compared(billed, None)
    billed.views = replace(billed.views, no_tables="PostgreSQL does not answer")
    broken = await compared(billed, None)

    assert {Cause.UNCHECKED} == {cause for cause, _ in about_mirror(few)}
    assert [Verdict.INCOMPLETE, Verdict.EQUAL, Verdict.INCOMPLETE] == [each.verdict for each in (few, absent, broken)]
    assert "TIDEMARK_SQL_URL" in about_mirror(absent)[0][1]
    assert [(Cause.UNCHECKED, "PostgreSQL does not answer")] == about_mirror(broken)
