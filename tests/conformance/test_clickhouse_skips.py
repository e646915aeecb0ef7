"""Meters that skip events: the recount by SQL, the fake's recount and the fold skip exactly the same values."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregators.meters import Failure, compiled
from schemas.aggregations import Aggregation
from schemas.analytics import MeterSpan
from schemas.meters import Meter, MeterSet, OnBad
from schemas.periods import Period
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import CALLS, MONTH, Both, event, request_of

Totals = dict[tuple[str, str, Period], int]

WEIGHT: Final = Meter(
    slug="weight", event_type="llm", aggregation=Aggregation.SUM, value_path="$.v", scale=3, on_bad=OnBad.SKIP_METER
)
SIGNED: Final = WEIGHT.model_copy(update={"slug": "signed", "allow_negative": True})
TEAMS: Final = Meter(
    slug="teams", event_type="llm", aggregation=Aggregation.UNIQUE, value_path="$.v", on_bad=OnBad.SKIP_METER
)
BY_KIND: Final = Meter(
    slug="by_kind", event_type="llm", aggregation=Aggregation.COUNT, dimensions={"kind": "$.v"},
    on_bad=OnBad.SKIP_METER,
)  # fmt: skip
TOLERANT: Final = (WEIGHT, SIGNED, TEAMS, BY_KIND)

VALUES: Final = (
    "0", "-0", "1", "-1", "1.5", "-1.5", "0.001", "0.0001", "0.0000", "1.0000000", "1e3", "1E+3", "1e-3", "1e-4",
    "100e-5", "-0.0", "0e400", "0E+100000000000000000", "1e400", "1e-400", "999999999999999", "1000000000000000",
    "999999999999999.999", "-999999999999999.999", "9999999999999990e-1", "10000000000000000e-1",
    '"1"', '"1.250"', '"-2"', '"-0"', '"007"', '"0010.500"', '"1."', '".5"', '"+1"', '" 1"', '"1e2"', '"1e99999999"',
    '"1e123456789012345678"', '"1e000000000000000003"', '"1e00000000000000003"', '"0e100000000000000000"',
    '"0e-10000000000000000"', '"heavy"', '"NaN"', '""', '"' + "1" * 64 + '"', '"0.' + "0" * 62 + '"',
    '"0.' + "0" * 63 + '"', '"' + "t" * 256 + '"', '"' + "t" * 257 + '"', "null", "true", "false", "{}", '{"#":"1"}',
    "[]", "[1]", '{"v":1}', '"\\u00e9"', '"\\"1\\""',
)  # fmt: skip
"""JSON texts of a value; some are quantities of three digits, some are texts, some are nothing that a meter uses."""


_decoded = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


def counted(data: str, *meters: Meter, account: str = "acme") -> Totals:
    """What the fold counts for one event."""
    contributions = compiled(MeterSet(version=1, meters=meters)).contributions("llm", _decoded(data), 0)
    assert not isinstance(contributions, Failure)
    return {
        (account, each.meter.slug, MONTH): 1 if each.meter.aggregation is Aggregation.UNIQUE else each.minor
        for each in contributions
    }


async def test_recount_skips_what_the_fold_skips(both: Both) -> None:
    """Each value has an account of its own. The other meters count the event."""
    documents = {value: f'{{"note":"\\"v\\":9","v":{value}}}' for value in VALUES} | {"absent": "{}"}
    await both.store.insert_events(
        [event(number, data, account=value) for number, (value, data) in enumerate(documents.items())]
    )

    totals = await both.reader.recount_totals(request_of(*TOLERANT, CALLS))

    for value, data in documents.items():
        counts = {key: minor for key, minor in totals.items() if key[0] == value}
        assert counts == counted(data, *TOLERANT, CALLS, account=value), value
    assert sum(minor for (_, meter, _), minor in totals.items() if meter == "calls") == len(documents)


async def test_each_event_is_judged_by_the_meter_set_of_its_arrival(both: Both) -> None:
    """`on_bad` and `allow_negative` may change; events that were skipped stay skipped."""
    await both.store.insert_events([event(number, {"v": -1}) for number in (1, 5, 9)])
    await both.store.insert_events([event(number, {"v": "bad"}) for number in (2, 6)])
    strict = WEIGHT.model_copy(update={"on_bad": OnBad.REJECT_EVENT, "allow_negative": True})
    signed = WEIGHT.model_copy(update={"allow_negative": True})
    spans = [MeterSpan(WEIGHT, 0, 4), MeterSpan(signed, 4, 8), MeterSpan(strict, 8, 20)]

    totals = await both.reader.recount_totals(request_of()._replace(meters=spans))

    assert totals == {("acme", "weight", MONTH): -2_000}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=None)
    | st.decimals(min_value=-(10**16), max_value=10**16, places=3)
    | st.text(alphabet="0123456789.-+eE ", max_size=12)
)
async def test_any_number_is_skipped_or_counted_as_the_fold_does(clickhouse: ClickHouse, number: Decimal | str) -> None:
    """Also texts that look like numbers."""
    data = f'{{"v":{number if isinstance(number, Decimal) else json.dumps(number)}}}'
    fake = FakeClickHouse()
    await clickhouse.command("TRUNCATE TABLE usage_events")
    for store in (fake, ClickHouseStore(clickhouse)):
        await store.insert_events([event(1, data)])

    expected = counted(data, WEIGHT, SIGNED)

    assert await fake.recount_totals(request_of(WEIGHT, SIGNED)) == expected
    assert await ClickHouseReader(clickhouse).recount_totals(request_of(WEIGHT, SIGNED)) == expected
