"""Resolves grants into what an account may do at each time.

The steps at one instant:
1. What holds: an account that was downgraded keeps the fallback plan, contracts and overrides only. A contract that
   replaces the plan suspends plans and trials. Without any plan, the default plan gives.
2. Base: the plans' values, merged by the feature's rule. A trial's value replaces the base.
3. Add-ons and promotions add to the base.
4. Contracts, then overrides: a set value replaces what was there, then additions, then upper bounds.
5. A deny wins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import reduce
from hashlib import sha256
from typing import Final

import msgspec

from schemas.catalog import FeatureType, Merge
from schemas.clock import MINUTE_MS
from schemas.entitlements import UNLIMITED, Entitled, Feature, Grant, Operation, Resolved, Segment, SourceKind, Value
from schemas.periods import INSTANT_MIN_MS

# The cut comes after the limit of future events, five minutes by default, and what the webhook and the log take.
SETTLING_MS: Final = 15 * MINUTE_MS
_PLANS: Final = frozenset({SourceKind.PLAN, SourceKind.TRIAL})
_BOUGHT: Final = _PLANS | {SourceKind.ADDON, SourceKind.PROMOTION}
_SUSPENDED: Final = _BOUGHT | {SourceKind.DEFAULT}
_BASES: Final = (SourceKind.DEFAULT, SourceKind.PLAN, SourceKind.FALLBACK)
# Each later layer sees the value of those before it.
_LAYERS: Final = {
    SourceKind.TRIAL: 0,
    SourceKind.ADDON: 1,
    SourceKind.PROMOTION: 1,
    SourceKind.CONTRACT: 2,
    SourceKind.OVERRIDE: 3,
}
_ORDER: Final = {Operation.SET: 0, Operation.ADD: 1, Operation.AT_LEAST: 2, Operation.AT_MOST: 3, Operation.DENY: 4}
_NOTHING: Final = (False, "null", Decimal(0))


def resolve(features: Sequence[Feature], entitled: Entitled) -> tuple[Segment, ...]:
    """The segments of an account, from the beginning of time on. Each start and end among the inputs cuts a segment,
    and segments that give the same are one."""
    spans = [(grant.starts_ms, grant.ends_ms) for grant in entitled.grants]
    spans += [*entitled.plans, *entitled.replaced, *entitled.downgraded]
    cuts = {INSTANT_MIN_MS, *(instant for span in spans for instant in span if instant is not None)}
    segments: list[Segment] = []
    for instant_ms in sorted(cuts):
        found = at_instant(features, entitled, instant_ms)
        if not segments or segments[-1].features != found:
            segments.append(Segment(instant_ms, found))
    return tuple(segments)


def segment_at(segments: Sequence[Segment], instant_ms: int) -> Segment:
    """The segment that holds at an instant."""
    return segments[max(0, place_at(segments, instant_ms))]


def place_at(segments: Sequence[Segment], instant_ms: int) -> int:
    """The place of the segment that holds at an instant; -1 before the first one."""
    return bisect_right(segments, instant_ms, key=_from_ms) - 1


def settling_until_ms(segments: Sequence[Segment], instant_ms: int) -> tuple[int, int] | None:
    """Since when the account has bought what gives it plans at an instant, and until when usage may still be counted in
    the period before the purchase; None if no plan gives, or if that is over.

    The period is cut minutes after the purchase, because events of then may be on their way. A plan that a subscription
    changes to is no purchase: its period goes on.
    """
    segment = segment_at(segments, instant_ms)
    # A purchase cuts a segment, so most checks end here.
    if segment.from_ms <= instant_ms - SETTLING_MS:
        return None
    bought = {grant.cause for found in segment.features.values() for grant in found.gives if grant.kind in _PLANS}
    if not bought:
        return None
    since_ms = min(
        grant.starts_ms
        for segment in segments
        for found in segment.features.values()
        for grant in found.gives
        if grant.cause in bought and grant.kind in _PLANS
    )
    return (since_ms, since_ms + SETTLING_MS) if since_ms <= instant_ms < since_ms + SETTLING_MS else None


def is_given(found: Resolved) -> bool:
    """Whether a value gives anything."""
    return found.value is UNLIMITED or found.value not in _NOTHING


def shortened(segments: Sequence[Segment], instant_ms: int) -> tuple[Segment, ...]:
    """The segments from the one that holds at the instant on, and one for all time before: of each feature, what gave
    it last.

    A version of entitlements is asked about the time since it was computed, and about the past only what was lost.
    Whole pasts would grow with the square of an account's subscriptions.
    """
    place = max(0, place_at(segments, instant_ms))
    past: dict[str, Resolved] = {}
    for segment in segments[:place]:
        past |= {name: found for name, found in segment.features.items() if name not in past or is_given(found)}
    return (*([Segment(segments[0].from_ms, past)] if place else ()), *segments[place:])


def next_change_ms(segments: Sequence[Segment], instant_ms: int) -> int | None:
    """When the next segment after the instant begins, or None."""
    place = place_at(segments, instant_ms) + 1
    return segments[place].from_ms if place < len(segments) else None


def at_instant(features: Sequence[Feature], entitled: Entitled, instant_ms: int) -> Mapping[str, Resolved]:
    """What each feature gives at one instant."""
    holding, lost = (_by_feature(grants) for grants in _holding(entitled, instant_ms))
    resolved = {feature.name: resolved_of(feature, holding.get(feature.name, ())) for feature in features}
    return {name: found._replace(lost=tuple(lost[name])) if name in lost else found for name, found in resolved.items()}


def _by_feature(grants: Iterable[Grant]) -> Mapping[str, Sequence[Grant]]:
    found: dict[str, list[Grant]] = {}
    for grant in sorted(grants, key=_identity):
        found.setdefault(grant.feature, []).append(grant)
    return found


def inputs_sha256(features: Sequence[Feature], entitled: Entitled) -> str:
    """A hash of all that decides, whatever its order. Equal hashes need no new snapshot."""
    document = [
        sorted((name, kind.value, merge.value) for name, kind, merge in features),
        sorted(_text_of(grant) for grant in entitled.grants),
        *(sorted(map(str, spans)) for spans in (entitled.plans, entitled.replaced, entitled.downgraded)),
    ]
    if entitled.keeps_addons:
        document.append(["add-ons are kept"])
    return sha256(msgspec.json.encode(document)).hexdigest()


def sources_of(gives: Iterable[Grant]) -> list[str]:
    """The sources of grants, each once, in their order: `plan:professional@4`."""
    return list(dict.fromkeys(f"{grant.kind}:{grant.source}" for grant in gives))


def _holding(entitled: Entitled, instant_ms: int) -> tuple[list[Grant], list[Grant]]:
    """The grants that are in force at an instant, after dunning and contracts took out what they suspend, and those
    that dunning took."""
    is_downgraded, is_replaced, has_plan = (
        any(span.contains(instant_ms) for span in spans)
        for spans in (entitled.downgraded, entitled.replaced, entitled.plans)
    )
    suspended: set[SourceKind] = {SourceKind.DEFAULT} if has_plan or is_replaced else set()
    if is_replaced:
        suspended |= _PLANS
    kept = {SourceKind.ADDON} if entitled.keeps_addons else set()
    lost = _BOUGHT - suspended - kept if is_downgraded else frozenset()
    suspended |= _SUSPENDED - kept if is_downgraded else {SourceKind.FALLBACK}
    begun = [
        grant
        for grant in entitled.grants
        if grant.starts_ms <= instant_ms and (grant.ends_ms is None or instant_ms < grant.ends_ms)
    ]
    return [grant for grant in begun if grant.kind not in suspended], [grant for grant in begun if grant.kind in lost]


def resolved_of(feature: Feature, grants: Sequence[Grant]) -> Resolved:
    """What the grants of a feature that are in force at one instant give together."""
    denying = tuple(grant for grant in grants if grant.operation is Operation.DENY)
    if denying:
        return Resolved(_nothing(feature), denying, is_denied=True)
    base = [grant for grant in grants if grant.kind in _BASES]
    value, gives = _merged(feature, base)
    for grant in sorted((grant for grant in grants if grant.kind not in _BASES), key=_step):
        value, gives = _applied(feature, value, gives, grant)
    return Resolved(value, gives)


def _merged(feature: Feature, base: Sequence[Grant]) -> tuple[Value, tuple[Grant, ...]]:
    """The value of the plans together."""
    if not base:
        return _nothing(feature), ()
    if feature.merge is Merge.FIRST:
        first = min(base, key=_by_rank)
        return first.value, (first,)
    values = [grant.value for grant in base]
    if feature.merge is Merge.ANY:
        return any(value is True for value in values), tuple(base)
    combine = _sum if feature.merge is Merge.SUM else _greatest
    return reduce(combine, values), tuple(base)


def _applied(feature: Feature, value: Value, gives: tuple[Grant, ...], grant: Grant) -> tuple[Value, tuple[Grant, ...]]:
    """The value and its grants after one more grant."""
    match grant.operation:
        case Operation.SET:
            return grant.value, (grant,)
        case Operation.ADD | Operation.AT_LEAST if feature.type is FeatureType.FLAG:
            return value is True or grant.value is True, (*gives, grant)
        case Operation.ADD:
            return _sum(value, grant.value), (*gives, grant)
        case Operation.AT_LEAST:
            return _greatest(value, grant.value), (*gives, grant)
        case _:
            return _least(value, grant.value), (*gives, grant)


def _nothing(feature: Feature) -> Value:
    """What a feature gives without any grant."""
    if feature.type is FeatureType.FLAG:
        return False
    return "null" if feature.type is FeatureType.CONFIG else Decimal(0)


def _sum(one: Value, other: Value) -> Value:
    return one + other if isinstance(one, Decimal) and isinstance(other, Decimal) else _unlimited(one, other)


def _greatest(one: Value, other: Value) -> Value:
    return max(one, other) if isinstance(one, Decimal) and isinstance(other, Decimal) else _unlimited(one, other)


def _least(one: Value, other: Value) -> Value:
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return min(one, other)
    # Not `in`: the quantity 1 equals `True`.
    return other if one is UNLIMITED or one is True else one


def _unlimited(one: Value, other: Value) -> Value:
    """The top, where one of two quantities is unlimited. The catalog refuses other values for these operations."""
    return UNLIMITED if UNLIMITED in (one, other) else one


def _from_ms(segment: Segment) -> int:
    return segment.from_ms


def _identity(grant: Grant) -> tuple[str, str, str, int, str]:
    """An order that no order of the inputs changes."""
    return grant.kind, grant.source, grant.operation, grant.starts_ms, _text_of(grant)


def _step(grant: Grant) -> tuple[int, int, int, int]:
    # The last of two set values counts: the one that began later, or of two trials that of the higher plan.
    return _LAYERS[grant.kind], _ORDER[grant.operation], grant.starts_ms, grant.rank


def _by_rank(grant: Grant) -> int:
    return -grant.rank


def _text_of(grant: Grant) -> str:
    return "\x1f".join(map(str, grant))
