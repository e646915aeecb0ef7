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
    made = await settled()
    resolver = Resolver(made.log, made.store.deferred, made.store.accounts, made.clickhouse, SECRET)
    at = made.partition("ada")
    await late(made, EARLY_MS)
    await made.fold()

    assert await resolver.resolve(at) == Resolved()
    await made.archive()
    assert await resolver.resolve(at) == Resolved(new=1)
    assert await resolver.resolve(at) == Resolved()
    await made.fold()
    assert await made.store.deferred.deferred(at, 10) == ((await made.checkpoint("ada")), [])


async def test_resolver_waits_for_a_fold_that_lags_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's memory is bounded. An event that the archive lost gets no decision and blocks no other."""
    monkeypatch.setattr("pipeline.rollup.resolver.DECISIONS_MAX", 2)
    monkeypatch.setattr("pipeline.rollup.resolver.TOLD_MAX", 5)
    made = await settled()
    resolver = Resolver(made.log, made.store.deferred, made.store.accounts, made.clickhouse, SECRET)
    at = made.partition("ada")
    late_ones = [await late(made, EARLY_MS + number) for number in range(9)]
    await made.fold()
    await made.archive()
    lost = made.clickhouse.events.pop(("ada", late_ones[0]))
    given = []
    for _ in range(6):
        given.append((await resolver.resolve(at)).new)
        await made.fold()

    assert sum(given) == 8
    assert max(given) <= 5
    _, left = await made.store.deferred.deferred(at, 10)
    assert [each.position for each in left] == [lost.position]


async def test_event_that_the_archive_had_lost_is_judged_after_its_rebuild() -> None:
    """By the same worker, which does not remember for ever that the event was missing."""
    made = await settled()
    resolver = Resolver(made.log, made.store.deferred, made.store.accounts, made.clickhouse, SECRET)
    at = made.partition("ada")
    identity = "ada", await late(made, EARLY_MS)
    await made.fold()
    await made.archive()
    row = made.clickhouse.events.pop(identity)
    assert await resolver.resolve(at) == Resolved()

    made.clickhouse.events[identity] = row
    made.clickhouse.rebuilt = 1
    assert await resolver.resolve(at) == Resolved(new=1)


async def test_archive_of_another_log_gives_no_decision() -> None:
    """Such an archive knows other events."""
    made = await settled()
    at = made.partition("ada")
    await late(made, EARLY_MS)
    await made.fold()
    await made.archive()
    made.clickhouse.archived[at] = made.clickhouse.archived[at]._replace(log_id="another")

    assert await made.resolve() == 0
