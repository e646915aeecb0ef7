"""Gives seats to holders and takes them back. What is paid follows (`pipeline.changes.following`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.plan_offer import Shop, seat_feature
from aggregators.seats import allowed_now, can_grow, feature_named, room_of
from aggregators.upgrade import Denied, upgrade_of
from pipeline.changes.parts import Parts, shop_of
from schemas.catalog import FeatureType
from schemas.catalog_changes import CatalogStore
from schemas.clock import HOUR_MS, Clock
from schemas.entitlements import UNLIMITED, Entitlements, EntitlementVersion, Resolved, Value
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.seats import Holders, Seat, Seats, SeatState
from schemas.upgrades import Billed, Upgrade

SEAT_PREFIX: Final = "seat_"
HOLDER_CHARACTERS_MAX: Final = 256
# An invitation reserves a seat for a week, if the feature does not say how long.
RESERVE_H: Final = 168


class SeatParts(NamedTuple):
    """The stores that seats need; none of them is Stripe."""

    clock: Clock
    catalog: CatalogStore
    entitlements: Entitlements
    seats: Seats


def seat_parts(parts: Parts) -> SeatParts:
    """Those of the stores of plan changes."""
    return SeatParts(parts.clock, parts.catalog, parts.entitlements, parts.seats)


class SeatWish(NamedTuple):
    """A wanted seat. `is_reserved`: an invitation holds the seat until it is accepted or has expired. `key` names the
    request; "" for none: then feature and holder do."""

    account: str
    feature: str
    holder: str
    is_reserved: bool = False
    key: str = ""


class SeatsFull(NamedTuple):
    """That a seat is not given, in words, and what would allow it; None if nothing on sale would, or if the account
    owes something."""

    held: int
    message: str
    upgrade: Upgrade | None


class Standing(NamedTuple):
    """The seats of one feature: who holds some, how many are allowed, how many the mirror has seen paid by their number
    (0 if none are), and whether more can be bought by their number."""

    feature: str
    holders: Holders
    allowed: Value
    paid: int
    can_grow: bool


async def take_seat(parts: SeatParts, wish: SeatWish, by: str) -> tuple[Seat, bool] | SeatsFull:
    """Give a holder a seat; returns it, and whether it is new. A holder who has one keeps it.

    Raises `InvalidInput` with the field for a feature that is no seat, a holder without a name and a key that named
    another request, and `Transient`.
    """
    check_account(wish.account)
    if not wish.holder.strip() or len(wish.holder) > HOLDER_CHARACTERS_MAX or "\0" in wish.holder:
        raise InvalidInput("holder", f"name the holder by an id of 1 to {HOLDER_CHARACTERS_MAX} characters")
    shop, now_ms = await shop_of(parts.catalog), parts.clock.now_ms()
    feature_named(shop, wish.feature)
    seen: list[tuple[EntitlementVersion | None, Billed]] = []

    def room(version: EntitlementVersion | None, billed: Billed) -> int | None:
        seen.append((version, billed))
        return room_of(shop, wish.feature, allowed_now(shop, version, now_ms), billed)

    taken = await parts.seats.take(_seat(shop, wish, now_ms), room, by, now_ms)
    if taken.seat is not None:
        return taken.seat, taken.is_new
    return _full(shop, wish.feature, taken.held, *seen[-1], now_ms)


async def standings(parts: SeatParts, account: str) -> Sequence[Standing]:
    """The seats of an account by feature, in the catalog's order. Reads SQL alone; raises `Transient`."""
    check_account(account)
    shop, now_ms = await shop_of(parts.catalog), parts.clock.now_ms()
    holders = await parts.seats.holders(account, now_ms)
    version = (await parts.entitlements.latest([account])).get(account)
    billed, segment = await parts.entitlements.billed(account, now_ms), allowed_now(shop, version, now_ms)
    found = []
    for name in _seat_features(shop):
        resolved = segment.features.get(name, Resolved(Decimal(0)))
        allowed = Decimal(0) if resolved.is_denied else resolved.value
        standing = Standing(
            name, holders.get(name, Holders()), allowed, _paid(shop, name, billed), can_grow(shop, name, billed)
        )
        found.append(standing)
    return found


def _seat_features(shop: Shop) -> list[str]:
    return [name for name, term in shop.commerce.catalog.features.items() if term.type is FeatureType.SEAT]


def _paid(shop: Shop, feature: str, billed: Billed) -> int:
    return sum(
        item.quantity or 0
        for subscription in billed.subscriptions
        for item in subscription.items
        if seat_feature(shop, item.price) == feature
    )


def _seat(shop: Shop, wish: SeatWish, now_ms: int) -> Seat:
    hours = shop.commerce.catalog.features[wish.feature].invites_reserve_h or RESERVE_H
    state = SeatState.RESERVED if wish.is_reserved else SeatState.ACTIVE
    expires_ms = now_ms + hours * HOUR_MS if wish.is_reserved else None
    # The ids of seats rise with time, so that a page of a list goes on where the one before ended.
    name = f"{SEAT_PREFIX}{now_ms:012x}{secrets.token_hex(8)}"
    return Seat(name, wish.account, wish.feature, wish.holder, state, now_ms, now_ms, expires_ms, wish.key)


def _full(
    shop: Shop, feature: str, held: int, version: EntitlementVersion | None, billed: Billed, now_ms: int
) -> SeatsFull:
    resolved = allowed_now(shop, version, now_ms).features.get(feature, Resolved(Decimal(0)))
    full = f"all {held} {feature.replace('_', ' ')} are held"
    if any(each.status in ("past_due", "unpaid") or each.is_update_pending for each in billed.subscriptions):
        return SeatsFull(held, f"{full}: pay the open invoice first, or release one", None)
    denied = Denied(feature_named(shop, feature), resolved, Decimal(held + 1))
    upgrade = upgrade_of(shop.commerce, shop.prices, billed, denied, now_ms)
    remedy = f"release one, or take another plan: {upgrade.words}" if upgrade else "release one first"
    return SeatsFull(held, f"{full}: {remedy}", upgrade)


def allowed_text(allowed: Value) -> str:
    """How many seats are allowed: a number, or `unlimited`."""
    return "unlimited" if allowed is UNLIMITED else f"{allowed:f}" if isinstance(allowed, Decimal) else "0"
