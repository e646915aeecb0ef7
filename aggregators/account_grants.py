"""Derives the grants of an account: from its subscriptions, the plan versions that their prices name, and what people
granted.

A subscription gives by its status: `active`, `trialing` and `past_due` give their plans; `unpaid` takes them away and
leaves the fallback plan unless another subscription gives a plan; `paused`, `incomplete` and `incomplete_expired` give
nothing; `canceled` gave until its end. A pause after the last payment failed is `unpaid`, and one at the end of a trial
is an end. Of a subscription with a dunning case, the case decides instead: before the instant of its downgrade the plan
gives, also if the status is `unpaid`, and from then on the subscription is unpaid, whatever its status. After all was
paid there is no such instant. A price that the catalog never made gives nothing, and is named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.entitlement_codec import encode
from aggregators.entitlements import inputs_sha256, resolve, shortened
from schemas.catalog import QUANTITY, UNLIMITED, Add, AddOn, Catalog, FeatureType, GrantValue, Merge, Plan, PlanId
from schemas.catalog_changes import Pin
from schemas.entitlements import (
    IN_GRACE,
    IN_TRIAL,
    Computed,
    Entitled,
    Feature,
    Grant,
    Operation,
    Resolver,
    SourceKind,
    Span,
    Value,
)
from schemas.entitlements import (
    UNLIMITED as TOP,
)
from schemas.periods import INSTANT_MIN_MS
from schemas.side_tables import Link, Row

_GIVING: Final = frozenset({"active", "trialing", "past_due", "canceled"})
# Types of a pause at Stripe (the subscription's `status_details`).
_UNPAID: Final = "final_payment_failure"
_TRIAL_ENDED: Final = "trial_end_without_payment_method"
_COMING: Final = frozenset({"active", "not_started"})
# The included quantity of a meter resolves like a limit, under a name that no feature has.
INCLUDED: Final = "included:"


class Commerce(NamedTuple):
    """What the business sells: the active catalog, the terms of every version that was ever sold, and what each price
    is the price of, by price id."""

    catalog: Catalog
    sold: Mapping[PlanId, Plan | AddOn]
    pins: Mapping[str, Pin]


class Granted(NamedTuple):
    """The inputs of `aggregators.entitlements`. `unknown_prices`: prices that the catalog never made. `unreadable`: the
    subscriptions that have not ended, and have such a price and none of a plan."""

    features: tuple[Feature, ...]
    entitled: Entitled
    unknown_prices: tuple[str, ...]
    unreadable: tuple[str, ...]


class _Bought(NamedTuple):
    """Prices with their quantities that one subscription has over a span."""

    subscription: str
    span: Span
    quantities: Sequence[tuple[str, int | None]]


@dataclass(slots=True)
class _Collected:
    grants: list[Grant] = field(default_factory=list)
    plans: list[Span] = field(default_factory=list)
    owed: list[Grant] = field(default_factory=list)
    unpaid: list[Span] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)


def granted(
    commerce: Commerce, links: Iterable[Link], mirror: Mapping[str, Sequence[Row]], people: Iterable[Grant]
) -> Granted:
    """What an account is granted. `mirror` has the rows of the account's customers, and as `dunning_cases` the case
    that decides of each subscription that has one; `people` are the overrides and contracts of the account. Equal
    inputs give an equal answer, whatever the time is."""
    collected = _Collected(grants=list(people))
    everywhere = Span(INSTANT_MIN_MS)
    default, fallback = commerce.catalog.defaults.plan, commerce.catalog.dunning.fallback_plan
    for kind, name in ((SourceKind.DEFAULT, default), (SourceKind.FALLBACK, fallback)):
        if name is not None:
            plan = commerce.catalog.plans[name]
            collected.grants += _plan_grants(kind, PlanId(name, plan.version), plan, everywhere, (), 0)
    for link in links:
        for row in mirror.get("subscriptions", ()):
            if link.customer and row["customer_id"] == link.customer:
                _subscription(commerce, link, row, mirror, collected)
    plans, downgraded = tuple(collected.plans), tuple(_without(collected.unpaid, collected.plans))
    # What was not paid is lost while nothing else gives a plan; else it is nothing.
    lost = (grant for owed in collected.owed for grant in _within(owed, downgraded))
    keeps_addons = not commerce.catalog.dunning.suspend_addons
    entitled = Entitled((*collected.grants, *lost), plans, downgraded=downgraded, keeps_addons=keeps_addons)
    unknown, unreadable = tuple(sorted(collected.unknown)), tuple(sorted(collected.unreadable))
    return Granted(features_of(commerce), entitled, unknown, unreadable)


def features_of(commerce: Commerce) -> tuple[Feature, ...]:
    """The features of the active catalog, and the included quantity of each meter that is sold."""
    found = [Feature(name, each.type, each.merged_by) for name, each in sorted(commerce.catalog.features.items())]
    meters = {
        line.meter for sold in commerce.sold.values() if isinstance(sold, Plan) for line in sold.prices if line.meter
    }
    return (*found, *(Feature(f"{INCLUDED}{meter}", FeatureType.LIMIT, Merge.SUM) for meter in sorted(meters)))


def _subscription(
    commerce: Commerce, link: Link, row: Row, mirror: Mapping[str, Sequence[Row]], collected: _Collected
) -> None:
    """Add what one subscription gives while the link holds."""
    status, paused, trial_end_ms = row["status"], row.get("pause_reason"), _integer(row["trial_end_ms"])
    starts_ms = max(_integer(row["start_ms"]) or INSTANT_MIN_MS, link.starts_ms)
    phases, phases_end_ms = _phases(str(row["id"]), mirror)
    ends_ms = _first(_integer(row["ended_ms"]), _integer(row["cancel_at_ms"]), phases_end_ms, link.ends_ms)
    if status == "paused" and paused == _UNPAID:
        status = "unpaid"
    elif status == "paused" and paused == _TRIAL_ENDED:
        status, ends_ms = "canceled", _first(trial_end_ms, ends_ms)
    if row["deleted"] or (ends_ms is not None and ends_ms <= starts_ms):
        return
    if status not in _GIVING and status != "unpaid":
        return
    unpaid_ms = _unpaid_ms(str(row["id"]), mirror, starts_ms if status == "unpaid" else None)
    for bought in _bought(str(row["id"]), Span(starts_ms, ends_ms), phases, mirror):
        by_plan, unknown = _by_plan(commerce, bought)
        collected.unknown |= unknown
        has_plan = any(isinstance(commerce.sold[plan], Plan) for plan in by_plan)
        if unknown and not has_plan and row["ended_ms"] is None and link.ends_ms is None:
            collected.unreadable.add(bought.subscription)
        for part, is_unpaid in _split(bought.span, unpaid_ms):
            # A subscription to what the catalog does not sell takes no plan away.
            if is_unpaid and by_plan:
                collected.unpaid.append(part)
            is_overdue = not is_unpaid and (status in ("past_due", "unpaid") or unpaid_ms is not None)
            for span, reason in _parts(part, trial_end_ms, is_overdue=is_overdue):
                for plan, quantities in by_plan.items():
                    found = _bought_grants(plan, commerce.sold[plan], span, quantities, bought.subscription, reason)
                    given = collected.owed if is_unpaid else collected.grants
                    given += (grant._replace(reason=reason) for grant in found)
            if has_plan and not is_unpaid:
                collected.plans.append(part)


def _unpaid_ms(subscription: str, mirror: Mapping[str, Sequence[Row]], by_status_ms: int | None) -> int | None:
    """From when on a subscription does not give because it was not paid, by its dunning case, or else by its status;
    None if it gives."""
    cases = (row for row in mirror.get("dunning_cases", ()) if row["subscription_id"] == subscription)
    case = next(cases, None)
    return by_status_ms if case is None else _integer(case["downgrade_ms"])


def _split(span: Span, unpaid_ms: int | None) -> Iterator[tuple[Span, bool]]:
    """The parts of a span in which a subscription gives, and in which it is unpaid."""
    if unpaid_ms is None or span.starts_ms < unpaid_ms:
        yield Span(span.starts_ms, _first(span.ends_ms, unpaid_ms)), False
    if unpaid_ms is not None and (span.ends_ms is None or unpaid_ms < span.ends_ms):
        yield Span(max(span.starts_ms, unpaid_ms), span.ends_ms), True


def _parts(span: Span, trial_end_ms: int | None, *, is_overdue: bool) -> Iterator[tuple[Span, str]]:
    """The parts of a span before and after the end of a trial, and the reason of what is given then."""
    usual = IN_GRACE if is_overdue else ""
    trial_end_ms = _first(trial_end_ms, span.ends_ms) if trial_end_ms is not None else None
    if trial_end_ms is None or trial_end_ms <= span.starts_ms:
        yield span, usual
        return
    yield Span(span.starts_ms, trial_end_ms), IN_TRIAL
    if trial_end_ms != span.ends_ms:
        yield Span(trial_end_ms, span.ends_ms), usual


def _by_plan(commerce: Commerce, bought: _Bought) -> tuple[dict[PlanId, list[tuple[str, int | None]]], set[str]]:
    """The quantities of each plan and add-on by component, and the prices that the catalog never made."""
    found: dict[PlanId, list[tuple[str, int | None]]] = {}
    unknown = set[str]()
    for price, quantity in bought.quantities:
        pin = commerce.pins.get(price)
        if pin is None or pin.plan not in commerce.sold:
            unknown.add(price)
        else:
            found.setdefault(pin.plan, []).append((pin.component, quantity))
    return found, unknown


def _bought_grants(
    plan: PlanId, sold: Plan | AddOn, span: Span, paid: Sequence[tuple[str, int | None]], cause: str, reason: str
) -> Iterator[Grant]:
    """What a plan or an add-on gives over a span, in its trial also what the trial gives instead."""
    if isinstance(sold, AddOn):
        yield from _addon_grants(plan, sold, span, paid, cause)
        return
    yield from _plan_grants(SourceKind.PLAN, plan, sold, span, paid, sold.rank, cause)
    if sold.trial and reason == IN_TRIAL:
        for name, value in sold.trial.grants.items():
            yield _grant(SourceKind.TRIAL, plan, name, value, span, None, sold.rank, cause)


def _without(spans: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
    """The parts of spans in which none of the others holds."""
    cuts = sorted({instant for span in (*spans, *others) for instant in span if instant is not None})
    for starts_ms, ends_ms in zip_longest(cuts, cuts[1:]):
        if any(span.contains(starts_ms) for span in spans) and not any(span.contains(starts_ms) for span in others):
            yield Span(starts_ms, ends_ms)


def _within(grant: Grant, spans: Iterable[Span]) -> Iterator[Grant]:
    """The parts of a grant that lie in spans."""
    for span in spans:
        starts_ms, ends_ms = max(grant.starts_ms, span.starts_ms), _first(grant.ends_ms, span.ends_ms)
        if ends_ms is None or starts_ms < ends_ms:
            yield grant._replace(starts_ms=starts_ms, ends_ms=ends_ms)


def _phases(subscription: str, mirror: Mapping[str, Sequence[Row]]) -> tuple[Sequence[Any], int | None]:
    """The phases of a subscription's schedule, and when the schedule ends the subscription; None if it does not."""
    for schedule in mirror.get("subscription_schedules", ()):
        if schedule["subscription_id"] == subscription and schedule["status"] in _COMING and not schedule["deleted"]:
            phases = json.loads(str(schedule["phases_json"]))
            return phases, phases[-1]["end_ms"] if schedule["end_behavior"] == "cancel" else None
    return (), None


