"""What a check answers: every reason of the closed list, and the numbers beside it."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from aggregators.access import decide, fallback
from aggregators.overage import Tariff
from aggregators.rating import Rating, Tier
from schemas.access import Decision, Reason, Spending, Standing, Usage
from schemas.catalog import FeatureType, Merge
from schemas.entitlements import UNLIMITED, Feature, Grant, Operation, Resolved, SourceKind, Value
from schemas.upgrades import Money

FLAG = Feature("pos", FeatureType.FLAG, Merge.ANY)
CALLS = Feature("api_calls", FeatureType.LIMIT, Merge.SUM)
SEATS = Feature("locations", FeatureType.SEAT, Merge.SUM)
CONFIG = Feature("reporting", FeatureType.CONFIG, Merge.FIRST)


def grant(kind: str = "plan", operation: str = "set", feature: Feature = CALLS) -> Grant:
    return Grant(feature.name, SourceKind(kind), "pro@4", Operation(operation), Decimal(1), 0)


def given(value: Value | int, kind: str = "plan", operation: str = "set") -> Resolved:
    exact = Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return Resolved(exact, (grant(kind, operation),))


NOTHING = Resolved(Decimal(0))
CASES: dict[str, tuple[Feature, Resolved, dict[str, Any], bool, str]] = {
    "a flag of the plan": (FLAG, given(True), {}, True, "included"),
    "a flag that nothing gives": (FLAG, Resolved(False), {}, False, "not_in_plan"),
    "a flag of a trial": (FLAG, given(True, "trial"), {}, True, "trial"),
    "a flag of a trial that ended": (
        FLAG,
        Resolved(False),
        {"standing": Standing((grant("trial"),))},
        False,
        "trial_over",
    ),
    "a flag in grace": (FLAG, given(True), {"standing": Standing(in_grace=True)}, True, "payment_failed_grace"),
    "a flag lost with the plan": (
        FLAG,
        Resolved(False),
        {"standing": Standing((grant(),), is_downgraded=True)},
        False,
        "downgraded_unpaid",
    ),
    "downgraded, and never had it": (
        FLAG,
        Resolved(False),
        {"standing": Standing(is_downgraded=True)},
        False,
        "not_in_plan",
    ),
    "a flag that a person denied": (
        FLAG,
        Resolved(False, (grant("override", "deny"),), True),
        {},
        False,
        "denied_by_override",
    ),
    "a flag that an override switched off": (FLAG, given(False, "override"), {}, False, "denied_by_override"),
    "an unknown account": (FLAG, Resolved(False), {"standing": Standing(is_known=False)}, False, "no_account"),
    "a config": (CONFIG, given('{"days":30}'), {}, True, "included"),
    "a config that nothing gives": (CONFIG, Resolved("null"), {}, False, "not_in_plan"),
    "room in a limit": (CALLS, given(10), {"used": 9}, True, "within_limit"),
    "exactly the limit": (CALLS, given(10), {"used": 9, "quantity": 1}, True, "within_limit"),
    "one more than the limit": (CALLS, given(10), {"used": 9, "quantity": 2}, False, "limit_reached"),
    "a quantity of nothing at the limit": (CALLS, given(10), {"used": 10, "quantity": 0}, True, "within_limit"),
    "held by others": (CALLS, given(10), {"used": 5, "held": 5}, False, "limit_reached"),
    "a soft limit": (CALLS, given(10), {"used": 10, "soft": True}, True, "soft_limit_passed"),
    "a soft limit of nothing": (CALLS, NOTHING, {"soft": True}, False, "not_in_plan"),
    "unlimited": (CALLS, given(UNLIMITED), {"used": 10**12}, True, "unlimited"),
    "a limit that a person set to nothing": (CALLS, given(0, "override"), {}, False, "denied_by_override"),
    "a limit of a trial": (CALLS, given(10, "trial"), {}, True, "trial"),
    "full seats": (SEATS, given(3), {"used": 3}, False, "seats_full"),
    "a free seat": (SEATS, given(3), {"used": 2}, True, "within_limit"),
    "included usage": (CALLS, given(UNLIMITED), {"used": 9, "included": 10}, True, "included"),
    "overage": (CALLS, given(UNLIMITED), {"used": 10, "included": 10}, True, "overage_billed"),
    "overage below the cap": (CALLS, given(UNLIMITED), {"used": 14, "included": 10, "most": 5}, True, "overage_billed"),
    "overage beyond the cap": (
        CALLS,
        given(UNLIMITED),
        {"used": 15, "included": 10, "most": 5},
        False,
        "spend_cap_reached",
    ),
    "a limit above the included usage": (CALLS, given(12), {"used": 12, "included": 10}, False, "limit_reached"),
    "overage in grace is billed": (
        CALLS,
        given(UNLIMITED),
        {"used": 10, "included": 10, "standing": Standing(in_grace=True)},
        True,
        "overage_billed",
    ),
}


def decided(feature: Feature, resolved: Resolved, facts: dict[str, Any]) -> Decision:
    most, included = facts.get("most"), facts.get("included")
    usage = Usage(Decimal(facts.get("used", 0)), Decimal(facts.get("held", 0)))
    # Each unit beyond the included ones costs three cents.
    tiers = (Tier(included, Fraction(0), Fraction(0)), Tier(None, Fraction(3), Fraction(0)))
    tariff = Tariff(Rating("usd", Fraction(0), tiers), Decimal(included or 0), 2, most * 3 + 2) if most else None
    return decide(
        feature,
        resolved,
        usage,
        Decimal(facts.get("quantity", 1)),
        facts.get("standing", Standing()),
        included=None if included is None else Decimal(included),
        soft=facts.get("soft", False),
        tariff=tariff,
    )


@pytest.mark.parametrize(("feature", "resolved", "facts", "allowed", "reason"), CASES.values(), ids=CASES)
def test_a_check(feature: Feature, resolved: Resolved, facts: dict[str, Any], allowed: bool, reason: str) -> None:
    found = decided(feature, resolved, facts)

    assert (found.allowed, found.reason) == (allowed, reason)
    assert found.gives == resolved.gives


@pytest.mark.parametrize("feature", [FLAG, CALLS, SEATS, CONFIG], ids=lambda feature: feature.type)
@pytest.mark.parametrize("allow", [True, False])
def test_without_a_store_the_feature_says(feature: Feature, allow: bool) -> None:
    assert fallback(feature, allow=allow)[:2] == (allow, f"fallback_{'allow' if allow else 'deny'}")


def test_every_reason_has_a_case() -> None:
    reached = {reason for *_, reason in CASES.values()} | {
        Reason.CREDITS_EXHAUSTED,
        Reason.FALLBACK_ALLOW,
        Reason.FALLBACK_DENY,
    }

    assert reached == set(Reason)


@pytest.mark.parametrize(
    ("limit", "used", "held", "remaining"),
    [(10, 4, 3, 3), (10, 9, 3, 0), (UNLIMITED, 9, 3, UNLIMITED)],
    ids=["room", "never below nothing", "unlimited"],
)
def test_the_numbers_beside_the_answer(limit: Value | int, used: int, held: int, remaining: object) -> None:
    found = decided(CALLS, given(limit), {"used": used, "held": held})

    assert [found.used, found.held, found.remaining] == [used, held, remaining]


def test_overage_in_money_is_that_of_the_usage_so_far() -> None:
    facts = {"used": 12, "quantity": 3, "included": 10, "most": 5}

    assert decided(CALLS, given(UNLIMITED), facts).spending == Spending(Money(6, "usd", 2), Money(17, "usd", 2))
    assert decided(CALLS, given(UNLIMITED), {**facts, "held": 1}).reason is Reason.SPEND_CAP_REACHED


def test_overage_counts_what_is_asked_for() -> None:
    assert decided(CALLS, given(UNLIMITED), {"used": 8, "quantity": 5, "included": 10}).overage == 3
