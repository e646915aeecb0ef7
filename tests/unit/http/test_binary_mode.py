"""CloudEvents' binary mode, by HTTP and in the inbox: one table of cases, and the same decisions by both."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from aggregators.decode import decode, normalised
from pipeline.ingest.router import RouterProcessor
from pipeline.logs.fake import FakeLog
from pipeline.settings import Settings
from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from tests.worlds.clock import ManualClock
from tests.worlds.gateway import NOW, Gateway, event, running

ATTRIBUTES: Final = {
    "specversion": "1.0", "id": "b-1", "source": "test", "type": "completion.finished", "time": NOW, "subject": "acme",
}  # fmt: skip
DATA: Final = b'{"usage": {"tokens": 7}, "model": "small"}'


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


async def by_http(gateway: Gateway, headers: list[tuple[str, bytes]], body: bytes) -> tuple[int, Any]:
    """POST exactly these headers; the status and the answer."""
    sent = [*((name.encode(), value) for name, value in headers)]
    sent += [(name.encode(), value.encode()) for name, value in gateway.bearer("ingest").items()]
    answer = await gateway.client.post("/v1/events", content=body, headers=sent)
    return answer.status_code, answer.json()


async def through_the_inbox(headers: list[tuple[str, bytes]], body: bytes) -> EventStruct | str:
    """The event that the router forwards, as the worker reads it; or the detail of its rejection."""
    log = FakeLog(ManualClock(0))
    await log.create_topics(Settings(partitions=1).topics())
    await log.append(INBOX_TOPIC, 0, body, headers=tuple(headers))
    router = RouterProcessor(log)
    await router.start_offset(0)
    await router.step(0, await log.read(INBOX_TOPIC, 0, 0))
    (record,) = await log.read(EVENTS_TOPIC, 0, 0)
    decoded = decode(record.value, 65_536)
    return decoded.events[0][1] if decoded.events else decoded.rejected[0].detail


def attributes(prefix: str, **changes: bytes) -> list[tuple[str, bytes]]:
    """The headers of a good event with changes."""
    changed = {**{name: value.encode() for name, value in ATTRIBUTES.items()}, **changes}
    return [(prefix + name, value) for name, value in changed.items()]


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "application/json; charset=utf-8", "application/vnd.acme+json", "text/json", " "],
)
async def test_the_body_is_json_with_and_without_a_content_type(gateway: Gateway, content_type: str) -> None:
    """CloudEvents' Python SDK sends no content type."""
    more = [("content-type", content_type.encode())] if content_type else []

    status, answer = await by_http(gateway, attributes("ce-") + more, DATA)
    forwarded = await through_the_inbox(attributes("ce_") + more, DATA)

    assert (status, answer["accepted"]) == (202, 1)
    assert isinstance(forwarded, EventStruct)
    assert [sent["data"] for sent in await gateway.stored()] == [json.loads(DATA)]
    assert forwarded.data == json.loads(DATA)


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/avro", "multipart/form-data"])
async def test_data_that_says_to_be_no_json_is_refused_with_the_header(gateway: Gateway, content_type: str) -> None:
    """Its quantities could not be read."""
    status, answer = await by_http(gateway, [*attributes("ce-"), ("content-type", content_type.encode())], DATA)

    assert (status, answer["error"]["field"]) == (415, "content-type")
    assert content_type in answer["error"]["message"]


@pytest.mark.parametrize(
    ("name", "by_http_", "in_kafka"),
    [
        pytest.param("subject", b"a%FFb", b"a\xffb", id="not UTF-8"),
        pytest.param("subject", b"caf\xe9", b"caf\xe9", id="Latin-1"),
        pytest.param("id", b"%ED%A0%80", b"\xed\xa0\x80", id="half a surrogate pair"),
        pytest.param("type", b"100%", b"\xff", id="a percent alone"),
        pytest.param("source", b"%zz", b"\x80", id="no hexadecimal digits"),
        pytest.param("extension", b"%C0%AF", b"\xc0\xaf", id="extension attribute"),
    ],
)
async def test_an_attribute_that_is_not_utf_8_is_rejected_not_repaired(
    gateway: Gateway, name: str, by_http_: bytes, in_kafka: bytes
) -> None:
    """A repaired `a%FFb` would be counted, and billed, for an account that nobody named."""
    status, answer = await by_http(gateway, attributes("ce-", **{name: by_http_}), DATA)
    forwarded = await through_the_inbox(attributes("ce_", **{name: in_kafka}), DATA)

    assert (status, answer["events"][0]["reason"], answer["events"][0]["field"]) == (400, "bad_field", name)
    assert answer["events"][0]["detail"] == f"{name}: the header ce-{name} is not percent-encoded UTF-8"
    assert "percent-encode the header's value" in answer["events"][0]["remedy"]
    assert answer["events"][0]["id"] == (None if name == "id" else "b-1")
    assert await gateway.stored() == []
    assert isinstance(forwarded, str)
    assert forwarded.startswith("not UTF-8")


