"""Which requests the gateway accepts and refuses, and its answers."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from aggregators.partitioning import partition_of
from pipeline.logs import quarantine
from schemas.meters import MeterSet
from tests.traffic.generate import METER_SET
from tests.worlds.gateway import BODY_BYTES_MAX, NOW, NOW_MS, Gateway, event, running, tokens

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


async def test_a_good_event_is_answered_after_it_is_in_the_log_byte_for_byte(gateway: Gateway) -> None:
    """The promise of a 200. The bytes stay unchanged, because the fold reads what the producer wrote."""
    raw = json.dumps(event(data={"usage": {"tokens": 7}, "model": "sm\u00e4ll"}), indent=1, ensure_ascii=False)

    answer = await gateway.post(raw.encode(), "application/cloudevents+json")

    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": 1, "rejected": 0, "unmetered": 1, "events": [{
            "index": 0, "id": "op-1", "status": "accepted",
            "detail": "no meter counts the event, and its id is used up",
            "remedy": (
                "if it should count, correct its type or data, or add a meter; then send it under a new id"
            ),
        }],
    }  # fmt: skip
    records = await gateway.world.records(partition_of("acme", 2))
    assert records[-1].value == b"[" + raw.encode() + b"]"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(json.dumps([event("a"), event("b")]).encode(), "application/cloudevents-batch+json", id="batch"),
        pytest.param(json.dumps([event("a"), event("b")]).encode(), "application/json", id="JSON list"),
        pytest.param(
            b"\n".join(json.dumps(event(name)).encode() for name in "ab") + b"\r\n\n",
            "application/x-ndjson",
            id="lines",
        ),
    ],
)
async def test_every_form_of_several_events_is_understood(gateway: Gateway, body: bytes, content_type: str) -> None:
    """All forms carry the same events."""
    answer = await gateway.post(body, content_type)

    assert answer.status_code == 202
    assert [each["id"] for each in await gateway.stored()] == ["a", "b"]


async def test_binary_mode_takes_attributes_from_headers_and_data_from_the_body(gateway: Gateway) -> None:
    """CloudEvents HTTP binding 3.1: header values are percent-encoded; the quantity's digits stay unchanged."""
    raw = b'{"gigabytes": 1.250}'

    answer = await gateway.post(
        raw, ce_specversion="1.0", ce_id="b-1", ce_source="test", ce_type="storage.sampled", ce_time=NOW,
        ce_subject="caf%C3%A9",
    )  # fmt: skip

    assert answer.status_code == 202
    records = await gateway.world.records(partition_of("café", 2))
    assert raw in (records[-1].value or b"")
    assert [each["subject"] for each in await gateway.stored()] == ["café"]


async def test_binary_mode_cannot_add_fields_after_its_data(gateway: Gateway) -> None:
    """The gateway splices the body into the event, so the body must be one JSON value."""
    answer = await gateway.post(
        b'{}, "subject": "victim"', key="acme", ce_specversion="1.0", ce_id="1", ce_source="s", ce_type="t",
        ce_time=NOW, ce_subject="acme",
    )  # fmt: skip

    assert answer.status_code == 400
    assert answer.json()["events"][0]["reason"] == "bad_json"
    assert await gateway.stored() == []


async def test_event_without_a_time_is_accepted_unchanged(gateway: Gateway) -> None:
    """The event of OpenMeter's quickstart. The gateway adds no time: the log's arrival is the event's time."""
    quickstart = {
        "specversion": "1.0", "type": "request", "id": "00001", "source": "service-0", "subject": "customer-1",
        "data": {"method": "GET", "route": "/hello", "duration_ms": "10"},
    }  # fmt: skip

    answer = await gateway.post([quickstart, {**quickstart, "id": "2", "time": None, "data": None}])

    assert answer.status_code == 202
    assert await gateway.stored() == [quickstart, {**quickstart, "id": "2", "time": None, "data": None}]


