"""Answers and rate limits of the Stripe sink."""

from __future__ import annotations

import json

import httpx
import pytest

from schemas.errors import InvalidInput, Transient
from schemas.reports import MeterEvent, MeterEventsApi, SendStatus
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.errors import Answer, classify

NOW_MS = 1_795_262_400_000
DUPLICATE = "An event already exists with identifier x."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(400, DUPLICATE), SendStatus.DUPLICATE),
        (Answer(402, "card", headers={"idempotent-replayed": "true"}), SendStatus.RETRY),
        (Answer(400, "anything", "duplicate_meter_event"), SendStatus.DUPLICATE),
        (Answer(400, DUPLICATE, "parameter_invalid"), SendStatus.DUPLICATE),
        (Answer(400, "The meter event x already exists.", "resource_already_exists"), SendStatus.DUPLICATE),
        (Answer(400, "An event already exists with identifier x-1."), SendStatus.RETRY),
        (Answer(400, "The meter event x is wrong", "parameter_invalid"), SendStatus.DEAD),
        (Answer(400, "", "payload_no_value_defined"), SendStatus.HOLD_METER),
        (Answer(400, "No active meter found for event name x."), SendStatus.HOLD_METER),
        (Answer(400, "", "archived_meter"), SendStatus.HOLD_METER),
        (Answer(404, "", "no_meter"), SendStatus.HOLD_METER),
        (Answer(400, "No such customer: 'cus_one'", "resource_missing"), SendStatus.HOLD_ACCOUNT),
        (Answer(400, "", "meter_event_customer_not_found"), SendStatus.HOLD_ACCOUNT),
        (Answer(400, "more than 15 significant digits", "parameter_invalid"), SendStatus.DEAD),
        (Answer(400, "Keys for idempotent requests …", kind="idempotency_error"), SendStatus.DEAD),
        (Answer(404, "No such thing"), SendStatus.HOLD_ACCOUNT),
        (Answer(402, "card"), SendStatus.HOLD_ACCOUNT),
        (Answer(405, "method"), SendStatus.HOLD_ACCOUNT),
        (Answer(422, "entity"), SendStatus.HOLD_ACCOUNT),
        (Answer(408, "timeout"), SendStatus.RETRY),
        (Answer(424, "external dependency"), SendStatus.RETRY),
        (Answer(400, "later", headers={"stripe-should-retry": "true"}), SendStatus.RETRY),
        (Answer(401), SendStatus.STOP),
        (Answer(403), SendStatus.STOP),
        (Answer(0), SendStatus.RETRY),
        (Answer(409, "", "lock_timeout"), SendStatus.RETRY),
        (Answer(429, "", "rate_limit"), SendStatus.RETRY),
        (Answer(400, "", "rate_limit"), SendStatus.RETRY),
        (Answer(500), SendStatus.RETRY),
        (Answer(503), SendStatus.RETRY),
    ],
    ids=lambda value: (
        str(value) if isinstance(value, SendStatus) else f"{value.status} {value.code} {value.message[:12]}"
    ),
)
def test_answers_are_classified_by_the_senders_reaction(answer: Answer, expected: SendStatus) -> None:
    """This table alone decides between billing once, twice and never."""
    assert classify(answer, "x").status is expected


@pytest.mark.parametrize(
    ("header", "expected_s"),
    [("7", 7.0), ("1e9", 300.0), ("inf", 300.0), ("nan", 1.0), ("-3", 1.0), ("soon", 1.0), ("", 1.0)],
)
def test_rate_limits_wait_for_a_bounded_time(header: str, expected_s: float) -> None:
    """At least one second, at most five minutes, whatever the header says."""
    assert classify(Answer(429, headers={"retry-after": header}), "x").retry_after_s == expected_s


def test_key_without_a_mode_is_refused_before_anything_is_sent() -> None:
    """The mode is part of every identifier."""
    with pytest.raises(InvalidInput, match="TIDEMARK_STRIPE_API_KEY"):
        StripeClientMeters("hunter2", nonce="test")


