"""Who pays for an intent: the answer never comes from a live view that is older than the intent."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import msgspec
import pytest

from aggregators.report_records import parse_entries
from pipeline.billing.customers import BindingResolver
from pipeline.rebuild.live_view import LiveViewRebuild
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from schemas.log import REPORTS_TOPIC
from schemas.periods import AccountState, Billing, Binding, Customer
from schemas.reports import Intent, OutcomeStatus, Payer, ReportOutcome
from schemas.rollup import Changes, Checkpoint
from sinks.redis.fake import FakeLiveView
from tests.conformance.rollup_states import checkpoint
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import Deployment
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, make_intent

PAYER = Payer(Billing.MAPPED, "cus_a", PERIOD_END_MS)
MAPPED = AccountState(customers=(Customer(0, Billing.MAPPED, "cus_a"),))


async def view_at(stream_time_ms: int) -> FakeLiveView:
    """A live view at this stream time in which account `a` is mapped."""
    store = FakeLiveView()
    initial = msgspec.structs.replace(checkpoint(0, stream_time_ms), partitions=1)
    await store.state.create_checkpoint(0, initial)
    mapped = msgspec.structs.replace(initial, next_offset=1)
    await store.state.commit(0, initial, Changes(checkpoint=mapped, accounts={"a": MAPPED}))
    return store


async def entries_of(deployment: Deployment) -> list[Intent | ReportOutcome]:
    """The intents and outcomes of all partitions."""
    entries = []
    for partition in range(deployment.world.partitions):
        for record in await deployment.log.read(REPORTS_TOPIC, partition, 0, 100_000):
            entries += [each for each in parse_entries(record.value) if isinstance(each, Intent | ReportOutcome)]
    return entries


async def test_no_payer_is_given_before_the_view_reaches_the_end_of_the_bucket() -> None:
    """An older view may lack bindings that were folded before the intent was published."""
    intent = make_intent("one")

    for store in (FakeLiveView(), await view_at(intent.bucket_end_ms - 1)):
        with pytest.raises(Transient, match="rebuild redis"):
            await BindingResolver(store.accounts, 1)(intent, NOW_MS)
    assert await BindingResolver((await view_at(intent.bucket_end_ms)).accounts, 1)(intent, NOW_MS) == PAYER


async def test_period_ends_at_the_cut_of_a_later_binding() -> None:
    """Also if a planned change was withdrawn and the cut has moved."""
    intent = make_intent("one", period_end_ms=NOW_MS + HOUR_MS)
    cut = Binding(effective_from_ms=NOW_MS + DAY_MS, anchor_ms=NOW_MS + DAY_MS)
    store = await view_at(NOW_MS)
    resolve = BindingResolver(store.accounts, 1)

    before = await resolve(intent, NOW_MS)
    store.server.partitions[0].accounts["a"] = AccountState(bindings=(cut,), customers=MAPPED.customers)
    after = await resolve(intent, NOW_MS)

    assert before == PAYER
    assert after == PAYER._replace(period_end_ms=NOW_MS + DAY_MS)


@pytest.mark.parametrize(
    "changes",
    [
        {"period_start_ms": NOW_MS + HOUR_MS, "period_end_ms": NOW_MS + 31 * DAY_MS},
        {"period_start_ms": NOW_MS - 60 * DAY_MS, "period_end_ms": NOW_MS - 30 * DAY_MS},
    ],
    ids=["a period that lies ahead", "a period that has ended"],
)
async def test_the_view_is_asked_for_the_bucket_and_not_for_the_period(changes: dict[str, Any]) -> None:
    """Carried usage lies in periods that stream time has not reached; such intents would wait until then."""
    resolve = BindingResolver((await view_at(NOW_MS)).accounts, 1)

    payer = await resolve(make_intent("one", **changes), NOW_MS)

    assert payer is not None
    assert payer[:2] == PAYER[:2]


async def test_view_that_went_back_bills_nobody_until_it_has_caught_up() -> None:
    """A replica from before a change of the customer takes over after the intents were published."""
    deployment = await Deployment().start()
    deployment.stripe.add_customer("cus_new")
    await deployment.traffic(1)
    await deployment.settle()
    replica = copy.deepcopy(deployment.store.server.partitions)
    change_ms = deployment.clock.ms // MINUTE_MS * MINUTE_MS
    await deployment.bind("ada", effective_from_ms=change_ms, stripe_customer="cus_new")
    await deployment.advance(HOUR_MS)
    await deployment.emit("ada", gb="1", user="u", region="eu")
    await deployment.advance(HOUR_MS)
    await deployment.fold()
    await deployment.publish()
    deployment.store.server.partitions = replica
    before = len(deployment.stripe.events)

    await deployment.send()
    assert len(deployment.stripe.events) == before
    await deployment.settle()

    sent = [
        stored.event for stored in deployment.stripe.events[before:] if stored.event.timestamp_s * 1000 >= change_ms
    ]
    assert {event.stripe_customer for event in sent} == {"cus_new"}
    assert {event.event_name for event in sent} == {"requests", "gigabytes", "users", "peak"}


async def test_reports_of_an_emptied_view_wait_for_its_rebuild_and_no_longer() -> None:
    """The rebuild publishes intents long before the live view returns. No account counts as unmapped meanwhile."""
    deployment = await Deployment().start()
    await deployment.traffic(5)
    await deployment.fold()
    deployment.store.server.empty()
    swap = deployment.store.generations.swap
    waiting: list[int] = []

    async def swapped(partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        deployment.clock.ms += 3 * MINUTE_MS
        await deployment.send()
        waiting.append(sum(isinstance(each, Intent) for each in await entries_of(deployment)))
        assert deployment._sender.status().held == {}
        sent = {
            deployment.partition(stored.event.stripe_customer.removeprefix("cus_"))
            for stored in deployment.stripe.events
        }
        assert sent == set(range(partition))
        return await swap(partition, live, built)

    deployment.store.generations.swap = swapped  # type: ignore[method-assign]  # called between the rebuild and its swap
    await LiveViewRebuild(deployment.log, deployment.store, deployment.clickhouse, deployment.clock, SECRET).run()
    await deployment.settle()
    await deployment.send()

    entries = await entries_of(deployment)
    intents = {each.identifier for each in entries if isinstance(each, Intent)}
    outcomes = [each for each in entries if isinstance(each, ReportOutcome)]
    assert 0 < waiting[0] < waiting[-1]
    assert {each.status for each in outcomes} == {OutcomeStatus.ACCEPTED}
    assert Counter(stored.event.identifier for stored in deployment.stripe.events) == Counter(intents)
    assert (await deployment.reconcile()).verdict == "equal"
