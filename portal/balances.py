"""The credits of an account on the customer's page: what is left, until when, and the packs that can be bought."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.upgrade_words import date_text, money_text
from portal.words import number_text
from schemas.credit_balances import AccountBalance, CreditsOfPool, GrantBalance
from schemas.packs import SoldPack
from schemas.upgrades import Money

# The form of a pack names its request, so that two clicks are one purchase.
FIELDS: Final = ("pool", "pack", "currency", "key")
_SOURCES: Final = {"included": "included in your plan", "paid": "bought", "promotional": "a gift"}


class PackButton(NamedTuple):
    """A pack that can be bought: the fields of its form, and what the button says."""

    fields: dict[str, str]
    label: str


class PoolView(NamedTuple):
    """The credits of a pool. `grants`: what is left of each and what is to say of it. `note`: what else is to say."""

    name: str
    left: str
    grants: tuple[tuple[str, str], ...]
    packs: tuple[PackButton, ...]
    note: str


def pool_views(balance: AccountBalance | None, currency: str) -> tuple[PoolView, ...]:
    """The pools that the account has credits in, or can buy packs of, in a currency if they are sold in it."""
    if balance is None:
        return ()
    return tuple(_pool(pool, balance, currency) for pool in balance.pools if pool.has_any or pool.packs)


def banners(balance: AccountBalance | None) -> Iterator[tuple[str, str]]:
    """What a customer should hear now: the kind of the banner, and the words."""
    for pool in balance.pools if balance else ():
        if pool.left is None or not pool.has_any:
            continue
        if pool.left <= 0:
            beyond = " More usage is billed." if pool.overdraft == "bill" else ""
            kind = "bad" if pool.overdraft == "block" else "wait"
            yield kind, f"You have no credits left in {_name(pool)}.{beyond}"
        elif pool.top_up_below is not None and pool.left < pool.top_up_below:
            yield "wait", f"You have only {_amount(pool, pool.left)} left in {_name(pool)}."


def _pool(pool: CreditsOfPool, balance: AccountBalance, currency: str) -> PoolView:
    notes = []
    if pool.is_estimate:
        notes.append("An estimate: usage is taken off when its invoice is made.")
    if taken := pool.undrawn + pool.held:
        words = "that were used lately are subtracted from what is left, and not from each credit yet."
        notes.append(f"{_amount(pool, taken)} {words}")
    if pool.owed:
        notes.append(f"{_amount(pool, pool.owed)} are owed, and the next credits pay them first.")
    sold = [each for each in pool.packs if each.price.terms.currency == currency] or pool.packs[:1]
    return PoolView(
        _name(pool).capitalize(),
        "not known at the moment" if pool.left is None else f"{_amount(pool, pool.left)} left",
        tuple(_grant(pool, grant, balance.at_ms) for grant in pool.grants),
        tuple(_button(pool, each, balance.at_ms) for each in sold),
        " ".join(notes),
    )


def _grant(pool: CreditsOfPool, grant: GrantBalance, now_ms: int) -> tuple[str, str]:
    left = "not known" if grant.remaining is None else _number(pool, grant.remaining)
    words = [_SOURCES.get(grant.category, grant.category)]
    if grant.state == "ordered":
        words.append("on their way")
    elif grant.state == "coming":
        words.append(f"from {date_text(grant.effective_ms, now_ms)}")
    words.append("no end" if grant.expires_ms is None else f"until {date_text(grant.expires_ms, now_ms)}")
    return f"{left} of {_number(pool, grant.credits)}", ", ".join(words)


def _button(pool: CreditsOfPool, sold: SoldPack, now_ms: int) -> PackButton:
    price = sold.price
    cost = money_text(Money(int(price.terms.unit_minor or 0), price.terms.currency, price.exponent))
    fields = dict(zip(FIELDS, (pool.pool, price.pack, price.terms.currency, str(now_ms)), strict=True))
    return PackButton(fields, f"Buy {_amount(pool, price.credits)} for {cost}")


def _name(pool: CreditsOfPool) -> str:
    return pool.pool.replace("_", " ")


def _number(pool: CreditsOfPool, credits_: int) -> str:
    """Credits without their unit; money at Stripe in major units."""
    if pool.mode == "stripe":
        return money_text(Money(credits_, pool.unit, pool.exponent))
    return number_text(Decimal(credits_))


def _amount(pool: CreditsOfPool, credits_: int) -> str:
    return _number(pool, credits_) if pool.mode == "stripe" else f"{_number(pool, credits_)} {_units(pool, credits_)}"


def _units(pool: CreditsOfPool, credits_: int) -> str:
    unit = pool.unit if pool.unit != pool.pool else "credit"
    return unit if credits_ == 1 or unit.endswith("s") else f"{unit}s"
