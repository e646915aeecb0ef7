"""What the store of entitlements promises, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection

from aggregators.catalog_plan import catalog_hash
from schemas.billing_events import ObjectKind, ObjectName
from schemas.catalog_changes import CatalogPlan
from schemas.entitlements import UNLIMITED, Computed, Entitlements, Grant, Operation, SourceKind, Value
from schemas.errors import Fenced, InvalidInput
from schemas.periods import Interval
from schemas.side_tables import Fetched, Link, Row
from schemas.upgrades import Billed, BilledItem, BilledSubscription
from sinks.sql.entitlements import SqlEntitlements
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import ANCHOR_MS, event, fetched_subscription, step
from tests.unit.catalog.files import SMALL, catalog_of

NOW_MS = 1_795_257_000_000
CATALOG = catalog_of(SMALL)
SHA256 = catalog_hash(CATALOG)


class Resolving:
    """A resolver whose answer is set by the test, and which keeps its inputs."""

    def __init__(self, inputs: str = "1", unreadable: Sequence[str] = (), text: str = "") -> None:
        self.inputs, self.unreadable, self.text = inputs, tuple(unreadable), text or f"segments of {inputs}"
        self.links: Sequence[Link] = ()
        self.people: Sequence[Grant] = ()

    def __call__(
        self,
        links: Sequence[Link],
        mirror: Mapping[str, Sequence[Row]],  # noqa: ARG002  # a protocol
        people: Sequence[Grant],
        since_ms: int,  # noqa: ARG002  # a protocol
        /,
    ) -> Computed:
        self.links, self.people = links, people
        return Computed(self.inputs, self.text, self.unreadable)


async def activate(tables: SqlSideTables, sha256: str = SHA256, base: str = "", now_ms: int = NOW_MS) -> None:
    """Make the small catalog the active one, each time in another version."""
    versions = {SHA256: 1, "another": 2, "a third": 3}
    catalog = CATALOG.model_copy(update={"version": versions[sha256]})
    plan = CatalogPlan(catalog, sha256, base, "", in_place=False, actions=(), refusals=(), drift=(), touched={})
    await tables.catalog.begin_catalog(plan, "ann", "a test", now_ms)
    await tables.catalog.activate_catalog(plan, {}, [], now_ms)


def grant(value: Value = Decimal(5), reason: str = "a gift", feature: str = "tokens") -> Grant:
    return Grant(feature, SourceKind.OVERRIDE, "ticket", Operation.ADD, value, 0, 10, cause="ann", reason=reason)


@pytest_asyncio.fixture
async def store(side_tables: SqlSideTables) -> Entitlements:
    """The store, with an active catalog and one linked account."""
    await activate(side_tables)
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    return side_tables.entitlements


async def test_an_account_is_stale_until_it_is_renewed(store: Entitlements) -> None:
    assert await store.stale() == ["acme"]
    assert (await store.renew("acme", SHA256, Resolving(), NOW_MS)).is_new
    assert await store.stale() == []


async def test_what_comes_after_the_first_transaction_of_a_renewal_makes_the_account_stale(
    store: Entitlements, side_tables: SqlSideTables
) -> None:
    """A renewal that read in one transaction and wrote in another would miss what came in between."""
    ran = 0

    async def run(body: Callable[[Connection], Any]) -> Any:
        nonlocal ran
        answer, ran = await side_tables._run(body), ran + 1
        if ran == 1:
            await store.override("acme", grant(), "ann", NOW_MS)
        return answer

    await SqlEntitlements(run).renew("acme", SHA256, Resolving(), NOW_MS)

    assert await store.stale() == ["acme"]


async def test_what_happens_to_an_account_makes_it_stale(store: Entitlements, side_tables: SqlSideTables) -> None:
    await store.renew("acme", SHA256, Resolving(), NOW_MS)
    await side_tables.unlink("acme", "ann", "", NOW_MS)
    assert await store.stale() == ["acme"]
    await store.renew("acme", SHA256, Resolving("2"), NOW_MS)
    await store.override("acme", grant(), "ann", NOW_MS)
    assert await store.stale() == ["acme"]


async def test_another_catalog_makes_every_account_stale(store: Entitlements, side_tables: SqlSideTables) -> None:
    await store.renew("acme", SHA256, Resolving(), NOW_MS)
    other = CATALOG.model_copy(update={"version": 2})
    plan = CatalogPlan(other, catalog_hash(other), SHA256, "", False, (), (), (), {})
    await side_tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    assert await store.stale() == []
    await side_tables.catalog.activate_catalog(plan, {}, [], NOW_MS)
    assert await store.stale() == ["acme"]
    with pytest.raises(Fenced):
        await store.renew("acme", SHA256, Resolving(), NOW_MS)
    assert await store.stale() == ["acme"]


async def test_equal_inputs_make_no_version(store: Entitlements) -> None:
    await store.renew("acme", SHA256, Resolving(), NOW_MS)
    assert not (await store.renew("acme", SHA256, Resolving(), NOW_MS + 1)).is_new
    assert (await store.latest(["acme"]))["acme"].version == 1


async def test_equal_inputs_that_resolve_otherwise_make_a_version(
    store: Entitlements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of the program that corrects a rule."""
    await store.renew("acme", SHA256, Resolving(), NOW_MS)
    resolving = Resolving()
    monkeypatch.setattr(Resolving, "__call__", lambda *_: Computed("1", "corrected", ()))
    assert await store.renew("acme", SHA256, resolving, NOW_MS + 1)
    assert (await store.latest(["acme"]))["acme"].segments == "corrected"


