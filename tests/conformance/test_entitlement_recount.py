"""The recount of entitlements by SQL against what the role mirror keeps: two pieces of code, one answer."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, insert, text, update

from aggregators.account_grants import resolver_of
from aggregators.catalog_plan import catalog_hash
from aggregators.entitlement_codec import encode_value
from pipeline.access.renewal import commerce_of
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, CatalogPlan, KnownPlan, PlanState, StripeRecord
from schemas.clock import DAY_MS
from schemas.entitlement_recount import KeptFlag, LinkedCustomer, RecountedFeature
from schemas.entitlements import UNLIMITED, Grant, Operation, SourceKind, Value
from sinks.sql import tables as t
from sinks.sql.store import PostgresSideTables
from tests.services.postgres import opened_tables
from tests.unit.catalog.files import SMALL, catalog_of

NOW_MS = 1_795_257_000_000
TRIAL = "days: 14, grants: {tokens: {add: 7}, reporting: {days: 1}}}"
CATALOG = catalog_of(
    SMALL.replace("days: 14}", TRIAL).replace(
        "addons:\n",
        """\
  solo:
    version: 3
    rank: 20
    prices: [{component: base, month: {usd: "1"}}, {component: desk, quantity: seats, month: {usd: "1"}}]
    grants: {seats: quantity, tokens: unlimited, sso: false, reporting: {days: 90, add: 1}}
addons:
  extra: {version: 1, for: [team], price: {month: {usd: "2"}}, grants: {sso: true, seats: 3, reporting: {days: 5}}}
