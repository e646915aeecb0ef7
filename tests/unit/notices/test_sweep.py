"""What a sweep finds: each threshold that an account has reached in its running period, once."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio

from pipeline.notices.sweep import KEPT_MS
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.entitlements import UNLIMITED
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.notices import SMALL_WITHOUT_WARNINGS, NoticeWorld, limit

WARNING = "limit_warning"


@pytest_asyncio.fixture
async def world() -> NoticeWorld:
    """Accounts have the default plan: 1000 tokens."""
    world = NoticeWorld()
    await world.begin()
    return world


@pytest.mark.parametrize(
    ("used", "percents"),
    [(0, []), (799, []), (800, [80]), (999, [80]), (1000, [80, 100]), (5_000_000, [80, 100]), (-5, [])],
)
async def test_thresholds_of_the_default_plan(world: NoticeWorld, used: int, percents: list[int]) -> None:
    world.use("acme", used)
    sweep, _ = world.notifier()
    await sweep.turn()
    assert await world.states() == [("acme", WARNING, percent, "waiting") for percent in percents]


async def test_a_threshold_is_noticed_once_whoever_sweeps(world: NoticeWorld) -> None:
    world.use("acme", 850)
    first = [await world.notifier()[0].turn() for _ in range(3)]
    world.use("acme", 900)
    world.clock.advance(DAY_MS)
    again = await world.notifier()[0].turn()

    assert [swept.new for swept in (*first, again)] == [1, 0, 0, 0]
    assert [swept.reached for swept in (*first, again)] == [1, 1, 1, 1]


async def test_the_next_period_has_notices_of_its_own(world: NoticeWorld) -> None:
    world.use("acme", 850)
    sweep, _ = world.notifier()
    await sweep.turn()
    world.clock.advance(31 * DAY_MS)
    assert (await sweep.turn()).new == 0
    world.use("acme", 850)
    await sweep.turn()

    rows = await world.rows()
    assert [row.notice.period_start_ms for row in rows] == sorted({row.notice.period_start_ms for row in rows})
    assert len({row.notice.id for row in rows}) == len(rows) == 2


async def test_the_newest_entitlements_count(world: NoticeWorld) -> None:
    sweep, _ = world.notifier()
    world.use("acme", 850)
    await world.allow("acme", limit(2_000))
    await sweep.turn()
    assert await world.states() == []
    await world.allow("acme", limit(850))
    await sweep.turn()
    assert await world.states() == [("acme", WARNING, 80, "waiting"), ("acme", WARNING, 100, "waiting")]


@pytest.mark.parametrize("value", [UNLIMITED, limit(0)], ids=["unlimited", "nothing"])
async def test_what_has_no_limit_and_what_is_not_given_warns_nobody(world: NoticeWorld, value: object) -> None:
    world.use("acme", 850)
    await world.allow("acme", value)  # type: ignore[arg-type]  # a value of an entitlement
    await world.notifier()[0].turn()
    assert await world.states() == []


async def test_what_the_price_includes_warns_before_the_limit(world: NoticeWorld) -> None:
    """The team's plan includes 5000 tokens and allows 9000. Just after the purchase, old usage warns of nothing."""
    world.price, world.customer = world.stripe.price(), world.stripe.customer()
    await world.apply(world.catalog.model_copy(update={"version": 2}), {"seat": world.price})
    await world.link("acme", world.customer)
    world.stripe.subscribe(world.customer, world.price)
    await world.settle()
    sweep, _ = world.notifier()
    world.use("acme", 4_000)
    await sweep.turn()
    assert await world.states() == []
    world.clock.advance(15 * MINUTE_MS)
    for used in (4_000, 5_000, 7_200):
        world.use("acme", used)
        await sweep.turn()

    assert await world.states() == [
        ("acme", "included_warning", 80, "waiting"),
        ("acme", "included_warning", 100, "waiting"),
        ("acme", WARNING, 80, "waiting"),
    ]


