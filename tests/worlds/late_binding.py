"""A deployment with an account that gets its binding after its first usage."""

from __future__ import annotations

from typing import Any

from aggregators.bindings import is_waiting
from reconciler.causes import Cause, Verdict
from schemas.clock import MINUTE_MS
from schemas.log import REPORTS_TOPIC
from schemas.meters import Policy
from schemas.periods import AccountState
from schemas.reports import Intent
from tests.worlds.reconciler import METER_SET, START_MS, Deployment

EVE = "eve"
# In the middle of an hour that has usage on both sides.
CUT_MS = START_MS + 90 * MINUTE_MS
POLICY = Policy()
LOW = {
    "slug": "low", "event_type": "request", "aggregation": "min", "value_path": "$.gb", "scale": 3,
    "stripe_event_name": "low",
}  # fmt: skip


async def used(world: Deployment, hours: int = 3, account: str = EVE) -> None:
    """Emits six events an hour, ten minutes apart, for every meter."""
    for hour in range(hours):
        for step in range(6):
            await world.emit(account, gb=f"{hour + 1}.{step}25", user=f"user-{step % 4}", region=("eu", "us")[step % 2])
            await world.emit(account, type_="seats", seats=10 * hour + step)
            await world.advance(10 * MINUTE_MS)


async def deployment() -> Deployment:
    """Three hours of usage of an account without a binding; the intents are on hold."""
    world = await Deployment().start({**METER_SET, "meters": [*METER_SET["meters"], LOW]})
    world.stripe.add_customer(f"cus_{EVE}")
    await used(world)
    await world.settle()
    return world


async def reached(world: Deployment) -> None:
    """Folds and archives everything in the log."""
    await world.fold()
    await world.archive()


async def bind(world: Deployment, **fields: Any) -> None:
    """Appends the late binding; from here on the account's events wait."""
    asked = {"effective_from_ms": CUT_MS, "anchor_ms": CUT_MS, "stripe_customer": f"cus_{EVE}", **fields}
    await world.bind(EVE, **asked)
    await reached(world)
    assert await world.restatement() == 1
    await reached(world)
    assert is_waiting(await state(world), (await world.checkpoint(EVE)).stream_time_ms)


async def totals(world: Deployment, meter: str, account: str = EVE) -> dict[int, int]:
    """Totals of the account by the start of the period."""
    totals = world.store.server.partitions[world.partition(account)].totals
    by_start = {
        key.period_start_ms: fields[meter]
        for key, fields in totals.items()
        if key.account == account and meter in fields
    }
    return {start_ms: int(text.split(":")[0]) for start_ms, text in sorted(by_start.items())}


def neighbour(world: Deployment) -> str:
    """Another account without a binding, in the same partition."""
    return next(name for name in ("zoe", "zed", "zack", "zita") if world.partition(name) == world.partition(EVE))


async def state(world: Deployment) -> AccountState:
    return await world.store.accounts.account(world.partition(EVE), EVE)


async def agrees(world: Deployment) -> None:
    """Checks that every view agrees, Stripe too; usage before the cut may have no payer."""
    report = await world.reconcile()
    assert report.verdict is Verdict.EQUAL, report.rows
    assert {(row.account, row.cause) for row in report.rows} <= {(EVE, Cause.UNKNOWN_CUSTOMER)}


async def intents(world: Deployment) -> list[Intent]:
    records = await world.log.read(REPORTS_TOPIC, world.partition(EVE), 0, 10_000)
    published = [
        Intent.model_validate_json(each.value or b"") for each in records if b'"kind":"intent"' in (each.value or b"")
    ]
    return [each for each in published if each.account == EVE]
