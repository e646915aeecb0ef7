"""What a move of subscriptions to another version of their plan does: prices, phases, and who loses what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from aggregators.catalog_plan import lower_grants
from aggregators.catalog_prices import prices_of
from aggregators.catalog_words import amounts_text
from schemas.catalog import Add, GrantValue, Plan, PlanId, PriceLine
from schemas.catalog_changes import CatalogKind, Standing, StripeRecord
from schemas.plan_moves import Subscribed, SubscribedItem

# Others pay nothing at their renewal, or what they pay is about to change.
_MOVABLE: Final = ("active", "past_due", "trialing")
# What a phase keeps only if it is named again, and we do not name.
_KEPT_BY_HAND: Final = ("add_invoice_items", "default_tax_rates", "billing_thresholds")
_ITEM_BY_HAND: Final = ("discounts", "tax_rates", "billing_thresholds")


class CannotMove(Exception):
    """Why a subscription cannot be moved; for people."""


class Versions:
    """Two versions of a plan, or two plans, with their prices at Stripe."""

    def __init__(self, standing: Standing, source: PlanId, target: PlanId) -> None:
        """Raises `CannotMove` if one of them was never applied, or is an add-on."""
        sold = standing.sold()
        plans = [sold.get(plan) for plan in (source, target)]
        for plan, known in zip((source, target), plans, strict=True):
            if not isinstance(known, Plan):
                raise CannotMove(f"there is no plan {plan}: see `tidemark catalog show --versions`")
        self.source, self.target = source, target
        self._before, self._after = (known for known in plans if isinstance(known, Plan))
        prices = [record for record in standing.records.values() if record.kind is CatalogKind.PRICE]
        self._pins = {record.stripe_id: record for record in prices if record.plan == source}
        self._ids = {_place(record): record.stripe_id for record in prices if record.plan == target}
        self._standing = standing

    @property
    def prices(self) -> frozenset[str]:
        """The ids of the prices of the version that is left."""
        return frozenset(self._pins)

    def losses(self) -> list[str]:
        """What the new version gives less of, in words."""
        before, after = self._before, self._after
        found = [
            f"{name}: {_words(before.grants[name])}, then {_words(after.grants.get(name))}"
            for name in lower_grants(before.grants, after.grants)
        ]
        found += [
            f"included {meter}: {quantity}, then {after.included.meters.get(meter, 0)}"
            for meter, quantity in before.included.meters.items()
            if after.included.meters.get(meter, 0) < quantity
        ]
        return found + [line for line, is_less in self._caps() if is_less]

    def _caps(self) -> list[tuple[str, bool]]:
        """The spend caps that change, in words, and whether less may be spent."""
        before, after = (
            {(meter, currency): amount for meter, cap in plan.spend_cap.items() for currency, amount in cap.items()}
            for plan in (self._before, self._after)
        )
        found = []
        for meter, currency in dict.fromkeys([*before, *after]):
            old, new = (caps.get((meter, currency)) for caps in (before, after))
            if old != new:
                is_less = new is not None and (old is None or Decimal(new) < Decimal(old))
                found.append((f"spend cap of {meter} in {currency}: {old or 'none'}, then {new or 'none'}", is_less))
        return found

    def price_changes(self) -> list[str]:
        """What costs something else, or may cost more, in words."""
        catalog = self._standing.catalog
        currencies = {record.currency for record in self._pins.values()} | {place[2] for place in self._ids}
        if catalog is None or not currencies <= catalog.currencies.keys():
            return [line for line, is_less in self._caps() if not is_less]
        old, new = (
            {
                (price.component, price.terms.interval, price.terms.currency): price
                for price in prices_of(catalog, plan, sold)
            }
            for plan, sold in ((self.source, self._before), (self.target, self._after))
        )
        return [
            f"{' '.join(place)}: {amounts_text(old[place]) if place in old else 'nothing'}, then "
            f"{amounts_text(new[place]) if place in new else 'nothing'}"
            for place in dict.fromkeys([*old, *new])
            if place not in old or place not in new or amounts_text(old[place]) != amounts_text(new[place])
        ] + [line for line, is_less in self._caps() if not is_less]

    def items_after(self, items: Sequence[SubscribedItem]) -> tuple[SubscribedItem, ...]:
        """The items of a subscription after the move. What is not of the plan stays as it is.

        Raises `CannotMove` if the new version has no price for what was bought.
        """
        bought = [(self._pins[item.price], item) for item in items if item.price in self._pins]
        if not bought:
            raise CannotMove(f"has no price of {self.source}")
        if set(self._ids.values()) & {item.price for item in items}:
            raise CannotMove(f"has prices of {self.target} already")
        after = {line.component: line for line in self._after.prices}
        moved: list[SubscribedItem] = []
        for item in items:
            record = self._pins.get(item.price)
            if record is None:
                moved.append(item)
            elif record.component in after:
                moved.append(item._replace(price=self._price(_place(record))))
        held = {record.component for record, _ in bought}
        moved += [self._added(line, bought) for name, line in after.items() if name not in held]
        if not moved:
            raise CannotMove(f"{self.target} has no price at all: cancel the subscription instead")
        return tuple(moved)

    def _added(self, line: PriceLine, bought: Sequence[tuple[StripeRecord, SubscribedItem]]) -> SubscribedItem:
        """The item of a component that the old version does not have."""
        currency = bought[0][0].currency
        if line.meter:
            places = [place for place in self._ids if place[0] == line.component and place[2] == currency]
            if len(places) != 1:
                raise CannotMove(f"{self.target} has no price of {line.component} in {currency}")
            return SubscribedItem(self._ids[places[0]], None)
        licensed = {record.interval for record, item in bought if item.quantity is not None}
        if len(licensed) != 1:
            raise CannotMove(f"{line.component} is new, and the subscription does not have one interval for it")
        quantity = 1
        if line.quantity:
            seats = [each.component for each in self._before.prices if each.quantity == line.quantity]
            paid = [item.quantity or 0 for record, item in bought if record.component in seats]
            if not paid:
                raise CannotMove(f"{line.component} is new, and nobody said how many {line.quantity} to pay")
            quantity = sum(paid)
        return SubscribedItem(self._price((line.component, licensed.pop(), currency)), quantity)

    def _price(self, place: tuple[str, str, str]) -> str:
        if place not in self._ids:
            component, interval, currency = place
            raise CannotMove(f"{self.target} has no price of {component} by the {interval} in {currency}")
        return self._ids[place]


def check_movable(subscribed: Subscribed) -> None:
    """Raise `CannotMove` if a subscription cannot be moved at its renewal, whatever its items are."""
    if subscribed.status not in _MOVABLE:
        raise CannotMove(f"is {subscribed.status}: only a subscription that is {', '.join(_MOVABLE)} is moved")
    if subscribed.is_ending:
        raise CannotMove("is about to be canceled")
    if subscribed.is_pending:
        raise CannotMove("has a pending update: wait until it is paid or has expired")
    if subscribed.has_item_discounts:
        raise CannotMove("has a discount of one item, which a schedule would drop: move it in Stripe's dashboard")


def phases_of(phases: Sequence[Mapping[str, Any]], after: Sequence[SubscribedItem]) -> list[dict[str, Any]]:
    """The phases of a schedule as parameters: the present one as it is, then the new items, for as long as the present
    one. Both keep discounts and automatic tax, and a trial lasts as long as before. Raises `CannotMove` if the present
    one has what cannot be said again."""
    if len(phases) != 1:
        raise CannotMove("has a schedule with other phases")
    (now,) = phases
    by_hand = [name for name in _KEPT_BY_HAND if now.get(name)]
    by_hand += [name for item in now["items"] for name in _ITEM_BY_HAND if item.get(name)]
    if by_hand:
        raise CannotMove(f"has {by_hand[0]}, which a schedule would drop: move it in Stripe's dashboard")
    items = [_item(SubscribedItem(_id(item["price"]), item.get("quantity"))) for item in now["items"]]
    start_s, end_s, trial_s = now["start_date"], now["end_date"], now.get("trial_end")
    if trial_s and trial_s != end_s:
        raise CannotMove("has a trial that ends within its period: move it after the trial")
    kept = _kept(now)
    return [
        {"items": items, "start_date": start_s, "end_date": end_s, **kept, **({"trial": True} if trial_s else {})},
        {"items": [_item(item) for item in after], "start_date": end_s, "end_date": end_s + (end_s - start_s), **kept},
    ]


def _kept(phase: Mapping[str, Any]) -> dict[str, Any]:
    """What both phases say. A discount is named by its own id, so that the months it has left go on."""
    kept: dict[str, Any] = {"proration_behavior": "none"}
    if discounts := phase.get("discounts"):
        kept["discounts"] = [_discount(each) for each in discounts]
    if tax := phase.get("automatic_tax"):
        liability = {key: _id(value) for key, value in (tax.get("liability") or {}).items() if value}
        kept["automatic_tax"] = {"enabled": tax["enabled"]} | ({"liability": liability} if liability else {})
    return kept


def _discount(discount: Mapping[str, Any]) -> dict[str, str]:
    for name in ("discount", "promotion_code", "coupon"):
        if discount.get(name):
            return {name: _id(discount[name])}
    raise CannotMove("has a discount that cannot be named: move it in Stripe's dashboard")


def _item(item: SubscribedItem) -> dict[str, Any]:
    return {"price": item.price} | ({} if item.quantity is None else {"quantity": item.quantity})


def _place(record: StripeRecord) -> tuple[str, str, str]:
    return record.component, record.interval, record.currency


def _id(value: Any) -> str:
    return str(value["id"] if isinstance(value, Mapping) else value)


def _words(value: GrantValue | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Add):
        return f"{value.add} more"
    return str(value).lower() if isinstance(value, bool) else str(value)