def _bought(
    subscription: str, span: Span, phases: Sequence[Any], mirror: Mapping[str, Sequence[Row]]
) -> Iterator[_Bought]:
    """What a subscription has now, and what its schedule's later phases bring."""
    items = [row for row in mirror.get("subscription_items", ()) if row["subscription_id"] == subscription]
    # The items are those of the phase that their period lies in.
    shown_ms = max((_integer(row["period_start_ms"]) or 0 for row in items), default=0)
    coming = [phase for phase in phases if phase["start_ms"] > shown_ms and phase["start_ms"] > span.starts_ms]
    ends_ms = _first(span.ends_ms, *(phase["start_ms"] for phase in coming))
    yield _Bought(
        subscription,
        Span(span.starts_ms, ends_ms),
        [(str(row["price_id"]), _integer(row["quantity"])) for row in items],
    )
    for number, phase in enumerate(coming):
        phase_ends_ms = _first(span.ends_ms, *(after["start_ms"] for after in coming[number + 1 :]))
        if phase_ends_ms is None or phase["start_ms"] < phase_ends_ms:
            prices = [(item["price"], item["quantity"]) for item in phase["prices"]]
            yield _Bought(subscription, Span(phase["start_ms"], phase_ends_ms), prices)


def _plan_grants(
    kind: SourceKind,
    plan: PlanId,
    sold: Plan,
    span: Span,
    paid: Sequence[tuple[str, int | None]],
    rank: int,
    cause: str = "",
) -> Iterator[Grant]:
    # A component may be paid by the month for some seats and by the year for others.
    seats: Counter[str] = Counter()
    for component, number in paid:
        seats.update(
            {line.quantity: number or 0 for line in sold.prices if line.quantity and line.component == component}
        )
    for name, value in sold.grants.items():
        yield _grant(kind, plan, name, value, span, seats[name], rank, cause)
    for line in sold.prices:
        if line.meter:
            quantity = Decimal(sold.included.meters.get(line.meter, 0))
            yield Grant(
                f"{INCLUDED}{line.meter}", kind, str(plan), Operation.SET, quantity, *span, rank=rank, cause=cause
            )


