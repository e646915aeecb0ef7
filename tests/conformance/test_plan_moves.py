"""Moving subscriptions to another version of their plan: SQL's fake and PostgreSQL, and the simulator over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import pytest
import pytest_asyncio

from aggregators.mirror import mirror_rows
from pipeline.commands.catalog import Parts as CatalogParts
from pipeline.commands.catalog import apply_plan, plan_content, users_of, users_text
from pipeline.commands.plan_moves import (
    KEY_LASTS_MS,
    Parts,
    Preview,
    migrate,
    preview,
    preview_document,
    preview_lines,
    versions_of,
)
from schemas.billing_events import ObjectKind, StripeEvent, Via
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from schemas.meters import MeterSet
from schemas.side_tables import Arrived, Fetched, SideTables, Step
from sinks.sql.side_tables import SqlSideTables
from sinks.stripe.catalog import StripeClientCatalog
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.schedules import StripeClientSchedules
from stripe_simulator import Fault, FaultKind
from tests.services.stripe import TEST_KEY, ServedSimulator
from tests.services.stripe_sdk import Sdk
from tests.unit.catalog.files import SMALL, changed
from tests.worlds.ending import Ending, Ends

ONE, TWO = PlanId("team", 1), PlanId("team", 2)
SECOND = (
    changed("  team:\n    version: 1", "  team:\n    version: 2")
    .replace("version: 1\nmeters", "version: 2\nmeters")
    .replace('usd: "10.00"', 'usd: "12.00"')
    .replace("tokens: 9000", "tokens: 8000")
)
CHEAPER, DEARER = (f"usd, graduated: 0.00 up to 2, {amount} beyond" for amount in ("10.00", "12.00"))


def is_writing(name: str) -> bool:
    """Whether a call of a store changes something."""
    return name in ("intend", "sent", "settle", "create", "plan", "release")


class World:
    """A deployment whose plan has two versions, with subscriptions to the first."""

    def __init__(self, tables: SideTables, served: ServedSimulator) -> None:
        self.tables = cast("SqlSideTables", tables)
        self.simulator, self.clock, self.url = served.simulator, served.clock, served.url
        self.sdk = Sdk(served.simulator, served.clock)
        self.stripe = StripeClientSchedules(TEST_KEY, served.url, timeout_s=2)
        self.log: list[MeterSet] = []

    def parts(self, countdown: list[int] | None = None, *, after: bool = False) -> Parts:
        def ending(inner: Any) -> Any:
            return Ending(inner, countdown, is_writing, after=after) if countdown else inner

        moves, stripe = ending(self.tables.plan_moves), ending(self.stripe)
        return Parts(self.clock, self.tables.catalog, moves, stripe, "test:acct_1")

    async def apply(self, text: str) -> None:
        """Plan and apply a catalog file."""

        async def meter_set() -> MeterSet | None:
            return self.log[-1] if self.log else None

        async def append(meter_set: MeterSet) -> None:
            self.log.append(meter_set)

        objects = StripeClientCatalog(TEST_KEY, self.url, scope="test:acct_1", nonce="n", sleep=self.clock.sleep)
        meters = StripeClientMeters(TEST_KEY, self.url, nonce="n")
        parts = CatalogParts(self.clock, self.tables.catalog, objects, meters, meter_set, append)
        plan = (await plan_content(parts, text.encode())).plan
        assert plan is not None
        assert await apply_plan(parts, plan, "anna", "because", lambda _: None)
        await objects.close()
        await meters.close()

    async def price(self, key: str) -> str:
        return (await self.tables.catalog.standing()).records[CatalogKind.PRICE, key].stripe_id

    async def subscribe(self, account: str, seats: int = 3, **params: Any) -> str:
        """A customer with a card who subscribes to the first version."""
        customer = (await self.sdk("v1.customers.create", {}))["id"]
        method = await self.sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": customer})
        settings = {"invoice_settings": {"default_payment_method": method["id"]}}
        await self.sdk("v1.customers.update", customer, settings)
        items = [
            {"price": await self.price("tm.team.v1.seat.month.usd"), "quantity": seats},
            {"price": await self.price("tm.team.v1.tokens.month.usd")},
        ]
        made = await self.sdk("v1.subscriptions.create", {"customer": customer, "items": items, **params})
        await self.tables.link(account, customer, 0, "ann", "", self.clock.ms)
        await self.mirror()
        return str(made["id"])

    async def mirror(self) -> None:
        """What the role mirror does: everything is fetched again."""
        fetched = []
        for kind in (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE):
            names = [name for name, _ in await self.stripe.names(kind)]
            seqs = await self.tables.fetch_seqs(names)
            fetched += [Fetched(name, seqs[name], mirror_rows(name, await self.stripe.fetch(name))) for name in names]
        offset = await self.tables.position(0) or 0
        events = [
            Arrived(StripeEvent(f"e{offset}_{n}", "read", self.clock.ms // 1_000, "", (each.name,)), Via.RESYNC, offset)
            for n, each in enumerate(fetched)
        ]
        await self.tables.commit(Step(0, offset, offset + 1, self.clock.ms, events, fetched))

    async def preview(self) -> Preview:
        return await preview(self.parts(), ONE, TWO)

    async def migrate(self, parts: Parts | None = None) -> tuple[Mapping[str, int], list[str]]:
        told: list[str] = []
        parts = parts or self.parts()
        return await migrate(parts, await preview(parts, ONE, TWO), "anna", "prices rise", told.append), told

    async def schedules(self) -> list[dict[str, Any]]:
        return list((await self.sdk("v1.subscription_schedules.list", {}))["data"])

    async def prices_of(self, subscription: str) -> set[tuple[str, int | None]]:
        """The lookup keys of a subscription's prices with their quantities."""
        body = await self.sdk("v1.subscriptions.retrieve", subscription)
        return {(row["price"]["lookup_key"], row.get("quantity")) for row in body["items"]["data"]}


