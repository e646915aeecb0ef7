"""A naive model of entitlements: what an account may do at an instant, read off Stripe's objects and catalog files.

Written only from docs/entitlements.md and docs/catalog.md; imports only the standard library. Catalogs are the files as
objects, subscriptions are Stripe's objects with all items, and with the body of their schedule. Quantities are numbers,
`math.inf` is unlimited. Times are int milliseconds UTC, Stripe's own are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

Document = Mapping[str, Any]

GIVING: Final = ("active", "trialing", "past_due", "canceled")
EVER_MS: Final = 1 << 60
_LATER: Final = ("trial", "addon", "contract", "override")
_STEPS: Final = ("set", "add", "at_least", "at_most")


class PriceOf(NamedTuple):
    """What a price is the price of."""

    plan: str
    version: int
    component: str


class Linked(NamedTuple):
    """A customer of an account over `[starts_ms, ends_ms)`; "" is nobody."""

    customer: str
    starts_ms: int
    ends_ms: int = EVER_MS


class PersonsGrant(NamedTuple):
    """What a person granted over `[starts_ms, ends_ms)`. `number` tells two of one start apart: the higher counts."""

    feature: str
    kind: str
    operation: str
    value: Any
    starts_ms: int
    ends_ms: int
    number: int


class _Give(NamedTuple):
    kind: str
    operation: str
    value: Any
    order: tuple[int, int]


class Shop(NamedTuple):
    """All catalogs that were active, the last one is; and what each price is the price of."""

    catalogs: Sequence[Document]
    prices: Mapping[str, PriceOf]

    def terms(self, plan: str, version: int) -> Document:
        """The terms of a version by the last catalog that has it; {} if none has."""
        for catalog in reversed(self.catalogs):
            for part in ("plans", "addons"):
                found: Document = catalog[part].get(plan, {})
                if found.get("version") == version:
                    return {**found, "is_addon": part == "addons"}
        return {}

    def meters(self) -> set[str]:
        """The meters that any version ever sold."""
        plans = [plan for catalog in self.catalogs for plan in catalog["plans"].values()]
        return {line["meter"] for plan in plans for line in _lines(plan) if "meter" in line}


def instants(linked: Sequence[Linked], subscriptions: Sequence[Document], people: Sequence[PersonsGrant]) -> list[int]:
    """Every instant at which something may change."""
    found = {0, *(at_ms for link in linked for at_ms in link[1:]), *(at_ms for grant in people for at_ms in grant[4:6])}
    for body in subscriptions:
        times = [body["start_date"], body["ended_at"], body["cancel_at"], body["trial_end"]]
        for phase in (body["schedule"] or {}).get("phases", ()):
            times += [phase["start_date"], phase["end_date"], phase["trial_end"]]
        found |= {1_000 * time_s for time_s in times if time_s is not None}
    return sorted(found - {EVER_MS})


def allowed(
    shop: Shop,
    linked: Sequence[Linked],
    subscriptions: Sequence[Document],
    people: Sequence[PersonsGrant],
    instant_ms: int,
    cases: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """The value of each feature at an instant: a truth value, a number, or the settings of a config, None if denied or
    not given. Included usage of a meter is under `included:METER`. `cases`: of each subscription whose newest dunning
    case was not written off, from when on the case withholds what it gives, or None if it does not."""
    gives = [(grant.feature, give) for grant in people if (give := _of_person(grant, instant_ms))]
    ours, owed, is_planned, addons = [], False, False, []
    customers = {link.customer for link in linked if link.starts_ms <= instant_ms < link.ends_ms}
    for body in subscriptions:
        if body["customer"] not in customers or not _runs(body, instant_ms):
            continue
        bought = _bought(shop, body, instant_ms)
        for (plan, version), quantities in bought.items():
            terms = shop.terms(plan, version)
            addons += list(_of_addon(terms, quantities)) if terms["is_addon"] else []
        if _is_unpaid(body, cases or {}, instant_ms):
            owed |= bool(bought)
            continue
        for (plan, version), quantities in bought.items():
            terms = shop.terms(plan, version)
            is_planned |= not terms["is_addon"]
            ours += list(_of_addon(terms, quantities) if terms["is_addon"] else _of_plan(terms, quantities, "plan"))
            ours += list(_of_trial(terms, body, instant_ms))
    active = shop.catalogs[-1]
    if owed and not is_planned:
        # Not paid: nothing that was bought gives, but for add-ons if the catalog says so.
        ours = list(_of_plan(_named(active, active["dunning"]["fallback_plan"]), {}, "plan"))
        ours += [] if active["dunning"].get("suspend_addons", True) else addons
    elif not is_planned:
        ours += list(_of_plan(_named(active, active["defaults"]["plan"]), {}, "plan"))
    return {
        name: _value(feature, [give for of, give in (*gives, *ours) if of == name])
        for name, feature in {**active["features"], **_included(shop)}.items()
    }


def _is_unpaid(body: Document, cases: Mapping[str, int | None], instant_ms: int) -> bool:
    """Whether a subscription that runs does not give. Its dunning case decides, or else its status."""
    if body["id"] not in cases:
        return bool(body["status"] == "unpaid")
    downgrade_ms = cases[body["id"]]
    return downgrade_ms is not None and downgrade_ms <= instant_ms


def _included(shop: Shop) -> dict[str, Document]:
    return {f"included:{meter}": {"type": "limit", "merge": "sum"} for meter in shop.meters()}


def _lines(plan: Document) -> Sequence[Document]:
    return () if plan.get("prices", "none") == "none" else plan["prices"]


def _named(catalog: Document, plan: str) -> Document:
    found: Document = catalog["plans"][plan]
    return found


def _runs(body: Document, instant_ms: int) -> bool:
    """Whether a subscription gives or owes at an instant."""
    schedule = body["schedule"] or {}
    ends = [body["ended_at"], body["cancel_at"]]
    if schedule.get("end_behavior") == "cancel" and schedule["status"] in ("active", "not_started"):
        ends.append(schedule["phases"][-1]["end_date"])
    ends_ms = min((1_000 * end_s for end_s in ends if end_s is not None), default=EVER_MS)
    return body["status"] in (*GIVING, "unpaid") and 1_000 * body["start_date"] <= instant_ms < ends_ms


def _bought(shop: Shop, body: Document, instant_ms: int) -> dict[tuple[str, int], dict[str, int | None]]:
    """The quantities by component of each version that the subscription has at an instant."""
    rows = [(item["price"]["id"], item.get("quantity")) for item in body["items"]["data"]]
    schedule = body["schedule"] or {}
    if schedule.get("status") in ("active", "not_started"):
        running = schedule["current_phase"] or {"start_date": 0}
        for phase in schedule["phases"]:
            if phase["start_date"] > running["start_date"] and 1_000 * phase["start_date"] <= instant_ms:
                rows = [(item["price"], item.get("quantity")) for item in phase["items"]]
    bought: dict[tuple[str, int], dict[str, int | None]] = {}
    for price, quantity in rows:
        if (of := shop.prices.get(price)) and shop.terms(of.plan, of.version):
            bought.setdefault((of.plan, of.version), {})[of.component] = quantity
    return bought


def _of_plan(terms: Document, quantities: Mapping[str, int | None], kind: str) -> Iterator[tuple[str, _Give]]:
    rank = (terms.get("rank", 0), 0)
    paid = {line["quantity"]: quantities.get(line["component"]) for line in _lines(terms) if "quantity" in line}
    for feature, value in terms["grants"].items():
        yield feature, _Give(kind, "set", (paid.get(feature) or 0) if value == "quantity" else _number(value), rank)
    for line in _lines(terms):
        if "meter" in line:
            yield f"included:{line['meter']}", _Give(kind, "set", terms.get("included", {}).get(line["meter"], 0), rank)


def _of_trial(terms: Document, body: Document, instant_ms: int) -> Iterator[tuple[str, _Give]]:
    if body["trial_end"] is not None and instant_ms < 1_000 * body["trial_end"]:
        for feature, value in terms.get("trial", {}).get("grants", {}).items():
            yield feature, _Give("trial", "set", _number(value), (0, terms.get("rank", 0)))


def _of_addon(terms: Document, quantities: Mapping[str, int | None]) -> Iterator[tuple[str, _Give]]:
    times = sum(1 if quantity is None else quantity for quantity in quantities.values())
    for feature, value in terms["grants"].items() if times else ():
        if isinstance(value, dict) and "add" in value:
            yield feature, _Give("addon", "add", value["add"] * times, (0, 0))
        else:
            # Settings have no order, so an add-on's stand instead of the plan's.
            operation = "set" if isinstance(value, dict) else "at_least"
            yield feature, _Give("addon", operation, _number(value), (0, 0))


def _of_person(grant: PersonsGrant, instant_ms: int) -> _Give | None:
    if not grant.starts_ms <= instant_ms < grant.ends_ms:
        return None
    return _Give(grant.kind, grant.operation, _number(grant.value), (grant.starts_ms, grant.number))


def _number(value: Any) -> Any:
    return math.inf if value == "unlimited" else value


def _value(feature: Document, gives: Sequence[_Give]) -> Any:
    """The steps of docs/entitlements.md, one after the other."""
    nothing = {"flag": False, "config": None}.get(feature["type"], 0)
    if any(give.operation == "deny" for give in gives):
        return nothing
    values = [give.value for give in sorted(gives, key=lambda give: give.order) if give.kind == "plan"]
    merge = feature.get("merge", "any" if feature["type"] == "flag" else "first")
    if not values:
        value = nothing
    elif merge == "first":
        value = values[-1]
    else:
        value = sum(values) if merge == "sum" else max(values)
    for kind in _LATER:
        layer = sorted((give for give in gives if give.kind == kind), key=lambda give: give.order)
        for step in _STEPS:
            for give in layer:
                if give.operation == step:
                    value = _stepped(feature, step, value, give.value)
    return value


def _stepped(feature: Document, step: str, value: Any, given: Any) -> Any:
    if step == "set":
        return given
    if step == "at_most":
        return min(value, given)
    return value or given if feature["type"] == "flag" else value + given if step == "add" else max(value, given)
