"""An abandoned rebuild of the live view leaves only rows that a later restatement can replace."""

from __future__ import annotations

import pytest

from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.live_view import LiveViewRebuild
from schemas.rebuild import Progress
from tests.worlds.deployment import SECRET, hourly_relay
from tests.worlds.late_binding import EVE, agrees, bind, deployment, used
from tests.worlds.reconciler import Deployment

LIMITS = RebuildLimits(3, 40, 50)
STOPS = [8, 20, 40, 10_000]


class Stopped(BaseException):
    """The process ends here."""


async def given_up(world: Deployment, looks: int) -> None:
    """A rebuild that ends after so many reads of the account's partition, or just before the swap."""
    partition, left = world.partition(EVE), [looks]

    def progress(at: Progress) -> None:
        left[0] -= at.partition == partition
        if not left[0]:
            raise Stopped

    async def stopped(*_: object) -> bool:
        raise Stopped

    swap = world.store.generations.swap
    world.store.generations.swap = stopped  # type: ignore[method-assign,assignment]  # it never gets that far
    rebuild = LiveViewRebuild(world.log, world.store, world.clickhouse, world.clock, SECRET, LIMITS, progress)
    with pytest.raises(Stopped):
        await rebuild.run()
    world.store.generations.swap = swap  # type: ignore[method-assign]  # as it was
    assert await rebuild.abandon() == 2


async def bound_late() -> Deployment:
    """An account that gets its binding after three hours of usage; the worker continues."""
    world = await deployment()
    worker = hourly_relay(world.store, world.clickhouse)

    async def relay() -> None:
        for partition in range(world.world.partitions):
            await worker.relay(partition)

    world.relay = relay  # type: ignore[method-assign]  # one process for the whole time
    await relay()
    return world


async def restatement(world: Deployment) -> None:
    await bind(world)
    assert await world.restatement() == 1
    await world.settle()


@pytest.mark.parametrize("looks", STOPS)
async def test_restatement_after_the_rebuild_replaces_the_rows_it_wrote(looks: int) -> None:
    """The rows have the live view's generation, and the restatement has a later position."""
    world = await bound_late()
    await given_up(world, looks)

    await restatement(world)
    await agrees(world)
    await used(world, hours=1)
    await world.settle()
    await agrees(world)


@pytest.mark.parametrize("looks", STOPS)
async def test_restatement_before_the_rebuild_is_not_undone_by_the_rows_it_wrote(looks: int) -> None:
    """The rebuild may have ended before it folded the restatement."""
    world = await bound_late()
    await restatement(world)
    await agrees(world)

    await given_up(world, looks)
    await world.settle()
    await agrees(world)