async def test_each_version_is_kept_with_its_cause(store: Entitlements) -> None:
    for number in range(3):
        await store.renew("acme", SHA256, Resolving(str(number)), NOW_MS + number * 10)
    found = [await store.version_at("acme", NOW_MS + at_ms) for at_ms in (-1, 0, 9, 10, 1_000)]
    assert [None if version is None else version.version for version in found] == [None, 1, 1, 2, 3]
    assert found[-1] is not None
    assert (found[-1].segments, found[-1].cause) == ("segments of 2", "account link")
    numbers = [renewed.number for renewed in await store.changed(0)]
    assert [renewed.version for renewed in await store.changed(numbers[0])] == [2, 3]
    assert numbers == sorted(set(numbers))
    assert await store.last_number() == numbers[-1]


async def test_the_same_inputs_that_a_newer_program_resolves_otherwise_make_a_version(store: Entitlements) -> None:
    resolving = Resolving("1")
    await store.renew("acme", SHA256, resolving, NOW_MS)
    newer = Resolving("1", text="segments by another rule")

    made = [(await store.renew("acme", SHA256, each, NOW_MS)).is_new for each in (resolving, newer, newer)]

    assert made == [False, True, False]


async def test_a_version_that_another_catalog_made_names_the_catalog(
    store: Entitlements, side_tables: SqlSideTables
) -> None:
    await store.renew("acme", SHA256, Resolving("1"), NOW_MS)
    await activate(side_tables, "another", SHA256, NOW_MS + 5)
    await store.renew("acme", "another", Resolving("2"), NOW_MS + 6)
    await activate(side_tables, "a third", "another", NOW_MS + 7)
    await store.override("acme", grant(), "ann", NOW_MS + 8)
    await store.renew("acme", "a third", Resolving("3"), NOW_MS + 9)

    found = [await store.version_at("acme", NOW_MS + at_ms) for at_ms in (0, 6, 9)]

    assert [version.cause for version in found if version] == ["account link", "catalog 2", "account override"]


async def test_stale_accounts_come_in_their_order(store: Entitlements) -> None:
    for account in ("bar", "cafe"):
        await store.override(account, grant(), "ann", NOW_MS)

    assert [await store.stale(2), await store.stale(2, "bar"), await store.stale(2, "cafe")] == [
        ["acme", "bar"], ["cafe"], [],
    ]  # fmt: skip


async def test_an_unreadable_subscription_takes_nothing_away(store: Entitlements) -> None:
    await store.renew("acme", SHA256, Resolving('"sub_1"'), NOW_MS)
    assert not (await store.renew("acme", SHA256, Resolving("2", ["sub_1"]), NOW_MS)).is_new
    assert await store.stale() == []
    await store.override("globex", grant(), "ann", NOW_MS)
    assert (await store.renew("globex", SHA256, Resolving("3", ["sub_1"]), NOW_MS)).is_new


async def test_an_unreadable_subscription_that_gave_nothing_holds_nothing_back(store: Entitlements) -> None:
    await store.renew("acme", SHA256, Resolving('"sub_1"'), NOW_MS)
    assert (await store.renew("acme", SHA256, Resolving("2", ["sub_2", "sub"]), NOW_MS)).is_new


async def test_the_resolver_gets_links_and_the_grants_in_force(store: Entitlements) -> None:
    first = await store.override("acme", grant(), "ann", NOW_MS)
    await store.override("acme", grant(reason="another"), "ann", NOW_MS)
    await store.revoke("acme", first.number, "bob", "a mistake", NOW_MS + 1)
    resolving = Resolving()
    await store.renew("acme", SHA256, resolving, NOW_MS)
    assert [link.customer for link in resolving.links] == ["cus_1"]
    assert [each.reason for each in resolving.people] == ["another"]


@pytest.mark.parametrize("value", [Decimal("1.50"), UNLIMITED, True, '{"days":30}'], ids=str)
async def test_a_grant_is_kept_as_it_was_made(store: Entitlements, value: Value) -> None:
    made = await store.override("new account", grant(value), "ann", NOW_MS)
    assert await store.overrides("new account") == [made]
    assert made.grant == grant(value)


