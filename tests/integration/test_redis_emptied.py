"""Redis loses its data, dies, or belongs to somebody else, behind real running processes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from pipeline.local.valkey import LocalValkey
from schemas.errors import Transient
from sinks.redis.client import Server
from tests.integration.deployment import Deployment, traffic
from tests.integration.exactness import check_exact, redis_counters, redis_totals

SEED = 99
EVENTS_MAX = 200_000
BACKLOG_RECORDS_MAX = 30


def run_valkey(url: str, *command: str) -> None:
    """Run one command."""
    server = Server(url)
    server.run([command])
    server.close()


async def test_emptied_redis_is_refused_until_an_operator_has_the_log_folded_again(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """Counting on from zero would be a silent loss; counted again from the log, every value is what it was."""
    worker = deployment.start("worker")
    deployment.start("archive")
    await deployment.append_all(traffic(deployment, 6_000, SEED))
    await deployment.at_rest()
    totals, counters = await redis_totals(deployment), await redis_counters(deployment)

    run_valkey(own_valkey.url, "FLUSHALL")
    said = await worker.refusal()
    assert "an operator must choose" in said
    assert "--replay-from-start" in said
    assert not any((await deployment.folded()).values()), "it counted from zero"

    again = deployment.start("worker", name="worker-again")
    said = await again.refusal()
    assert "the store was emptied" in said
    assert "--replay-from-start" in said
    assert not any((await deployment.folded()).values()), "it counted from zero"

    deployment.start("worker", "--replay-from-start", name="worker-replaying")
    await deployment.at_rest()
    await deployment.stop_roles()

    assert await redis_totals(deployment) == totals
    assert await redis_counters(deployment) == counters
    await check_exact(deployment)


async def test_redis_emptied_under_load_is_noticed_before_anything_is_counted_on_top(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """The cache of a running worker must not write totals back into an emptied store."""
    worker = deployment.start("worker")
    deployment.start("archive")
    stop = asyncio.Event()
    feeding = asyncio.create_task(deployment.feed(traffic(deployment, EVENTS_MAX, SEED), stop, BACKLOG_RECORDS_MAX))
    await deployment.folded_to(dict.fromkeys(deployment.partitions, 60))

    worker.may_refuse = True
    run_valkey(own_valkey.url, "FLUSHALL")
    said = await worker.refusal()
    stop.set()
    await feeding
    assert "--replay-from-start" in said
    assert not await redis_totals(deployment)
    assert not any((await deployment.folded()).values())

    deployment.start("worker", "--replay-from-start", name="worker-replaying")
    await deployment.at_rest()
    await deployment.stop_roles()
    await check_exact(deployment)


async def test_valkey_killed_under_load_and_started_again_changes_no_count(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """The worker cannot know whether its last commit was applied; its restart finds out at the checkpoint."""
    worker = deployment.start("worker")
    deployment.start("archive")
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed_through_outages(deployment, stop))
    for least in (80, 300, 600):
        await folded_at_least(deployment, least)
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
    await folded_at_least(deployment, 900)
    stop.set()
    await feeding
    await deployment.at_rest()
    await deployment.stop_roles()

    await check_exact(deployment)
    assert set(worker.codes) <= {0, 1}, worker.codes


async def feed_through_outages(deployment: Deployment, stop: asyncio.Event) -> None:
    """Append at a steady pace, whatever Redis does."""
    for number, record in enumerate(traffic(deployment, EVENTS_MAX, SEED)):
        if stop.is_set():
            return
        await deployment.append(record)
        if number % 10 == 0:
            await asyncio.sleep(0.05)


async def folded_at_least(deployment: Deployment, records_least: int) -> None:
    """Return once so many records are folded, over all partitions."""

    async def reached() -> bool:
        with contextlib.suppress(Transient):
            return sum((await deployment.folded()).values()) >= records_least
        return False

    await deployment.until(reached, f"{records_least} records folded")


async def test_stores_of_another_deployment_are_refused(
    deployment: Deployment, own_valkey: LocalValkey, tmp_path: Path
) -> None:
    """A swapped address must not add one deployment's usage to another's; both stay what they were."""
    first = [deployment.start("worker"), deployment.start("archive")]
    await deployment.append_all(traffic(deployment, 2_000, SEED))
    await deployment.at_rest()
    await deployment.stop_roles()
    assert all(role.codes == [0] for role in first)

    settings = deployment.settings
    async with Deployment(tmp_path / "other", own_valkey.url, settings.clickhouse_url) as other:
        await other.append_all(traffic(other, 500, SEED + 1))
        said = await other.start("worker").refusal()
        assert f"belongs to log {deployment.base.genesis.log_id}" in said
        assert "TIDEMARK_REDIS_URL" in said
        said = await other.start("archive").refusal()
        assert f"belongs to log {deployment.base.genesis.log_id}" in said
        assert "TIDEMARK_CLICKHOUSE_URL" in said

    rekeyed = deployment.start("worker", name="rekeyed", TIDEMARK_SECRET="another secret of thirty-two chars")
    assert "TIDEMARK_SECRET" in await rekeyed.refusal()
    await check_exact(deployment)