""",
    )
)
TEAM, SOLO, BOOST, EXTRA = PlanId("team", 1), PlanId("solo", 3), PlanId("boost", 1), PlanId("extra", 1)
PRICES: Mapping[str, tuple[PlanId, str]] = {
    "seat_month": (TEAM, "seat"), "seat_year": (TEAM, "seat"), "tokens": (TEAM, "tokens"), "base": (SOLO, "base"),
    "desk": (SOLO, "desk"), "boost": (BOOST, "addon"), "extra": (EXTRA, "addon"),
}  # fmt: skip
FOREIGN = "price_of_nobody"
GRANTS: Sequence[tuple[str, Operation, Value]] = (
    ("seats", Operation.SET, Decimal(8)), ("seats", Operation.ADD, Decimal(2)),
    ("seats", Operation.AT_MOST, Decimal(1)), ("tokens", Operation.SET, UNLIMITED),
    ("tokens", Operation.AT_LEAST, Decimal(12_000)),
    ("tokens", Operation.AT_MOST, Decimal(9)), ("tokens", Operation.DENY, False), ("sso", Operation.SET, True),
    ("sso", Operation.SET, False), ("sso", Operation.ADD, True), ("sso", Operation.DENY, False),
    ("reporting", Operation.SET, '{"days":365,"note":"a: b"}'), ("reporting", Operation.DENY, False),
    ("nothing", Operation.SET, Decimal(1)),
)  # fmt: skip
ACCOUNTS = 150
STATUSES = ("active", "active", "trialing", "past_due", "canceled", "unpaid", "paused", "incomplete")


# Who does not pay keeps the add-ons.
KEEPING = CATALOG.model_copy(update={"dunning": CATALOG.dunning.model_copy(update={"suspend_addons": False})})


@pytest_asyncio.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[PostgresSideTables]:
    """PostgreSQL with an active catalog."""
    catalog = getattr(request, "param", CATALOG)
    async with opened_tables(request, is_fake=False) as store:
        assert isinstance(store, PostgresSideTables)
        plan = CatalogPlan(catalog, catalog_hash(catalog), "", "", False, (), (), (), {})
        records = [
            StripeRecord(f"key.{price}", CatalogKind.PRICE, price, plan_id, component, "month", "usd")
            for price, (plan_id, component) in PRICES.items()
        ]
        states = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in catalog.sold().items()}
        await store.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
        await store.catalog.activate_catalog(plan, states, records, NOW_MS)
        yield store


class Drawn:
    """Random rows of accounts, as Stripe's events and people might leave them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def instant(self, *, may_miss: bool = True) -> int | None:
        """An instant around now, or None."""
        return None if may_miss and self.rng.random() < 0.5 else NOW_MS + self.rng.randint(-5, 5) * DAY_MS

    def add(self, table: str, **row: Any) -> None:
        self.rows.setdefault(table, []).append(row)

    def account(self, number: int) -> None:
        name = f"account {number}"
        self.add("accounts", account=name, created_ms=0, audit_seq=1, audit_hash="", binding_number=0)
        for place in range(self.rng.randint(0, 2)):
            customer = f"cus_{number}_{self.rng.randint(0, 1)}"
            starts_ms = NOW_MS + (self.rng.randint(-9, 2) * 4 + place) * DAY_MS
            self.add("account_customers", account=name, starts_ms=starts_ms, customer_id=customer)
        for each in range(2):
            for own in range(self.rng.randint(0, 2)):
                self.subscription(f"cus_{number}_{each}", f"sub_{number}_{each}_{own}")
        for place, (feature, operation, value) in enumerate(self.rng.sample(GRANTS, self.rng.randint(0, 4)), 1):
            kind = self.rng.choice(["override", "contract"])
            self.add(
                "overrides", account=name, number=place, feature=feature, kind=kind, source=f"{kind} {place}",
                operation=operation.value, value_json=encode_value(value), starts_ms=NOW_MS - place * DAY_MS,
                ends_ms=self.rng.choice([None, NOW_MS + DAY_MS]), actor="ann", reason="why", made_ms=0,
                revoked_ms=self.rng.choice([None, None, NOW_MS]),
            )  # fmt: skip

    def bought(self) -> list[tuple[str, int | None]]:
        prices = self.rng.sample([*PRICES, FOREIGN], self.rng.randint(1, 4))
        return [(price, None if price == "tokens" else self.rng.randint(0, 5)) for price in prices]

    def subscription(self, customer: str, name: str) -> None:
        self.add(
            "subscriptions", id=name, customer_id=customer, status=self.rng.choice(STATUSES), fetch_seq=1, fetched_ms=1,
            pause_reason=self.rng.choice([None, "pause_requested", "final_payment_failure"]),
            start_ms=NOW_MS - self.rng.randint(0, 20) * DAY_MS, ended_ms=None, cancel_at_ms=self.instant(),
            trial_end_ms=self.instant(), deleted=int(self.rng.random() < 0.1),
        )  # fmt: skip
        for number in range(self.rng.choice([0, 0, 1, 2])):
            outcome = self.rng.choice([None, "recovered", "churned", "written_off"]) if number else "recovered"
            self.add(
                "dunning_cases", id=f"{name} case {number}", account="", subscription_id=name, opened_ms=0,
                found_ms=number, state="closed", amount_minor=1, currency="usd", exponent=2, outcome=outcome,
                closed_ms=outcome and 1, downgrade_ms=None if outcome == "recovered" else self.instant(),
            )  # fmt: skip
        period_ms = NOW_MS - self.rng.randint(0, 9) * DAY_MS
        for place, (price, quantity) in enumerate(self.bought()):
            self.add(
                "subscription_items", id=f"{name} {place}", subscription_id=name, price_id=price, quantity=quantity,
                period_start_ms=period_ms,
            )  # fmt: skip
        if self.rng.random() < 0.4:
            starts = sorted(NOW_MS + days * DAY_MS for days in self.rng.sample(range(-9, 6), 3))
            phases = [
                {"start_ms": at, "end_ms": None, "prices": [{"price": p, "quantity": q} for p, q in self.bought()]}
                for at in starts
            ]
            self.add(
                "subscription_schedules", id=f"{name} schedule", customer_id=customer, subscription_id=name,
                status=self.rng.choice(["active", "not_started", "released"]), phases_json=json.dumps(phases),
                deleted=0, fetch_seq=1, fetched_ms=1,
            )  # fmt: skip

    def store(self, connection: Connection) -> None:
        for name, rows in self.rows.items():
            connection.execute(insert(t.metadata.tables[name]), rows)


async def renew(store: PostgresSideTables) -> None:
    """What the role mirror does."""
    found = await commerce_of(store.catalog)
    assert found is not None
    for account in await store.entitlements.stale():
        await store.entitlements.renew(account, found[0], resolver_of(found[1]), NOW_MS)


async def recounted(store: PostgresSideTables, now_ms: int = NOW_MS) -> list[RecountedFeature]:
    found: list[RecountedFeature] = []
    after = ""
    while names := await store.entitlement_recount.accounts(after, 50):
        found += await store.entitlement_recount.recount(names, now_ms)
        after = names[-1]
    return found


@pytest.mark.parametrize("store", [CATALOG, KEEPING], ids=["add-ons suspended", "add-ons kept"], indirect=True)
async def test_the_recount_agrees_with_the_versions_of_random_accounts(store: PostgresSideTables) -> None:
    """At several instants of one version: what begins and ends later is in it already."""
    drawn = Drawn(1)
    for number in range(ACCOUNTS):
        drawn.account(number)
    await store._run(drawn.store)
    await renew(store)

    seen: set[str | None] = set()
    for days in (0, 2, 4):
        found = await recounted(store, NOW_MS + days * DAY_MS)
        assert len({row.account for row in found}) == ACCOUNTS
        # A subscription with a price of nobody may change what an account keeps; those are marked.
        assert [row for row in found if row.expected != row.found and not row.is_kept] == []
        assert {(row.version, row.is_stale) for row in found} == {(1, False)}
        seen |= {row.expected for row in found}
    assert {"true", "false", "unlimited", "null", '{"add": 1, "days": 90}', '{"days": 365, "note": "a: b"}'} <= seen


