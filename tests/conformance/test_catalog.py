"""Planning and applying a catalog: SQL's fake and PostgreSQL, and the simulator of Stripe over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from aggregators.catalog_prices import all_prices
from pipeline.commands.catalog import (
    Parts,
    apply_plan,
    load_plan,
    plan_content,
    plan_document,
    plan_lines,
    save_plan,
)
from schemas.billing_events import ObjectKind, ObjectName
from schemas.catalog import PlanId
from schemas.catalog_changes import (
    AtStripe,
    CatalogKind,
    CatalogPlan,
    CatalogStore,
    Pin,
    PlanState,
    StripeProduct,
)
from schemas.errors import InvalidInput, Transient
from schemas.meters import MeterSet
from schemas.side_tables import Fetched, Row, SideTables
from sinks.sql.side_tables import SqlSideTables
from sinks.stripe.catalog import ATTEMPTS_MAX, StripeClientCatalog
from sinks.stripe.client import StripeClientMeters
from stripe_simulator import Fault, FaultKind
from tests.conformance.side_table_steps import event, step
from tests.services.stripe import TEST_KEY, ServedSimulator
from tests.services.stripe_sdk import Sdk
from tests.unit.catalog.files import OFFERING, SMALL, catalog_of, changed
from tests.worlds.ending import Ending, Ends

SEAT = "tm.team.v1.seat.month.usd"
DEARER = changed("  team:\n    version: 1", "  team:\n    version: 2").replace('usd: "10.00"', 'usd: "12.00"')


READING = ("standing", "subscriptions_by_price", "read", "attached", "coupon")


def is_writing(name: str) -> bool:
    """Whether a call of a store changes something."""
    return name not in READING


class World:
    """A deployment that applies catalogs: its stores, the log's meter sets, and what a person says."""

    def __init__(self, tables: SideTables, served: ServedSimulator) -> None:
        self.tables = tables
        self.store: CatalogStore = cast("SqlSideTables", tables).catalog
        self.clock = served.clock
        self.url = served.url
        self.objects = self.another("n")
        self.meters = StripeClientMeters(TEST_KEY, served.url, nonce="n", timeout_s=2)
        self.log: list[MeterSet] = []

    def another(self, nonce: str) -> StripeClientCatalog:
        """The client of another process."""
        return StripeClientCatalog(
            TEST_KEY, self.url, scope="test:acct_1", nonce=nonce, timeout_s=2, sleep=self.clock.sleep
        )

    def parts(self, countdown: list[int] | None = None, *, after: bool = False) -> Parts:
        """What the commands get; with a countdown, the process ends at a call."""

        def ending(inner: Any) -> Any:
            return Ending(inner, countdown, is_writing, after=after) if countdown else inner

        return Parts(
            self.clock,
            ending(self.store),
            ending(self.objects),
            ending(self.meters),
            self.meter_set,
            ending(self).apply,
        )

    async def meter_set(self) -> MeterSet | None:
        """The meter set in force."""
        return self.log[-1] if self.log else None

    async def apply(self, meter_set: MeterSet) -> None:
        """Append a meter set to the log."""
        self.log.append(meter_set)

    async def plan(self, text: str, *, in_place: bool = False) -> CatalogPlan:
        """The plan of a file that is right."""
        checked = await plan_content(self.parts(), text.encode(), in_place=in_place)
        assert checked.plan is not None, checked.problems
        return checked.plan

    async def apply_file(self, text: str, version: int = 1) -> None:
        """Plan and apply a file under a version."""
        plan = await self.plan(text.replace("version: 1\nmeters", f"version: {version}\nmeters"))
        assert [] == plan.refusals
        assert await apply_plan(self.parts(), plan, "anna", "because", lambda _: None)

    async def subscribe(self, *prices: str, number: int = 1, status: str = "active") -> None:
        """A subscription of the mirror."""
        name = ObjectName(ObjectKind.SUBSCRIPTION, f"sub_{number}")
        row: Row = {"id": name.id, "customer_id": f"cus_{number}", "status": status, "deleted": 0}
        items: list[Row] = [
            {"id": f"si_{number}_{index}", "subscription_id": name.id, "price_id": price}
            for index, price in enumerate(prices)
        ]
        fetched = Fetched(name, 0, {"subscriptions": [row], "subscription_items": items})
        offset = await self.tables.position(0) or 0
        arrived = [event(number, name, customer=f"cus_{number}")]
        await self.tables.commit(step(offset, arrived, [fetched]))


