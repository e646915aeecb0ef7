"""API v2's stream of meter events: several events in one call, under the token of a session.

Sources: docs.stripe.com/api/v2/billing/meter-event-streams, docs.stripe.com/api/v2/billing/meter-event-sessions. A call
has at most 100 events and succeeds or fails as a whole. Stripe answers `{}` before it looks at the events: it drops
duplicates and reports wrong events later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import stripe

from schemas.reports import MeterEvent, SendResult, SendStatus
from sinks.stripe.answers import Malformed, payload_of, rfc3339, text_of
from sinks.stripe.connection import SHAPE_ERRORS, answer_of
from sinks.stripe.errors import Answer, classify, describe, is_refusal, is_retryable

PATH: Final = "/v2/billing/meter_event_stream"
EVENTS_MAX: Final = 100
LINGER_S: Final = 0.02
NO_SESSION: Final = "Stripe opens no session for the stream, set TIDEMARK_STRIPE_METER_EVENTS to v1 or v2: "


class _Call(NamedTuple):
    event: MeterEvent
    result: asyncio.Future[SendResult]


@dataclass(slots=True)
class _Batch:
    calls: list[_Call] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)


class MeterEventStream:
    """Sends meter events through the stream. For use in one event loop.

    Calls that come within `linger_s`, at most `EVENTS_MAX`, share a batch. The first of them sends the batch for all.
    The number of batches at once is that of the callers at once.
    """

    def __init__(self, client: stripe.StripeClient, linger_s: float = LINGER_S) -> None:
        self._stripe = client
        self._linger_s = linger_s
        self._open: _Batch | None = None
        self._token = ""

    async def send(self, event: MeterEvent) -> SendResult:
        """Send one meter event with those that others send now. Never raises for an answer of Stripe or a missing one.

        An event whose call was cancelled before its batch is sent stays out of it. If the call that sends the batch is
        cancelled, the others get `RETRY`.
        """
        call = _Call(event, asyncio.get_running_loop().create_future())
        batch = self._open
        if batch is not None:
            batch.calls.append(call)
            if len(batch.calls) >= EVENTS_MAX:
                self._close(batch)
            return await call.result
        batch = self._open = _Batch([call])
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(batch.full.wait(), self._linger_s)
            self._close(batch)
            await self._send(batch.calls)
        finally:
            self._close(batch)
            for other in _waiting(batch.calls):
                other.result.set_result(SendResult(SendStatus.RETRY, "the call that sent the batch ended"))
        return call.result.result()

    def _close(self, batch: _Batch) -> None:
        """Let the batch take no more events."""
        batch.full.set()
        if self._open is batch:
            self._open = None

    async def _send(self, calls: Sequence[_Call]) -> None:
        """Send the events of the calls that still wait, and give each its result."""
        result = await self._post(calls)
        if result is None:
            # One event may be the reason. Alone, it does not fail the others.
            await asyncio.gather(*(self._send([call]) for call in calls))
            return
        for call in _waiting(calls):
            call.result.set_result(result)

    async def _post(self, calls: Sequence[_Call]) -> SendResult | None:
        """The result for all events, or None if Stripe refused several events and does not say which is the reason.

        A session lasts 15 minutes. If Stripe calls it expired, the events are sent once more in another one.
        """
        token, answer = "", Answer(401)
        for _ in range(2):
            try:
                token = await self._session(token)
            except stripe.StripeError as error:
                return _without_session(answer_of(error))
            except (Malformed, *SHAPE_ERRORS) as error:
                return _without_session(Answer(200, f"not a session: {error}", is_foreign=True))
            events = [call.event for call in _waiting(calls)]
            if not events:
                return SendResult(SendStatus.RETRY, "nobody waits for the result")
            answer = await self._answer(token, events)
            if answer.status != 401 or answer.is_foreign:
                break
        if answer.status == 200 and not answer.is_foreign:
            return SendResult(SendStatus.ACCEPTED)
        if len(calls) > 1 and not (is_refusal(answer) or is_retryable(answer)):
            return None
        return classify(answer, calls[0].event.identifier)

    async def _session(self, expired: str) -> str:
        """The token of a session other than `expired`. Raises what the library raises, and `Malformed`.

        Batches at once may each open a session, which is harmless; if they waited for one, they would wait for all of
        its time limit.
        """
        if self._token == expired:
            session = await self._stripe.v2.billing.meter_event_session.create_async()
            self._token = text_of(session, "authentication_token")
        return self._token

    async def _answer(self, token: str, events: Sequence[MeterEvent]) -> Answer:
        """Stripe's answer to one call. The library's own method hides the answer's body."""
        rows = [
            {
                "event_name": event.event_name,
                "identifier": event.identifier,
                "payload": payload_of(event),
                "timestamp": rfc3339(event.timestamp_s),
            }
            for event in events
        ]
        try:
            response = await self._stripe.raw_request_async(
                "post", PATH, base="meter_events", api_key=token, events=rows
            )
        except stripe.StripeError as error:
            return answer_of(error)
        except SHAPE_ERRORS as error:
            return Answer(200, f"not an answer of Stripe: {error}", is_foreign=True)
        is_foreign = response.data != {}
        return Answer(200, "not an answer to meter events" if is_foreign else "", is_foreign=is_foreign)


def _waiting(calls: Sequence[_Call]) -> list[_Call]:
    return [call for call in calls if not call.result.done()]


def _without_session(answer: Answer) -> SendResult:
    """Stops the sink unless the same call may succeed later: no event is wrong."""
    result = classify(answer, "")
    if result.status in (SendStatus.RETRY, SendStatus.STOP):
        return result
    return SendResult(SendStatus.STOP, NO_SESSION + describe(answer))