async def one_account(store: PostgresSideTables) -> None:
    """One account with four seats of the team's plan."""
    drawn = Drawn(1)
    drawn.add("accounts", account="acme", created_ms=0, audit_seq=1, audit_hash="", binding_number=0)
    drawn.add("account_customers", account="acme", starts_ms=0, customer_id="cus_1")
    drawn.add(
        "subscriptions", id="sub_1", customer_id="cus_1", status="active", start_ms=1, deleted=0, fetch_seq=1,
        fetched_ms=1,
    )  # fmt: skip
    for price, quantity in (("seat_month", 4), ("tokens", None)):
        drawn.add("subscription_items", id=price, subscription_id="sub_1", price_id=price, quantity=quantity)
    await store._run(drawn.store)
    await renew(store)


def differing(rows: Sequence[RecountedFeature]) -> list[tuple[str, str | None, str | None]]:
    return [(row.feature, row.expected, row.found) for row in rows if row.expected != row.found]


async def test_a_changed_version_shows(store: PostgresSideTables) -> None:
    await one_account(store)
    assert differing(await recounted(store)) == []

    changed = "UPDATE entitlement_versions SET segments_json = replace(segments_json, '\"4\"', '\"40\"')"
    await store._run(lambda connection: connection.execute(text(changed)))

    assert differing(await recounted(store)) == [("seats", "4", "40")]


async def test_a_changed_mirror_shows_and_a_stale_account_is_marked(store: PostgresSideTables) -> None:
    await one_account(store)
    quantity = update(t.mirror["subscription_items"]).where(t.mirror["subscription_items"].c.id == "seat_month")
    await store._run(lambda connection: connection.execute(quantity.values(quantity=5)))
    rows = await recounted(store)
    assert (differing(rows), {row.is_stale for row in rows}) == ([("seats", "5", "4")], {False})

    await store._run(lambda connection: connection.execute(update(t.accounts).values(audit_seq=2)))
    assert {row.is_stale for row in await recounted(store)} == {True}


async def test_an_account_without_a_version_lacks_every_feature(store: PostgresSideTables) -> None:
    await one_account(store)
    await store._run(lambda connection: connection.execute(text("DELETE FROM entitlement_versions")))
    rows = await recounted(store)
    assert [(row.feature, row.found) for row in rows] == [
        ("included:tokens", None), ("reporting", None), ("seats", None), ("sso", None), ("tokens", None),
    ]  # fmt: skip
    assert {row.version for row in rows} == {0}


async def test_flags_say_what_gave_them(store: PostgresSideTables) -> None:
    """Stripe knows what is bought, and nothing of what people decide."""
    await one_account(store)
    assert await store.entitlement_recount.has_stripe_features()
    assert await store.entitlement_recount.linked(NOW_MS) == [LinkedCustomer("acme", "cus_1", NOW_MS, is_paused=False)]
    bought = [KeptFlag("acme", "sso", is_on=True, is_bought=True, is_decided=False)]
    assert await store.entitlement_recount.flags(["acme"], NOW_MS) == bought
    assert [flag.is_on for flag in await store.entitlement_recount.flags(["acme"], 0)] == [False]

    denial = Grant("sso", SourceKind.OVERRIDE, "o", Operation.DENY, value=False, starts_ms=0, reason="why")
    await store.entitlements.override("acme", denial, "ann", NOW_MS)
    await renew(store)
    decided = [KeptFlag("acme", "sso", is_on=False, is_bought=False, is_decided=True)]
    assert await store.entitlement_recount.flags(["acme"], NOW_MS) == decided

    paused = update(t.mirror["subscriptions"]).values(status="paused")
    await store._run(lambda connection: connection.execute(paused))
    assert [each.is_paused for each in await store.entitlement_recount.linked(NOW_MS)] == [True]
    assert await store.entitlement_recount.linked(NOW_MS, "acme") == []
    assert await store.entitlement_recount.linked(-1) == []


async def test_a_text_that_is_no_json_is_said(store: PostgresSideTables) -> None:
    await one_account(store)
    await store._run(lambda connection: connection.execute(update(t.entitlement_versions).values(segments_json="{")))
    with pytest.raises(ValueError, match="json"):
        await recounted(store)


async def test_without_a_catalog_there_is_nothing_to_recount(store: PostgresSideTables) -> None:
    await one_account(store)
    await store._run(lambda connection: connection.execute(text("DELETE FROM catalog_versions")))
    assert await store.entitlement_recount.accounts() == []