async def test_an_attribute_that_is_sent_twice_is_rejected(gateway: Gateway) -> None:
    """A proxy may have checked the other one."""
    status, answer = await by_http(gateway, [*attributes("ce-"), ("ce-subject", b"other")], DATA)
    forwarded = await through_the_inbox([*attributes("ce_"), ("ce_subject", b"other")], DATA)

    assert (status, answer["events"][0]["field"]) == (400, "subject")
    assert "is sent twice" in answer["events"][0]["detail"]
    assert answer["events"][0]["remedy"] == "send the header once"
    assert isinstance(forwarded, str)
    assert forwarded.startswith("subject: ")


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        pytest.param(b"caf%C3%A9", "café", id="percent-encoded"),
        pytest.param("café".encode(), "café", id="UTF-8 as it is"),
        pytest.param(b'"a b"', "a b", id="quoted"),
        pytest.param(b'"a\\"b"', 'a"b', id="quoted, with a quote"),
        pytest.param(b"%22a%22", '"a"', id="encoded quotes belong to the name"),
        pytest.param(b"a%0Ab", "a\nb", id="line feed"),
        pytest.param(b"a+b", "a+b", id="a plus is a plus"),
        pytest.param(b"a%252Fb", "a%2Fb", id="decoded once"),
    ],
)
async def test_a_header_is_decoded_as_the_http_binding_says(gateway: Gateway, header: bytes, subject: str) -> None:
    """HTTP binding 1.0.2, 3.1.3.2: quotes first, then percent-encoding."""
    status, _ = await by_http(gateway, attributes("ce-", subject=header), DATA)

    assert status == 202
    assert [sent["subject"] for sent in await gateway.stored()] == [subject]


@pytest.mark.parametrize("name", ["data", "data_base64", "datacontenttype"])
async def test_no_header_carries_the_payload(gateway: Gateway, name: str) -> None:
    """The body is the data, and nothing else is."""
    status, _ = await by_http(gateway, [*attributes("ce-"), (f"ce-{name}", b"e30=")], DATA)
    forwarded = await through_the_inbox([*attributes("ce_"), (f"ce_{name}", b"e30=")], DATA)

    assert status == 202
    assert [sent["data"] for sent in await gateway.stored()] == [json.loads(DATA)]
    assert isinstance(forwarded, EventStruct)
    assert forwarded.data == json.loads(DATA)


@pytest.mark.parametrize("body", [b"", b" \r\n"])
async def test_an_event_without_a_body_has_no_data(gateway: Gateway, body: bytes) -> None:
    """A meter that counts events needs none."""
    status, _ = await by_http(gateway, attributes("ce-", type=b"nothing"), body)
    forwarded = await through_the_inbox(attributes("ce_", type=b"nothing"), body)

    assert status == 202
    assert isinstance(forwarded, EventStruct)
    assert not forwarded.data


@pytest.mark.parametrize("body", [b"7", b"[1]", b'"text"', b"plain text", b"\xff", b'{"a": 1} {}', b"[" * 9_000])
async def test_a_body_that_is_no_json_object_is_rejected_by_both(gateway: Gateway, body: bytes) -> None:
    """It must not be counted as an event without quantities."""
    status, answer = await by_http(gateway, attributes("ce-"), body)
    forwarded = await through_the_inbox(attributes("ce_"), body)

    (result,) = answer["events"]
    assert (status, answer["rejected"]) == (400, 1)
    assert (result["id"], result["field"]) == ("b-1", "data")
    assert isinstance(forwarded, str)