REJECTED: Final = [
    pytest.param(event(source=None), "missing_field", "source", id="missing source"),
    pytest.param(event(""), "bad_field", "id", id="empty id"),
    pytest.param(event("i" * 10_000), "bad_field", "id", id="10 000 characters of id"),
    pytest.param(event(subject=7), "bad_field", "subject", id="subject is a number"),
    pytest.param(event(specversion="0.3"), "bad_field", "specversion", id="another version of CloudEvents"),
    pytest.param(event(time="yesterday"), "bad_time", "time", id="no time"),
    pytest.param(event(time="0001-01-01T00:00:00Z"), "too_far_in_past", "time", id="year 1"),
    pytest.param(event(time="9999-12-31T23:59:59Z"), "too_far_in_future", "time", id="year 9999"),
    pytest.param(event(time="2026-11-21T10:35:01Z"), "too_far_in_future", "time", id="just too far ahead"),
    pytest.param(event(time="1969-12-31T23:59:59Z"), "too_far_in_past", "time", id="just too old"),
    pytest.param(event(time="2023-05-01T00:00:00Z"), "too_old", "time", id="2023"),
    pytest.param(event(time="2026-10-17T10:29:59.999Z"), "too_old", "time", id="just over 35 days old"),
    pytest.param(event(data={"model": "small"}), "missing_quantity", "data.usage.tokens", id="no quantity"),
    pytest.param(tokens(-1), "negative_quantity", "data.usage.tokens", id="-1"),
    pytest.param(tokens(1.5), "too_many_digits", "data.usage.tokens", id="1.5"),
    pytest.param(tokens("NaN"), "bad_quantity", "data.usage.tokens", id="NaN text"),
    pytest.param(tokens(10**18), "quantity_too_large", "data.usage.tokens", id="10^18"),
    pytest.param(
        event(type="storage.sampled", data={"gigabytes": 1, "tier": []}), "bad_dimension", "data.tier", id="dimension"
    ),
    pytest.param(event(type="api.request", data={"region": "eu"}), "bad_for_one_meter", "data.user", id="one meter"),
    pytest.param(event(data={"x": "x" * 65_536}), "too_large", "", id="too large"),
    pytest.param(event(type="tidemark.adjusted.tokens"), "reserved_type", "type", id="reserved type"),
    pytest.param(event(f"m:disk:{'0' * 16}:{NOW_MS}:0"), "reserved_type", "id", id="id of a measured piece"),
    pytest.param(event(f"c:{'0' * 24}:tokens:{'0' * 24}:0"), "reserved_type", "id", id="id of a correction"),
    pytest.param([event()], "not_an_event", "", id="list in a list"),
    pytest.param(3, "not_an_event", "", id="number"),
    pytest.param(None, "not_an_event", "", id="null"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason", "field"), REJECTED)
async def test_a_bad_event_is_answered_with_its_reason_quarantined_and_harms_no_other(
    gateway: Gateway, bad: object, reason: str, field: str
) -> None:
    """Each reason comes with its remedy; the original bytes go to the quarantine."""
    answer = await gateway.post([event("before"), bad, event("after")])

    decisions = answer.json()["events"]

    assert answer.status_code == 207
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 1)
    assert [each["status"] for each in decisions] == ["accepted", "rejected", "accepted"]
    assert (decisions[1]["reason"], decisions[1].get("field", "")) == (reason, field)
    assert decisions[1]["remedy"]
    assert [each["id"] for each in await gateway.stored()] == ["before", "after"]
    (kept,) = await gateway.quarantined()
    assert json.loads(kept.value or b"") == bad
    assert dict(kept.headers)["tidemark-reason"] == reason.encode()
    assert dict(kept.headers)["tidemark-source"] == b"gateway"


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        pytest.param(b"\x00\xff garbage", "application/json", "bad_encoding", id="garbage"),
        pytest.param(b"{]", "application/json", "bad_json", id="no JSON"),
        pytest.param(b'[{"a": NaN}]', "application/json", "bad_json", id="NaN"),
        pytest.param(b"[" * 50_000 + b"]" * 50_000, "application/json", "too_deep", id="deep list"),
        pytest.param(b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "application/json", "too_deep", id="deep object"),
        pytest.param(b'{"id": "1"}', "application/cloudevents-batch+json", "not_an_event", id="object as a batch"),
        pytest.param(b"[\xff]", "application/cloudevents-batch+json", "bad_encoding", id="batch not UTF-8"),
    ],
)
async def test_a_body_that_cannot_be_read_is_rejected_and_quarantined_as_one(
    gateway: Gateway, body: bytes, content_type: str, reason: str
) -> None:
    """400 with the reason; an operator can look at the whole body later."""
    answer = await gateway.post(body, content_type)

    assert answer.status_code == 400
    assert answer.json()["rejected"] == 1
    assert answer.json()["events"][0]["reason"] == reason
    assert [record.value for record in await gateway.quarantined()] == [body]