HTML = b"<html>we are moving</html>"
ALREADY = '{"error": {"type": "x", "message": "An event already exists with identifier id-1."}}'
EVENT = MeterEvent("id-1", "tokens", "cus_one", "1.25", NOW_MS // 1_000)
FOREIGN = [
    *((status, body) for status in (302, 400, 401, 402, 403, 404, 407, 408) for body in (HTML, b"")),
    *((status, body) for status in (429, 500, 502, 503) for body in (HTML, b"", b"null")),
    (200, HTML),
    (200, b""),
    (200, b"null"),
    (200, b"[]"),
    (200, b"7"),
    (200, b"{}"),
    (200, b"[" * 100_000),
    (200, b"\xff\xfe"),
    (200, b'{"object": "billing.meter_ev'),
    (200, b'{"object": {"a": 1}}'),
    (200, b'{"error": "login first"}'),
    (200, b'{"object": "billing.meter_event", "identifier": "of another"}'),
    (400, b'{"error": "bad request"}'),
    (400, b'{"error": null}'),
    (400, b'{"error": ["a"]}'),
    (400, b'{"error": {"message": "An event already exists with identifier id-1."}}'),
    (403, b'{"error": "forbidden"}'),
    (403, b'{"error": {"type": null, "code": ""}}'),
    (404, b'{"message": "no route"}'),
]


def _answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> StripeClientMeters:
    """A client whose every request gets this answer."""
    meters = StripeClientMeters("sk_test_x", "http://127.0.0.1:9", nonce="test")
    answer = httpx.MockTransport(lambda _request: httpx.Response(status, content=body, headers=headers))
    meters._transport._client = httpx.AsyncClient(transport=answer)
    return meters


@pytest.mark.parametrize(("status", "body"), FOREIGN, ids=lambda value: str(value)[:40])
async def test_answer_that_is_not_stripes_decides_nothing(status: int, body: bytes) -> None:
    """Ten minutes behind a broken proxy must cost only ten minutes: no dead letter, no stop and no delivery."""
    meters = _answering(status, body)

    assert (await meters.send(EVENT)).status is SendStatus.RETRY
    if b"of another" not in body:
        for call in (
            meters.identity(),
            meters.summary("tokens", "cus_one", 0, 60),
            meters.find_meter("tokens"),
            meters.rejections(NOW_MS),
        ):
            with pytest.raises(Transient):
                await call
    await meters.close()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"object": "billing.meter_event", "identifier": "id-1"}', SendStatus.ACCEPTED),
        (400, b'{"error": {"type": "invalid_request_error", "message": "No active meter"}}', SendStatus.HOLD_METER),
        (400, b'{"error": {"code": "parameter_invalid"}}', SendStatus.DEAD),
        (400, ALREADY.encode(), SendStatus.DUPLICATE),
        (402, b'{"error": {"type": "card_error"}}', SendStatus.HOLD_ACCOUNT),
        (401, b'{"error": {"type": "invalid_request_error"}}', SendStatus.STOP),
        (403, b'{"error": {"type": "invalid_request_error"}}', SendStatus.STOP),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_answer_of_stripe_decides(status: int, body: bytes, expected: SendStatus) -> None:
    """An answer in Stripe's format has the meaning that Stripe documents."""
    meters = _answering(status, body)

    assert (await meters.send(EVENT)).status is expected
    await meters.close()


async def test_every_key_of_an_event_begins_with_its_identifier() -> None:
    """Stripe's error reports may name a rejected event by the Idempotency-Key of its request."""
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return httpx.Response(500, content=b'{"error": {"type": "api_error", "message": "An unknown error occurred"}}')

    meters = StripeClientMeters("sk_test_x", "http://127.0.0.1:9", nonce="test")
    meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    for _ in range(3):
        await meters.send(EVENT)
    await meters.close()

    assert len(set(keys)) == 3
    assert {key.partition(".")[0] for key in keys} == {EVENT.identifier}


