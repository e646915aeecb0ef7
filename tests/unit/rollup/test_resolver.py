"""The resolver decides once the archive has passed an event, and never if the archive cannot know."""

from __future__ import annotations

import pytest

from pipeline.rollup.resolver import Resolved, Resolver
from schemas.clock import DAY_MS
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import NOVEMBER_MS, late, settled

EARLY_MS = NOVEMBER_MS + DAY_MS


async def test_resolver_waits_for_the_archive_and_appends_each_decision_once() -> None:
    """Before the archive has passed the event, an earlier arrival may still appear."""
    deployment = await settled()
    resolver = Resolver(
        deployment.log, deployment.store.deferred, deployment.store.accounts, deployment.clickhouse, SECRET
    )
    partition = deployment.partition("ada")
    await late(deployment, EARLY_MS)
    await deployment.fold()

    assert await resolver.resolve(partition) == Resolved()
    await deployment.archive()
    assert await resolver.resolve(partition) == Resolved(new=1)
    assert await resolver.resolve(partition) == Resolved()
    await deployment.fold()
    assert await deployment.store.deferred.deferred(partition, 10) == ((await deployment.checkpoint("ada")), [])


async def test_resolver_waits_for_a_fold_that_lags_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's memory is bounded. An event that the archive lost gets no decision and blocks no other."""
    monkeypatch.setattr("pipeline.rollup.resolver.DECISIONS_MAX", 2)
    monkeypatch.setattr("pipeline.rollup.resolver.TOLD_MAX", 5)
    deployment = await settled()
    resolver = Resolver(
        deployment.log, deployment.store.deferred, deployment.store.accounts, deployment.clickhouse, SECRET
    )
    partition = deployment.partition("ada")
    late_ones = [await late(deployment, EARLY_MS + number) for number in range(9)]
    await deployment.fold()
    await deployment.archive()
    lost = deployment.clickhouse.events.pop(("ada", late_ones[0]))
    given = []
    for _ in range(6):
        given.append((await resolver.resolve(partition)).new)
        await deployment.fold()

    assert sum(given) == 8
    assert max(given) <= 5
    _, left = await deployment.store.deferred.deferred(partition, 10)
    assert [each.position for each in left] == [lost.position]


async def test_event_that_the_archive_had_lost_is_judged_after_its_rebuild() -> None:
    """By the same worker, which does not remember for ever that the event was missing."""
    deployment = await settled()
    resolver = Resolver(
        deployment.log, deployment.store.deferred, deployment.store.accounts, deployment.clickhouse, SECRET
    )
    partition = deployment.partition("ada")
    identity = "ada", await late(deployment, EARLY_MS)
    await deployment.fold()
    await deployment.archive()
    row = deployment.clickhouse.events.pop(identity)
    assert await resolver.resolve(partition) == Resolved()

    deployment.clickhouse.events[identity] = row
    deployment.clickhouse.rebuilt = 1
    assert await resolver.resolve(partition) == Resolved(new=1)


async def test_archive_of_another_log_gives_no_decision() -> None:
    """Such an archive knows other events."""
    deployment = await settled()
    partition = deployment.partition("ada")
    await late(deployment, EARLY_MS)
    await deployment.fold()
    await deployment.archive()
    deployment.clickhouse.archived[partition] = deployment.clickhouse.archived[partition]._replace(log_id="another")

    assert await deployment.resolve() == 0
