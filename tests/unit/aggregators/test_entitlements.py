"""What grants resolve to: a table of cases, and a naive oracle over random grants."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from aggregators.entitlements import (
    at_instant,
    inputs_sha256,
    next_change_ms,
    resolve,
    segment_at,
    shortened,
    sources_of,
)
from schemas.catalog import FeatureType, Merge
from schemas.entitlements import UNLIMITED, Entitled, Feature, Grant, Operation, Segment, SourceKind, Span, Value
from schemas.periods import INSTANT_MIN_MS

ROOT: Final = Path(__file__).parents[3]
FLAG = Feature("pos", FeatureType.FLAG, Merge.ANY)
CALLS = Feature("api_calls", FeatureType.LIMIT, Merge.SUM)
MOST = Feature("storage", FeatureType.LIMIT, Merge.MAX)
SEATS = Feature("locations", FeatureType.SEAT, Merge.SUM)
CONFIG = Feature("reporting", FeatureType.CONFIG, Merge.FIRST)
FEATURES = (FLAG, CALLS, MOST, SEATS, CONFIG)
NOW = 1_000
PLANS = (Span(0),)


def give(
    feature: Feature,
    value: Value | int,
    kind: str = "plan",
    operation: str = "set",
    source: str = "",
    span: tuple[int, int | None] = (0, None),
    rank: int = 0,
) -> Grant:
    exact = Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return Grant(feature.name, SourceKind(kind), source or kind, Operation(operation), exact, *span, rank)


CASES = {
    "nothing: a flag is off": (FLAG, [], {}, False),
    "nothing: a limit is zero": (CALLS, [], {}, 0),
    "nothing: a config is null": (CONFIG, [], {}, "null"),
    "no plan: the default plan": (CALLS, [give(CALLS, 1000, "default")], {"plans": ()}, 1000),
    "a plan: not the default plan": (CALLS, [give(CALLS, 1000, "default"), give(CALLS, 20)], {}, 20),
    "a plan without the feature: nothing": (CALLS, [give(CALLS, 1000, "default")], {}, 0),
    "two plans, sum": (CALLS, [give(CALLS, 20), give(CALLS, 30, source="b")], {}, 50),
    "two plans, max": (MOST, [give(MOST, 20), give(MOST, 30, source="b")], {}, 30),
    "two plans, any": (FLAG, [give(FLAG, False), give(FLAG, True, source="b")], {}, True),
    "two plans, first by rank": (
        CONFIG,
        [give(CONFIG, '{"days":30}', rank=1), give(CONFIG, '{"days":730}', source="b", rank=2)],
        {},
        '{"days":730}',
    ),
    "unlimited is the top of a sum": (CALLS, [give(CALLS, 20), give(CALLS, UNLIMITED, source="b")], {}, UNLIMITED),
    "unlimited is the top of a maximum": (MOST, [give(MOST, UNLIMITED), give(MOST, 9, source="b")], {}, UNLIMITED),
    "a trial replaces what it names": (CALLS, [give(CALLS, 50000), give(CALLS, 5000, "trial")], {}, 5000),
    "a trial leaves what it does not name": (FLAG, [give(FLAG, True), give(CALLS, 5000, "trial")], {}, True),
    "an add-on adds": (CALLS, [give(CALLS, 50000), give(CALLS, 10000, "addon", "add")], {}, 60000),
    "two of an add-on add twice": (
        CALLS,
        [give(CALLS, 5), give(CALLS, 10, "addon", "add", "x@1#1"), give(CALLS, 10, "addon", "add", "x@1#2")],
        {},
        25,
    ),
    "an add-on lights a flag": (FLAG, [give(FLAG, False), give(FLAG, True, "addon", "add")], {}, True),
    "an add-on that gives at least": (CALLS, [give(CALLS, 5), give(CALLS, 9, "addon", "at_least")], {}, 9),
    "at least lowers nothing": (CALLS, [give(CALLS, 50), give(CALLS, 9, "addon", "at_least")], {}, 50),
    "a promotion without a plan": (CALLS, [give(CALLS, 7, "promotion", "add")], {"plans": ()}, 7),
    "adding to unlimited": (CALLS, [give(CALLS, UNLIMITED), give(CALLS, 9, "addon", "add")], {}, UNLIMITED),
    "a contract sets": (CALLS, [give(CALLS, 50), give(CALLS, 900, "contract")], {}, 900),
    "a contract sets after add-ons": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 7, "addon", "add"), give(CALLS, 900, "contract")],
        {},
        900,
    ),
    "a contract that replaces the plan": (CALLS, [give(CALLS, 50)], {"replaced": PLANS}, 0),
    "a replaced plan is not the default plan": (
        CALLS,
        [give(CALLS, 9, "default"), give(CALLS, 7, "contract", "add")],
        {"replaced": PLANS, "plans": ()},
        7,
    ),
    "a contract caps": (CALLS, [give(CALLS, UNLIMITED), give(CALLS, 100, "contract", "at_most")], {}, 100),
    "an upper bound without an end raises nothing": (
        CALLS,
        [give(CALLS, 1), give(CALLS, UNLIMITED, "contract", "at_most")],
        {},
        1,
    ),
    "an override stands over a contract": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 900, "contract"), give(CALLS, 3, "override")],
        {},
        3,
    ),
    "an override's cap comes after its addition": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 9, "override", "at_most", "o1"), give(CALLS, 900, "override", "add", "o2")],
        {},
        9,
    ),
    "an override names only what it changes": (FLAG, [give(FLAG, True), give(CALLS, 3, "override")], {}, True),
    "the later of two overrides": (
        CALLS,
        [
            give(CALLS, 3, "override", source="z", span=(0, None)),
            give(CALLS, 4, "override", source="a", span=(5, None)),
        ],
        {},
        4,
    ),
    "deny wins over an override": (FLAG, [give(FLAG, True, "override"), give(FLAG, True, "plan", "deny")], {}, False),
    "downgraded: the fallback plan": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 10, "fallback"), give(CALLS, 5, "addon", "add")],
        {"downgraded": PLANS},
        10,
    ),
    "downgraded: the add-ons stay": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 10, "fallback"), give(CALLS, 5, "addon", "add")],
        {"downgraded": PLANS, "keeps_addons": True},
        15,
    ),
    "downgraded: an override stays": (
        CALLS,
        [give(CALLS, 50), give(CALLS, 10, "fallback"), give(CALLS, 5, "override", "add")],
        {"downgraded": PLANS},
        15,
    ),
    "downgraded: a contract stays": (
        CALLS,
        [give(CALLS, 10, "fallback"), give(CALLS, 900, "contract")],
        {"downgraded": PLANS},
        900,
    ),
    "paid: the fallback plan gives nothing": (CALLS, [give(CALLS, 50), give(CALLS, 10, "fallback")], {}, 50),
    "not yet begun": (CALLS, [give(CALLS, 50, span=(NOW + 1, None))], {}, 0),
    "begins now": (CALLS, [give(CALLS, 50, span=(NOW, None))], {}, 50),
    "ends now": (CALLS, [give(CALLS, 50, span=(0, NOW))], {}, 0),
    "another feature's grant": (SEATS, [give(CALLS, 50)], {}, 0),
}


@pytest.mark.parametrize(("feature", "grants", "spans", "value"), CASES.values(), ids=CASES)
def test_a_grant_resolves(feature: Feature, grants: list[Grant], spans: dict[str, Any], value: Value | int) -> None:
    entitled = Entitled(tuple(grants), **({"plans": PLANS} | spans))

    for order in (entitled, entitled._replace(grants=tuple(reversed(grants)))):
        found = at_instant(FEATURES, order, NOW)[feature.name]

        assert found.value == (Decimal(value) if type(value) is int else value)
        assert type(found.value) is (Decimal if type(value) is int else type(value))


def test_the_answer_names_what_gave() -> None:
    grants = (
        give(CALLS, 50000, source="pro@4"),
        give(CALLS, 10000, "addon", "add", "extra@1"),
        give(CALLS, 1, "default"),
    )

    found = at_instant(FEATURES, Entitled(grants, PLANS), NOW)["api_calls"]

    assert sources_of(found.gives) == ["plan:pro@4", "addon:extra@1"]


def test_a_set_value_hides_what_it_replaced() -> None:
    grants = (give(CALLS, 50000, source="pro@4"), give(CALLS, 3, "override", "set", "ticket 7"))

    assert sources_of(at_instant(FEATURES, Entitled(grants, PLANS), NOW)["api_calls"].gives) == ["override:ticket 7"]


def test_a_grant_that_begins_at_noon_holds_at_noon() -> None:
    segments = resolve(FEATURES, Entitled((give(CALLS, 5), give(CALLS, 9, "addon", "add", span=(600, 700))), PLANS))

    values = [segment_at(segments, at_ms).features["api_calls"].value for at_ms in (599, 600, 699, 700)]

    assert values == [5, 14, 14, 5]
    assert [next_change_ms(segments, at_ms) for at_ms in (599, 600, 700)] == [600, 700, None]


def test_before_every_segment_the_first_holds() -> None:
    segments = resolve(FEATURES, Entitled(()))

    assert segment_at(segments, -(10**18)) == segments[0]


def drawn(rng: random.Random) -> Entitled:
    """Grants and spans of one account, within a few instants so that they meet."""

    def span() -> tuple[int, int | None]:
        starts_ms = rng.randrange(8)
        return starts_ms, rng.choice([None, starts_ms + rng.randrange(1, 6)])

    grants = []
    for number in range(rng.randrange(9)):
        feature, kind = rng.choice(FEATURES), rng.choice(list(SourceKind))
        adds = kind in (SourceKind.ADDON, SourceKind.PROMOTION)
        operation = rng.choice(list(Operation)[1 if adds else 0 :]) if kind not in BASES else Operation.SET
        if rng.random() < 0.05:
            operation = Operation.DENY
        if feature.type is FeatureType.CONFIG and operation is not Operation.DENY:
            operation = Operation.SET
        value: Value = Decimal(rng.randrange(20))
        if feature.type is FeatureType.FLAG:
            value = rng.random() < 0.5
        elif feature.type is FeatureType.CONFIG:
            value = str(rng.randrange(9))
        elif rng.random() < 0.2:
            value = UNLIMITED
        # Every grant differs from the others in its rank, start and source, so that no two are equally right.
        grants.append(Grant(feature.name, kind, f"s{number}", operation, value, *span(), rank=number))

    def spans() -> tuple[Span, ...]:
        return tuple(Span(*span()) for _ in range(rng.randrange(3)))

    return Entitled(tuple(grants), spans(), spans(), spans(), rng.random() < 0.5)


BASES = (SourceKind.DEFAULT, SourceKind.PLAN, SourceKind.FALLBACK)


def judged(feature: Feature, entitled: Entitled, now: int) -> object:
    """The oracle: what a person would read off the rules, with infinity for unlimited."""

    def covers(starts: int, ends: int | None) -> bool:
        return starts <= now < (99 if ends is None else ends)

    inside = {
        name: any(covers(*span) for span in getattr(entitled, name)) for name in ("plans", "replaced", "downgraded")
    }
    mine = [g for g in entitled.grants if g.feature == feature.name and covers(g.starts_ms, g.ends_ms)]
    if inside["downgraded"]:
        allowed = {"fallback", "contract", "override"} | ({"addon"} if entitled.keeps_addons else set())
    elif inside["replaced"]:
        allowed = {"addon", "promotion", "contract", "override"}
    else:
        allowed = {"plan" if inside["plans"] else "default", "trial", "addon", "promotion", "contract", "override"}
        allowed |= {"plan"}
    mine = [g for g in mine if g.kind.value in allowed]

    def number(value: Value) -> Any:
        if feature.type is FeatureType.CONFIG:
            return str(value)
        return float("inf") if value is UNLIMITED else int(value)

    if any(g.operation == "deny" for g in mine):
        return "null" if feature.type is FeatureType.CONFIG else 0
    bases = [g for g in mine if g.kind.value in ("default", "plan", "fallback")]
    total: Any = "null" if feature.type is FeatureType.CONFIG else 0
    if bases and feature.merge is Merge.FIRST:
        total = number(sorted(bases, key=lambda g: g.rank)[-1].value)
    elif bases:
        values = [number(g.value) for g in bases]
        total = sum(values) if feature.merge is Merge.SUM else max(values)
    for kinds in ({"trial"}, {"addon", "promotion"}, {"contract"}, {"override"}):
        layer = [g for g in mine if g.kind.value in kinds]
        settings = sorted((g for g in layer if g.operation == "set"), key=lambda g: (g.starts_ms, g.source))
        if settings:
            total = number(settings[-1].value)
        plus = [number(g.value) for g in layer if g.operation == "add"]
        total = (max([total, *plus]) if feature.type is FeatureType.FLAG else total + sum(plus)) if plus else total
        floors = [number(g.value) for g in layer if g.operation == "at_least"]
        total = max([total, *floors]) if floors else total
        caps = [number(g.value) for g in layer if g.operation == "at_most"]
        total = min([total, *caps]) if caps else total
    return total


def plain(value: Value) -> object:
    if isinstance(value, str):
        return value
    return float("inf") if value is UNLIMITED else int(value)


BLOCKS, BLOCK = 20, 1_000


def assert_resolves(seed: int) -> None:
    """One random resolution: as the oracle says at every instant, whatever the order of the grants."""
    rng = random.Random(seed)
    entitled = drawn(rng)
    shuffled = entitled._replace(
        grants=tuple(rng.sample(entitled.grants, len(entitled.grants))),
        plans=entitled.plans[::-1],
        replaced=entitled.replaced[::-1],
        downgraded=entitled.downgraded[::-1],
    )
    segments = resolve(FEATURES, shuffled)
    assert inputs_sha256(FEATURES, entitled) == inputs_sha256(FEATURES, shuffled)
    assert segments == resolve(FEATURES, entitled), "the order matters"
    for now in (rng.randrange(-1, 15), rng.choice(segments).from_ms):
        found = segment_at(segments, now).features
        assert found == at_instant(FEATURES, entitled, now), f"the segments differ from the instant {now}"
        for feature in FEATURES:
            assert plain(found[feature.name].value) == judged(feature, entitled, now), f"{feature.name} at {now}"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_grants_resolve_as_the_oracle_says(block: int) -> None:
    """A failure names its seed, and the command that tries this seed alone."""
    seeds = [int(named)] if (named := os.environ.get("SEED")) else range(block * BLOCK, (block + 1) * BLOCK)
    for seed in seeds:
        try:
            assert_resolves(seed)
        except AssertionError as error:
            again = (
                f"SEED={seed} .venv/bin/python -m pytest -q {Path(__file__).relative_to(ROOT)} -k 'oracle_says and 0]'"
            )
            raise AssertionError(f"{error}\nAgain: {again}") from error


def test_at_least_20_000_random_resolutions_are_tried() -> None:
    assert BLOCKS * BLOCK >= 20_000


def test_no_inputs_are_the_default_plan() -> None:
    always = (INSTANT_MIN_MS, None)
    default = (give(CALLS, 1000, "default", span=always), give(FLAG, True, "default", span=always))
    grants = (*default, give(CALLS, 10, "fallback", span=always))
    (only,) = resolve(FEATURES, Entitled(grants))

    assert {name: found.value for name, found in only.features.items()} == {
        "pos": True, "api_calls": 1000, "storage": 0, "locations": 0, "reporting": "null",
    }  # fmt: skip


@pytest.mark.parametrize("block", range(4))
def test_adding_never_lowers(block: int) -> None:
    """Whatever else is granted: unless what is added is capped, or denied, it is not less than before."""
    for seed in range(block * 500, block * 500 + 500):
        rng = random.Random(seed)
        entitled, feature = drawn(rng), rng.choice((CALLS, MOST, SEATS))
        kind = rng.choice(("addon", "promotion", "contract", "override"))
        added = give(
            feature, rng.choice((0, 1, 7)), kind, rng.choice(("add", "at_least")), "added", (rng.randrange(8), None)
        )
        more = entitled._replace(grants=(*entitled.grants, added))
        for now in range(-1, 15):
            before, after = (plain(at_instant(FEATURES, each, now)[feature.name].value) for each in (entitled, more))
            assert isinstance(before, int | float)
            assert isinstance(after, int | float)
            assert after >= before, f"seed {seed} at {now}"


@pytest.mark.parametrize("block", range(4))
def test_a_shortened_past_changes_no_answer(block: int) -> None:
    """From the instant on everything is the same, and so is what a feature gave last before."""
    for seed in range(block * 250, block * 250 + 250):
        rng = random.Random(seed)
        segments, since = resolve(FEATURES, drawn(rng)), rng.randrange(-1, 15)
        kept = shortened(segments, since)
        for now in range(since, 15):
            assert segment_at(kept, now) == segment_at(segments, now), f"seed {seed} at {now}"
            for feature in FEATURES:
                assert lost(kept, feature, now) == lost(segments, feature, now), f"{feature.name} of seed {seed}"


def lost(segments: Sequence[Segment], feature: Feature, now: int) -> object:
    """What gave a feature last, before the segment that holds now."""
    past = [segment.features[feature.name] for segment in segments if segment.from_ms <= now][:-1]
    given = [found.gives for found in past if found.value is UNLIMITED or found.value not in (False, 0, "null")]
    return given[-1] if given else ()


def test_another_input_has_another_hash() -> None:
    entitled = drawn(random.Random(4))
    hashes = {
        inputs_sha256(FEATURES, changed)
        for changed in (
            entitled,
            entitled._replace(plans=(*entitled.plans, Span(1))),
            entitled._replace(downgraded=(*entitled.downgraded, Span(1))),
            entitled._replace(keeps_addons=not entitled.keeps_addons),
            entitled._replace(grants=(*entitled.grants, give(CALLS, 1))),
        )
    }

    assert len(hashes) == 5
