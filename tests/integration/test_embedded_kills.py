"""The embedded shape as real processes that are killed at random instants under load: every count is exact."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Mapping

from oracle.model import Oracle
from oracle.rules import partition_of
from pipeline.logs.control_records import append_control
from schemas.analytics import ArchivePosition
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.control import CONTROL_HEADER, BindingRecord, CloseRecord, RestatementRecord
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, Record
from schemas.periods import Binding, Interval
from schemas.restatement import unpacked
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from tests.integration.deployment import Deployment, Role
from tests.integration.exactness import check_exact
from tests.traffic.generate import SECOND_US, Rates, account_name, events, records, rfc3339

SEED = 20_261
ACCOUNTS = 120
WORKER_KILLS = 10
WORKER_KILLS_MAX = 25
ARCHIVE_KILLS = 6
LATE_ACCOUNTS = frozenset(map(account_name, range(40, 46)))
BACKLOG_RECORDS_MAX = 30
EVENTS_MAX = 400_000
INBOX_EVENTS = 400
OUTCOMES = ("counted", "duplicate", "unmetered", "late", "rejected")


async def test_ten_kills_of_the_worker_and_some_of_archive_and_router_change_no_count(deployment: Deployment) -> None:
    """A kill falls between any two instructions; position and content must never part (I2)."""
    chance = random.Random(SEED)
    worker, archive, router = (deployment.start(role) for role in ("worker", "archive", "router"))
    await bind_and_close(deployment)
    stop = asyncio.Event()
    now_us = deployment.base.clock.now_ms() * 1000
    await too_late_for_its_week(deployment, now_us)
    traffic = records(
        SEED, ACCOUNTS, EVENTS_MAX, now_us, partitions=4, batch_events_max=60, span_us=60 * SECOND_US,
        rates=Rates(duplicate=0.05, retry=0.04, conflict=0.02, malformed=0.03, late=0.05, far_late=0.02),
    )  # fmt: skip
    feeding = asyncio.create_task(deployment.feed(traffic, stop, BACKLOG_RECORDS_MAX))
    singles = asyncio.create_task(feed_inbox(deployment, now_us, chance.random()))

    beside = [
        asyncio.create_task(kill_archive(deployment, archive, random.Random(SEED + 1))),
        asyncio.create_task(kill_beside(router, random.Random(SEED + 2), 2)),
    ]
    kills, bound = 0, False
    while kills < WORKER_KILLS or (not deployment.replayed() and kills < WORKER_KILLS_MAX):
        # Every fourth falls anywhere in a start; the others wait for progress, or there would be none.
        if kills % 4 != 3:
            await progress(deployment, worker)
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        kills += worker.kill()
        if kills == WORKER_KILLS // 2 and not bound:
            bound = True
            await bind_late(deployment)
    await asyncio.gather(*beside, singles)
    stop.set()
    appended = await feeding
    await deployment.at_rest()
    await deployment.stop_roles()

    oracle = await check_exact(deployment)
    assert worker.starts > kills
    assert archive.starts > ARCHIVE_KILLS
    assert deployment.replayed() > 0, f"{kills} kills hit no flush, so nothing was proved"
    assert appended > 10 * kills
    check_variety(oracle)
    judged = [record for at in deployment.partitions for record in await deployment.records(EVENTS_TOPIC, at)]
    assert any(dict(record.headers).get(CONTROL_HEADER) == b"decision" for record in judged)
    said = [RestatementRecord.model_validate_json(record.value or b"") for record in judged if is_restatement(record)]
    answers = [each for each in said if not each.begins]
    assert {each.account for each in answers} >= LATE_ACCOUNTS
    assert not any(each.declined for each in answers)
    assert any(unpacked(each.content).cells for each in answers), "no late binding had anything to count again"
    assert oracle.kept_out


def is_restatement(record: Record) -> bool:
    return dict(record.headers).get(CONTROL_HEADER) == b"restatement"


async def bind_late(deployment: Deployment) -> None:
    """Accounts whose days begin at a minute in the middle of what they have used by now."""
    at_ms = deployment.base.clock.now_ms() // MINUTE_MS * MINUTE_MS
    for account in sorted(LATE_ACCOUNTS):
        binding = Binding(effective_from_ms=at_ms, anchor_ms=at_ms, interval=Interval.DAY)
        record = BindingRecord(account=account, revision=1, binding=binding)
        partition = partition_of(account, 4)
        await append_control(deployment.base.log, deployment.settings.secret_bytes(), partition, record)


async def bind_and_close(deployment: Deployment) -> None:
    """Accounts whose periods are cut by an anchor of their own, and some whose present period is closed."""
    now_ms = deployment.base.clock.now_ms()
    for number in range(12):
        account = account_name(number)
        partition = partition_of(account, 4)
        anchor_ms = (now_ms - 20 * DAY_MS) // MINUTE_MS * MINUTE_MS
        binding = Binding(effective_from_ms=0, anchor_ms=anchor_ms, interval=Interval.WEEK)
        secret = deployment.settings.secret_bytes()
        if number % 2:
            await append_control(
                deployment.base.log, secret, partition, BindingRecord(account=account, revision=1, binding=binding)
            )
        if number % 3 == 0:
            await append_control(
                deployment.base.log, secret, partition, CloseRecord(account=account, revision=2, instant_ms=now_ms)
            )


async def too_late_for_its_week(deployment: Deployment, now_us: int) -> None:
    """A far-late event whose meter quarantines late usage, of an account with weeks: on the first of a month, hardly
    any far-late event of the traffic has a closed month."""
    account, time_us = account_name(1), now_us - 10 * DAY_MS * 1000
    event = {"specversion": "1.0", "id": "too-late", "source": "/service/0", "type": "seats.changed"}
    body = json.dumps({**event, "subject": account, "time": rfc3339(time_us), "data": {"seats": 7}}).encode()
    await deployment.base.log.append(EVENTS_TOPIC, partition_of(account, 4), body)


async def feed_inbox(deployment: Deployment, now_us: int, draw: float) -> None:
    """Single events by a producer that knows nothing of accounts and partitions."""
    chance = random.Random(draw)
    for sent in events(SEED + 7, ACCOUNTS, INBOX_EVENTS, now_us, span_us=60 * SECOND_US):
        await deployment.base.log.append(INBOX_TOPIC, chance.randrange(4), sent.body)


async def progress(deployment: Deployment, worker: Role) -> None:
    """Return once the worker's present process has committed something."""
    before, starts = await deployment.folded(), worker.starts

    async def moved() -> bool:
        return worker.running and worker.starts >= starts and await deployment.folded() != before

    await deployment.until(moved, "progress of the worker")