def _addon_grants(
    plan: PlanId, sold: AddOn, span: Span, paid: Sequence[tuple[str, int | None]], cause: str
) -> Iterator[Grant]:
    times = sum(1 if quantity is None else quantity for _, quantity in paid)
    if not times:
        return
    for name in sold.grants:
        yield addon_grant(plan, sold, name, span, times, cause)


def addon_grant(addon: PlanId, sold: AddOn, feature: str, span: Span, times: int, cause: str = "") -> Grant:
    """What so many of an add-on give of one of its features."""
    grant = _grant(SourceKind.ADDON, addon, feature, sold.grants[feature], span, times, 0, cause)
    if grant.operation is Operation.ADD and isinstance(grant.value, Decimal):
        return grant._replace(value=grant.value * times)
    if grant.operation is Operation.SET and not isinstance(grant.value, str):
        # An add-on gives at least what it says, and takes nothing.
        return grant._replace(operation=Operation.AT_LEAST)
    return grant


def _grant(
    kind: SourceKind,
    plan: PlanId,
    feature: str,
    value: GrantValue,
    span: Span,
    paid: int | None,
    rank: int,
    cause: str,
) -> Grant:
    operation, exact = meaning(value, paid)
    return Grant(feature, kind, str(plan), operation, exact, *span, rank=rank, cause=cause)


