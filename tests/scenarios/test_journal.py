"""The journal of a customer whose story is played at the simulator: each amount as Stripe has it, once."""

from __future__ import annotations

from collections import Counter

from schemas.journal import JournalEntry
from tests.scenarios.selling import ACME, BASIC_AND_PRO, Seller
from tests.scenarios.vocabulary import Account, at


def told(entry: JournalEntry) -> tuple[str, str, int]:
    """Day, kind and cents; of a change of plan, how many items there are then."""
    cents = len(entry.after) if entry.amount_minor is None else entry.amount_minor
    return f"{(entry.at_ms // 1_000 - at('2027-02-01')) // 86_400 + 1:02}", entry.kind.value, cents


async def entries(seller: Seller) -> list[JournalEntry]:
    """All entries with their numbers."""
    await seller.tables.journal.number(0, 1_000, delivers=False)
    return list(await seller.tables.journal.entries())


async def test_a_customers_months_are_in_the_journal(account: Account) -> None:
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.reach("2027-02-15")
    await account.change_plan(seller.price("pro.v1.base.month.usd"))
    await seller.reach("2027-03-02")
    paid = await account.invoice()
    note = {"invoice": paid.id, "amount": 2_000, "refund_amount": 2_000, "reason": "product_unsatisfactory"}
    await account.sdk("v1.credit_notes.create", note)
    await seller.hear("2027-03-02")
    await account.decline_next("generic_decline", 100)
    await seller.reach("2027-04-02")
    await account.void(await account.invoice())
    await account.cancel()
    await seller.hear("2027-04-02")

    found = await entries(seller)
    # The change of plan costs half of 70 dollars more in a February of 28 days.
    assert [told(each) for each in found] == [
        ("01", "invoice", 7_900), ("01", "payment", 7_900), ("01", "plan_change", 1),
        ("15", "invoice", 3_500), ("15", "payment", 3_500), ("15", "plan_change", 1),
        ("29", "invoice", 14_900), ("29", "payment", 14_900),
        ("30", "credit_note", 2_000), ("30", "refund", 2_000),
        ("60", "invoice", 14_900), ("61", "void", 14_900), ("61", "plan_change", 0),
    ]  # fmt: skip
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert {each.account for each in found} == {ACME}
    changes = [each for each in found if each.amount_minor is None]
    assert [[item.plan for item in each.after] for each in changes] == [["basic"], ["pro"], []]
    assert {each.reason for each in found if each.kind.value == "credit_note"} == {"product_unsatisfactory"}


async def test_a_resync_adds_nothing(account: Account) -> None:
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await account.change_plan(seller.price("pro.v1.base.month.usd"))
    await seller.reach("2027-03-20")
    await seller.reach("2027-05-02")
    before = await entries(seller)
    kinds = Counter(each.kind.value for each in before)
    assert (kinds["invoice"], kinds["payment"]) == (5, 5)
    await seller.resync("once")
    assert await entries(seller) == before


async def test_who_heard_of_nothing_has_the_same_amounts_after_a_resync(account: Account) -> None:
    seller = Seller(account)
    await seller.open(BASIC_AND_PRO, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await account.change_plan(seller.price("pro.v1.base.month.usd"))
    await account.advance("2027-03-20")
    await account.advance("2027-04-02")
    await account.sdk(
        "v1.credit_notes.create", {"invoice": (await account.invoice()).id, "amount": 500, "refund_amount": 500}
    )
    assert await entries(seller) == []
    seller.wait("2027-04-02")
    # Stripe lists no subscription of a test clock.
    await seller.resync("once")
    amounts = Counter((each.kind.value, each.amount_minor) for each in await entries(seller))
    assert amounts == Counter({
        ("invoice", 7_900): 1, ("invoice", 7_000): 1, ("invoice", 14_900): 2,
        ("payment", 7_900): 1, ("payment", 7_000): 1, ("payment", 14_900): 2,
        ("credit_note", 500): 1, ("refund", 500): 1,
    })  # fmt: skip
