"""Meters: which events contribute to a meter, with which quantity, and which changes of a meter are refused."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregators.meters import Contribution, Failure, compiled, definition_change, quarantines_late, successor
from oracle import rules
from schemas.aggregations import Aggregation
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.meters import Meter, MeterSet
from schemas.reasons import Reason

SUM: dict[str, Any] = {"slug": "tokens", "event_type": "t", "aggregation": "sum", "value_path": "$.v"}
COUNT: dict[str, Any] = {"slug": "calls", "event_type": "t", "aggregation": "count"}
UNIQUE: dict[str, Any] = {"slug": "users", "event_type": "t", "aggregation": "unique", "value_path": "$.user"}


def meter_set(*meters: dict[str, Any], version: int = 1, **policy: int) -> MeterSet:
    """A meter set of these meters."""
    return MeterSet.model_validate({"version": version, "meters": meters, "policy": policy})


def contributions(data: dict[str, Any], *meters: dict[str, Any]) -> tuple[Contribution, ...] | Failure:
    """The contributions of an event of type `t` to the meters."""
    return compiled(meter_set(*meters)).contributions("t", data, 0)


@pytest.mark.parametrize(
    ("operator", "values", "data", "passes"),
    [
        pytest.param("eq", ["eu"], {"f": "eu"}, True, id="equal"),
        pytest.param("eq", ["eu"], {"f": "us"}, False, id="not equal"),
        pytest.param("eq", ["eu"], {}, False, id="missing is not equal"),
        pytest.param("eq", [""], {}, True, id="missing is the empty text"),
        pytest.param("eq", [""], {"f": None}, True, id="so is null"),
        pytest.param("ne", ["eu"], {}, True, id="missing differs"),
        pytest.param("ne", ["false"], {"f": False}, False, id="booleans compare as text"),
        pytest.param("ne", ["false"], {"f": True}, True, id="true is not false"),
        pytest.param("in", ["1", "2"], {"f": 2}, True, id="integers compare as text"),
        pytest.param("in", ["1", "2"], {"f": Decimal("2.0")}, False, id="a fraction equals nothing"),
        pytest.param("not_in", ["1", "2"], {"f": Decimal("2.0")}, True, id="so it is in no list"),
        pytest.param("eq", [""], {"f": []}, False, id="a list is not the empty text"),
        pytest.param("ne", [""], {"f": {}}, True, id="an object is not missing"),
        pytest.param("not_in", ["a", "b"], {"f": "b"}, False, id="in the list"),
        pytest.param("eq", ["x" * 300], {"f": "x" * 300}, False, id="too long to be a dimension equals nothing"),
        pytest.param("eq", ["a"], {"f.x": "a"}, False, id="a key with a point is no path"),
    ],
)
def test_filters_compare_texts(operator: str, values: list[str], data: dict[str, Any], passes: bool) -> None:
    """The oracle gives the same result."""
    meter = {**COUNT, "filters": [{"path": "$.f", "operator": operator, "values": values}]}

    result = contributions(data, meter)

    assert (len(result) == 1 and not isinstance(result, Failure)) is passes
    assert bool(rules.contributions(rules.Event("a", "1", "t", "s", 0, data), {"meters": [meter]})) is passes


def test_all_filters_must_pass() -> None:
    """Filters are combined with AND."""
    filters = [{"path": "$.a", "values": ["1"]}, {"path": "$.b.c", "operator": "ne", "values": ["2"]}]
    meter = {**COUNT, "filters": filters}

    assert contributions({"a": 1, "b": {"c": 3}}, meter)
    assert not contributions({"a": 1, "b": {"c": 2}}, meter)
    assert not contributions({"a": 0}, meter)


def test_dimensions_are_compact_sorted_json_and_missing_ones_are_empty() -> None:
    """One combination has one text, whatever the order in the meter set."""
    meter = {**COUNT, "dimensions": {"zone": "$.z", "area": "$.a.b", "kind": "$.k"}}

    result = contributions({"z": 'q"\x1f|é', "a": {"b": True}}, meter)

    assert not isinstance(result, Failure)
    assert result[0].dimensions == '{"area":"true","kind":"","zone":"q\\"\\u001f|é"}'
    assert json.loads(result[0].dimensions) == {"area": "true", "kind": "", "zone": 'q"\x1f|é'}


def test_no_dimensions_are_an_empty_object() -> None:
    """Always the text `{}`."""
    result = contributions({}, COUNT)

    assert not isinstance(result, Failure)
    assert [(each.minor, each.text, each.dimensions) for each in result] == [(1, "", "{}")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param({}, Reason.MISSING_QUANTITY, id="missing"),
        pytest.param({"v": None}, Reason.MISSING_QUANTITY, id="null"),
        pytest.param({"v": "many"}, Reason.BAD_QUANTITY, id="no number"),
        pytest.param({"v": Decimal("0.5")}, Reason.TOO_MANY_DIGITS, id="too many digits"),
        pytest.param({"v": 10**18}, Reason.QUANTITY_TOO_LARGE, id="too large"),
        pytest.param({"v": -1}, Reason.NEGATIVE_QUANTITY, id="negative"),
        pytest.param({"v": 1, "d": [1]}, Reason.BAD_DIMENSION, id="a list as dimension"),
        pytest.param({"v": 1, "d": "x" * 257}, Reason.BAD_DIMENSION, id="dimension too long"),
        pytest.param({"v": 1, "d": Decimal("1.5")}, Reason.BAD_DIMENSION, id="a fraction as dimension"),
    ],
)
def test_an_event_that_a_meter_cannot_use_is_rejected_with_a_reason(data: dict[str, Any], reason: Reason) -> None:
    """The reason names the meter."""
    result = contributions(data, {**SUM, "dimensions": {"d": "$.d"}})

    assert isinstance(result, Failure)
    assert (result.reason, result.detail.split(":")[0]) == (reason, "tokens")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param({}, Reason.MISSING_QUANTITY, id="missing"),
        pytest.param({"user": ""}, Reason.MISSING_QUANTITY, id="empty"),
        pytest.param({"user": Decimal("1.5")}, Reason.BAD_QUANTITY, id="a fraction"),
        pytest.param({"user": "x" * 257}, Reason.BAD_QUANTITY, id="too long"),
    ],
)
def test_a_distinct_value_is_a_text(data: dict[str, Any], reason: Reason) -> None:
    """An empty value must not count as one more user."""
    result = contributions(data, UNIQUE)

    assert isinstance(result, Failure)
    assert result.reason is reason


def test_an_event_contributes_to_all_of_its_meters_or_to_none() -> None:
    """One bad value must not bill half an event. A meter whose filter excludes the event does not matter."""
    elsewhere = {**SUM, "slug": "other", "filters": [{"path": "$.f", "values": ["yes"]}]}

    both = contributions({"v": 3}, COUNT, SUM)
    neither = contributions({"v": "x"}, COUNT, SUM)
    alone = contributions({"v": "x", "f": "no"}, COUNT, elsewhere)

    assert not isinstance(both, Failure)
    assert [(each.meter.slug, each.minor) for each in both] == [("calls", 1), ("tokens", 3)]
    assert isinstance(neither, Failure)
    assert (neither.reason, neither.detail) == (Reason.BAD_FOR_ONE_METER, "bad_quantity: tokens: $.v")
    assert not isinstance(alone, Failure)
    assert [each.meter.slug for each in alone] == ["calls"]


def test_an_event_that_no_meter_wants_contributes_nothing() -> None:
    """An unmetered event is no error."""
    assert compiled(meter_set(COUNT)).contributions("other", {}, 0) == ()


@pytest.mark.parametrize(("late", "expected"), [("carry_forward", False), ("quarantine", True)], ids=["carry", "keep"])
def test_one_meter_that_quarantines_keeps_the_whole_event_out(late: str, expected: bool) -> None:
    """All contributions or none, here too."""
    result = contributions({"v": 1}, COUNT, {**SUM, "late": late})

    assert not isinstance(result, Failure)
    assert quarantines_late(result) is expected


VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=4) | st.just([]) | st.decimals(0, 9)
)


@settings(max_examples=300, deadline=None)
@given(data=st.dictionaries(st.sampled_from(["v", "user", "d", "f"]), VALUES | st.just({"v": 1})))
def test_any_event_contributes_what_the_oracle_says(data: dict[str, Any]) -> None:
    """The meters, the quantities and the dimensions agree, or the reason for the rejection."""
    meters = [
        {**SUM, "dimensions": {"d": "$.d", "e": "$.f.v"}},
        {**UNIQUE, "filters": [{"path": "$.f", "operator": "ne", "values": [""]}], "late": "quarantine"},
        {**COUNT, "filters": [{"path": "$.v", "operator": "in", "values": ["1", "true", ""]}]},
    ]
    result = contributions(data, *meters)
    event = rules.Event("acme", "1", "t", "s", 0, data)
    if isinstance(result, Failure):
        with pytest.raises(rules.RejectedError, match=f"^{result.reason}$"):
            rules.contributions(event, {"meters": meters})
        return
    expected = rules.contributions(event, {"meters": meters})

    # Only the fold knows whether a distinct value is new.
    assert [(each.meter, each.minor * (each.aggregation != "unique"), each.text, each.dimensions)
            for each in expected] == [
        (each.meter.slug, each.minor, each.text, each.dimensions) for each in result
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"event_type": "u"}, "event_type", id="event type"),
        pytest.param({"value_path": "$.w"}, "value_path", id="value path"),
        pytest.param({"aggregation": "max"}, "aggregation", id="aggregation"),
        pytest.param({"dimensions": {"d": "$.d"}}, "dimensions", id="dimensions"),
        pytest.param({"filters": [{"path": "$.d", "values": ["x"]}]}, "filters", id="filters"),
        pytest.param({"scale": 3}, "scale", id="scale"),
        pytest.param({"late": "quarantine"}, "late", id="late policy"),
        pytest.param({"unit": "t"}, None, id="unit may"),
        pytest.param({"description": "d"}, None, id="description may"),
        pytest.param({"stripe_event_name": "n"}, None, id="Stripe's name may"),
        pytest.param({"allow_negative": True}, None, id="negative quantities may be allowed"),
    ],
)
def test_a_slug_never_changes_its_meaning(changes: dict[str, Any], refusal: str | None) -> None:
    """One recount cannot prove counts that were made under two definitions."""
    change = definition_change(meter_set(SUM), meter_set({**SUM, **changes}, version=2))

    assert (change is None) if refusal is None else f"meter tokens: {refusal} cannot change" in (change or "")


def test_a_meter_never_begins_or_ends_to_carry_over() -> None:
    """Its periods so far were counted the other way."""
    plain = {**SUM, "aggregation": "latest"}
    carrying = {**plain, "carry_over": True}
    for before, after in ((plain, carrying), (carrying, plain)):
        change = definition_change(meter_set(before), meter_set(after, version=2))
        assert "meter tokens: carry_over cannot change" in (change or "")


@pytest.mark.parametrize("aggregation", [each for each in Aggregation if each is not Aggregation.LATEST])
def test_only_a_latest_meter_has_a_level(aggregation: Aggregation) -> None:
    """A sum begins anew in each period."""
    path = "$.v" if aggregation.rule.takes_value else None
    with pytest.raises(ValueError, match=f"a {aggregation} meter has no level: remove carry_over, or use latest or"):
        Meter(slug="m", event_type="t", aggregation=aggregation, value_path=path, carry_over=True)


@pytest.mark.parametrize(
    ("policy", "refusal"),
    [
        pytest.param({"window_ms": 4 * HOUR_MS}, "window_ms", id="window"),
        pytest.param({"report_interval_ms": 30 * MINUTE_MS}, "report_interval_ms", id="report interval"),
        pytest.param({"future_ms": 0}, "future_ms", id="a smaller future limit"),
        pytest.param({"future_ms": DAY_MS}, None, id="a larger future limit may"),
        pytest.param({"grace_ms": 0}, None, id="grace may"),
        pytest.param({"event_bytes_max": 1_048_576}, None, id="size of events may"),
    ],
)
def test_policy_values_that_shape_stored_state_cannot_change(policy: dict[str, int], refusal: str | None) -> None:
    """The places of marks, reports and bindings follow from these values."""
    change = definition_change(meter_set(SUM), meter_set(SUM, version=2, **policy))

    assert (change is None) if refusal is None else refusal in (change or "")


def test_meters_may_come_and_go() -> None:
    """A first meter set, a new meter, and a meter that is removed."""
    assert definition_change(None, meter_set(SUM)) is None
    assert definition_change(meter_set(SUM), meter_set(SUM, COUNT, version=2)) is None
    assert definition_change(meter_set(SUM, COUNT), meter_set(COUNT, version=2)) is None
    assert (
        definition_change(meter_set(SUM, COUNT), successor(meter_set(SUM, COUNT), meter_set(COUNT, version=2))) is None
    )
    # A concurrent apply was faster; the fold ignores the older meter set.
    assert definition_change(meter_set(SUM, COUNT, version=3), meter_set(COUNT, version=2)) is None


def test_a_removed_meter_comes_back_unchanged_or_not_at_all() -> None:
    """Also if several meter sets without the meter came in between."""
    gone = successor(meter_set(SUM, COUNT), meter_set(COUNT, version=2))
    still_gone = successor(gone, meter_set(COUNT, version=3))
    back = successor(still_gone, meter_set(COUNT, SUM, version=4))
    changed = successor(still_gone, meter_set(COUNT, {**SUM, "scale": 3}, version=4))

    assert [meter.slug for meter in still_gone.retired] == ["tokens"]
    assert back.retired == ()
    assert definition_change(still_gone, back) is None
    assert definition_change(still_gone, changed) == "meter tokens: scale cannot change; add a meter under another slug"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({"slug": "Tokens"}, "pattern", id="capital in the slug"),
        pytest.param({"slug": "a|b"}, "pattern", id="separator in the slug"),
        pytest.param({"value_path": None}, "needs a value_path", id="sum without a path"),
        pytest.param({"value_path": "tokens"}, "pattern", id="path without $"),
        pytest.param({"value_path": "$.a[0]"}, "pattern", id="path with an index"),
        pytest.param({"aggregation": "count"}, "takes no value_path", id="count with a path"),
        pytest.param({"aggregation": "unique", "scale": 2}, "scale must be 0", id="unique with a scale"),
        pytest.param({"scale": 13}, "less than or equal to 12", id="scale of 13"),
        pytest.param({"filters": [{"path": "$.a", "values": []}]}, "at least 1", id="filter without values"),
        pytest.param({"late": "drop"}, "carry_forward", id="unknown policy"),
        pytest.param({"colour": "red"}, "not permitted", id="unknown field"),
    ],
)
def test_a_meter_that_makes_no_sense_is_refused(changes: dict[str, Any], refusal: str) -> None:
    """`apply` names the mistake."""
    with pytest.raises(ValidationError, match=refusal):
        Meter.model_validate({**SUM, **changes})