def meaning(value: GrantValue, paid: int | None = None) -> tuple[Operation, Value]:
    """What a grant of the catalog does, and with which value. `paid` is the paid quantity of seats."""
    if isinstance(value, Add):
        return Operation.ADD, Decimal(value.add)
    if isinstance(value, bool):
        return Operation.SET, value
    if isinstance(value, int):
        return Operation.SET, Decimal(value)
    if isinstance(value, dict):
        return Operation.SET, msgspec.json.encode(value, order="sorted").decode()
    if value == QUANTITY:
        return Operation.SET, Decimal(paid or 0)
    return Operation.SET, TOP if value == UNLIMITED else value


def _integer(value: str | int | None) -> int | None:
    return None if value is None else int(value)


def _first(*instants: int | None) -> int | None:
    return min((instant for instant in instants if instant is not None), default=None)


def resolver_of(commerce: Commerce) -> Resolver:
    """The function that computes an account's entitlements by a catalog."""

    def resolved(
        links: Iterable[Link], mirror: Mapping[str, Sequence[Row]], people: Iterable[Grant], since_ms: int
    ) -> Computed:
        found = granted(commerce, links, mirror, people)
        segments = encode(shortened(resolve(found.features, found.entitled), since_ms))
        return Computed(inputs_sha256(found.features, found.entitled), segments, found.unreadable)

    return resolved