async def test_the_catalog_says_which_percents(world: NoticeWorld) -> None:
    text = SMALL.replace("meter: tokens}", "meter: tokens, warn_percent: [50, 50, 90]}", 1)
    other = NoticeWorld(text)
    await other.begin()
    other.use("acme", 900)
    await other.notifier()[0].turn()
    assert [percent for _, _, percent, _ in await other.states()] == [50, 90]

    silent = NoticeWorld(SMALL_WITHOUT_WARNINGS)
    await silent.begin()
    silent.use("acme", 900)
    await silent.notifier()[0].turn()
    assert await silent.states() == []


async def test_a_catalog_that_warns_about_nothing_any_more_is_followed(world: NoticeWorld) -> None:
    sweep, _ = world.notifier()
    await sweep.turn()
    world.use("acme", 850)
    quiet = catalog_of(SMALL_WITHOUT_WARNINGS.replace("version: 1\nmeters", "version: 2\nmeters", 1))
    await world.apply(quiet, {})
    world.clock.advance(DAY_MS)
    await sweep.turn()
    assert await world.states() == []


async def test_the_body_says_all_that_a_receiver_needs(world: NoticeWorld) -> None:
    world.use("ac\nme \N{SNOWMAN}", 812)
    await world.notifier()[0].turn()
    (row,) = await world.rows()
    body = json.loads(row.notice.body)

    assert body["id"] == row.notice.id
    assert (body["type"], body["data"]["period_end"]) == (WARNING, "2026-12-01T00:00:00Z")
    assert {name: value for name, value in body["data"].items() if not name.startswith("period")} == {
        "account": "ac\nme \N{SNOWMAN}", "feature": "tokens", "meter": "tokens", "percent": 80, "of": "1000",
        "used": "812", "unit": "tokens",
    }  # fmt: skip


async def test_no_body_is_longer_than_receivers_take(world: NoticeWorld) -> None:
    """Standard Webhooks asks for less than 20 KiB."""
    world.use("\N{PILE OF POO}" * 256, 10**18)
    await world.notifier()[0].turn()
    assert max(len(row.notice.body.encode()) for row in await world.rows()) < 4_096


async def test_a_name_that_sql_cannot_store_stops_nobody(world: NoticeWorld) -> None:
    world.use("a\0b", 900)
    world.use("acme", 900)
    await world.notifier()[0].turn()
    assert [account for account, *_ in await world.states()] == ["acme"]


async def test_too_many_waiting_notices_end_the_turn_and_lose_nothing(world: NoticeWorld) -> None:
    world.use("acme", 1_000)
    sweep, sending = world.notifier(waiting_max=2)
    await sweep.turn()
    world.use("globex", 1_000)
    full = await sweep.turn()
    await sending.turn()
    after = await sweep.turn()

    assert (full.is_whole, full.new) == (False, 0)
    assert (after.is_whole, after.new) == (True, 2)


async def test_without_a_channel_nothing_is_made(world: NoticeWorld) -> None:
    world.use("acme", 900)
    sweep, _ = world.notifier(channels=())
    assert await sweep.turn() == (0, 0, 0, True)


async def test_before_the_first_catalog_and_the_first_count_there_is_nothing_to_notice() -> None:
    world = NoticeWorld()
    await world.open()
    assert (await world.notifier()[0].turn()).reached == 0
    await world.apply(world.catalog, {})
    world.use("acme", 900)
    assert (await world.notifier()[0].turn()).reached == 0


async def test_a_scaled_meter_is_compared_in_its_unit() -> None:
    """A limit is in units, a total in minor units."""
    world = NoticeWorld(SMALL.replace("value_path: $.tokens,", "value_path: $.tokens, scale: 3,", 1))
    await world.begin()
    world.use("below", 799_999)
    world.use("at", 800_000)
    await world.notifier()[0].turn()
    assert [account for account, *_ in await world.states()] == ["at"]


async def test_old_rows_go_also_when_no_feature_warns_any_more(world: NoticeWorld) -> None:
    world.use("acme", 850)
    sweep, sending = world.notifier()
    await sweep.turn()
    await sending.turn()
    await world.apply(catalog_of(SMALL_WITHOUT_WARNINGS.replace("version: 1\nmeters", "version: 2\nmeters")), {})
    world.clock.advance(KEPT_MS + 32 * DAY_MS)
    await world.notifier()[0].turn()
    assert await world.rows() == []
