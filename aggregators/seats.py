"""How many may hold a seat, and how many seats are to be paid for so many holders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from aggregators.account_grants import features_of, granted
from aggregators.entitlement_codec import decode
from aggregators.entitlements import resolve, resolved_of, segment_at
from aggregators.plan_offer import Shop, seat_feature
from aggregators.price_list import Sale
from schemas.catalog import FeatureType
from schemas.entitlements import (
    UNLIMITED,
    EntitlementVersion,
    Feature,
    Grant,
    Operation,
    Resolved,
    Segment,
    SourceKind,
    Value,
)
from schemas.errors import InvalidInput
from schemas.plan_changes import HeldItem, SubscriptionView
from schemas.seats import Holders
from schemas.upgrades import Billed

# Seats are paid by a plan that is sold by their number. Who owes something pays that first.
_GROWING: Final = frozenset({"active", "trialing"})
_BESIDE_PLANS: Final = frozenset({SourceKind.CONTRACT, SourceKind.OVERRIDE})
# Who changes what is paid, for the audit.
ACTOR: Final = "seats"
PAID_UNTIL_THEN: Final = "paid until the period ends"


def feature_named(shop: Shop, name: str) -> Feature:
    """A seat feature of the catalog. Raises `InvalidInput` if there is none of that name."""
    found = shop.commerce.catalog.features.get(name)
    if found is None or found.type is not FeatureType.SEAT:
        known = [each for each, term in shop.commerce.catalog.features.items() if term.type is FeatureType.SEAT]
        names = f"use {', '.join(known)}" if known else "the catalog has none"
        raise InvalidInput("feature", f"{name[:100]!r} is no feature of type seat: {names}")
    return Feature(name, found.type, found.merged_by)


def allowed_now(shop: Shop, version: EntitlementVersion | None, now_ms: int) -> Segment:
    """What an account may do at an instant; without a version, what the default plan gives."""
    if version is not None:
        return segment_at(decode(version.segments), now_ms)
    nobody = granted(shop.commerce, (), {}, ())
    return segment_at(resolve(features_of(shop.commerce), nobody.entitled), now_ms)


def room_of(shop: Shop, feature: str, segment: Segment, billed: Billed) -> int | None:
    """How many may hold a seat of a feature; None: as many as are paid, because more can be bought by their number, or
    as many as want."""
    value = _value(segment.features.get(feature))
    if value is UNLIMITED or (can_grow(shop, feature, billed) and not _has_contract(segment)):
        return None
    return int(value) if isinstance(value, Decimal) else 0


def can_grow(shop: Shop, feature: str, billed: Billed) -> bool:
    """Whether a subscription pays for the feature's seats by their number, and its payments are in order."""
    return any(
        item.quantity is not None and seat_feature(shop, item.price) == feature
        for subscription in billed.subscriptions
        if subscription.status in _GROWING and not subscription.is_update_pending
        for item in subscription.items
    )


def _has_contract(segment: Segment) -> bool:
    """Whether a contract has the terms of the account, so that nothing is bought without an operator."""
    return any(grant.kind is SourceKind.CONTRACT for found in segment.features.values() for grant in found.gives)


def _value(found: Resolved | None) -> Value:
    if found is None or found.is_denied:
        return Decimal(0)
    return found.value


def payable(holders: Mapping[str, Holders], gives: Mapping[str, Resolved]) -> Mapping[str, int]:
    """How many holders by feature the plan's quantity has to cover: all but as many as add-ons and people added."""
    return {feature: max(0, each.held - _added(gives.get(feature))) for feature, each in holders.items()}


def _added(found: Resolved | None) -> int:
    gives = () if found is None else found.gives
    added = [grant.value for grant in gives if grant.operation is Operation.ADD]
    return sum(int(value) for value in added if isinstance(value, Decimal))


def quantities_for(shop: Shop, view: SubscriptionView, held: Mapping[str, int]) -> Mapping[str, int]:
    """The quantities to be paid by feature, of those that the account's plan is paid by and whose holders are kept: one
    for each holder in `held`, at least one, and at least as many as the price includes."""
    wanted = {}
    for item in view.items:
        feature = seat_feature(shop, item.price)
        if item.quantity is not None and feature in held and _is_of_plan(shop, view, item):
            wanted[feature] = max(1, _included(shop, view, item), held[feature])
    return wanted


def paid_now(shop: Shop, view: SubscriptionView, feature: str) -> int:
    """How many seats of a feature the present period is paid for."""
    items = [item for item in view.items if item.quantity is not None and seat_feature(shop, item.price) == feature]
    return sum(max(item.quantity or 0, item.paid or 0) for item in items)


def quantity_now(shop: Shop, view: SubscriptionView, feature: str) -> int:
    """The quantity of a feature's seats that Stripe has."""
    return sum(item.quantity or 0 for item in view.items if seat_feature(shop, item.price) == feature)


def kept_until(
    feature: Feature, before: Resolved | None, paid: int, now_ms: int, items: Sequence[HeldItem]
) -> Grant | None:
    """The grant by which an account keeps until its period ends what it paid, although it pays for fewer seats from
    then on; None if it has as many as it wants anyway."""
    gives = [] if before is None else [grant for grant in before.gives if grant.kind not in _BESIDE_PLANS]
    bought = resolved_of(feature, gives).value
    if bought is UNLIMITED:
        return None
    value = max(Decimal(paid), bought) if isinstance(bought, Decimal) else Decimal(paid)
    end_ms = max(item.end_ms for item in items)
    return Grant(
        feature.name, SourceKind.PROMOTION, ACTOR, Operation.AT_LEAST, value, now_ms, end_ms, cause=ACTOR,
        reason=PAID_UNTIL_THEN,
    )  # fmt: skip


def _is_of_plan(shop: Shop, view: SubscriptionView, item: HeldItem) -> bool:
    pin = shop.commerce.pins.get(item.price)
    return pin is not None and pin.plan == view.plan


def _included(shop: Shop, view: SubscriptionView, item: HeldItem) -> int:
    if view.plan is None or view.interval is None:
        return 0
    terms = shop.prices.get(Sale(view.plan, view.interval, view.currency), {}).get(item.component)
    return terms.included if terms else 0
