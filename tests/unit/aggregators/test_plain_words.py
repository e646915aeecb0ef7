"""Every reason and every refusal of a meter set is told in the words of JSON, with a remedy that fits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from aggregators.partitioning import partition_of
from aggregators.scan import LogState, scan
from aggregators.signing import sign
from pipeline.logs.control_records import control_record
from pipeline.open import following, read_meter_set
from schemas.control import CONTROL_HEADER, SIGNATURE_HEADER, BindingRecord, ControlKind, MeterSetRecord
from schemas.errors import InvalidInput
from schemas.log import EVENTS_TOPIC, Headers, Record
from schemas.meters import MeterSet
from schemas.periods import Binding
from schemas.reasons import REMEDIES, Reason

SECRET: Final = b"secret"
NOON_MS: Final = 1_773_144_000_000
PYTHONS_WORDS: Final = re.compile(
    r"None|\b(str|int|float|bool|dict|dictionary|tuple|Decimal|True|False|[A-Z]\w*(Error|Type|Exception))\b"
    r"|<class|Input |a valid |instance of|Traceback|`|\$\[|sys\.|\{'|\['"
)
METER_SET: Final = MeterSet.model_validate({
    "version": 1,
    "meters": [
        {"slug": "cost", "event_type": "cost", "aggregation": "sum", "value_path": "$.v", "scale": 2,
         "dimensions": {"kind": "$.kind"}},
        {"slug": "users", "event_type": "login", "aggregation": "unique", "value_path": "$.v"},
        {"slug": "calls", "event_type": "both", "aggregation": "count"},
        {"slug": "sizes", "event_type": "both", "aggregation": "max", "value_path": "$.v"},
    ],
})  # fmt: skip
EVENT: Final = {
    "specversion": "1.0", "id": "1", "source": "s", "type": "cost", "subject": "acme", "time": "2026-03-10T12:00:00Z",
    "data": "DATA",
}  # fmt: skip
ELSEWHERE: Final = next(name for name in map(str, range(100)) if partition_of(name, 2) != partition_of("acme", 2))
HOSTILE: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 10**30, "", "x", "None", "é\n\"'", "x" * 300, [], [1], {}, {"a": {"b": None}},
)  # fmt: skip
NO_SCALARS: Final[tuple[Any, ...]] = ([], {})


def of(data: Any = "{}", **changes: Any) -> bytes:
    """An event with this text as its data. A field with the value `...` is left out."""
    document = {name: value for name, value in {**EVENT, **changes}.items() if value is not ...}
    return json.dumps(document).replace('"DATA"', data).encode()


def control(kind: str, value: bytes, *, forged: bool = False) -> tuple[bytes, Headers]:
    signature = sign(SECRET, EVENTS_TOPIC, HOME, kind, value)
    return value, ((CONTROL_HEADER, kind.encode()), (SIGNATURE_HEADER, b"0" * 64 if forged else signature))


HOME: Final = partition_of("acme", 2)
RECORDS: Final[dict[Reason, list[bytes | tuple[bytes, Headers]]]] = {
    Reason.BAD_ENCODING: [b"\xff", of().replace(b"acme", b"\xc3\x28")],
    Reason.BAD_JSON: [
        b"", b"{", b"[1,", of("NaN"), of("-Infinity"), of('{"v":01}'), of('{"v":"\\ud800"}'), of("None"), of("True"),
        of('{"v":' + "9" * 60_000 + "}"), of('{"v":-' + "9" * 4_300 + "}"), of('{"v":1e99999999999999999999}'),
    ],
    Reason.TOO_DEEP: [b"[" * 1_000, of("[" * 250 + "]" * 250)],
    Reason.TOO_LARGE: [of(extension="x" * 70_000)],
    Reason.TOO_MANY_EVENTS: [b"[" + b",".join([b"0"] * 65_537) + b"]"],
    Reason.NOT_AN_EVENT: [json.dumps([value]).encode() for value in HOSTILE if not isinstance(value, dict)],
    Reason.MISSING_FIELD: [of(**{name: ...}) for name in ("specversion", "id", "source", "type", "subject")],
    Reason.BAD_FIELD: [
        *(of(**{name: value}) for name in ("id", "source", "type", "subject") for value in HOSTILE
          if not isinstance(value, str) or value in ("", "x" * 300)),
        *(of(specversion=value) for value in HOSTILE),
        *(of(time=value) for value in HOSTILE if value is not None and (not isinstance(value, str) or not value)),
        *(of(json.dumps(value)) for value in HOSTILE if value is not None and not isinstance(value, dict)),
        of().replace(b'{"spec', b'{"id":7,"spec'),
    ],
    Reason.BAD_TIME: [of(time=value) for value in ("x", "None", "é\n\"'", "2026-02-30T00:00:00Z", "2026-03-01")],
    Reason.WRONG_PARTITION: [of(subject=ELSEWHERE)],
    Reason.TOO_FAR_IN_FUTURE: [of(time="9999-12-31T23:59:59Z")],
    Reason.TOO_FAR_IN_PAST: [of(time="0001-01-01T00:00:00Z")],
    Reason.TOO_OLD: [of(time="2023-01-01T00:00:00Z")],
    Reason.MISSING_QUANTITY: [of(), of('{"v":null}'), of('{"v":""}', type="login"), of("null")],
    Reason.BAD_QUANTITY: [
        *(of(json.dumps({"v": value})) for value in ("", "x", "None", True, "9" * 60_000, *NO_SCALARS)),
        *(of(json.dumps({"v": value}), type="login") for value in (1.5, "x" * 300, 10**300, *NO_SCALARS)),
    ],
    Reason.TOO_MANY_DIGITS: [of('{"v":1.001}'), of('{"v":7.500000000000001e-05}'), of('{"v":0.' + "1" * 60_000 + "}")],
    Reason.QUANTITY_TOO_LARGE: [of('{"v":' + "9" * 4_000 + "}"), of('{"v":1e400}')],
    Reason.NEGATIVE_QUANTITY: [of('{"v":-1}')],
    Reason.BAD_DIMENSION: [of(json.dumps({"v": 1, "kind": value})) for value in (1.5, "x" * 300, *NO_SCALARS)],
    Reason.BAD_FOR_ONE_METER: [of(json.dumps({"v": value}), type="both") for value in HOSTILE if value not in (0,)],
    Reason.FORGED_CONTROL: [control("tick", b"{}", forged=True), control("x", b"", forged=True)],
    Reason.BAD_CONTROL: [
        *(control(kind.value, value) for kind in ControlKind for value in (b"", b"null", b"[]", b'{"x":1}', b"\xff")),
        control("unheard_of", b"{}"),
        control("binding", b'{"account":7,"binding":{"effective_from_ms":"x"}}'),
        control("meter_set", b'{"meter_set":{"version":1,"meters":[{"slug":7}]}}'),
        control_record(
            SECRET, HOME, BindingRecord(account=ELSEWHERE, revision=1, binding=Binding(effective_from_ms=0))
        ),
        control_record(SECRET, HOME, MeterSetRecord(meter_set=METER_SET.model_copy(update={
            "version": 2, "meters": tuple(meter.model_copy(update={"scale": 5}) for meter in METER_SET.meters),
        }))),
        control("restatement", json.dumps({"account": "acme", "position": 1, "content": "no"}).encode()),
    ],
}  # fmt: skip
OF_THE_PROCESSOR: Final = {Reason.PERIOD_CLOSED, Reason.TOO_MANY_DEFERRED}
"""Reasons that need a state of the live view; `RollupProcessor` has their fixed texts."""
OF_STRIPE: Final = {Reason.BAD_STRIPE_EVENT, Reason.FOREIGN_STRIPE_EVENT, Reason.STRIPE_OBJECT_MISSING}
"""Reasons of what Stripe sent, whose reader is not a producer."""
OF_DOORS: Final = {Reason.RESERVED_TYPE}
"""Reasons of the gateway and the router, whose events are not in `usage.events`."""


def test_the_table_has_every_reason() -> None:
    assert RECORDS.keys() | OF_THE_PROCESSOR | OF_STRIPE | OF_DOORS == set(Reason) == REMEDIES.keys()


@pytest.mark.parametrize("reason", RECORDS, ids=str)
def test_no_detail_and_no_remedy_has_a_word_of_python(reason: Reason) -> None:
    """The reader of the answer may write any language."""
    assert not PYTHONS_WORDS.search(REMEDIES[reason])
    for number, entry in enumerate(RECORDS[reason]):
        value, headers = entry if isinstance(entry, tuple) else (entry, ())
        record = Record(EVENTS_TOPIC, HOME, 0, NOON_MS, None, value, headers)

        (entry_,) = scan(HOME, LogState("log", 2, NOON_MS, METER_SET), SECRET, [record], events_max=1).quarantined

        assert (entry_.reason, len(entry_.detail) <= 400) == (reason, True), (number, value[:80], entry_.detail[:200])
        assert not PYTHONS_WORDS.search(_without_quotes(entry_.detail)), entry_.detail


def _without_quotes(detail: str) -> str:
    """What the producer wrote is quoted in the detail, and may be any word."""
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', detail)


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        pytest.param(of("5"), "data: a JSON object is needed, not a number", id="data is a number"),
        pytest.param(of("[1]"), "data: a JSON object is needed, not a list", id="data is a list"),
        pytest.param(of('"x"'), "data: a JSON object is needed, not a text", id="data is a text"),
        pytest.param(b"null", "a JSON object is needed, not null", id="null"),
        pytest.param(b"true", "a JSON object is needed, not true", id="true"),
        pytest.param(of(id=...), "id: the field is missing", id="no id"),
        pytest.param(of(id=7), "id: a text is needed, not a number", id="id is a number"),
        pytest.param(of(id=""), "id: must have 1 or more characters", id="empty id"),
        pytest.param(of(id="x" * 200), "id: must have 128 or fewer characters, not 200", id="long id"),
        pytest.param(of(specversion="0.3"), 'specversion: must be "1.0"', id="another version"),
        pytest.param(of(time="yesterday"), 'time: "yesterday" is no RFC 3339 time with an offset', id="time"),
        pytest.param(of().replace(b'{"spec', b'{"id":7,"spec'), "id: stands twice", id="id twice"),
        pytest.param(
            of('{"v":' + "9" * 60_000 + "}"), "a number has 60000 digits, fewer than 4300 are read", id="60 000 digits"
        ),
        pytest.param(
            of('{"v":1e99999999999999999999}'), "a number has an exponent that is too large to be read", id="exponent"
        ),
    ],
)
def test_a_detail_names_the_field_and_what_is_needed(raw: bytes, detail: str) -> None:
    record = Record(EVENTS_TOPIC, HOME, 0, NOON_MS, None, raw)

    (entry,) = scan(HOME, LogState("log", 2, NOON_MS, METER_SET), SECRET, [record], events_max=1).quarantined

    assert entry.detail == detail


METER: Final = {"slug": "m", "event_type": "t", "aggregation": "sum", "value_path": "$.v"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param([], "meter_set: a map of fields is needed, not a list", id="a list"),
        pytest.param({}, "version: the field is missing", id="nothing"),
        pytest.param(
            {"version": None, "meters": []}, "version: a whole number is needed, not an empty value", id="no version"
        ),
        pytest.param({"version": 1, "meters": {}}, "meters: a list is needed, not a map", id="meters"),
        pytest.param({"version": 1, "meters": [7]}, "meters.0: a map of fields is needed, not a number", id="meter"),
        pytest.param({"version": 1, "meters": [], "x": 1}, "x: no such field: remove it or correct its name", id="x"),
        pytest.param(
            {"version": 1, "meters": [METER | {"aggregation": "mean"}]},
            'meters.0.aggregation: must be "count", "sum", "max", "min", "unique", "latest", "time_weighted", '
            '"duration" or "peak"', id="aggregation",
        ),
        pytest.param(
            {"version": 1, "meters": [METER | {"on_bad": None}]},
            'meters.0.on_bad: must be "reject_event" or "skip_meter"', id="on_bad",
        ),
        pytest.param(
            {"version": 1, "meters": [METER | {"scale": 13}]}, "meters.0.scale: must be at most 12", id="scale"
        ),
        pytest.param(
            {"version": 1, "meters": [METER | {"slug": "A b"}]},
            'meters.0.slug: "A b": a name has small letters, digits and _, begins with a letter and has up to 63 '
            "characters, such as a_b",
            id="slug",
        ),
        pytest.param(
            {"version": 1, "meters": [METER | {"dimensions": {"account": "$.account"}}]},
            "meters.0.dimensions: a dimension cannot be called account: answers group by the account under that name",
            id="a dimension called account",
        ),
        pytest.param(
            {"version": 1, "meters": [METER | {"filters": [{"path": "$.a", "values": []}]}]},
            "meters.0.filters.0.values: must have 1 or more entries", id="filter",
        ),
        pytest.param(
            {"version": 1, "meters": [], "policy": {"late_max_ms": 1}},
            "policy.late_max_ms: must be at least 3600000", id="late_max_ms",
        ),
        pytest.param(
            {"version": 1, "meters": [METER, METER]}, "meter_set: meter slug used twice: m", id="a slug twice"
        ),
    ],
)  # fmt: skip
def test_a_meter_set_is_refused_in_plain_words(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "meters.yaml"
    path.write_text(json.dumps(document))

    with pytest.raises(InvalidInput) as refused:
        read_meter_set(path)

    assert str(refused.value) == f"meters.yaml line 1: {message}"


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_no_hostile_value_in_a_meter_set_is_answered_in_pythons_words(tmp_path: Path, value: object) -> None:
    """Each field of a meter, a filter, the policy and the meter set in turn has the value."""
    good = {"version": 1, "meters": [METER | {"filters": [{"path": "$.a", "values": ["b"]}]}], "policy": {}}
    fields = [
        *({**good, name: value} for name in ("version", "meters", "policy", "retired")),
        *({**good, "meters": [{**METER, name: value}]} for name in (
            "slug", "event_type", "aggregation", "value_path", "dimensions", "filters", "unit", "scale",
            "allow_negative", "late", "on_bad", "stripe_event_name", "description",
        )),
        *({**good, "meters": [{**METER, "dimensions": {"d": value}}]} for _ in "1"),
        *({**good, "meters": [{**METER, "filters": [{"path": "$.a", "values": ["b"], name: value}]}]}
          for name in ("path", "operator", "values")),
        *({**good, "policy": {name: value}} for name in ("window_ms", "late_max_ms", "deferred_max", "future")),
        value,
    ]  # fmt: skip
    refusals = [refusal for document in fields if (refusal := _refusal(tmp_path, document))]

    assert refusals
    assert [refusal for refusal in refusals if PYTHONS_WORDS.search(_without_quotes(refusal))] == []


def _refusal(folder: Path, document: object) -> str:
    """Why a meter set is refused; empty if it is valid."""
    path = folder / "meters.yaml"
    path.write_text(json.dumps(document))
    try:
        read_meter_set(path)
    except InvalidInput as refused:
        return str(refused)
    return ""


def test_too_many_retired_meters_are_told_in_plain_words(tmp_path: Path) -> None:
    """The new meter set retires the last meter, and 500 are retired already."""
    meters = [{**METER, "slug": f"m{number}"} for number in range(501)]
    current = MeterSet.model_validate({"version": 1, "meters": meters[:1], "retired": meters[1:]})
    path = tmp_path / "meters.yaml"
    path.write_text(json.dumps({"version": 2, "meters": []}))

    with pytest.raises(InvalidInput, match="retired: must have 500 or fewer entries: too many meters"):
        following(current, path)