@pytest_asyncio.fixture
async def world(side_tables: SideTables, served_simulator: ServedSimulator) -> AsyncIterator[World]:
    """Two versions of the plan, of which the second one is sold."""
    world = World(side_tables, served_simulator)
    await world.apply(SMALL)
    yield world
    await world.stripe.close()
    await world.sdk.close()


async def moved_world(world: World, **params: Any) -> str:
    """A subscription to the first version, and then the second version."""
    subscription = await world.subscribe("acme", **params)
    await world.apply(SECOND)
    return subscription


OLD = {("tm.team.v1.seat.month.usd", 3), ("tm.team.v1.tokens.month.usd", None)}
NEW = {("tm.team.v2.seat.month.usd", 3), ("tm.team.v2.tokens.month.usd", None)}


async def test_a_preview_says_who_is_touched_and_who_loses_what(world: World) -> None:
    subscription = await moved_world(world)
    found = await world.preview()

    assert [
        "less: tokens: 9000, then 8000",
        f"price: seat month usd: {CHEAPER}, then {DEARER}",
    ] == preview_lines(found)[:2]
    assert preview_lines(found)[2].startswith(f"{subscription}  acme: would move at 20")
    (planned,) = preview_document(found)["planned"]
    assert {"subscription": subscription, "account": "acme", "hindrance": "", "is_scheduled": False}.items() <= (
        planned.items()
    )
    assert [] == await world.schedules()


async def test_a_subscription_moves_at_its_renewal(world: World) -> None:
    """Until then it is as it was; after it the schedule lets go."""
    subscription = await moved_world(world)
    ends, told = await world.migrate()
    await world.mirror()
    again, _ = await world.migrate()

    assert ({"scheduled": 1}, {"scheduled before": 1}) == (ends, again)
    _, users = await users_of(world.tables.catalog)
    assert {ONE: "1 subscription", TWO: "1 scheduled"} == {plan: users_text(each) for plan, each in users.items()}
    assert told[0].startswith(f"{subscription}: moves at 20")
    assert await world.prices_of(subscription) == OLD
    world.clock.ms += 32 * DAY_MS
    world.simulator.catch_up()
    assert await world.prices_of(subscription) == NEW
    world.clock.ms += 32 * DAY_MS
    world.simulator.catch_up()
    assert ["released"] == [schedule["status"] for schedule in await world.schedules()]
    assert await world.prices_of(subscription) == NEW
    await world.mirror()
    assert [] == (await world.preview()).planned


