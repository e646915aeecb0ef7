"""Begins a migration, approves and promotes its waves, and takes single subscriptions or all of it back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Final

from aggregators import flat_to_metered as rules
from aggregators.plan_moves import CannotMove
from pipeline.changes.migrating import SUBSCRIPTIONS_MAX, Loaded, Stores, Told, advance, keep, load, prices_of
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Figures, Item, ItemState, Migration, Who
from schemas.plan_moves import Subscribed

_BACK: Final = {
    **dict.fromkeys((*rules.BEFORE, ItemState.SCHEDULED), ItemState.REVERTED),
    ItemState.PROMOTED: ItemState.RETURNING,
    ItemState.SETTLED: ItemState.RETURNING,
}
# Where nothing is to be asked of Stripe.
_DROPPED: Final = (ItemState.PLANNED,)


async def begin(stores: Stores, migration: Migration) -> tuple[Loaded, Mapping[str, str]]:
    """Plan a migration: note every subscription of the flat plan with its wave. Changes nothing at Stripe. Returns also
    why each other subscription does not take part. The same again adds those that are new."""
    prices = await prices_of(stores.parts.catalog, migration)
    now_ms = stores.parts.clock.now_ms()
    known = {item.subscription: item for item in await stores.kept.items(migration.name)}
    mirrored = await stores.moves.subscribed(prices.flat.keys(), SUBSCRIPTIONS_MAX + 1)
    if len(mirrored) > SUBSCRIPTIONS_MAX:
        raise InvalidInput("--from", f"more than {SUBSCRIPTIONS_MAX} subscriptions have the plan: that is the limit")
    accounts = {each.account for each in mirrored if each.account}
    totals = await stores.totals.totals(accounts, prices.meters)
    left: dict[str, str] = {}
    items: list[Item] = []
    for each in mirrored:
        try:
            if each.id not in known:
                rules.check_fit(prices, each)
                past_minor = rules.past_minor(prices, each, totals, now_ms)
                items.append(_item(migration, prices, each, len(known) + len(items), past_minor))
        except CannotMove as error:
            left[each.id] = str(error)
    await stores.kept.add(migration, items)
    return await load(stores, migration.name), left


def _item(migration: Migration, prices: rules.Prices, each: Subscribed, place: int, past_minor: int | None) -> Item:
    flat = [item for item in each.items if item.price in prices.flat]
    price = prices.flat[flat[0].price]
    fees = prices.future_fees(prices.future_items(each.items))
    figures = Figures(price.terms.currency, price.exponent, prices.flat_fees(flat), each.items, fees, past_minor)
    return Item(
        migration.name, each.id, each.account, each.customer, rules.wave_of(place), ItemState.PLANNED, figures,
        migration.made_ms, renews_ms=each.renews_ms,
    )  # fmt: skip


async def shadow(stores: Stores, name: str, who: Who, told: Told) -> Loaded:
    """Give every planned subscription the prices of 0."""
    loaded = await load(stores, name)
    waiting = [item for item in loaded.items if item.state is ItemState.PLANNED]
    await advance(stores, loaded, waiting, ItemState.SHADOW, who, told)
    return await load(stores, name)


async def approve(
    stores: Stores, name: str, wave: int, accepted: Mapping[str, int], notified_ms: int, who: Who
) -> Loaded:
    """Approve a wave. `accepted`: the month without cash in minor units by currency, as the report shows it. Raises
    `InvalidInput` if a guard says no. The same again changes nothing."""
    loaded = await load(stores, name)
    if hindrance := rules.approval_hindrance(loaded.migration, loaded.items, wave):
        raise InvalidInput("--wave", hindrance)
    now_ms = stores.parts.clock.now_ms()
    if notified_ms > now_ms:
        raise InvalidInput("--notified", "is in the future: say when the customers were told both figures")
    waiting = [item for item in loaded.items if item.wave == wave and item.state is ItemState.COMPARED]
    # Also what a process approved that ended half-way: the amount is that of the wave.
    approved = [item for item in loaded.items if item.wave == wave and item.state is ItemState.APPROVED]
    due = rules.month_without_cash([*waiting, *approved])
    if waiting and dict(accepted) != {currency: minor for (currency, _), minor in due.items()}:
        amounts = sorted((name, Decimal(minor).scaleb(-exponent)) for (name, exponent), minor in due.items())
        said = ", ".join(f"{name}={amount}" for name, amount in amounts)
        message = f"must be {said}: so much is not charged when the wave's metered periods begin"
        raise InvalidInput("--accept-month-without-cash", message)
    for item in waiting:
        after = item._replace(state=ItemState.APPROVED, notified_ms=notified_ms)
        await keep(stores, item, after, who)
    return await load(stores, name)


async def promote(stores: Stores, name: str, wave: int, who: Who, told: Told) -> Loaded:
    """Have the approved subscriptions of a wave changed at the end of their periods. Raises `InvalidInput` while the
    migration is halted."""
    loaded = await load(stores, name)
    if loaded.migration.halted:
        raise InvalidInput("NAME", f"the migration is halted: {loaded.migration.halted}")
    waiting = []
    for item in loaded.items:
        if item.wave == wave and item.state is ItemState.APPROVED:
            now = loaded.mirrored.get(item.subscription)
            note = rules.notice_hindrance(loaded.migration, item, now.renews_ms) if now else "ended"
            if note:
                await keep(stores, item, item._replace(note=note), who)
                told(f"{item.subscription}: {note}")
            elif now:
                after = await keep(stores, item, item._replace(renews_ms=now.renews_ms), who)
                # Another command may have taken it back meanwhile.
                waiting += [after] if after.state is ItemState.APPROVED else []
    await advance(stores, loaded, waiting, ItemState.SCHEDULED, who, told)
    return await load(stores, name)


async def revert(stores: Stores, name: str, accounts: Collection[str], who: Who, told: Told) -> Loaded:
    """Take accounts back to the flat price; all of the migration if none is named. Those that were promoted have
    the flat price again from the end of their running period."""
    loaded = await load(stores, name)
    if unknown := set(accounts) - {item.account for item in loaded.items}:
        raise InvalidInput("--account", f"{min(unknown)} is not in the migration")
    for known in loaded.items:
        if known.state in _BACK and (not accounts or known.account in accounts):
            now = loaded.mirrored.get(known.subscription)
            after = rules.followed(loaded.prices, known, now)
            renews_ms = now.renews_ms if now else known.renews_ms
            item = await keep(stores, known, after._replace(renews_ms=renews_ms), who)
            if item.state in _DROPPED and item.wish is None:
                await keep(stores, item, item._replace(state=ItemState.REVERTED, problem=""), who)
            else:
                await advance(stores, loaded, [item], _BACK[item.state], who, told)
    return await load(stores, name)
