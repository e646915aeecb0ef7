"""The ledger of credits in SQL's fake and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import pytest

from aggregators.credits import available
from schemas.credits import (
    CREDITS_MAX,
    AccountCredits,
    Category,
    CreditGrant,
    Credits,
    EntryKind,
    Included,
    Money,
    NewGrant,
    Pool,
    Terms,
    Usage,
)
from schemas.errors import Fenced, InvalidInput
from schemas.side_tables import SideTables
from sinks.sql.side_tables import SqlSideTables

NOW_MS = 1_800_000_000_000
NOVEMBER, DECEMBER, JANUARY, FEBRUARY = 1_000, 2_000, 3_000, 4_000
POOLS = (
    Pool("included", "scan", 1, "next", {"scans": Fraction(1), "pages": Fraction(1, 3)}),
    Pool("bought", "scan", 2, "bill", {"scans": Fraction(1)}),
)


@pytest.fixture
def credits_(side_tables: SideTables) -> Credits:
    return cast("SqlSideTables", side_tables).credits


def terms(included: Mapping[str, Included] | None = None) -> Terms:
    """The pools, and what the account's plan gives of them. No catalog is active in these tables."""
    return Terms("", POOLS, lambda _billed: included or {})


def used(name: str, delta: int, start_ms: int = NOVEMBER, *, meter: str = "scans", account: str = "acme") -> Usage:
    return Usage(name, account, meter, start_ms, start_ms + 1_000, start_ms + 500, delta, 0)


async def give(credits_: Credits, amount: int, key: str = "invoice:in_1", **fields: Any) -> CreditGrant:
    usual: dict[str, Any] = {"account": "acme", "pool": "bought", "category": Category.PAID, "effective_ms": 0}
    new = NewGrant(credits=amount, source_key=key, **{**usual, **fields})
    return (await credits_.grant(new, "ann", "bought", NOW_MS)).grant


async def spend(credits_: Credits, usage: Usage, included: Mapping[str, Included] | None = None) -> tuple[int, int]:
    found = await credits_.allocate(usage, terms(included), NOW_MS)
    return found.drawn_minor, found.remainder_minor


def left(found: AccountCredits) -> dict[str, int]:
    return {grant.source_key: grant.remaining for grant in found.grants}


async def test_two_pools_pay_one_after_the_other(credits_: Credits) -> None:
    await give(credits_, 500)
    gives = {"included": Included(1_000)}
    assert await spend(credits_, used("a", 1_320), gives) == (1_320, 0)
    assert left(await credits_.of_account("acme")) == {"invoice:in_1": 180, "included:included:1000": 0}
    assert await spend(credits_, used("b", 1_200, DECEMBER), gives) == (1_180, 20)
    assert left(await credits_.of_account("acme")) == {
        "invoice:in_1": 0, "included:included:1000": 0, "included:included:2000": 0,
    }  # fmt: skip
    assert await credits_.wrong() == []


async def test_an_intent_draws_once(credits_: Credits) -> None:
    await give(credits_, 10)
    first = await credits_.allocate(used("a", 7), terms(), NOW_MS)
    await give(credits_, 5, key="invoice:in_2")

    assert [await credits_.allocate(used("a", 7), terms(), NOW_MS) for _ in range(2)] == [first, first]
    assert (await spend(credits_, used("none", 0)), await spend(credits_, used("b", 9))) == ((0, 0), (8, 1))
    assert [(entry.number, entry.kind, entry.credits) for entry in await credits_.entries("acme", 10)] == [
        (1, EntryKind.GRANT, 10), (2, EntryKind.DRAW, -7), (3, EntryKind.GRANT, 5), (4, EntryKind.DRAW, -3),
        (5, EntryKind.DRAW, -5),
    ]  # fmt: skip