async def test_an_override_is_made_once_and_taken_back_once(store: Entitlements, side_tables: SqlSideTables) -> None:
    first, again = [await store.override("acme", grant(), "ann", NOW_MS) for _ in range(2)]
    assert (first, first.number) == (again, 1)
    gone, still = [await store.revoke("acme", 1, "bob", "a mistake", NOW_MS + step) for step in (1, 2)]
    assert (gone, gone.revoked_ms) == (still, NOW_MS + 1)
    assert (gone.revoked_by, gone.revoked_reason) == ("bob", "a mistake")
    assert await store.overrides("acme") == [gone]
    assert (await store.override("acme", grant(), "ann", NOW_MS)).number == 2
    trail = [(row.actor, row.cause, row.reason) for row in await side_tables.audit("acme")][1:]
    assert trail == [
        ("ann", "account override", "a gift"),
        ("bob", "account revoke", "a mistake"),
        ("ann", "account override", "a gift"),
    ]


async def test_of_overrides_that_replace_each_other_at_once_one_stays(store: Entitlements) -> None:
    wishes = [grant(Decimal(value), f"ticket {value}") for value in range(8)]
    await asyncio.gather(*(store.grant("acme", [wish], "ann", NOW_MS, replaces=True) for wish in wishes))
    known = await store.overrides("acme")

    assert len(known) == 8
    assert [made.grant.reason for made in known if made.revoked_ms is None] == [known[-1].grant.reason]


async def test_grants_come_together_or_not_at_all(store: Entitlements, side_tables: SqlSideTables) -> None:
    contract = grant()._replace(kind=SourceKind.CONTRACT)
    terms = [contract, grant(feature="sso"), grant(feature="seats")]
    await store.grant("acme", terms[:2], "ann", NOW_MS)
    with pytest.raises(InvalidInput):
        await store.grant("acme", [grant(Decimal(7)), grant(reason=" ")], "ann", NOW_MS, replaces=True)
    made = await store.grant("acme", [grant(Decimal(7)), terms[1]], "ann", NOW_MS, replaces=True)
    again = await store.grant("acme", [grant(Decimal(7)), terms[1]], "ann", NOW_MS + 1, replaces=True)

    assert made == again
    assert [each.number for each in made] == [3, 2]
    assert [each.number for each in await store.overrides("acme") if each.revoked_ms is None] == [1, 2, 3]
    assert len(await side_tables.audit("acme")) == 4
    # Another grant of the same terms is one more only if it is made by itself.
    later = grant(Decimal(7))._replace(source="another", starts_ms=5)
    assert [(await store.grant("acme", [later], "ann", NOW_MS))[0].number] == [3]
    assert (await store.override("acme", later, "ann", NOW_MS)).number == 4


@pytest.mark.parametrize(
    ("account", "actor", "reason", "field"),
    [
        ("", "ann", "why", "account"),
        ("acme", " ", "why", "actor"),
        ("acme", "ann", "", "reason"),
        ("a\0", "ann", "why", "account"),
    ],
)
async def test_who_and_why_must_be_said(store: Entitlements, account: str, actor: str, reason: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await store.override(account, grant(reason=reason), actor, NOW_MS)
    assert caught.value.field == field


async def test_an_account_is_known_from_its_first_link_or_grant_on(store: Entitlements) -> None:
    before = await store.knows("new account")
    await store.override("new account", grant(), "ann", NOW_MS)

    assert (before, await store.knows("new account"), await store.knows("new accouny")) == (False, True, False)


async def test_an_override_that_is_not_there(store: Entitlements) -> None:
    with pytest.raises(InvalidInput, match="no override 7"):
        await store.revoke("acme", 7, "ann", "why", NOW_MS)


async def test_without_a_catalog_nothing_is_computed(side_tables: SqlSideTables) -> None:
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    with pytest.raises(Fenced):
        await side_tables.entitlements.renew("acme", "", Resolving(), NOW_MS)


async def test_what_an_account_pays_now(store: Entitlements, side_tables: SqlSideTables) -> None:
    """The customer's currency and the subscriptions that have not ended, while the account is linked."""
    item: Row = {
        "id": "si_1", "subscription_id": "sub_1", "price_id": "price_1", "interval": "month", "interval_count": 1,
        "quantity": 3, "period_start_ms": 10, "period_end_ms": 20,
    }  # fmt: skip
    usage: Row = {**item, "id": "si_2", "price_id": "price_2", "quantity": None}
    paid = fetched_subscription(seats=(), currency="usd")
    paid = paid._replace(rows={**paid.rows, "subscription_items": [item, usage]})
    over = fetched_subscription(number=2, seats=(), status="canceled")
    foreign = fetched_subscription(number=3, seats=(), customer_id="cus_2")
    person: Row = {"id": "cus_1", "currency": "usd", "created_ms": 0, "deleted": 0}
    customer = Fetched(ObjectName(ObjectKind.CUSTOMER, "cus_1"), 0, {"stripe_customers": [person]})
    await side_tables.commit(step(0, [event(1)], [paid, over, foreign, customer]))
    items = (BilledItem("price_1", 3, Interval.MONTH, 10, 20), BilledItem("price_2", None, Interval.MONTH, 10, 20))

    found = await store.billed("acme", NOW_MS)
    assert found == Billed("usd", (BilledSubscription("sub_1", "active", "usd", ANCHOR_MS, None, items),))
    await side_tables.unlink("acme", "ann", "", NOW_MS)
    assert [await store.billed(name, NOW_MS) for name in ("acme", "nobody")] == [Billed(), Billed()]
