"""`meters apply` says what changes, and asks before usage is counted or reported otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.commands.operations import checked_meter_set, meter_set_plan
from schemas.aggregations import Aggregation
from schemas.errors import InvalidInput
from schemas.meters import MeterSet

API = {"slug": "api", "event_type": "api", "aggregation": "count", "stripe_event_name": "api_calls"}
SEATS = {"slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats"}


def meter_set(*meters: dict[str, Any], version: int = 1, **policy: int) -> MeterSet:
    return MeterSet.model_validate({"version": version, "meters": meters, "policy": policy})


@pytest.mark.parametrize(
    ("meters", "policy", "lines", "is_final"),
    [
        pytest.param([API, SEATS], {}, (), False, id="nothing"),
        pytest.param([API], {}, ("- seats: counted and reported no more",), True, id="a meter is taken away"),
        pytest.param(
            [{**API, "stripe_event_name": "calls"}, SEATS], {},
            ("~ api: reported to Stripe as calls, before as api_calls",), True, id="another Stripe meter",
        ),
        pytest.param(
            [{**API, "stripe_event_name": None}, SEATS], {},
            ("~ api: reported to Stripe not at all, before as api_calls",), True, id="no Stripe meter",
        ),
        pytest.param(
            [API, {**SEATS, "stripe_event_name": "seats"}], {},
            ("~ seats: reported to Stripe as seats, before not at all",), False, id="a first Stripe meter",
        ),
        pytest.param(
            [API, SEATS, {**API, "slug": "more", "stripe_event_name": "more"}], {},
            ("+ more: counted from now on, reported to Stripe as more",), False, id="a new meter",
        ),
        pytest.param(
            [API, {**SEATS, "on_bad": "skip_meter"}], {},
            ("~ seats: on_bad skip_meter, before reject_event",), False, id="what a bad value does",
        ),
        pytest.param(
            [API, SEATS], {"grace_ms": 7_200_000}, ("~ policy.grace_ms: 7200000, before 3600000",), False, id="policy",
        ),
    ],
)  # fmt: skip
def test_what_changes_is_said_and_what_ends_is_asked(
    meters: list[dict[str, Any]], policy: dict[str, int], lines: tuple[str, ...], is_final: bool
) -> None:
    plan = meter_set_plan(meter_set(API, SEATS), meter_set(*meters, version=2, **policy))

    assert (plan.lines, plan.is_final) == (lines, is_final)


@pytest.mark.parametrize("aggregation", [each for each in Aggregation if not each.rule.additive])
def test_total_that_is_no_sum_goes_to_no_other_stripe_meter(aggregation: Aggregation) -> None:
    """10 seats are at the first Stripe meter. With 4 seats the second one would get -6, and the first would bill 10."""
    seats = {**SEATS, "aggregation": aggregation.value, "stripe_event_name": "seats"}

    with pytest.raises(InvalidInput, match=r"seats\.stripe_event_name: cannot change from seats to places") as raised:
        meter_set_plan(meter_set(seats), meter_set({**seats, "stripe_event_name": "places"}, version=2))
    assert "add a meter under another slug" in str(raised.value)


@pytest.mark.parametrize(("in_force", "proposed"), [(1, 1), (7, 3)])
def test_a_version_that_is_not_above_is_refused_with_the_next_one(in_force: int, proposed: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_meter_set(meter_set(API, version=in_force), meter_set(API, SEATS, version=proposed), "mine.yaml")

    assert (
        f"mine.yaml: version: must be above {in_force}, the version in force: write `version: {in_force + 1}`"
        in str(refused.value)
    )
    assert "`dev --meters FILE` in a new folder" in str(refused.value)
