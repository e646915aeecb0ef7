"""Waiting for an account flush: until its reports are in the log, and until the sink has settled them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest

from pipeline.commands.accounts import flush_document
from pipeline.logs.bindings import AccountLog
from pipeline.logs.flushes import Flush, FlushWatch, flush_until_settled
from schemas.clock import HOUR_MS
from schemas.errors import Transient
from schemas.intent_ledger import IntentLedger, IntentState, LedgerIntent
from schemas.log import REPORTS_TOPIC
from schemas.reports import Intent
from tests.worlds.deployment import SECRET
from tests.worlds.flushes import ADA, HALF_PAST, TEN, deployment, flush, requests, until
from tests.worlds.reconciler import Deployment


async def flushed() -> tuple[Deployment, Flush]:
    """A deployment in which an hour and a half of usage wait, and a flush in the log."""
    world = await deployment()
    await requests(world, ADA, 1)
    await until(world, TEN + HOUR_MS)
    await requests(world, ADA, 2)
    await until(world, HALF_PAST + HOUR_MS)
    return world, await flush(world)


def watching(world: Deployment, of: Flush) -> FlushWatch:
    return FlushWatch(world.log, world.store, of, 0)


async def test_progress_follows_the_flush_from_the_log_to_stripe() -> None:
    """With all earlier reports: those of the bucket that had ended by itself."""
    world, of = await flushed()
    watch = watching(world, of)
    seen = [await watch.look()]
    for step in (world.fold, world.publish, world.send):
        await step()
        seen.append(await watch.look())

    assert [each.is_published for each in seen] == [False, False, True, True]
    told = [sorted({reported.intent.bucket_end_ms for reported in each.unsettled}) for each in seen]
    assert told == [[], [], [TEN + HOUR_MS, of.instant_ms], []]
    assert [len(each.flushed) for each in seen[:2]] == [0, 0]
    assert seen[2].flushed
    assert {each.intent.bucket_end_ms for each in seen[3].flushed} == {of.instant_ms}


class Ledger:
    """A ledger whose one pending intent is older than the flush."""

    def __init__(self, pending: Intent) -> None:
        self.pending = pending

    async def listed(self, states: Sequence[IntentState], account: str, limit: int) -> Sequence[LedgerIntent]:
        assert (tuple(states), account, limit > 0) == ((IntentState.PENDING,), ADA, True)
        return [LedgerIntent(0, 7, self.pending)]


@pytest.mark.parametrize("end_ms", [TEN, HALF_PAST + 2 * HOUR_MS], ids=["before the flush", "after it"])
async def test_older_report_that_the_sink_holds_is_waited_for(end_ms: int) -> None:
    """Only the ledger knows it: the topic is not read from its start. Reports of later usage do not matter."""
    world, of = await flushed()
    end = (await world.log.bounds(REPORTS_TOPIC, of.partition)).next
    await world.fold()
    await world.publish()
    await world.send()
    settled = (await watching(world, of).look()).flushed[0].intent
    old = settled.model_copy(
        update={"identifier": "tm_old", "bucket_start_ms": end_ms - HOUR_MS, "bucket_end_ms": end_ms}
    )

    ledger = cast("IntentLedger", Ledger(old))
    progress = await FlushWatch(world.log, world.store, of, end, ledger).look()
    assert [each.intent for each in progress.unsettled] == ([old] if end_ms < of.instant_ms else [])


async def test_usage_after_the_flush_is_not_waited_for() -> None:
    world, of = await flushed()
    await world.fold()
    await world.publish()
    await world.send()
    await requests(world, ADA, 4)
    await world.fold()

    progress = await watching(world, of).wait(world.clock, 0, settled=True)
    assert {each.intent.bucket_end_ms for each in progress.flushed} == {of.instant_ms}


async def test_wait_ends_with_what_is_missing() -> None:
    """Without a worker, and with a worker and no sink."""
    world, of = await flushed()
    with pytest.raises(Transient, match=r"is not in billing\.reports: a worker must run"):
        await watching(world, of).wait(world.clock, 5, settled=True)
    await world.fold()
    await world.publish()
    with pytest.raises(Transient, match=r"\d reports \(.*requests.*\) are not settled: the sink must run"):
        await watching(world, of).wait(world.clock, 5, settled=True)

    progress = await watching(world, of).wait(world.clock, 5, settled=False)
    document = flush_document(of, progress)
    assert (document["instant"], document["published"], document["settled"]) == ("2026-11-10T11:30:00Z", True, False)
    quantities = {report["meter"]: report["quantity"] for report in document["reports"]}
    assert quantities["requests"] == "2"
    assert {report["timestamp"] for report in document["reports"]} == {"2026-11-10T11:29:59Z"}


async def test_view_that_is_behind_the_flush_is_waited_for() -> None:
    """Nothing waits in a replica that took over without the flush and its usage; that does not mean published."""
    world, of = await flushed()
    await world.fold()
    await world.publish()
    assert (await watching(world, of).look()).is_published
    world.store.server.empty()

    assert not (await watching(world, of).look()).is_published


class Patience:
    """A clock. Whoever waits by it lets the next step happen."""

    def __init__(self, *steps: Callable[[], Awaitable[object]]) -> None:
        self._ms, self._steps = 0, list(steps)

    def now_ms(self) -> int:
        return self._ms

    async def sleep(self, seconds: float) -> None:
        self._ms += round(seconds * 1_000)
        if self._steps:
            await self._steps.pop(0)()


class Empty:
    """A ledger without intents."""

    async def listed(self, *_: object) -> list[LedgerIntent]:
        return []


async def test_a_flush_that_is_waited_for_ends_when_stripe_has_the_usage() -> None:
    """As an end now does: without a sink it waits no longer than it is told to, and the next time goes on."""
    world = await deployment()
    await requests(world, ADA, 2)
    await until(world, HALF_PAST)
    log = AccountLog(world.log, world.world.partitions, SECRET, world.clock)
    ledger = cast("IntentLedger", Empty())
    with pytest.raises(Transient, match="not settled"):
        await flush_until_settled(log, world.store, ledger, ADA, Patience(world.fold, world.publish), 5)
    await flush_until_settled(log, world.store, ledger, ADA, Patience(world.fold, world.publish, world.send), 5)
