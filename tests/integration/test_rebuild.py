"""`tidemark rebuild` as an operator types it, killed in the middle, beside real processes under load."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Sequence

import pytest

from pipeline.local.processes import LocalProcess, python
from pipeline.local.valkey import LocalValkey
from pipeline.rebuild.archive import TABLES as ARCHIVE_TABLES
from pipeline.rebuild.hourly import TABLES as HOURLY_TABLES
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.snapshots import ClickHouseSnapshots
from sinks.clickhouse.staging import ClickHouseStaging
from sinks.redis.client import Server
from tests.integration.deployment import ROOT, Deployment, clean_environment, traffic
from tests.integration.exactness import check_exact, redis_counters, redis_totals

BACKLOG_RECORDS_MAX = 30
GENTLE_RECORDS_MAX = 2
KILLS = 3
COMMAND_S = 100


class Command:
    """`tidemark rebuild redis`, or of another view, in the background."""

    numbers = itertools.count()

    def __init__(self, deployment: Deployment, *arguments: str, view: str = "redis") -> None:
        self._process = LocalProcess(
            "tidemark rebuild", python("pipeline.cli", "rebuild", view, "--yes", *arguments),
            deployment.folder / f"rebuild-{next(self.numbers)}.log",
            environment=clean_environment(**deployment.environment), cwd=ROOT,
        )  # fmt: skip
        self._process.start()
        self.signal, self.kill = self._process.signal, self._process.kill

    async def end(self) -> tuple[int, str]:
        """Exit code and output."""
        code = await asyncio.to_thread(self._process.wait, COMMAND_S)
        return code, self._process.output()


async def built_further(deployment: Deployment, before: int) -> int:
    """Once the generation being built has moved on (or has been swapped in): records it holds."""
    reached = before

    async def moved() -> bool:
        nonlocal reached
        built = deployment.store.built(2)
        try:
            checkpoints = [await built.state.load_checkpoint(partition) for partition in deployment.partitions]
        finally:
            await built.close()
        reached = sum(checkpoint.next_offset for checkpoint in checkpoints if checkpoint)
        return reached > before

    await deployment.until(moved, "the rebuild to move on")
    return reached


async def test_redis_is_rebuilt_under_load_through_kills_and_every_view_is_exact(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """kill -9 of the command in the middle, again and again, while the worker folds and the archive archives."""
    worker = deployment.start("worker")
    deployment.start("archive")
    stop = asyncio.Event()
    feeding = asyncio.create_task(deployment.feed(traffic(deployment, 200_000), stop, BACKLOG_RECORDS_MAX))
    await deployment.folded_to(dict.fromkeys(deployment.partitions, 100))

    reached = 0
    for _ in range(KILLS):
        command = Command(deployment, "--no-reconcile")
        reached = await built_further(deployment, reached)
        command.kill()
    code, output = await Command(deployment, "--no-reconcile").end()
    assert code == 0, output
    assert "the live view is generation 2" in output

    ends = await deployment.ends()
    await deployment.folded_to({partition: end + 10 for partition, end in ends.items()})
    stop.set()
    await feeding
    await deployment.at_rest()
    assert worker.starts > 1, "the worker of the old generation was not fenced"
    await deployment.stop_roles()
    await check_exact(deployment)
    server = Server(own_valkey.url)
    kept = [key for key in server.run([("KEYS", "tidemark:*")])[0] if ":generation:2:" not in key]
    server.close()
    of_no_generation = ("tidemark:rebuilder", "tidemark:measured")
    assert all(key.endswith(":generation-live") or key in of_no_generation for key in kept), kept


async def test_emptied_redis_is_rebuilt_by_the_command_to_the_same_counts(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """What the refusing worker tells the operator to do."""
    deployment.start("worker")
    deployment.start("archive")
    await deployment.append_all(traffic(deployment, 6_000))
    await deployment.at_rest()
    await deployment.stop_roles()
    totals, counters = await redis_totals(deployment), await redis_counters(deployment)

    server = Server(own_valkey.url)
    server.run([("FLUSHALL",)])
    server.close()
    code, output = await Command(deployment).end()

    assert code == 0, output
    assert await redis_totals(deployment) == totals
    assert await redis_counters(deployment) == counters
    deployment.start("worker", name="worker-after")
    deployment.start("archive", name="archive-after")
    await deployment.at_rest()
    await deployment.stop_roles()
    await check_exact(deployment)


async def forged_cells(clickhouse: ClickHouse) -> int:
    return int((await clickhouse.rows("SELECT count() FROM usage_hourly WHERE account = 'nobody'"))[0][0])


async def damage(clickhouse: ClickHouse) -> None:
    """Rows that no event ever made, in each table; those of `usage_hourly` look as if a later rebuild had made them."""
    forged = "* REPLACE ('nobody' AS account, bitShiftLeft(toUInt64(1), 62) AS version)"
    await clickhouse.command(f"INSERT INTO usage_hourly SELECT {forged} FROM usage_hourly")
    assert await forged_cells(clickhouse) > 0
    columns = "id, type, source, toUnixTimestamp64Micro(time), data, partition, position + 1"
    for table in ("usage_events", "usage_duplicates"):
        await clickhouse.command(
            f"INSERT INTO {table} (account, id, type, source, time_us, data, partition, position, stream_time_ms) "
            f"SELECT 'nobody', {columns}, toUnixTimestamp64Milli(stream_time) FROM {table}"
        )


@pytest.mark.timeout(240)
async def test_tables_are_rebuilt_under_load_through_kills_and_every_view_is_exact(deployment: Deployment) -> None:
    """Each command is killed with -9 once what it builds is there, and finished by the next one, under load. The
    first one is only stopped: it wakes up when the next one has ended, and changes nothing."""
    deployment.start("worker")
    deployment.start("archive")
    stop = asyncio.Event()
    feeding = asyncio.create_task(deployment.feed(traffic(deployment, 200_000), stop, BACKLOG_RECORDS_MAX))
    await deployment.folded_to(dict.fromkeys(deployment.partitions, 30))
    clickhouse = open_clickhouse(deployment.settings.clickhouse_url)
    staging = ClickHouseStaging(clickhouse)

    async def relayed() -> bool:
        return int((await clickhouse.rows("SELECT count() FROM usage_hourly"))[0][0]) > 0

    await deployment.until(relayed, "cells to be relayed")
    await damage(clickhouse)

    for view, source, tables in (
        ("usage_hourly", "log", HOURLY_TABLES),
        ("archive", "log", ARCHIVE_TABLES),
        ("usage_hourly", "clickhouse", HOURLY_TABLES),
    ):

        async def begun(tables: Sequence[str] = tables) -> bool:
            return await staging.building(tables) is not None

        if view == "archive":
            # From here on a gentle stream: a log that grows faster than it is archived twice keeps the command busy.
            stop.set()
            await feeding
            stop = asyncio.Event()
            gentle = traffic(deployment, 100_000, seed=6)
            feeding = asyncio.create_task(deployment.feed(gentle, stop, GENTLE_RECORDS_MAX))
        command = Command(deployment, "--no-reconcile", "--from", source, view=view)
        await deployment.until(begun, f"{view} to be built")
        overtaken = command if source == "log" and view == "usage_hourly" else None
        if overtaken is None:
            command.kill()
        else:
            overtaken.signal(signal.SIGSTOP)
        code, output = await Command(deployment, "--no-reconcile", "--from", source, view=view).end()
        assert code == 0, output
        assert "swapped in" in output
        assert not await begun()
        if overtaken is not None:
            overtaken.signal(signal.SIGCONT)
            code, output = await overtaken.end()
            assert code == 1, output
            assert "another rebuild command was started after this one" in output

    assert not feeding.done(), "the traffic ended before the last table was exchanged"
    stop.set()
    await feeding
    await clickhouse.close()
    await deployment.at_rest()
    await deployment.stop_roles()
    await check_exact(deployment)


@pytest.mark.timeout(240)
async def test_redis_is_rebuilt_from_a_snapshot_to_the_same_counts(deployment: Deployment) -> None:
    """The worker has kept copies of its state while it counted; the newest is taken in, and the log folded on."""
    deployment.start("worker", TIDEMARK_SNAPSHOT_INTERVAL_H="0.02")
    deployment.start("archive")
    sent = list(traffic(deployment, 2_000))
    await deployment.append_all(sent[: len(sent) // 2])
    clickhouse = open_clickhouse(deployment.settings.clickhouse_url)
    kept = ClickHouseSnapshots(clickhouse)

    async def copied() -> bool:
        return all([await kept.snapshots(partition) for partition in deployment.partitions])

    await deployment.at_rest()
    await deployment.until(copied, "snapshots of all partitions")
    await deployment.append_all(sent[len(sent) // 2 :])
    await deployment.at_rest()
    await deployment.stop_roles()
    totals, counters = await redis_totals(deployment), await redis_counters(deployment)
    await clickhouse.close()

    server = Server(deployment.settings.redis_url)
    server.run([("FLUSHALL",)])
    server.close()
    code, output = await Command(deployment, "--from", "clickhouse").end()

    assert code == 0, output
    assert await redis_totals(deployment) == totals
    assert await redis_counters(deployment) == counters
    worker = deployment.start("worker", "--replay-from-start", name="worker-after")
    deployment.start("archive", name="archive-after")
    await deployment.at_rest()
    assert worker.starts == 1, worker.output()
    await deployment.stop_roles()
    await check_exact(deployment)