async def test_the_ledger_is_read_in_pages(credits_: Credits) -> None:
    for number in range(4):
        await give(credits_, 1, key=f"k{number}")
    numbers = [
        [entry.number for entry in found]
        for found in (
            await credits_.entries("acme", 2),
            await credits_.entries("acme", 2, after=2),
            await credits_.entries("acme", 3, newest=True),
            await credits_.entries("globex", 3),
        )
    ]
    assert numbers == [[1, 2], [3, 4], [2, 3, 4], []]


async def test_rounding_never_adds_up(credits_: Credits) -> None:
    """Three pages cost a credit. A part of a credit is never charged twice, and never given twice."""
    await give(credits_, 10, pool="included")
    drawn = []
    for number in range(10):
        found = await credits_.allocate(used(f"p{number}", 1, meter="pages"), terms(), NOW_MS)
        drawn.append(sum(found.draws.values()))
    assert drawn == [0, 0, 1, 0, 0, 1, 0, 0, 1, 0]
    back = await credits_.allocate(used("less", -9, meter="pages"), terms(), NOW_MS)
    assert (sum(back.draws.values()), back.remainder_minor) == (-3, 0)


async def test_a_correction_gives_back_what_was_drawn_last(credits_: Credits) -> None:
    await give(credits_, 5, key="k1")
    await give(credits_, 5, key="k2")
    assert await spend(credits_, used("a", 12)) == (10, 2)
    assert await spend(credits_, used("b", -5)) == (-3, -2)
    found = await credits_.of_account("acme")
    assert sum(left(found).values()) == 3
    assert await spend(credits_, used("c", -20)) == (-7, -13)
    assert (sum(left(await credits_.of_account("acme")).values()), await credits_.wrong()) == (10, [])


async def test_what_is_taken_back_was_never_drawn(credits_: Credits) -> None:
    await give(credits_, 10)
    for number in range(2):
        await spend(credits_, used("a", 12))
        await spend(credits_, used("b", -1))
        for name, delta in (("a", 12), ("b", -1)):
            await credits_.take_back(used(name, delta), NOW_MS + number)
        found = await credits_.of_account("acme")
        assert (left(found), found.coverage) == ({"invoice:in_1": 10}, {})
    assert await credits_.wrong() == []


async def test_a_correction_of_two_rates_is_undone_with_the_credits_that_are_there(credits_: Credits) -> None:
    """The rate changed within the period. What the correction gave back was drawn since."""
    await give(credits_, 30)
    dear = terms()._replace(pools=(POOLS[1]._replace(rates={"scans": Fraction(2)}),))
    await spend(credits_, used("a", 10))
    await credits_.allocate(used("b", 5), dear, NOW_MS)
    assert await spend(credits_, used("less", -15)) == (-15, 0)
    await spend(credits_, used("c", 18, DECEMBER))
    await credits_.take_back(used("less", -15), NOW_MS)
    assert (left(await credits_.of_account("acme")), await credits_.wrong()) == ({"invoice:in_1": 0}, [])


async def test_an_intent_that_is_not_to_be_paid_draws_nothing_any_more(credits_: Credits) -> None:
    """Another sender may be about to draw for it."""
    await give(credits_, 10)
    await credits_.take_back(used("a", 4), NOW_MS)
    assert await spend(credits_, used("a", 4)) == (0, 4)
    assert left(await credits_.of_account("acme")) == {"invoice:in_1": 10}


async def test_credits_of_a_plan_come_each_period_and_roll_over_once(credits_: Credits) -> None:
    gives = {"included": Included(100, 30)}
    await spend(credits_, used("a", 60), gives)
    assert await spend(credits_, used("b", 125, DECEMBER), gives) == (125, 0)
    # What rolled over ends with December too, and began earlier.
    assert left(await credits_.of_account("acme")) == {"included:included:1000": 10, "included:included:2000": 5}
    assert await spend(credits_, used("late", 15), gives) == (10, 5)
    assert await spend(credits_, used("c", 200, JANUARY), gives) == (105, 95)


