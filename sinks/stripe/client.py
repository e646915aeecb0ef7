"""Stripe's meters as `StripeMeters`, `StripeCatalog` and `StripeRejections`.

The library's retries are off. The sender retries, because it knows when Stripe forgets an identifier.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import stripe

from schemas.errors import InvalidInput, OperatorNeeded
from schemas.reports import MeterEvent, MeterEventsApi, MeterSummary, Rejection, SendResult, SendStatus
from sinks.stripe.answers import (
    CUSTOMER_KEY,
    NO_METER,
    VALUE_KEY,
    Malformed,
    Meter,
    account_of,
    meter_of,
    payload_of,
    rejections_of,
    rfc3339,
    rows_of,
    summary_of,
    text_of,
)
from sinks.stripe.connection import SHAPE_ERRORS, answer_of, connected, read
from sinks.stripe.errors import Answer, classify
from sinks.stripe.stream import MeterEventStream

# API v2's stream takes events of unknown meters, and Stripe reports those under a type of their own.
ERROR_REPORTS: Final = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
PAGE_ROWS: Final = 100
HOUR_S: Final = 3_600
PAGES_MAX: Final = 100
STORED_ERRORS_MAX: Final = 10_000


class StripeClientMeters:
    """Stripe's meters for one API key. For use in one event loop.

    `nonce` is a text of letters and digits that no other process uses. `api_base` is the URL of a simulator; None means
    Stripe. `timeout_s` bounds each call; Stripe may have executed a
    call that timed out. Keys with the prefix `sk_live_` or `rk_live_` are of live mode. `api` takes the meter events.
    Raises `InvalidInput` for a key that names no mode, and for the stream with a key of a sandbox.
    """

    def __init__(
        self,
        api_key: str,
        api_base: str | None = None,
        *,
        nonce: str,
        timeout_s: float = 20.0,
        api: MeterEventsApi = MeterEventsApi.V1,
    ) -> None:
        self._nonce = nonce
        self._stripe, self._transport = connected(api_key, api_base, timeout_s)
        self._livemode = "_live_" in api_key
        self._api = api
        if api is MeterEventsApi.STREAM and not self._livemode:
            raise InvalidInput("TIDEMARK_STRIPE_METER_EVENTS", "use v1 or v2: a sandbox of Stripe has no stream")
        self._stream = MeterEventStream(self._stripe) if api is MeterEventsApi.STREAM else None
        self._account = ""
        self._meters: dict[str, Meter] = {}
        self._listing = asyncio.Lock()
        self._stored_errors: OrderedDict[str, int] = OrderedDict()

    async def identity(self) -> tuple[bool, str]:
        """(livemode, account id). Calls Stripe only the first time. Raises `Transient` or `Refused`."""
        if not self._account:
            retrieve = self._stripe.v1.accounts.retrieve_current_async
            self._account = await read(retrieve, account_of)
        return self._livemode, self._account

    async def find_meter(self, event_name: str) -> str:
        """The id of the active meter of `event_name`.

        Raises `OperatorNeeded` if there is none, or if it aggregates differently or is deactivated; `Transient`,
        `Refused`. The next call reads the meters again, because an operator may have corrected them.
        """
        meter = await self._find_meter(event_name)
        if meter is None:
            raise OperatorNeeded(NO_METER.format(event_name=event_name))
        return self._usable(meter).id

    async def create_meter(self, event_name: str, display_name: str) -> bool:
        """See `StripeCatalog`. Two calls at once create one meter: Stripe refuses a second one of this event name."""
        meter = await self._find_meter(event_name)
        if meter is not None:
            self._usable(meter)
            return False
        self._usable(await self._create_meter(event_name, display_name))
        return True

    async def has_price(self, event_name: str) -> bool:
        """See `StripeCatalog`. Costs one call."""
        meter = await self._find_meter(event_name)
        if meter is None:
            return False
        rows = await read(
            lambda: self._stripe.v1.prices.list_async({"active": True, "recurring": {"meter": meter.id}, "limit": 1}),
            rows_of,
        )
        return bool(rows)

    def _usable(self, meter: Meter) -> Meter:
        if meter.fault:
            self._meters.pop(meter.event_name, None)
            raise OperatorNeeded(meter.fault)
        return meter

    async def send(self, event: MeterEvent) -> SendResult:
        """Send one meter event under its identifier. Never raises for an answer of Stripe or a missing answer.

        The Idempotency-Key is made of the identifier, a hash of the event, and the nonce and number of its stored
        answers: Stripe would repeat "No active meter" or a 500 for a day, also after an operator has repaired the
        meter. A second key is harmless, because the identifier stays the same. The first key has no nonce, so two
        processes that send one event at once have the same key; a restart repeats at most this one stored answer. The
        key begins with the identifier, because error reports may have the key in its place. API v2 has keys of its own.

        The stream collects events that are sent at once (`sinks/stripe/stream.py`).
        """
        if self._stream is not None:
            return await self._stream.send(event)
        api = () if self._api is MeterEventsApi.V1 else (self._api,)
        digest = hashlib.sha256("\n".join(map(str, (*event, *api))).encode()).hexdigest()[:16]
        stored = self._stored_errors.get(digest, 0)
        key = f"{event.identifier}.{digest}" + (f".{self._nonce}.{stored}" if stored else "")
        try:
            taken = await self._create_event(event, key)
        except stripe.StripeError as error:
            answer = answer_of(error)
            if answer.is_stored:
                self._remember_stored_error(digest)
            result = classify(answer, event.identifier)
            if result.status is SendStatus.HOLD_METER:
                self._meters.pop(event.event_name, None)
            return result
        except SHAPE_ERRORS as error:
            return classify(Answer(200, f"not an answer of Stripe: {error}", is_foreign=True), event.identifier)
        if getattr(taken, "identifier", None) != event.identifier:
            return classify(Answer(200, "not an answer to this meter event", is_foreign=True), event.identifier)
        return SendResult(SendStatus.ACCEPTED)

    async def _create_event(self, event: MeterEvent, key: str) -> object:
        name, identifier, payload = event.event_name, event.identifier, payload_of(event)
        if self._api is MeterEventsApi.V2:
            return await self._stripe.v2.billing.meter_events.create_async(
                {
                    "event_name": name,
                    "identifier": identifier,
                    "payload": payload,
                    "timestamp": rfc3339(event.timestamp_s),
                },
                {"idempotency_key": key},
            )
        return await self._stripe.v1.billing.meter_events.create_async(
            {"event_name": name, "identifier": identifier, "payload": payload, "timestamp": event.timestamp_s},
            {"idempotency_key": key},
        )

    async def cancel(self, event_name: str, identifier: str) -> None:
        """See `StripeAdjustments`. The Idempotency-Key is made of the identifier, so a repetition is the same call."""
        cancelled: Any = {"event_name": event_name, "type": "cancel", "cancel": {"identifier": identifier}}
        options: Any = {"idempotency_key": f"cancel.{identifier}"}
        await read(
            lambda: self._stripe.v1.billing.meter_event_adjustments.create_async(cancelled, options),
            lambda made: text_of(made, "status"),
        )

    async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
        """Stripe's sum over `[start_s, end_s)`: one row for a customer that Stripe knows, otherwise none.

        Stripe computes the value as a double. Costs one call, and one more if this client does not know the meter yet.
        Raises `Transient`, `Refused`, and `InvalidInput` if the span is not of whole minutes.
        """
        return await self._summary(event_name, {"customer": stripe_customer, "start_time": start_s, "end_time": end_s})

    async def hour_summary(self, event_name: str, stripe_customer: str, hour_s: int) -> MeterSummary:
        """Stripe's sum of the UTC hour that begins at `hour_s`; costs and errors as those of `summary`. No row
        without events."""
        return await self._summary(
            event_name,
            {
                "customer": stripe_customer,
                "start_time": hour_s,
                "end_time": hour_s + HOUR_S,
                "value_grouping_window": "hour",
            },
        )

    async def _summary(self, event_name: str, asked: Any) -> MeterSummary:
        meter = await self._find_meter(event_name)
        if meter is None:
            return MeterSummary("0", 0)
        try:
            return await read(
                lambda: self._stripe.v1.billing.meters.event_summaries.list_async(meter.id, asked), summary_of
            )
        except InvalidInput as error:
            if error.field == "resource_missing":
                return MeterSummary("0", 0)
            raise

    async def rejections(self, since_ms: int) -> Sequence[Rejection]:
        """See `StripeRejections`. Raises `OperatorNeeded` if there are more than `PAGES_MAX` pages."""
        since = rfc3339(since_ms // 1_000)
        events, url = await read(
            lambda: self._stripe.v2.core.events.list_async(
                {"types": list(ERROR_REPORTS), "created": {"gte": since}, "limit": PAGE_ROWS}
            ),
            _reports_of,
        )
        for _ in range(PAGES_MAX):
            if not url:
                break
            more, url = await read(partial(self._get_page, url), _reports_of)
            events.extend(more)
        else:
            raise OperatorNeeded(f"Stripe has more than {PAGES_MAX * PAGE_ROWS} error reports: read a shorter span")
        names = {meter.id: name for name, meter in self._meters.items()}
        if any(str(getattr(getattr(event, "related_object", None), "id", "")) not in names for event in events):
            await self._list_meters()
            names = {meter.id: name for name, meter in self._meters.items()}
        return [row for event in reversed(events) for row in rejections_of(event, names)]

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    async def _get_page(self, url: str) -> Any:
        response = await self._stripe.raw_request_async("get", url)
        return self._stripe.deserialize(response, api_mode="V2")

    async def _get_meters(self, after: str) -> Any:
        listing = self._stripe.v1.billing.meters
        if after:
            return await listing.list_async({"limit": PAGE_ROWS, "starting_after": after})
        return await listing.list_async({"limit": PAGE_ROWS})

    async def _create_meter(self, event_name: str, display_name: str) -> Meter:
        try:
            return await read(
                lambda: self._stripe.v1.billing.meters.create_async(
                    {
                        "display_name": display_name,
                        "event_name": event_name,
                        "default_aggregation": {"formula": "sum"},
                        "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
                        "value_settings": {"event_payload_key": VALUE_KEY},
                    }
                ),
                meter_of,
            )
        except InvalidInput:
            # Another process may have created the meter since this one listed the meters.
            await self._list_meters()
            meter = self._meters.get(event_name)
            if meter is None:
                raise
            return meter

    async def _find_meter(self, event_name: str) -> Meter | None:
        async with self._listing:
            if event_name not in self._meters:
                await self._list_meters()
        return self._meters.get(event_name)

    async def _list_meters(self) -> None:
        """Read all meters. Of several meters with one event name, keep the active one, otherwise the newest."""
        meters: dict[str, Meter] = {}
        after = ""
        for _ in range(PAGES_MAX):
            page, after = await read(partial(self._get_meters, after), _meters_of)
            for meter in page:
                known = meters.get(meter.event_name)
                if known is None or (meter.is_active and not known.is_active):
                    meters[meter.event_name] = meter
            if not after:
                self._meters = meters
                return
        raise OperatorNeeded(f"this Stripe account has more than {PAGES_MAX * PAGE_ROWS} meters")

    def _remember_stored_error(self, digest: str) -> None:
        self._stored_errors[digest] = self._stored_errors.pop(digest, 0) + 1
        while len(self._stored_errors) > STORED_ERRORS_MAX:
            self._stored_errors.popitem(last=False)


def _meters_of(page: Any) -> tuple[list[Meter], str]:
    """The meters of a page, and the id after which the next page begins; "" after the last page."""
    rows = rows_of(page)
    has_more = getattr(page, "has_more", None)
    if not isinstance(has_more, bool):
        raise Malformed("has_more is not a boolean")
    meters = []
    for row in rows:
        # A row that cannot be read must not hide the other meters.
        with contextlib.suppress(Malformed):
            meters.append(meter_of(row))
    return meters, text_of(rows[-1], "id") if has_more else ""


def _reports_of(page: Any) -> tuple[list[Any], str]:
    """The error reports of a page, and the URL of the next page; "" after the last page."""
    url = getattr(page, "next_page_url", None)
    return rows_of(page), url if isinstance(url, str) else ""
