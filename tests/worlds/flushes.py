"""A deployment whose accounts are flushed, and what it has reported."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.logs.bindings import AccountLog
from pipeline.logs.flushes import Flush, flush_account
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Intent
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import METER_SET, START_MS, Deployment

ADA, BOB = "ada", "bob"
METERS = {
    **METER_SET,
    "meters": [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]],
}
TEN = START_MS
HALF_PAST = TEN + 30 * MINUTE_MS


class Part(NamedTuple):
    """What an intent reports: from, to, and how many requests."""

    start_ms: int
    end_ms: int
    requests: int


async def deployment(interval_ms: int = HOUR_MS) -> Deployment:
    policy = {**METERS.get("policy", {}), "report_interval_ms": interval_ms}
    return await Deployment().start({**METERS, "policy": policy})


async def until(world: Deployment, instant_ms: int) -> None:
    await world.advance(instant_ms - world.clock.ms)


async def requests(world: Deployment, account: str, count: int, **fields: Any) -> None:
    for _ in range(count):
        await world.emit(account, **{"gb": "1", "user": "u", "region": "eu", **fields})


async def flush(world: Deployment, account: str = ADA) -> Flush:
    log = AccountLog(world.log, world.world.partitions, SECRET, world.clock)
    flushed = await flush_account(log, world.store, account)
    assert flushed.revision == world.world.revision(account)
    return flushed


async def relayed(world: Deployment) -> None:
    await world.fold()
    await world.publish()


async def parts(world: Deployment, account: str = ADA, meter: str = "requests") -> list[Part]:
    """The intents of an account that are published, in the log's order, each once."""
    found = {each.identifier: each for each in await intents(world, account) if each.meter == meter}
    return [Part(each.bucket_start_ms, each.bucket_end_ms, each.delta_minor) for each in found.values()]


async def intents(world: Deployment, account: str = ADA) -> list[Intent]:
    """The intents of an account as they were published, repetitions too."""
    records = await world.world.records(world.partition(account), REPORTS_TOPIC)
    values = [record.value or b"" for record in records]
    published = [Intent.model_validate_json(value) for value in values if b'"kind":"intent"' in value]
    return [each for each in published if each.account == account]