async def test_an_idle_period_rolls_over_too(credits_: Credits) -> None:
    gives = {"included": Included(100, 30)}
    await spend(credits_, used("a", 100), gives)
    assert await spend(credits_, used("b", 200, FEBRUARY), gives) == (130, 70)


async def test_late_usage_of_an_idle_period_finds_the_credits_of_every_pool(credits_: Credits) -> None:
    """Only one of the pools rolls over, and so has a grant of the idle period already."""
    gives = {"included": Included(100, 30), "bought": Included(20)}
    await spend(credits_, used("a", 1), gives)
    await spend(credits_, used("b", 1, JANUARY), gives)
    assert await spend(credits_, used("late", 155, DECEMBER), gives) == (149, 6)


async def test_a_new_period_discards_nothing_that_was_bought(credits_: Credits) -> None:
    """Elsewhere the reset of a new cycle came behind a purchase, and took it away."""
    gives = {"included": Included(100)}
    await spend(credits_, used("a", 100), gives)
    await give(credits_, 50)
    assert await spend(credits_, used("b", 120, DECEMBER), gives) == (120, 0)
    await give(credits_, 50, key="invoice:in_2")
    assert await spend(credits_, used("c", 90, DECEMBER), gives) == (80, 10)


async def test_a_period_that_begins_anew_ends_the_one_before(credits_: Credits) -> None:
    """Elsewhere a cycle that began anew was charged and gave no credits."""
    gives = {"included": Included(100)}
    await spend(credits_, used("a", 10), gives)
    cut = Usage("b", "acme", "scans", 1_400, 2_400, 1_500, 150, 0)
    assert await spend(credits_, cut, gives) == (100, 50)
    assert await spend(credits_, used("late", 5)._replace(instant_ms=1_300, period_end_ms=1_400), gives) == (5, 0)


async def test_a_purchase_counts_once(credits_: Credits) -> None:
    """Elsewhere a top-up that was sent twice counted twice."""
    paid = Money(2_500, "usd", 2)
    grant = await give(credits_, 100, paid=paid)
    assert (await give(credits_, 100, paid=paid), grant.paid) == (grant, paid)
    with pytest.raises(InvalidInput, match="was given before with 100 credits of bought"):
        await give(credits_, 200)
    assert left(await credits_.of_account("acme")) == {"invoice:in_1": 100}


async def test_a_refund_takes_back_what_is_left_and_books_the_rest(credits_: Credits, side_tables: SideTables) -> None:
    """Elsewhere a second void doubled the credits instead of taking them."""
    grant = await give(credits_, 100)
    await spend(credits_, used("a", 60))
    void = await credits_.void("acme", grant.id, "ann", "refund", NOW_MS, owes=True)
    assert (void.remaining, void.voided_ms) == (0, NOW_MS)
    assert await credits_.void("acme", grant.id, "bob", "again", NOW_MS + 1, owes=True) == void
    await spend(credits_, used("less", -10))
    owed = [(debt.credits, debt.open) for debt in (await credits_.of_account("acme")).debts]
    assert owed == [(60, 50)]

    await give(credits_, 30, key="invoice:in_2")
    await give(credits_, 30, key="invoice:in_3")
    found = await credits_.of_account("acme")
    assert [(debt.open, debt.settled_ms) for debt in found.debts] == [(0, NOW_MS)]
    assert (left(found), await credits_.wrong()) == (
        {"invoice:in_1": 0, "invoice:in_2": 0, "invoice:in_3": 10}, [],
    )  # fmt: skip
    trail = await side_tables.audit("acme")
    assert [(row.actor, row.cause, row.reason) for row in trail] == [
        ("ann", "credits", reason) for reason in ("bought", "refund", "bought", "bought")
    ]


