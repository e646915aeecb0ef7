"""The client of API v2's stream of meter events: batches, sessions, and answers to several events at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from schemas.errors import InvalidInput
from schemas.reports import MeterEvent, MeterEventsApi, SendResult, SendStatus
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.stream import EVENTS_MAX

NOW_S = 1_795_262_400
Answer = tuple[int, Any]
TAKEN: Answer = (200, {})
FAILED: Answer = (500, {"error": {"type": "api_error", "message": "An unknown error occurred"}})
EXPIRED: Answer = (
    401,
    {"error": {"type": "temporary_session_expired", "code": "billing_meter_event_session_expired"}},
)
WRONG: Answer = (400, {"error": {"type": "invalid_request_error", "code": "parameter_invalid"}})


class Stripe:
    """Answers sessions with the tokens t1, t2, …, and calls of the stream by `answer`, which gets the identifiers."""

    def __init__(self) -> None:
        self.meters = StripeClientMeters(
            "sk_live_x", "http://127.0.0.1:9", nonce="test", api=MeterEventsApi.STREAM, timeout_s=5
        )
        self.meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(self._respond))
        self.session: Callable[[int], Answer] = lambda number: (200, {"authentication_token": f"t{number}"})
        self.answer: Callable[[list[str]], Answer] = lambda _identifiers: TAKEN
        self.valid: set[str] = set()
        self.sessions = 0
        self.sizes: list[int] = []
        self.bodies: list[Any] = []
        self.held = asyncio.Event()
        self.held.set()
        self.arrived = asyncio.Event()

    async def _respond(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v2/billing/meter_event_session":
            self.sessions += 1
            status, body = self.session(self.sessions)
            return _response(status, body)
        assert request.url.path == "/v2/billing/meter_event_stream"
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if self.valid and token not in self.valid:
            return _response(*EXPIRED)
        events = json.loads(request.content)["events"]
        self.bodies += events
        self.sizes.append(len(events))
        self.arrived.set()
        await self.held.wait()
        return _response(*self.answer([event["identifier"] for event in events]))

    async def send(self, *numbers: int) -> list[SendResult]:
        """Send the events of these numbers at once."""
        return await asyncio.gather(*(self.meters.send(_event(number)) for number in numbers))


def _response(status: int, body: object) -> httpx.Response:
    return httpx.Response(status, content=body if isinstance(body, bytes) else json.dumps(body).encode())


def _event(number: int) -> MeterEvent:
    return MeterEvent(f"id-{number}", "tokens", "cus_one", "1.25", NOW_S)


async def test_events_that_are_sent_at_once_share_calls_of_at_most_a_hundred() -> None:
    """Each event is in one call, in the form of API v2."""
    stripe = Stripe()
    results = await stripe.send(*range(250))
    await stripe.meters.close()

    assert {result.status for result in results} == {SendStatus.ACCEPTED}
    assert stripe.sizes == [EVENTS_MAX, EVENTS_MAX, 50]
    assert [body["identifier"] for body in stripe.bodies] == [f"id-{number}" for number in range(250)]
    assert stripe.bodies[0] == {
        "event_name": "tokens",
        "identifier": "id-0",
        "payload": {"stripe_customer_id": "cus_one", "value": "1.25"},
        "timestamp": "2026-11-21T12:00:00Z",
    }


async def test_call_without_an_answer_is_unclear_for_all_its_events() -> None:
    """All are sent again; their identifiers protect those that Stripe took."""
    stripe = Stripe()
    answers = iter((FAILED, TAKEN))
    stripe.answer = lambda _identifiers: next(answers)
    before, after = await stripe.send(1, 2, 3), await stripe.send(1, 2, 3)
    await stripe.meters.close()

    assert [result.status for result in before] == [SendStatus.RETRY] * 3
    assert [result.status for result in after] == [SendStatus.ACCEPTED] * 3
    assert stripe.bodies[:3] == stripe.bodies[3:]


async def test_wrong_event_fails_alone() -> None:
    """One wrong event must neither make dead letters of others nor hold them for ever."""
    stripe = Stripe()
    stripe.answer = lambda identifiers: WRONG if "id-2" in identifiers else TAKEN
    results = await stripe.send(1, 2, 3)
    await stripe.meters.close()

    assert [result.status for result in results] == [SendStatus.ACCEPTED, SendStatus.DEAD, SendStatus.ACCEPTED]
    assert stripe.sizes == [3, 1, 1, 1]


async def test_expired_session_is_replaced_and_no_event_fails() -> None:
    """A session lasts 15 minutes."""
    stripe = Stripe()
    results = []
    for token in ("t1", "t2"):
        stripe.valid = {token}
        results += await stripe.send(1, 2)
    results += await stripe.send(3)
    await stripe.meters.close()

    assert {result.status for result in results} == {SendStatus.ACCEPTED}
    assert stripe.sessions == 2


async def test_key_whose_new_session_is_refused_stops_the_sink() -> None:
    """The key was revoked; the sink must not open sessions for ever."""
    stripe = Stripe()
    stripe.valid = {"none"}
    (result,) = await stripe.send(1)
    await stripe.meters.close()

    assert (result.status, stripe.sessions, stripe.sizes) == (SendStatus.STOP, 2, [])


@pytest.mark.parametrize(
    ("session", "status"),
    [
        pytest.param(WRONG, SendStatus.STOP, id="no stream for this account"),
        pytest.param((401, {"error": {"type": "invalid_request_error"}}), SendStatus.STOP, id="a bad key"),
        pytest.param((429, {"error": {"code": "rate_limit"}}), SendStatus.RETRY, id="a rate limit"),
        pytest.param(FAILED, SendStatus.RETRY, id="a server error"),
        pytest.param((404, b"<html>"), SendStatus.RETRY, id="a proxy"),
        pytest.param((200, {"object": "account"}), SendStatus.RETRY, id="another object"),
    ],
)
async def test_missing_session_makes_no_dead_letter(session: Answer, status: SendStatus) -> None:
    """It is about the key or about Stripe, never about an event."""
    stripe = Stripe()
    stripe.session = lambda _number: session
    results = await stripe.send(1, 2)
    await stripe.meters.close()

    assert [result.status for result in results] == [status, status]
    assert stripe.sizes == []
    assert ("TIDEMARK_STRIPE_METER_EVENTS" in results[0].detail) is (session is WRONG)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[]", {"error": "login first"}, {"object": "account"}], ids=str
)
async def test_answer_that_is_not_the_streams_is_no_delivery(body: object) -> None:
    """A proxy's page with status 200."""
    stripe = Stripe()
    stripe.answer = lambda _identifiers: (200, body)
    results = await stripe.send(1, 2)
    await stripe.meters.close()

    assert [result.status for result in results] == [SendStatus.RETRY] * 2