async def kill_archive(deployment: Deployment, archive: Role, chance: random.Random) -> None:
    """Kill the archive about the moment it stores a position: rows and position are two statements."""
    clickhouse = open_clickhouse(deployment.settings.clickhouse_url)
    reader = ClickHouseReader(clickhouse)
    before: Mapping[int, ArchivePosition] = {}

    async def moved() -> bool:
        with contextlib.suppress(OperatorNeeded):  # no tables yet
            return await reader.archive_positions() != before
        return False

    try:
        for _ in range(ARCHIVE_KILLS):
            await deployment.until(moved, "progress of the archive")
            before = await reader.archive_positions()
            await deployment.until(moved, "more progress of the archive")
            await asyncio.sleep(chance.choice((0.0, 0.0, 0.02)))
            assert archive.kill()
            before = await reader.archive_positions()
    finally:
        await clickhouse.close()


async def kill_beside(role: Role, chance: random.Random, kills: int) -> None:
    """Kill a role now and then, as soon as it can have been back."""
    while kills:
        await asyncio.sleep(chance.uniform(2.0, 4.0))
        kills -= role.kill()


def check_variety(oracle: Oracle) -> None:
    """Traffic that lacks a kind proves nothing about it."""
    sums = oracle.counter_sums()
    assert all(sums[outcome] for outcome in OUTCOMES), sums
    assert oracle.conflicts
    assert len({decision.reason for decision in oracle.rulings.values()}) > 15