async def test_what_was_paid_and_is_not_owed_comes_back(credits_: Credits) -> None:
    """60 were owed, and the next pack paid 40 of them. Then nothing was used after all."""
    grant = await give(credits_, 100)
    await spend(credits_, used("a", 60))
    await credits_.void("acme", grant.id, "ann", "refund", NOW_MS, owes=True)
    await give(credits_, 40, key="invoice:in_2")
    await spend(credits_, used("less", -30))
    assert await spend(credits_, used("less still", -30)) == (-30, 0)
    found = await credits_.of_account("acme")
    assert ([debt.open for debt in found.debts], await credits_.wrong()) == ([0], [])
    assert sum(left(found).values()) == 40


async def test_what_comes_back_has_the_terms_of_what_paid(credits_: Credits) -> None:
    """Bought credits had paid the debt of a gift that has ended: they came back as a grant that had ended too."""
    ended = await give(credits_, 100, expires_ms=2_000, category=Category.PROMOTIONAL)
    await spend(credits_, used("a", 60))
    await credits_.void("acme", ended.id, "ann", "refund", NOW_MS, owes=True)
    await give(credits_, 50, key="invoice:in_2", expires_ms=NOW_MS + 5)
    await give(credits_, 500, key="invoice:in_3")
    for name, delta in (("less", -4), ("even less", -10)):
        await spend(credits_, used(name, delta))

    found = (await credits_.of_account("acme")).grants
    back = [(each.credits, each.expires_ms, each.category) for each in found if each.source_key.startswith("return:")]
    assert sorted(back, key=str) == [(4, NOW_MS + 5, Category.PAID), (4, None, Category.PAID), (6, None, Category.PAID)]
    assert sum(available(each, NOW_MS) for each in found) == 504
    assert await credits_.wrong() == []


async def test_what_makes_no_sense_is_refused(credits_: Credits) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("credits", {"amount": 0}), ("credits", {"amount": CREDITS_MAX + 1}), ("pool", {"amount": 1, "pool": "a\0"}),
        ("source_key", {"amount": 1, "key": ""}), ("expires_ms", {"amount": 1, "expires_ms": 0}),
        ("priority", {"amount": 1, "priority": -1}), ("effective_ms", {"amount": 1, "effective_ms": 10**18}),
    ]  # fmt: skip
    for field, values in wrong:
        with pytest.raises(InvalidInput, match=field):
            await give(credits_, **values)
    for name in ("cg_none", "\0"):
        with pytest.raises(InvalidInput, match="no grant"):
            await credits_.void("acme", name, "ann", "a mistake", NOW_MS, owes=False)
    assert await credits_.of_account("acme") == AccountCredits([], [], {})


async def test_another_catalog_is_noticed(credits_: Credits) -> None:
    with pytest.raises(Fenced):
        await credits_.allocate(used("a", 1), terms()._replace(catalog_sha256="other"), NOW_MS)


async def test_names_that_postgresql_does_not_store_draw_too(credits_: Credits) -> None:
    assert [await spend(credits_, used("a\0", 1, account="ac\0me")) for _ in range(2)] == [(0, 1), (0, 1)]


async def test_totals_have_any_size(credits_: Credits) -> None:
    huge = 10**30
    await give(credits_, CREDITS_MAX)
    assert await spend(credits_, used("a", huge)) == (CREDITS_MAX, huge - CREDITS_MAX)
    assert await spend(credits_, used("b", -huge)) == (-CREDITS_MAX, CREDITS_MAX - huge)


async def test_many_draws_at_once_never_pass_what_is_there(credits_: Credits) -> None:
    """Of two meters, each intent by two senders."""
    await give(credits_, 60, pool="included")
    usages = [used(f"{meter}{number}", 3, meter=meter) for number in range(12) for meter in ("scans", "pages")]
    twice = [usage for usage in usages for _ in range(2)]
    found = await asyncio.gather(*(credits_.allocate(usage, terms(), NOW_MS) for usage in twice))

    assert found[::2] == found[1::2]
    drawn = sum(sum(each.draws.values()) for each in found[::2])
    remaining = sum(left(await credits_.of_account("acme")).values())
    assert (drawn + remaining, remaining, await credits_.wrong()) == (60, 12, [])