@pytest.mark.parametrize("canceled", [0, 1], ids=["the call that sends", "another call"])
async def test_event_of_a_canceled_call_is_not_sent(canceled: int) -> None:
    """The partition has another owner, which sends the event."""
    stripe = Stripe()
    calls = [asyncio.create_task(stripe.meters.send(_event(number))) for number in range(2)]
    await asyncio.sleep(0)
    calls[canceled].cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    other = ended[1 - canceled]
    await stripe.meters.close()

    assert isinstance(ended[canceled], asyncio.CancelledError)
    assert isinstance(other, SendResult)
    # Without the call that sends the batch, nobody knows whether it was sent.
    assert other.status is (SendStatus.ACCEPTED if canceled else SendStatus.RETRY)
    assert [body["identifier"] for body in stripe.bodies] == (["id-0"] if canceled else [])


async def test_canceled_call_takes_no_result_from_others() -> None:
    """Stripe has the batch when a call is cancelled: the others get its answer."""
    stripe = Stripe()
    stripe.held.clear()
    calls = [asyncio.create_task(stripe.meters.send(_event(number))) for number in range(3)]
    await stripe.arrived.wait()
    calls[1].cancel()
    stripe.held.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    again = await stripe.send(4)
    await stripe.meters.close()

    assert isinstance(ended[1], asyncio.CancelledError)
    assert [result.status for result in (ended[0], ended[2], *again)] == [SendStatus.ACCEPTED] * 3  # type: ignore[union-attr]  # the second is not among them


def test_sandbox_has_no_stream() -> None:
    """The sink ends at its start, before any event is refused."""
    with pytest.raises(InvalidInput, match="TIDEMARK_STRIPE_METER_EVENTS"):
        StripeClientMeters("sk_test_x", nonce="test", api=MeterEventsApi.STREAM)