async def test_api_v2_gets_the_event_as_json_under_a_key_of_its_own() -> None:
    """Stripe refuses a key that came with another request, and a deployment may change the API between two tries."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=b'{"object": "v2.billing.meter_event", "identifier": "id-1"}')

    for api in (MeterEventsApi.V1, MeterEventsApi.V2):
        meters = StripeClientMeters("sk_test_x", "http://127.0.0.1:9", nonce="test", api=api)
        meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        assert (await meters.send(EVENT)).status is SendStatus.ACCEPTED
        await meters.close()

    assert [request.url.path for request in requests] == ["/v1/billing/meter_events", "/v2/billing/meter_events"]
    assert json.loads(requests[1].content) == {
        "event_name": "tokens",
        "identifier": "id-1",
        "payload": {"stripe_customer_id": "cus_one", "value": "1.25"},
        "timestamp": "2026-11-21T12:00:00Z",
    }
    keys = [request.headers["idempotency-key"] for request in requests]
    assert keys[0] != keys[1]
    assert {key.partition(".")[0] for key in keys} == {EVENT.identifier}


async def test_retry_after_of_a_proxy_is_obeyed() -> None:
    """Whoever sends the header."""
    meters = _answering(429, HTML, {"Retry-After": "7"})

    assert (await meters.send(EVENT)).retry_after_s == 7.0
    await meters.close()


@pytest.mark.parametrize(
    ("status", "content", "changes"),
    [
        pytest.param(500, b'{"error": {"message": "An unknown error occurred"}}', True, id="a server error"),
        pytest.param(502, HTML, True, id="a proxy that hides a server error"),
        pytest.param(
            400, b'{"error": {"message": "No active meter found"}}', True, id="a meter that is repaired later"
        ),
        pytest.param(409, b'{"error": {"code": "lock_timeout"}}', False, id="a conflict: nothing was executed"),
        pytest.param(429, b'{"error": {"code": "rate_limit"}}', False, id="a rate limit: nothing was executed"),
    ],
)
async def test_key_changes_after_an_answer_that_stripe_may_repeat(status: int, content: bytes, changes: bool) -> None:
    """Stripe stores the answer of an executed request under the Idempotency-Key and would repeat it for a day."""
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return httpx.Response(status, content=content)

    meters = _answering(status, content)
    meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    for _ in range(2):
        await meters.send(EVENT)
    await meters.close()

    assert (keys[0] != keys[1]) is changes


async def test_stored_answer_is_repeated_once_after_a_restart() -> None:
    """A process that starts again does not know how many keys have a stored answer. The repeated answer proves nothing
    about now, and no stored answer comes back after Stripe took the event."""
    stored: dict[str, bytes] = {}
    results: list[SendStatus] = []
    replays: list[bool] = []
    content, taken = b'{"error": {"code": "x"}}', b'{"object": "billing.meter_event", "identifier": "id-1"}'
    status = 402

    def answer(request: httpx.Request) -> httpx.Response:
        key = request.headers["Idempotency-Key"]
        replays.append(key in stored)
        if key in stored:
            return httpx.Response(402, content=stored[key], headers={"Idempotent-Replayed": "true"})
        if status == 402:
            stored[key] = content
        return httpx.Response(status, content=content if status == 402 else taken)

    for nonce in ("a", "b"):
        meters = StripeClientMeters("sk_test_x", "http://127.0.0.1:9", nonce=nonce)
        meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        results += [(await meters.send(EVENT)).status for _ in range(5)]
        await meters.close()
        status = 200

    assert replays == [False] * 5 + [True] + [False] * 4
    assert results == [SendStatus.HOLD_ACCOUNT] * 5 + [SendStatus.RETRY] + [SendStatus.ACCEPTED] * 4
