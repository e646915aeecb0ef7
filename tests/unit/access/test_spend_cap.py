"""What usage beyond the included quantity costs, and a plan's cap of that cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
import pytest_asyncio

from pipeline.access.holds import HoldRequest
from schemas.access import Reason, Spending
from schemas.clock import MINUTE_MS
from schemas.errors import Transient
from schemas.upgrades import Billed, Money
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import Business, subscribe

# 5000 tokens are included; each further one costs four cents, and all of them two dollars at most.
PRICED = SMALL.replace('{usd: "0.000004"', '{usd: "0.04"').replace(
    "    included: {tokens: 5000}\n", '    included: {tokens: 5000}\n    spend_cap: {tokens: {usd: "2.00"}}\n'
)


async def opened(text: str) -> Business:
    """A business with one account on the team's plan."""
    business = Business()
    await business.open()
    business.price = business.stripe.price()
    await business.apply(catalog_of(text), {"seat": business.price})
    business.customer = business.stripe.customer()
    await business.link("acme", business.customer)
    subscribe(business)
    await business.settle()
    return business


@pytest_asyncio.fixture
async def business() -> Business:
    """A plan with a cap."""
    return await opened(PRICED)


CASES: dict[str, tuple[int, int, Reason, int]] = {
    # Used, and how much more; the reason, and the cents until now.
    "within what is included": (4_000, 1_000, Reason.INCLUDED, 0),
    "the last one below the cap": (5_000, 50, Reason.OVERAGE_BILLED, 0),
    "one more": (5_000, 51, Reason.SPEND_CAP_REACHED, 0),
    "beyond already": (5_040, 10, Reason.OVERAGE_BILLED, 160),
    "at the cap": (5_050, 1, Reason.SPEND_CAP_REACHED, 200),
    "beyond the cap, by usage that did not ask": (5_100, 1, Reason.SPEND_CAP_REACHED, 400),
    "a limit that is reached first": (8_999, 2, Reason.LIMIT_REACHED, 15_996),
}


@pytest.mark.parametrize(("used", "more", "reason", "cents"), CASES.values(), ids=CASES)
async def test_a_cap_is_a_limit_in_money(business: Business, used: int, more: int, reason: Reason, cents: int) -> None:
    business.used = Decimal(used)
    answer = await business.checks.check("acme", "tokens", Decimal(more))

    assert answer.decision.reason is reason
    assert answer.decision.spending == Spending(Money(cents, "usd", 2), Money(200, "usd", 2))
    assert reason is not Reason.SPEND_CAP_REACHED or answer.upgrade is None


async def test_holds_count_against_a_cap(business: Business) -> None:
    business.used = Decimal(5_000)
    first = await business.checks.check("acme", "tokens", Decimal(30), hold=HoldRequest(60))
    second = await business.checks.check("acme", "tokens", Decimal(21), hold=HoldRequest(60))

    assert first.hold is not None
    assert (second.hold, second.decision.reason) == (None, Reason.SPEND_CAP_REACHED)


async def test_without_a_cap_the_cost_is_shown_and_refuses_nothing() -> None:
    business = await opened(PRICED.replace('    spend_cap: {tokens: {usd: "2.00"}}\n', ""))
    business.used = Decimal(6_000)
    answer = await business.checks.check("acme", "tokens", Decimal(1))

    assert answer.decision.reason is Reason.OVERAGE_BILLED
    assert answer.decision.spending == Spending(Money(4_000, "usd", 2), None)


@pytest.mark.parametrize(
    ("currencies", "spending"),
    [
        pytest.param("usd", Spending(Money(0, "usd", 2), None), id="sold in one currency"),
        pytest.param("usd jpy", None, id="sold in two, and nobody has asked yet"),
    ],
)
async def test_usage_within_what_is_included_costs_nothing_in_a_known_currency(
    currencies: str, spending: Spending | None
) -> None:
    text = PRICED.replace('    spend_cap: {tokens: {usd: "2.00"}}\n', "")
    if currencies == "usd":
        text = text.replace(", jpy: 1500}", "}").replace(", jpy: 0}}", "}}").replace(', jpy: "0.0006"}', "}")
    business = await opened(text)
    business.used = Decimal(4_000)
    decision = (await business.checks.check("acme", "tokens", Decimal(1))).decision

    assert (decision.reason, decision.spending) == (Reason.INCLUDED, spending)


@pytest.mark.parametrize("is_capped", [True, False])
async def test_who_pays_in_which_currency_is_asked_for_only_if_it_decides(
    is_capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_self: object, _account: str, _now_ms: int) -> Billed:
        raise Transient("PostgreSQL does not answer")

    business = await opened(PRICED if is_capped else PRICED.replace('    spend_cap: {tokens: {usd: "2.00"}}\n', ""))
    business.used = Decimal(6_000)
    monkeypatch.setattr(type(business.sql.entitlements), "billed", away)
    decision = (await business.checks.check("acme", "tokens", Decimal(1))).decision

    assert (decision.reason, decision.spending) == (
        Reason.FALLBACK_DENY if is_capped else Reason.OVERAGE_BILLED, None,
    )  # fmt: skip


async def test_near_a_cap_no_old_total_decides(business: Business) -> None:
    reads: Sequence[int] = []
    for used in (5_043, 5_044):
        business.used, business.fresh_reads = Decimal(used), 0
        await business.checks.check("acme", "tokens", Decimal(1))
        reads = [*reads, business.fresh_reads]

    assert reads == [0, 1]


async def test_an_outage_forgets_no_currency(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_self: object, _account: str, _now_ms: int) -> Billed:
        raise Transient("PostgreSQL does not answer")

    business.used = Decimal(5_000)
    reasons = []
    for minutes in range(3):
        business.clock.advance(minutes * MINUTE_MS)
        reasons += [(await business.checks.check("acme", "tokens", Decimal(more))).decision.reason for more in (50, 51)]
        monkeypatch.setattr(type(business.sql.entitlements), "billed", away)

    assert reasons == [Reason.OVERAGE_BILLED, Reason.SPEND_CAP_REACHED] * 3
