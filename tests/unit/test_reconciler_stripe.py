"""What Stripe holds, against what the log says of it: whose key it is, who pays, dead letters, sums of doubles."""

from __future__ import annotations

import pytest

from pipeline.deployment import ensure_deployment
from pipeline.settings import Settings
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.periods import Billing
from sinks.stripe.memory import MemoryFault
from tests.unit.reconciler_world import NOVEMBER_MS, Deployment, named, settled
from tests.worlds import SECRET


@pytest.mark.parametrize(
    ("change", "theirs"),
    [
        pytest.param({"livemode": True}, "the key is of live mode of Stripe account acct_ours", id="mode"),
        pytest.param({"account": "acct_other"}, "the key is of test mode of Stripe account acct_other", id="account"),
    ],
)
@pytest.mark.parametrize("is_refused", [False, True], ids=["accepted", "dead letters"])
async def test_a_key_of_another_account_or_mode_compares_nothing_and_says_so(
    change: dict[str, str | bool], theirs: str, is_refused: bool
) -> None:
    """Nothing of it was sent under that key, so that nothing read with it proves anything."""
    deployment = Deployment()
    topics = Settings(partitions=2, retention_days=3650).topics()
    await ensure_deployment(deployment.log, SECRET, topics, stripe_account="acct_ours")
    deployment.stripe.account = "acct_ours"
    await deployment.start()
    deployment.stripe.fault = lambda _event: MemoryFault.BAD_REQUEST if is_refused else None
    await deployment.traffic(1)
    await deployment.settle()
    with_its_own = await deployment.reconcile()
    for name, value in change.items():
        setattr(deployment.stripe, name, value)

    report = await deployment.reconcile()

    assert with_its_own.verdict is (Verdict.DRIFT if is_refused else Verdict.EQUAL)
    assert report.verdict is Verdict.INCOMPLETE
    (row,) = named(report, Cause.UNCHECKED, Pair.STRIPE)
    assert row.detail.startswith(f"{theirs}, these intents are of test mode of Stripe account acct_ours: ")
    assert "TIDEMARK_STRIPE_API_KEY" in row.detail
    stripe = next(s for s in report.summaries if s.pair is Pair.STRIPE)
    assert (stripe.compared, stripe.unchecked) == (0, 16)


async def test_usage_before_the_first_customer_waits_for_one_although_somebody_pays_later() -> None:
    """Who pays at the period's end is not asked by the sender; usage that it holds is not on its way."""
    deployment = await settled()
    await deployment.emit("eve", gb="2.5", user="u", region="eu")
    await deployment.settle()
    deployment.stripe.add_customer("cus_eve")
    from_ms = (deployment.clock.ms + DAY_MS) // MINUTE_MS * MINUTE_MS
    await deployment.bind("eve", stripe_customer="cus_eve", effective_from_ms=from_ms)
    await deployment.advance(2 * DAY_MS)
    await deployment.emit("eve", gb="4", user="u", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()

    assert {(row.cause, row.account) for row in report.rows} == {(Cause.UNKNOWN_CUSTOMER, "eve")}
    assert {(row.meter, row.expected) for row in report.rows} >= {("gigabytes", "2.5")}
    assert all("for the time of this usage" in row.detail for row in report.rows)
    assert report.verdict is Verdict.EQUAL


async def test_usage_of_a_customer_who_ends_within_the_period_is_on_its_way() -> None:
    """The sender will send it; nobody has to be named."""
    deployment = await settled()
    await deployment.emit("ada", gb="2.5", user="u", region="eu")
    await deployment.bind("ada", billing=Billing.UNMAPPED, effective_from_ms=NOVEMBER_MS + 19 * DAY_MS)
    await deployment.advance(HOUR_MS)
    await deployment.fold()
    await deployment.archive()
    await deployment.drain()
    await deployment.publish()

    waiting = await deployment.reconcile()
    await deployment.send()
    deployment.clock.ms += 20 * MINUTE_MS

    assert {(row.pair, row.cause) for row in waiting.rows} == {(Pair.STRIPE, Cause.IN_FLIGHT)}
    assert (await deployment.reconcile()).verdict is Verdict.EQUAL


async def test_usage_that_is_reported_late_goes_to_nobody_who_pays_only_at_its_timestamp() -> None:
    """Its timestamp moves forward with the days until somebody pays there, who paid nothing at the usage's instant."""
    deployment = await settled()
    await deployment.emit("eve", gb="2.5", user="u", region="eu")
    await deployment.settle()
    deployment.stripe.add_customer("cus_eve")
    from_ms = (deployment.clock.ms + DAY_MS) // MINUTE_MS * MINUTE_MS
    await deployment.bind("eve", stripe_customer="cus_eve", effective_from_ms=from_ms)
    for _ in range(20):
        await deployment.advance(2 * DAY_MS)
        await deployment.settle()

    assert not [held for held in deployment.stripe.events if held.event.stripe_customer == "cus_eve"]
    assert {row.account for row in named(await deployment.reconcile(), Cause.UNKNOWN_CUSTOMER)} == {"eve"}