async def test_the_audit_says_who_and_why(world: World) -> None:
    await moved_world(world)
    await world.migrate()
    rows = [row for row in await world.tables.audit("acme") if row.entity == "plan_move"]

    assert [("anna", "prices rise"), ("stripe", "")] == [(row.actor, row.reason) for row in rows]
    assert '"team@1"' in str(rows[0].before)
    assert '"team@2"' in str(rows[0].after)
    assert '"scheduled"' in str(rows[1].after)


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it acted"])
async def test_a_migration_that_ends_at_any_call_goes_on(world: World, after: bool) -> None:
    """Each run goes one call further than the one before; nothing is made twice."""
    await world.subscribe("globex", seats=5)
    subscription = await moved_world(world)
    ends, is_done = 0, False
    while not is_done:
        try:
            await world.migrate(world.parts([ends + 1], after=after))
            is_done = True
        except Ends:
            ends += 1
            if ends % 3 == 0:
                await world.mirror()

    # Of each subscription the intent, the note that Stripe is asked, two calls, and the end.
    assert ends >= 5
    schedules = await world.schedules()
    assert [2, 2] == [len(schedule["phases"]) for schedule in schedules]
    world.clock.ms += 32 * DAY_MS
    world.simulator.catch_up()
    assert await world.prices_of(subscription) == NEW
    assert 1 == len([row for row in await world.tables.audit("acme") if row.entity == "plan_move" and row.reason])


async def test_an_answer_that_is_lost_makes_no_second_schedule(world: World) -> None:
    await moved_world(world)
    world.simulator.faults.add(
        Fault(FaultKind.CONNECTION_DROPPED_AFTER_COMMIT, count=1, path="/v1/subscription_schedules")
    )
    with pytest.raises(Transient):
        await world.migrate()
    await world.mirror()

    assert {"scheduled": 1} == (await world.migrate())[0]
    assert 1 == len(await world.schedules())


async def test_a_schedule_of_somebody_else_stays(world: World) -> None:
    """Also one that was made after the mirror was read, and one that was begun a day ago under a key that is gone."""
    subscription = await moved_world(world)
    theirs = await world.sdk("v1.subscription_schedules.create", {"from_subscription": subscription})
    unseen = await world.migrate()
    await world.mirror()
    seen = await world.preview()
    assert ({"not movable": 1}, True) == (unseen[0], f"has the schedule {theirs['id']}" in unseen[1][0])
    assert f"has the schedule {theirs['id']}: release it" in seen.planned[0].hindrance
    assert [1] == [len(schedule["phases"]) for schedule in await world.schedules()]

    await world.sdk("v1.subscription_schedules.release", theirs["id"], {})
    await world.mirror()
    with pytest.raises(Ends):
        await world.migrate(world.parts([3], after=True))
    world.clock.ms += KEY_LASTS_MS
    assert {"not movable": 1} == (await world.migrate())[0]


async def test_a_move_whose_schedule_was_released_can_be_made_again(world: World) -> None:
    """Under another number, so that Stripe does not repeat the old answer."""
    await moved_world(world)
    await world.migrate()
    (first,) = await world.schedules()
    await world.sdk("v1.subscription_schedules.release", first["id"], {})
    await world.mirror()

    assert {"scheduled": 1} == (await world.migrate())[0]
    assert ["active", "released"] == sorted(schedule["status"] for schedule in await world.schedules())


async def test_who_cannot_be_moved_is_named(world: World) -> None:
    ending = await world.subscribe("ending")
    await world.sdk("v1.subscriptions.update", ending, {"cancel_at_period_end": True})
    await world.mirror()
    await world.apply(SECOND)
    found = {each.subscribed.id: each.hindrance for each in (await world.preview()).planned}

    assert "is about to be canceled" in found[ending]
    assert {"not movable": 1} == (await world.migrate())[0]
    assert [] == await world.schedules()


async def test_a_trial_lasts_and_the_first_payment_is_that_of_the_new_version(world: World) -> None:
    subscription = await moved_world(world, trial_period_days=14)
    ends, _ = await world.migrate()
    during = await world.sdk("v1.subscriptions.retrieve", subscription)
    world.clock.ms += 15 * DAY_MS
    world.simulator.catch_up()
    paid = await world.sdk("v1.subscriptions.retrieve", subscription)

    assert ({"scheduled": 1}, "trialing", "active") == (ends, during["status"], paid["status"])
    assert during["trial_end"] == paid["billing_cycle_anchor"]
    assert await world.prices_of(subscription) == NEW
    invoices = (await world.sdk("v1.invoices.list", {"subscription": subscription}))["data"]
    assert [1_200, 0] == [invoice["total"] for invoice in invoices]