@pytest_asyncio.fixture
async def world(side_tables: SideTables, served_simulator: ServedSimulator) -> AsyncIterator[World]:
    """An empty deployment and an empty Stripe account."""
    world = World(side_tables, served_simulator)
    yield world
    await world.objects.close()
    await world.meters.close()


def ours(stripe: AtStripe) -> tuple[Any, ...]:
    """What an application makes at Stripe, without the ids that Stripe chooses."""
    return (
        sorted(stripe.meters), sorted(stripe.products.values()), sorted(stripe.features),
        sorted((price.key, price.terms, price.is_active) for price in stripe.prices.values()),
    )  # fmt: skip


async def test_an_application_makes_the_objects_once(world: World) -> None:
    """What was applied is what a second plan finds."""
    await world.apply_file(SMALL)

    again = await world.plan(SMALL)
    stripe = await world.objects.read()
    assert ([], [], []) == (again.actions, again.refusals, again.drift)
    assert 5 == len(stripe.prices)
    assert frozenset({"sso"}) == await world.objects.attached("tm-team-v1-seat")
    assert [1] == [meter_set.version for meter_set in world.log]
    assert not await apply_plan(world.parts(), again, "anna", "again", lambda _: None)


async def test_a_new_price_is_for_who_signs_up_and_who_has_the_old_one_keeps_it(world: World) -> None:
    """Pinned by price id: the old customer's grants are those of the old version, for ever."""
    await world.apply_file(SMALL)
    old = (await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id
    await world.subscribe(old, number=1)
    await world.apply_file(DEARER, version=2)
    new = (await world.store.standing()).records[CatalogKind.PRICE, SEAT.replace("v1", "v2")].stripe_id
    await world.subscribe(new, number=2)

    standing = await world.store.standing()
    stripe = await world.objects.read()
    pins = standing.pins()
    assert (Pin(PlanId("team", 1), "seat"), Pin(PlanId("team", 2), "seat")) == (pins[old], pins[new])
    assert ("1000", "1200") == (stripe.prices[old].terms.tiers[-1].unit_minor, stripe.prices[new].terms.tiers[-1][1])
    assert (PlanState.CLOSED, PlanState.OPEN) == tuple(standing.plans[pins[id_].plan].state for id_ in (old, new))
    assert stripe.prices[old].is_active
    assert 9000 == standing.sold()[pins[old].plan].grants["tokens"]
    assert {"team@1": 1, "team@2": 1} == (await world.plan(DEARER.replace("version: 1\n", "version: 3\n", 1))).touched
    assert standing.catalog is not None
    assert (2, "anna", "because") == (standing.catalog.version, standing.applied_by, standing.reason)


async def test_another_currency_of_an_add_on_is_a_price_more(world: World) -> None:
    """Who has the add-on keeps its price, and the version is sold in both."""
    await world.apply_file(SMALL)
    boost = PlanId("boost", 1)
    key = "tm.boost.v1.addon.month.usd"
    old = (await world.store.standing()).records[CatalogKind.PRICE, key]
    more = changed('{usd: "5.00"}', '{usd: "5.00", jpy: 700}')
    await world.apply_file(more, version=2)

    standing, stripe = await world.store.standing(), await world.objects.read()
    new = standing.records[CatalogKind.PRICE, key.replace("usd", "jpy")]
    assert (old, "jpy", boost) == (standing.records[CatalogKind.PRICE, key], new.currency, new.plan)
    assert ("500", "700") == tuple(stripe.prices[each.stripe_id].terms.unit_minor for each in (old, new))
    assert catalog_of(more).addons["boost"] == standing.plans[boost].sold
    again = await world.plan(more.replace("version: 1\nmeters", "version: 2\nmeters"))
    assert ([], [], []) == (again.actions, again.refusals, again.drift)


async def test_a_meter_that_was_made_again_bills_nothing_through_the_old_prices(
    world: World, served_simulator: ServedSimulator
) -> None:
    """Stripe's prices name the meter by its id. Somebody deactivated it, and made one of the same event name."""
    await world.apply_file(SMALL)
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    old = (await world.objects.read()).meters["tm_tokens"].id
    await sdk("v1.billing.meters.deactivate", old, {})
    params = {"display_name": "Tokens", "event_name": "tm_tokens", "default_aggregation": {"formula": "sum"}}
    new = (await sdk("v1.billing.meters.create", params))["id"]
    await sdk.close()

    plan = await world.plan(SMALL)

    assert f"meter tm_tokens is {new}, and was {old}: the prices of the old one bill no usage" in plan.drift
    assert 2 == len([line for line in plan.drift if f"event_name tm_tokens → {old}" in line])
    assert "a price never changes: raise the version of team to 2" in plan.refusals[0]


async def test_a_person_reads_what_will_be_done_and_who_is_touched(world: World) -> None:
    await world.apply_file(SMALL)
    await world.subscribe((await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id)

    plan = await world.plan(DEARER.replace("version: 1\n", "version: 2\n", 1))

    lines = plan_lines(plan)
    assert "+ product tm-team-v2-seat: Team: seat" == lines[0]
    assert "+ feature sso on tm-team-v2-seat" in lines
    assert "+ price tm.team.v2.seat.month.usd: usd, graduated: 0.00 up to 2, 12.00 beyond" in lines
    assert "+ price tm.team.v2.tokens.month.jpy: jpy, graduated: 0 up to 5000, 0.0006 beyond" in lines
    end = lines.index("team@2 gives (before: team@1):")
    assert ["+ plan team@2: sold from now on", "~ plan team@1: sold no more, kept by its subscriptions"] == lines[
        end - 2 : end
    ]
    assert "team@1: 1 subscription" == lines[-1]
    document = json.loads(json.dumps(plan_document(plan)))
    assert (2, {"team@1": 1}) == (document["catalog"], document["touched"])
    assert {"verb": "close", "what": "plan", "key": "team@1"}.items() <= document["actions"][-1].items()


async def test_prices_of_a_version_that_nobody_has_any_more_are_archived(world: World) -> None:
    await world.apply_file(SMALL)
    old = (await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id
    await world.subscribe(old, number=1, status="canceled")

    await world.apply_file(DEARER, version=2)

    stripe = await world.objects.read()
    assert not stripe.prices[old].is_active
    assert not stripe.products["tm-team-v1-seat"].is_active
    assert PlanState.RETIRED is (await world.store.standing()).plans[PlanId("team", 1)].state
    assert [] == (await world.plan(DEARER.replace("version: 1\n", "version: 2\n", 1))).drift


@pytest.mark.parametrize(
    ("status", "state"), [("active", PlanState.CLOSED), ("released", PlanState.RETIRED)], ids=["planned", "given up"]
)
async def test_a_price_that_a_schedule_will_need_is_not_archived(world: World, status: str, state: PlanState) -> None:
    """A downgrade at the period's end was planned before the plan had another version."""
    await world.apply_file(SMALL)
    price = (await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id
    name = ObjectName(ObjectKind.SCHEDULE, "sub_sched_1")
    phases = json.dumps([{"prices": [{"price": "price_x"}]}, {"prices": [{"price": price, "quantity": 1}]}])
    row: Row = {"id": name.id, "customer_id": "cus_1", "subscription_id": "sub_1", "status": status, "deleted": 0}
    fetched = Fetched(name, 0, {"subscription_schedules": [{**row, "phases_json": phases}]})
    await world.tables.commit(step(0, [event(1, name)], [fetched]))

    await world.apply_file(DEARER, version=2)

    assert state is (await world.store.standing()).plans[PlanId("team", 1)].state
    assert (state is PlanState.CLOSED) == (await world.objects.read()).prices[price].is_active


async def test_the_audit_says_who_and_why(world: World) -> None:
    await world.apply_file(SMALL)
    await world.apply_file(DEARER, version=2)

    first, second = await world.tables.audit("")
    assert ("anna", "because", "catalog", "1", None) == (first.actor, first.reason, *first[5:8])
    assert second.before is not None
    assert second.after is not None
    assert '"version":1' in second.before
    assert '"team@1":"retired","team@2":"open"' in second.after.replace(" ", "")


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it acted"])
async def test_an_application_that_ends_at_any_call_goes_on(
    world: World, served_simulator: ServedSimulator, after: bool
) -> None:
    """Each run writes once and ends: what it leaves is what the next one goes on from, and nothing is made twice."""
    await world.apply_file(SMALL)
    await world.subscribe((await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id)
    plan = await world.plan(DEARER.replace("version: 1\n", "version: 2\n", 1))
    ends, is_done = 0, False
    while not is_done:
        # Each run notes that it begins, and goes one call further than the run before.
        countdown = min(ends + 1, 2 if after else 3)
        try:
            await apply_plan(world.parts([countdown], after=after), plan, "anna", "because", lambda _: None)
            is_done = True
        except Ends:
            ends += 1
            assert (await world.store.standing()).sha256 in (plan.base, plan.sha256)

    # Two transactions, two products, an attachment, and four prices.
    assert 9 == ends
    keys = [price.key for price in (await world.objects.read()).prices.values()]
    assert 9 == len(keys) == len(set(keys))
    again = await world.plan(DEARER.replace("version: 1\n", "version: 2\n", 1))
    assert ([], [], []) == (again.actions, again.refusals, again.drift)
    assert 1 == len([row for row in await world.tables.audit("") if row.entity_id == "2"])


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it acted"])
async def test_a_first_application_that_ends_at_any_call_goes_on(
    world: World, served_simulator: ServedSimulator, after: bool
) -> None:
    """As above, with the meter set in the log, meters, features and offers at Stripe, and nothing that was there."""
    plan, ends = await world.plan(OFFERING), 0
    while True:
        try:
            countdown = min(ends + 1, 2 if after else 3)
            await apply_plan(world.parts([countdown], after=after), plan, "anna", "because", lambda _: None)
            break
        except Ends:
            ends += 1

    # Two transactions, the meter set, two meters, five products, a feature and its attachment, eight prices, two
    # coupons and the portal.
    assert 23 == ends
    stripe = await world.objects.read()
    prices = [price.key for price in stripe.prices.values()]
    assert 8 == len(prices) == len(set(prices))
    assert (2, 1) == (await count(served_simulator, "coupons"), await portals(served_simulator))
    assert [1] == [meter_set.version for meter_set in world.log]
    assert ([], []) == ((again := await world.plan(OFFERING)).actions, again.drift)
    assert 1 == len(await world.tables.audit(""))


async def portals(served: ServedSimulator) -> int:
    """How many configurations the portal has."""
    return await count(served, "billing_portal.configurations")


async def count(served: ServedSimulator, kind: str) -> int:
    """How many objects of a kind Stripe has."""
    sdk = Sdk(served.simulator, served.clock)
    found = await sdk(f"v1.{kind}.list", {})
    await sdk.close()
    return len(found["data"])


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it acted"])
async def test_a_change_of_offers_that_ends_at_any_call_goes_on(
    world: World, served_simulator: ServedSimulator, after: bool
) -> None:
    """Another coupon, a name, a pack, and a portal that leads to another version of a plan; the old pack goes."""
    await world.apply_file(OFFERING)
    text = OFFERING.replace("version: 1\n", "version: 2\n", 1)
    for old, new in (
        ('launch: {version: 1, percent_off: "20"', 'launch: {version: 2, percent_off: "30"'),
        ("With our apologies", "Sorry"),
        ("p100: {credits: 100", "p100: {version: 2, credits: 110"),
        ("solo: {version: 1", "solo: {version: 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    plan, ends = await world.plan(text), 0
    while ends < 30:
        try:
            # After the catalog is active, each run says so again before it archives.
            is_active = (await world.store.standing()).sha256 == plan.sha256
            countdown = min(ends + 1, (2 if after else 3) + is_active)
            await apply_plan(world.parts([countdown], after=after), plan, "anna", "because", lambda _: None)
            break
        except Ends:
            ends += 1

    # Two transactions, two products, three prices, a coupon and a name, the portal, and five that are archived.
    assert 15 == ends, ends
    stripe = await world.objects.read()
    assert (3, 1) == (await count(served_simulator, "coupons"), await portals(served_simulator))
    active = {price.key for price in stripe.prices.values() if price.is_active}
    assert {"tm.pack.gifts.p100.v2.usd", "tm.pack.gifts.p100.v2.jpy", "tm.solo.v2.base.month.usd"} <= active
    assert not {key for key in active if ".gifts.p100.v1." in key or ".solo.v1." in key}
    assert ([], []) == ((again := await world.plan(text)).actions, again.drift)


async def test_drift_of_offers_at_stripe_is_repaired(world: World, served_simulator: ServedSimulator) -> None:
    """Somebody changed the portal, renamed a coupon, and archived a feature in Stripe's dashboard."""
    await world.apply_file(OFFERING)
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    stripe = await world.objects.read()
    assert stripe.portal
    cancel = {"subscription_cancel": {"enabled": True, "mode": "immediately"}}
    update = {"subscription_update": {"enabled": False}, "payment_method_update": {"enabled": False}}
    await sdk("v1.billing_portal.configurations.update", stripe.portal.id, {"features": {**cancel, **update}})
    await sdk("v1.coupons.update", "tm-sorry-v1", {"name": "Other"})
    await sdk("v1.entitlements.features.update", stripe.features["sso"].id, {"active": False})
    await sdk.close()

    plan = await world.plan(OFFERING)
    words = "cancel period_end → immediately, payment_method yes → no, upgrade now → none, other prices"
    assert {
        "feature sso is archived",
        "coupon tm-sorry-v1 was changed: name With our apologies → Other",
        f"the portal's configuration {stripe.portal.id} was changed: {words}",
    } == set(plan.drift)
    assert await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)

    assert ([], []) == ((again := await world.plan(OFFERING)).actions, again.drift)


async def test_what_was_deleted_at_stripe_is_made_again_on_the_same_day(
    world: World, served_simulator: ServedSimulator
) -> None:
    """Stripe repeats the answer of the first creation, though the coupon is gone."""
    await world.apply_file(OFFERING)
    served_simulator.simulator.test.store.remove("coupon", "tm-sorry-v1")

    plan = await world.plan(OFFERING)
    assert ["coupon tm-sorry-v1 is not at Stripe"] == list(plan.drift)
    assert await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)

    assert ([], []) == ((again := await world.plan(OFFERING)).actions, again.drift)


async def test_of_two_plans_that_are_applied_at_once_one_ends_without_a_trace(world: World) -> None:
    plans = [await world.plan(SMALL.replace("rank: 10", f"rank: {rank}")) for rank in (10, 11)]

    both = (apply_plan(world.parts(), plan, "anna", "because", lambda _: None) for plan in plans)
    outcomes = await asyncio.gather(*both, return_exceptions=True)

    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(refused, InvalidInput)
    won = plans[1 - outcomes.index(refused)]
    assert won.sha256 == (await world.store.standing()).sha256
    assert 1 == len(await world.tables.audit(""))
    assert 5 == len((await world.objects.read()).prices)


async def test_an_application_that_ends_before_its_archives_goes_on_with_them(world: World) -> None:
    """What is sold has changed by then, so the same plan is still the right one."""
    await world.apply_file(SMALL)
    plan = await world.plan(DEARER.replace("version: 1\n", "version: 2\n", 1))
    with pytest.raises(Ends):
        await apply_plan(world.parts([9], after=True), plan, "anna", "because", lambda _: None)
    assert plan.sha256 == (await world.store.standing()).sha256
    assert all(price.is_active for price in (await world.objects.read()).prices.values())

    assert await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)

    active = {price.key for price in (await world.objects.read()).prices.values() if price.is_active}
    assert {key for key in active if key.startswith("tm.team.")} == {key for key in active if ".team.v2." in key}
    assert not await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)


async def test_two_applications_of_one_plan_at_once_make_one_of_each(world: World) -> None:
    plan = await world.plan(SMALL)

    both = [apply_plan(world.parts(), plan, name, "because", lambda _: None) for name in ("anna", "bert")]
    outcomes = await asyncio.gather(*both, return_exceptions=True)

    assert [] == [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    keys = [price.key for price in (await world.objects.read()).prices.values()]
    assert sorted(set(keys)) == sorted(keys)
    assert 1 == len(await world.tables.audit(""))
    assert [] == (await world.plan(SMALL)).actions


async def test_of_two_plans_made_from_one_world_one_is_applied(world: World) -> None:
    """The other one's prices would be on top of a world that nobody looked at."""
    mine = await world.plan(SMALL)
    other = await world.plan(SMALL.replace("rank: 10", "rank: 11"))
    await apply_plan(world.parts(), mine, "anna", "because", lambda _: None)

    with pytest.raises(InvalidInput, match="another catalog has been applied"):
        await apply_plan(world.parts(), other, "bert", "because", lambda _: None)


async def test_a_begun_application_is_given_up_by_a_plan_that_knows_of_it(world: World) -> None:
    """A plan from before it was begun is refused; the one that was given up ends without changing what is sold."""
    before = await world.plan(SMALL.replace("rank: 10", "rank: 11"))
    begun = await world.plan(SMALL)
    await world.store.begin_catalog(begun, "anna", "because", 1)
    with pytest.raises(InvalidInput, match="another catalog is being applied"):
        await apply_plan(world.parts(), before, "bert", "because", lambda _: None)
    with pytest.raises(InvalidInput, match="plan again"):
        await world.store.begin_catalog(before, "bert", "because", 1)

    after = await world.plan(SMALL.replace("rank: 10", "rank: 11"))
    await apply_plan(world.parts(), after, "bert", "because", lambda _: None)

    assert begun.sha256 == after.applying
    assert after.sha256 == (await world.store.standing()).sha256
    with pytest.raises(InvalidInput, match="another application was begun"):
        await world.store.activate_catalog(begun, {}, [], 1)


async def test_what_the_plan_does_not_say_is_not_done(world: World, served_simulator: ServedSimulator) -> None:
    """Somebody archives a price in the dashboard after the plan was made."""
    await world.apply_file(SMALL)
    await world.subscribe((await world.store.standing()).records[CatalogKind.PRICE, SEAT].stripe_id)
    plan = await world.plan(SMALL.replace("version: 1\n", "version: 2\n", 1).replace("rank: 10", "rank: 11"))
    record = (await world.store.standing()).records[CatalogKind.PRICE, SEAT]
    await world.objects.set_active(CatalogKind.PRICE, record.stripe_id, is_active=False)

    with pytest.raises(InvalidInput, match=rf"which lacks this: ~ price {SEAT}: active again"):
        await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)

    assert 1 == (cast("Any", (await world.store.standing()).catalog)).version


async def test_a_plan_in_a_file_is_the_plan(world: World, tmp_path: Path) -> None:
    """A byte that changed on the way is refused."""
    plan = await world.plan(SMALL)
    path = tmp_path / "plan"
    save_plan(plan, path)
    loaded = load_plan(path)

    assert (plan.catalog, plan.sha256, list(plan.actions)) == (loaded.catalog, loaded.sha256, list(loaded.actions))
    await apply_plan(world.parts(), loaded, "anna", "because", lambda _: None)
    path.write_bytes(path.read_bytes().replace(b"1200", b"1300").replace(b"9000", b"9999"))
    with pytest.raises(InvalidInput, match="plan again"):
        load_plan(path)


LOST: Sequence[FaultKind] = (
    FaultKind.SERVER_ERROR, FaultKind.SERVER_ERROR_AFTER_COMMIT, FaultKind.CONNECTION_DROPPED_AFTER_COMMIT,
    FaultKind.RATE_LIMITED, FaultKind.CONFLICT,
)  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
async def test_an_answer_that_is_lost_makes_no_second_object(
    world: World, served_simulator: ServedSimulator, kind: FaultKind
) -> None:
    """Each creation fails once, before or after it took effect, also where Stripe repeats a stored failure."""
    for path in ("/v1/products", "/v1/prices", "/v1/entitlements/features"):
        served_simulator.simulator.faults.add(Fault(kind, count=3, path=path))

    await world.apply_file(SMALL)

    keys = [price.key for price in (await world.objects.read()).prices.values()]
    assert (5, 5) == (len(keys), len(set(keys)))
    assert frozenset({"sso"}) == await world.objects.attached("tm-team-v1-seat")
    attached = await Sdk(served_simulator.simulator, served_simulator.clock)(
        "v1.products.features.list", "tm-team-v1-seat", {}
    )
    assert 1 == len(attached["data"])


async def test_a_stripe_that_stays_away_ends_the_application_and_it_goes_on_later(
    world: World, served_simulator: ServedSimulator
) -> None:
    """The first key's stored failure is repeated by Stripe; the second run has keys of its own."""
    served_simulator.simulator.faults.add(Fault(FaultKind.SERVER_ERROR, count=ATTEMPTS_MAX, path="/v1/prices"))
    plan = await world.plan(SMALL)
    with pytest.raises(Transient):
        await apply_plan(world.parts(), plan, "anna", "because", lambda _: None)
    assert None is (await world.store.standing()).catalog

    later = world.another("m")
    assert await apply_plan(world.parts()._replace(objects=later), plan, "anna", "because", lambda _: None)
    await later.close()

    assert plan.sha256 == (await world.store.standing()).sha256


async def test_a_lookup_key_that_another_process_has_taken_with_other_terms_is_refused(world: World) -> None:
    plan = await world.plan(SMALL)
    price = all_prices(catalog_of(SMALL))[SEAT]
    await world.objects.create_product(StripeProduct("tm-team-v1-seat", "x"))
    await world.objects.create_price(price, "")
    tiers = price.terms.tiers
    other = price.terms._replace(tiers=(*tiers[:1], tiers[1]._replace(unit_minor="9")))

    with pytest.raises(InvalidInput, match="has this lookup key and other terms"):
        await world.objects.create_price(price._replace(terms=other), "")
    assert plan.actions


async def test_more_than_a_page_of_prices_is_read(world: World, served_simulator: ServedSimulator) -> None:
    """Also prices that are not ours, of every form that Stripe has."""
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    product = (await sdk("v1.products.create", {"name": "x"}))["id"]
    for number in range(105):
        await sdk("v1.prices.create", {"currency": "usd", "product": product, "unit_amount": number})
    recurring = {"interval": "month", "interval_count": 3}
    package = {"divide_by": 10, "round": "down"}
    await sdk(
        "v1.prices.create",
        {
            "currency": "usd",
            "product": product,
            "unit_amount": 1,
            "recurring": recurring,
            "transform_quantity": package,
        },
    )

    prices = (await world.objects.read()).prices

    assert 106 == len(prices)
    assert {("", 1), ("3 month", -1)} == {(price.terms.interval, price.terms.package) for price in prices.values()}
    await sdk.close()