async def test_structured_mode_wins_over_headers_in_both(gateway: Gateway) -> None:
    """HTTP binding 3: the content type decides."""
    content_type = ("content-type", b"application/cloudevents+json")
    body = json.dumps(event("structured")).encode()

    status, answer = await by_http(gateway, [*attributes("ce-"), content_type], body)
    forwarded = await through_the_inbox([*attributes("ce_"), content_type], body)

    assert (status, answer["events"][0]["id"]) == (202, "structured")
    assert isinstance(forwarded, EventStruct)
    assert forwarded.id == "structured"


def encoded(payload: bytes) -> str:
    """The payload in base64."""
    return base64.b64encode(payload).decode()


@pytest.mark.parametrize("form", ["one", "list", "lines", "inbox"])
async def test_a_json_payload_in_base64_is_counted_and_archived(gateway: Gateway, form: str) -> None:
    """SDKs send bytes as `data_base64`. Taken and lost, it would be archived as `{}`."""
    sent = {**event("b", data=None), "data_base64": encoded(b'{"usage": {"tokens": 7.0}, "model": "small"}')}
    if form == "inbox":
        forwarded = await through_the_inbox([], json.dumps(sent).encode())
        assert isinstance(forwarded, EventStruct)
        assert normalised(forwarded.data or {}) == '{"model":"small","usage":{"tokens":7.0}}'
        return
    if form == "lines":
        answer = await gateway.post(json.dumps(sent).encode(), "application/x-ndjson")
    else:
        answer = await gateway.post([sent] if form == "list" else sent)
    await gateway.world.fold_all()

    live = await gateway.get("/v1/usage/current", account="acme")

    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
    assert {meter["meter"]: meter["value"] for meter in live.json()["meters"]}["tokens"] == "7"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"data_base64": "%%%"}, "must be base64", id="no base64"),
        pytest.param({"data_base64": "e30"}, "must be base64", id="no padding"),
        pytest.param({"data_base64": "e30=\n"}, "must be base64", id="line feed"),
        pytest.param({"data_base64": encoded(b"\x00\x01avro")}, "JSON object", id="bytes"),
        pytest.param({"data_base64": encoded(b"text")}, "JSON object", id="text"),
        pytest.param({"data_base64": encoded(b"[1]")}, "JSON object", id="list"),
        pytest.param({"data_base64": encoded(b"null")}, "JSON object", id="null"),
        pytest.param({"data_base64": encoded(b'{"a": NaN}')}, "JSON object", id="NaN"),
        pytest.param({"data_base64": encoded(b'{"a": "\xff"}')}, "JSON object", id="not UTF-8"),
        pytest.param({"data_base64": encoded(b'{"a":' * 300 + b"1" + b"}" * 300)}, "nested", id="deep"),
        pytest.param({"data_base64": encoded(b'{"a":' * 3_000 + b"1" + b"}" * 3_000)}, "nested", id="very deep"),
        pytest.param({"data_base64": encoded(b"{}"), "data": {"usage": {"tokens": 7}}}, "not both", id="both"),
        pytest.param({"data_base64": 7}, "", id="number"),
        pytest.param({"data_base64": {}}, "", id="object"),
    ],
)
async def test_a_payload_that_is_no_json_is_refused_naming_the_field(
    gateway: Gateway, changes: dict[str, Any], problem: str
) -> None:
    """In a batch the neighbours are not affected. The inbox decides the same."""
    sent = {**event("b", data=None), **changes}

    answer = await gateway.post([event("before"), sent, event("after")])
    forwarded = await through_the_inbox([], json.dumps(sent).encode())

    result = answer.json()["events"][1]
    assert (answer.status_code, answer.json()["accepted"]) == (207, 2)
    assert (result["reason"], result["field"]) == ("bad_field", "data_base64")
    assert problem in result["detail"]
    assert isinstance(forwarded, str)
    assert forwarded == result["detail"]


@pytest.mark.parametrize("payload", ["", None])
async def test_an_empty_payload_is_no_data(gateway: Gateway, payload: str | None) -> None:
    """An SDK may send the field for an event without bytes."""
    answer = await gateway.post({**event(), "data_base64": payload})

    assert answer.status_code == 202