async def test_a_discount_and_automatic_tax_go_on(world: World) -> None:
    """Of three months of a discount, two are left at the renewal, and the third invoice after it is in full."""
    coupon = {"percent_off": 50, "duration": "repeating", "duration_in_months": 3}
    made = await world.sdk("v1.coupons.create", coupon)
    subscription = await moved_world(world, discounts=[{"coupon": made["id"]}], automatic_tax={"enabled": True})
    before = await world.sdk("v1.subscriptions.retrieve", subscription)
    ends, _ = await world.migrate()
    for _ in range(3):
        world.clock.ms += 31 * DAY_MS
        world.simulator.catch_up()
    after = await world.sdk("v1.subscriptions.retrieve", subscription)

    assert {"scheduled": 1} == ends
    assert 1 == len(before["discounts"])
    assert after["automatic_tax"]["enabled"]
    invoices = (await world.sdk("v1.invoices.list", {"subscription": subscription}))["data"]
    assert [1_200, 600, 600, 500] == [invoice["total_excluding_tax"] for invoice in invoices]
    assert {True} == {invoice["automatic_tax"]["enabled"] for invoice in invoices}


async def test_what_stripe_says_at_the_call_counts(world: World) -> None:
    """The mirror is behind: the customer has canceled meanwhile."""
    subscription = await moved_world(world)
    await world.sdk("v1.subscriptions.update", subscription, {"cancel_at_period_end": True})
    ends, told = await world.migrate()

    assert ({"not movable": 1}, [f"{subscription}: is about to be canceled"]) == (ends, told)
    assert [] == await world.schedules()
    last = (await world.tables.plan_moves.last([subscription]))[subscription]
    assert ("given_up", "is about to be canceled") == (last.state.value, last.detail)


async def test_a_cancellation_between_two_calls_is_kept(world: World) -> None:
    """The process ended when the schedule was made and not filled; then somebody had the schedule end it."""
    await moved_world(world)
    with pytest.raises(Ends):
        await world.migrate(world.parts([3], after=True))
    (made,) = await world.schedules()
    await world.sdk("v1.subscription_schedules.update", made["id"], {"end_behavior": "cancel"})
    ends, told = await world.migrate()

    assert ({"not movable": 1}, True) == (ends, told[0].endswith("is about to be canceled"))
    assert [("active", "cancel")] == [(each["status"], each["end_behavior"]) for each in await world.schedules()]


async def test_a_schedule_that_cannot_be_filled_is_released(world: World) -> None:
    await moved_world(world)
    (price,) = [await world.price("tm.team.v2.seat.month.usd")]
    world.simulator.test.store.remove("price", price)
    ends, _ = await world.migrate()

    assert {"not movable": 1} == ends
    assert ["released"] == [schedule["status"] for schedule in await world.schedules()]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [("team@1", "2", (ONE, TWO)), ("team@1", "team@2", (ONE, TWO)), ("team", "2", None), ("team@1", "gold@2", None),
     ("@1", "2", None), ("team@1", "x", None)],
)  # fmt: skip
def test_versions_are_written_so(source: str, target: str, expected: tuple[PlanId, PlanId] | None) -> None:
    if expected is not None:
        assert expected == versions_of(source, target)
    else:
        with pytest.raises(InvalidInput, match="essential@4 5"):
            versions_of(source, target)


async def test_another_version_of_the_same_plan_is_needed(world: World) -> None:
    refusals: Sequence[tuple[PlanId, PlanId, str]] = (
        (ONE, PlanId("team", 9), "there is no plan team@9"),
        (ONE, ONE, "another version of the same plan"),
        (PlanId("boost", 1), PlanId("boost", 1), "there is no plan boost@1"),
        (ONE, PlanId("free", 1), "another version of the same plan"),
    )
    for source, target, words in refusals:
        with pytest.raises(InvalidInput, match=words):
            await preview(world.parts(), source, target)


async def test_a_limited_migration_goes_on_with_the_next_ones(world: World) -> None:
    made = [await world.subscribe(f"account-{each}") for each in range(3)]
    await world.apply(SECOND)
    ends = []
    for _ in range(3):
        found = await preview(world.parts(), ONE, TWO, 2)
        ends.append((dict(await migrate(world.parts(), found, "anna", "prices rise", lambda _: None)), found.is_cut))
        await world.mirror()
    assert ends == [
        ({"scheduled": 2}, True), ({"scheduled before": 2, "scheduled": 1}, False), ({"scheduled before": 3}, False),
    ]  # fmt: skip
    assert {each.subscribed.id for each in (await world.preview()).planned if each.is_scheduled} == set(made)