async def test_only_the_start_of_a_large_rejected_body_is_kept(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client must not fill the quarantine with megabytes; the entry says that it is cut, and cannot be redriven."""
    monkeypatch.setattr(quarantine, "RAW_BYTES_KEPT", 1_000)
    body = b'["' + b"x" * 1_200

    answer = await gateway.post(body, "application/cloudevents-batch+json")
    (entry,) = await gateway.quarantined()

    assert answer.status_code == 400
    assert body[:1_000] == entry.value
    assert dict(entry.headers)["tidemark-cut-at-bytes"] == b"1000"


async def test_a_broken_line_harms_no_other_line(gateway: Gateway) -> None:
    """Lines are independent, unlike the members of a JSON list."""
    body = b"\n".join([json.dumps(event("a")).encode(), b'{"id": "torn', json.dumps(event("b")).encode()])

    answer = await gateway.post(body, "application/x-ndjson")

    assert [each["status"] for each in answer.json()["events"]] == ["accepted", "rejected", "accepted"]


async def test_an_event_nested_deeper_than_workers_can_read_is_refused(gateway: Gateway) -> None:
    """One event over the workers' recursion limit would cost the whole batch."""
    nested: Any = 1
    for _ in range(250):
        nested = [nested]
    braces_in_text = event("text", data={"usage": {"tokens": 1}, "model": "[" * 500})

    answer = await gateway.post([event("deep", data={"x": nested}), braces_in_text])

    assert [each.get("reason") for each in answer.json()["events"]] == ["too_deep", None]


ZSTD: Final = zstd.compress(b"{}" * 99)
ZSTD_BOMB: Final = zstd.compress(b"0" * 9_000_000)
_WIDE: Final = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
ZSTD_WIDE: Final = _WIDE.compress(b"0" * 999) + _WIDE.flush()
REFUSED: Final = [
    pytest.param(b"x", {"content_type": "text/plain"}, 415, "unsupported_media_type", id="text"),
    pytest.param(b"x", {"content_type": ""}, 415, "unsupported_media_type", id="no content type"),
    pytest.param(b"x", {"content_type": "multipart/form-data"}, 415, "unsupported_media_type", id="form"),
    pytest.param(b"{}", {"content_type": "application/json; charset=utf-16"}, 415, "unsupported_charset", id="UTF-16"),
    pytest.param(b"{}", {"content_encoding": "br"}, 415, "unsupported_encoding", id="brotli"),
    pytest.param(b"{}", {"content_encoding": "gzip"}, 400, "bad_gzip", id="not gzip"),
    pytest.param(gzip.compress(b"{}" * 99)[:-9], {"content_encoding": "gzip"}, 400, "bad_gzip", id="cut gzip"),
    pytest.param(gzip.compress(b"[]") + b"x", {"content_encoding": "gzip"}, 400, "bad_gzip", id="behind gzip"),
    pytest.param(gzip.compress(b"") * 1_001, {"content_encoding": "gzip"}, 400, "bad_gzip", id="many members"),
    pytest.param(gzip.compress(b"0" * 150_000) * 2, {"content_encoding": "gzip"}, 413, "body_too_large", id="members"),
    pytest.param(b"", {"content_encoding": "gzip"}, 400, "bad_gzip", id="no member"),
    pytest.param(gzip.compress(b"0" * 9_000_000), {"content_encoding": "gzip"}, 413, "body_too_large", id="gzip bomb"),
    pytest.param(b"{}", {"content_encoding": "zstd"}, 400, "bad_zstd", id="not zstd"),
    pytest.param(ZSTD[:-3], {"content_encoding": "zstd"}, 400, "bad_zstd", id="cut zstd"),
    pytest.param(ZSTD + b"x" * 20, {"content_encoding": "zstd"}, 400, "bad_zstd", id="behind zstd"),
    pytest.param(ZSTD_BOMB, {"content_encoding": "zstd"}, 413, "body_too_large", id="zstd bomb"),
    pytest.param(ZSTD_WIDE, {"content_encoding": "zstd"}, 400, "bad_zstd", id="zstd with a window of 128 MiB"),
    pytest.param(b" " * (BODY_BYTES_MAX + 1), {}, 413, "body_too_large", id="large body"),
    pytest.param(b"[" + b"1," * 10_000 + b"1]", {}, 413, "too_many_events", id="too many events"),
    pytest.param(b"1\n" * 10_001, {"content_type": "application/x-ndjson"}, 413, "too_many_events", id="lines"),
    pytest.param(b" \n", {}, 400, "empty_body", id="empty"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "request_", "status", "code"), REFUSED)
async def test_a_request_that_cannot_be_served_gets_a_clear_error(
    gateway: Gateway, body: bytes, request_: dict[str, str], status: int, code: str
) -> None:
    """JSON with a code and a sentence, never a stack trace; nothing is written."""
    answer = await gateway.post(body, **request_)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"]
    assert await gateway.stored() == []


async def test_a_streamed_body_of_unknown_length_is_cut_off_at_the_limit(gateway: Gateway) -> None:
    """The limit applies to the bytes that arrive, not to the announced length."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 10_000
            yield b" " * 10_000

    headers = {"content-type": "application/json", **gateway.bearer("ingest")}
    answer = await gateway.client.post("/v1/events", content=endless(), headers=headers)

    assert answer.status_code == 413


async def test_a_compressed_body_is_read(gateway: Gateway) -> None:
    """Usage events compress well."""
    answer = await gateway.post(gzip.compress(json.dumps(event()).encode()), content_encoding="gzip")

    assert answer.status_code == 202


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "zstd", "Zstd"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_body_of_several_members_is_read(gateway: Gateway, encoding: str, size: int) -> None:
    """RFC 1952, 2.2, and RFC 8878, 3: members follow each other, as `cat a.gz b.gz` and log shippers write them."""
    compress = zstd.compress if encoding.lower() == "zstd" else gzip.compress
    plain = json.dumps([event("a"), event("b")]).encode()
    members = [compress(plain[start : start + size]) for start in range(0, len(plain), size)]

    answer = await gateway.post(b"".join([*members, compress(b"")]), content_encoding=encoding)

    assert (answer.status_code, answer.json()["accepted"]) == (202, 2)


async def test_an_empty_batch_is_accepted(gateway: Gateway) -> None:
    """CloudEvents allows an empty batch."""
    answer = await gateway.post([], "application/cloudevents-batch+json")

    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "rejected": 0, "events": []})


@pytest.mark.parametrize(
    ("key", "status"),
    [("", 401), ("forged", 401), ("read", 403), ("ingest", 202), ("admin", 202), ("acme", 202)],
)
async def test_events_need_a_key_that_may_write(gateway: Gateway, key: str, status: int) -> None:
    """I12: 401 without a valid key, 403 for the wrong role."""
    answer = await gateway.post(event(), key=key)

    assert answer.status_code == status
    assert ("error" in answer.json()) == (status != 202)


async def test_a_key_of_one_account_cannot_write_another_and_nothing_is_quarantined(gateway: Gateway) -> None:
    """Quarantined events can be redriven, so the key would reach the other account after all."""
    mixed = await gateway.post([event("mine"), event("theirs", subject="other")], key="acme")
    alone = await gateway.post(event("theirs", subject="other"), key="acme")

    assert (mixed.status_code, alone.status_code) == (207, 403)
    assert mixed.json()["events"][1]["reason"] == "forbidden_account"
    assert [each["id"] for each in await gateway.stored()] == ["mine"]
    assert await gateway.quarantined() == []


@pytest.mark.parametrize(
    "body",
    [
        event(subject="other", data={"x": "x" * 65_536}),
        [[event(subject="other")]],
        b"[%b" % json.dumps(event()).encode(),
    ],
    ids=["too large", "a list in a list", "whose account cannot be read"],
)
async def test_what_a_key_of_one_account_may_not_write_is_not_kept_when_it_is_rejected(
    gateway: Gateway, body: object
) -> None:
    """A larger policy.event_bytes_max and a redrive would count it in the other account."""
    answer = await gateway.post(body, "application/json", key="acme")

    assert (answer.status_code, answer.json()["rejected"]) == (400, 1)
    assert await gateway.quarantined() == []
    kept = await gateway.post(event(data={"x": "x" * 65_536}), key="acme")
    assert (kept.json()["rejected"], len(await gateway.quarantined())) == (1, 1)


@pytest.mark.parametrize("space", [b"", b" ", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\xa0", b"\xef\xbb\xbf", b"\x00"])
@pytest.mark.parametrize("odd", [b"[%b]", b"[]", b"[%b,%b]", b"%b", b"%b,%b", b"", b"[%b", b"%b]"])
async def test_an_accepted_line_is_one_event_and_leaves_its_neighbours_readable(
    gateway: Gateway, space: bytes, odd: bytes
) -> None:
    """If the gateway accepts a line that breaks its record, the whole record is lost."""
    one = json.dumps(event("odd")).encode()
    lines = [json.dumps(event("before")).encode(), space + odd.replace(b"%b", one), json.dumps(event("after")).encode()]

    answer = await gateway.post(b"\n".join(lines), "application/x-ndjson")

    assert answer.status_code in (202, 207)
    accepted = [each["id"] for each in answer.json()["events"] if each["status"] == "accepted"]
    assert {"before", "after"} <= set(accepted)
    assert sorted(each["id"] for each in await gateway.stored()) == sorted(accepted)


async def test_event_that_a_meter_skips_is_accepted_and_the_answer_names_the_meter(tmp_path: Path) -> None:
    """`on_bad: skip_meter`: a missing user must not take the request's other meter with it, and must not be silent."""
    meters = [
        {**meter, "on_bad": "skip_meter"} if meter["slug"] == "active_users" else meter for meter in METER_SET["meters"]
    ]
    tolerant = MeterSet.model_validate({**METER_SET, "meters": meters})

    async def in_force() -> MeterSet:
        return tolerant

    async with running(tmp_path, meter_set=in_force) as gateway:
        answer = await gateway.post([
            event("bad", type="api.request", data={"region": "eu"}),
            event("good", type="api.request", data={"region": "eu", "user": "u"}),
        ])  # fmt: skip

        assert answer.status_code == 202
        assert answer.json() == {"accepted": 2, "rejected": 0, "events": [
            {"index": 0, "id": "bad", "status": "accepted", "skipped": [
                {"meter": "active_users", "reason": "missing_quantity", "field": "data.user"},
            ]},
            {"index": 1, "id": "good", "status": "accepted"},
        ]}  # fmt: skip
