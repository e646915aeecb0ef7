"""Decides a check from what is resolved, what is used, and the account's standing."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from aggregators.overage import Tariff
from schemas.access import Decision, Reason, Standing, Usage
from schemas.catalog import FeatureType
from schemas.clock import MINUTE_MS
from schemas.entitlements import IN_TRIAL, UNLIMITED, Feature, Grant, Operation, Resolved, SourceKind, Unlimited

_NONE = Decimal(0)


def decide(
    feature: Feature,
    resolved: Resolved,
    usage: Usage,
    quantity: Decimal,
    standing: Standing,
    *,
    included: Decimal | None = None,
    soft: bool = False,
    tariff: Tariff | None = None,
) -> Decision:
    """Whether an account may use `quantity` more of a feature.

    `included`: the usage that the base price covers; usage beyond it is billed. None: the feature has no price. `soft`:
    the limit warns and does not refuse. `tariff`: what usage beyond costs; None if that is not known.
    """
    if feature.type in (FeatureType.FLAG, FeatureType.CONFIG):
        return _switched(feature, resolved, standing)
    return _counted(feature, resolved, usage, quantity, standing, included=included, soft=soft, tariff=tariff)


def fallback(feature: Feature, *, allow: bool) -> Decision:
    """The answer if a store does not answer: what the catalog says of the feature."""
    decided = Decision(allow, Reason.FALLBACK_ALLOW if allow else Reason.FALLBACK_DENY)
    return decided._replace(value="null") if feature.type is FeatureType.CONFIG else decided


def overshoot_bound(a_minute: Decimal, age_ms: int, held: Decimal) -> Decimal:
    """By how many units the usage may be higher than the answer says, if usage of `age_ms` is missing and goes on at
    `a_minute` units a minute, and if all that is held was used meanwhile. Rounded up."""
    missing = a_minute * max(0, age_ms) / MINUTE_MS
    return missing.to_integral_value(ROUND_CEILING) + held


def _switched(feature: Feature, resolved: Resolved, standing: Standing) -> Decision:
    # A value of another type is from before the feature had its type, and gives nothing.
    value = None if feature.type is FeatureType.FLAG else resolved.value if isinstance(resolved.value, str) else "null"
    allowed = resolved.value is True if feature.type is FeatureType.FLAG else value != "null"
    reason = _why_given(resolved, standing, Reason.INCLUDED) if allowed else _why_not(resolved, standing)
    return Decision(allowed, reason, resolved.gives, value=value)


def _counted(
    feature: Feature,
    resolved: Resolved,
    usage: Usage,
    quantity: Decimal,
    standing: Standing,
    *,
    included: Decimal | None,
    soft: bool,
    tariff: Tariff | None,
) -> Decision:
    taken = usage.used + usage.held
    after = taken + quantity
    overage = max(_NONE, after - included) if included is not None else _NONE
    # Only what says so is unlimited: a value of another type is from before the feature had its type.
    limit = resolved.value if isinstance(resolved.value, Decimal | Unlimited) else _NONE
    decided = Decision(
        allowed=True,
        reason=Reason.WITHIN_LIMIT,
        gives=resolved.gives,
        limit=limit,
        used=usage.used,
        held=usage.held,
        remaining=max(_NONE, limit - taken) if isinstance(limit, Decimal) else UNLIMITED,
        included=included,
        overage=overage,
        spending=None if tariff is None else tariff.spending(usage.used),
    )
    is_over = isinstance(limit, Decimal) and after > limit
    if resolved.is_denied or limit == 0:
        return decided._replace(allowed=False, reason=_why_not(resolved, standing))
    if is_over and not soft:
        full = Reason.SEATS_FULL if feature.type is FeatureType.SEAT else Reason.LIMIT_REACHED
        return decided._replace(allowed=False, reason=full)
    if overage and tariff and tariff.cap_minor is not None and tariff.cost_minor(after) > tariff.cap_minor:
        return decided._replace(allowed=False, reason=Reason.SPEND_CAP_REACHED)
    if is_over:
        return decided._replace(reason=Reason.SOFT_LIMIT_PASSED)
    if included is not None:
        normal = Reason.OVERAGE_BILLED if overage else Reason.INCLUDED
    else:
        normal = Reason.UNLIMITED if limit is UNLIMITED else Reason.WITHIN_LIMIT
    return decided._replace(reason=normal if overage else _why_given(resolved, standing, normal))


def _why_given(resolved: Resolved, standing: Standing, normal: Reason) -> Reason:
    if standing.in_grace:
        return Reason.PAYMENT_FAILED_GRACE
    return Reason.TRIAL if any(_is_trial(grant) for grant in resolved.gives) else normal


def _is_trial(grant: Grant) -> bool:
    return grant.kind is SourceKind.TRIAL or grant.reason == IN_TRIAL


def _why_not(resolved: Resolved, standing: Standing) -> Reason:
    """Why nothing is given. A person's word comes first, then what the account lost."""
    by_person = (SourceKind.OVERRIDE, SourceKind.CONTRACT)
    if resolved.is_denied or any(
        grant.kind in by_person and grant.operation in (Operation.SET, Operation.AT_MOST) for grant in resolved.gives
    ):
        return Reason.DENIED_BY_OVERRIDE
    if not standing.is_known:
        return Reason.NO_ACCOUNT
    if standing.is_downgraded and not all(map(_is_trial, standing.before)):
        return Reason.DOWNGRADED_UNPAID
    return Reason.TRIAL_OVER if any(map(_is_trial, standing.before)) else Reason.NOT_IN_PLAN
