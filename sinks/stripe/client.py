"""The only module that imports `stripe`: Stripe's meters API v1 as `StripeMeters` and `StripeRejections`.

The library's retries are off. The sender retries, because it knows when Stripe forgets an identifier.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final, NoReturn

import httpx
import stripe

from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.reports import MeterEvent, MeterSummary, Rejection, SendResult, SendStatus
from sinks.stripe.errors import Answer, classify, describe, is_refusal, is_retryable

ERROR_REPORT: Final = "v1.billing.meter.error_report_triggered"
CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"
PAGE_ROWS: Final = 100
PAGES_MAX: Final = 100
STORED_ERRORS_MAX: Final = 10_000
CONNECTIONS_MAX: Final = 32
FOREIGN_SHOWN_MAX: Final = 200
_ERROR_NAMES: Final = ("type", "code")
_METER_NAMES: Final = ("id", "status", "customer_mapping", "value_settings", "default_aggregation", "event_time_window")

# With telemetry, the library writes an id into the home directory and reports latencies.
stripe.enable_telemetry = False


def _no_answer(message: str, status: int = 0, headers: Mapping[str, str] | None = None) -> stripe.StripeError:
    make: Callable[..., stripe.StripeError] = stripe.APIConnectionError
    return make(message, http_status=status, headers=headers, should_retry=False)


def _is_stripes(status: int, content: bytes) -> bool:
    """Whether a body has Stripe's form: a JSON object, which for a failure contains an error with a type or a code."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(body, dict) or not isinstance(body.get("object", ""), str):
        return False
    if 200 <= status < 300:
        return True
    error = body.get("error")
    return isinstance(error, dict) and any(isinstance(error.get(name), str) and error[name] for name in _ERROR_NAMES)


class _Transport(stripe.HTTPClient):
    """The library's HTTP client over httpx, with limits. Proxies of the environment are used only if `environment`."""

    name = "httpx"

    def __init__(self, timeout_s: float, *, environment: bool) -> None:
        super().__init__()
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
        self._client = httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=environment)

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send one request. Raises `APIConnectionError` if no complete answer in Stripe's form came.

        The library would take a proxy's page for an error of Stripe, or fail on it. The error keeps the status, because
        behind a proxy's 5xx may be one that Stripe has stored, and the headers, because of Retry-After.
        """
        try:
            # The client's own limit is for each wait on the socket: an answer that trickles in would not reach it.
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.request(method, url, headers=dict(headers), content=post_data or None)
        except (httpx.HTTPError, TimeoutError) as error:
            message = f"{type(error).__name__}: {error}"
            raise _no_answer(message) from error
        if not _is_stripes(response.status_code, response.content):
            shown = response.content[:FOREIGN_SHOWN_MAX].decode(errors="replace")
            raise _no_answer(f"not an answer of Stripe: {shown!r}", response.status_code, response.headers)
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class StripeClientMeters:
    """Stripe's meters for one API key. For use in one event loop.

    `api_base` is the URL of a simulator; None means Stripe. `timeout_s` bounds each call; Stripe may have executed a
    call that timed out. Keys with the prefix `sk_live_` or `rk_live_` are of live mode.
    """

    def __init__(self, api_key: str, api_base: str | None = None, *, timeout_s: float = 20.0) -> None:
        if "_live_" not in api_key and "_test_" not in api_key:
            raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "use a key that starts with sk_test_, sk_live_ or rk_…")
        self._livemode = "_live_" in api_key
        self._transport = _Transport(timeout_s, environment=api_base is None)
        if api_base is None:
            self._stripe = stripe.StripeClient(api_key, http_client=self._transport, max_network_retries=0)
        else:
            base = api_base.rstrip("/")
            self._stripe = stripe.StripeClient(
                api_key,
                http_client=self._transport,
                max_network_retries=0,
                base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
            )
        self._account = ""
        self._meters: dict[str, Any] = {}
        self._listing = asyncio.Lock()
        self._stored_errors: OrderedDict[str, int] = OrderedDict()

    async def identity(self) -> tuple[bool, str]:
        """(livemode, account id). Calls Stripe only the first time. Raises `Transient` or `Refused`."""
        if not self._account:
            account = await self._read(self._stripe.v1.accounts.retrieve_current_async, "id")
            self._account = str(account.id)
        return self._livemode, self._account

    async def ensure_meter(self, event_name: str, display_name: str) -> str:
        """The id of the active meter of `event_name`; creates the meter (sum, no window) if it is missing.

        Raises `OperatorNeeded` if the existing meter aggregates differently or is deactivated, `Transient`, `Refused`.
        """
        meter = await self._find_meter(event_name)
        if meter is None:
            meter = await self._create_meter(event_name, display_name)
        if meter.status != "active":
            raise OperatorNeeded(f"the Stripe meter of {event_name} ({meter.id}) is deactivated: reactivate it")
        keys = (meter.customer_mapping.event_payload_key, meter.value_settings.event_payload_key)
        raw = meter.default_aggregation.formula == "sum" and meter.event_time_window is None
        if not raw or keys != (CUSTOMER_KEY, VALUE_KEY):
            raise OperatorNeeded(
                f"the Stripe meter of {event_name} ({meter.id}) must have formula sum, no event_time_window and the "
                f"payload keys {CUSTOMER_KEY} and {VALUE_KEY}: use another stripe_event_name in the meter set"
            )
        return str(meter.id)

    async def send(self, event: MeterEvent) -> SendResult:
        """Send one meter event under its identifier. Never raises for an answer of Stripe or a missing answer.

        The Idempotency-Key is computed from the event and the number of its 5xx answers: Stripe stores a 500 under the
        key and would repeat it for a day. A second key is harmless, because the identifier stays the same.
        """
        digest = hashlib.sha256("\n".join(map(str, event)).encode()).hexdigest()[:40]
        key = f"{digest}-{self._stored_errors.get(digest, 0)}"
        try:
            taken = await self._stripe.v1.billing.meter_events.create_async(
                {
                    "event_name": event.event_name,
                    "identifier": event.identifier,
                    "payload": {CUSTOMER_KEY: event.stripe_customer, VALUE_KEY: event.value},
                    "timestamp": event.timestamp_s,
                },
                {"idempotency_key": key},
            )
        except stripe.StripeError as error:
            answer = _answer(error)
            if answer.is_stored:
                self._remember_stored_error(digest)
            return classify(answer)
        if getattr(taken, "identifier", None) != event.identifier:
            return classify(Answer(200, "not an answer to this meter event", is_foreign=True))
        self._stored_errors.pop(digest, None)
        return SendResult(SendStatus.ACCEPTED)

    async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
        """Stripe's sum over `[start_s, end_s)`: one row for a customer that Stripe knows, otherwise none.

        Stripe computes the value as a double. Costs one call, and one more if this client does not know the meter yet.
        Raises `Transient`, `Refused`, and `InvalidInput` if the span is not of whole minutes.
        """
        meter = await self._find_meter(event_name)
        if meter is None:
            return MeterSummary("0", 0)
        try:
            page = await self._read(
                lambda: self._stripe.v1.billing.meters.event_summaries.list_async(
                    str(meter.id), {"customer": stripe_customer, "start_time": start_s, "end_time": end_s}
                ),
                "data",
            )
        except InvalidInput as error:
            if error.field == "resource_missing":
                return MeterSummary("0", 0)
            raise
        total = sum((Decimal(repr(float(row.aggregated_value))) for row in page.data), Decimal(0))
        return MeterSummary(format(total, "f"), len(page.data))

    async def rejections(self, since_ms: int) -> Sequence[Rejection]:
        """See `StripeRejections`. Raises `OperatorNeeded` if there are more than `PAGES_MAX` pages."""
        moment = datetime.fromtimestamp(since_ms // 1_000, UTC)
        page = await self._read(
            lambda: self._stripe.v2.core.events.list_async(
                {"types": [ERROR_REPORT], "created": {"gte": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}, "limit": PAGE_ROWS}
            ),
            "data",
            "next_page_url",
        )
        events = list(page.data)
        for _ in range(PAGES_MAX):
            url = page.next_page_url
            if not url:
                break
            page = await self._read(partial(self._get_page, url), "data", "next_page_url")
            events.extend(page.data)
        else:
            raise OperatorNeeded(f"Stripe has more than {PAGES_MAX * PAGE_ROWS} error reports: read a shorter span")
        names = {str(meter.id): name for name, meter in self._meters.items()}
        if any(str(event.related_object.id) not in names for event in events):
            await self._list_meters()
            names = {str(meter.id): name for name, meter in self._meters.items()}
        return [row for event in reversed(events) for row in _rejections(event, names)]

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

    async def _create_meter(self, event_name: str, display_name: str) -> Any:
        try:
            return await self._read(
                lambda: self._stripe.v1.billing.meters.create_async(
                    {
                        "display_name": display_name,
                        "event_name": event_name,
                        "default_aggregation": {"formula": "sum"},
                        "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
                        "value_settings": {"event_payload_key": VALUE_KEY},
                    }
                ),
                *_METER_NAMES,
            )
        except InvalidInput:
            # Another process may have created the meter since this one listed the meters.
            await self._list_meters()
            meter = self._meters.get(event_name)
            if meter is None:
                raise
            return meter

    async def _find_meter(self, event_name: str) -> Any:
        async with self._listing:
            if event_name not in self._meters:
                await self._list_meters()
        return self._meters.get(event_name)

    async def _list_meters(self) -> None:
        """Read all meters. Of several meters with one event name, keep the active one, otherwise the newest."""
        meters: dict[str, Any] = {}
        after = ""
        for _ in range(PAGES_MAX):
            page = await self._read(partial(self._get_meters, after), "data", "has_more")
            for meter in page.data:
                known = meters.get(str(meter.event_name))
                if known is None or (known.status != "active" and meter.status == "active"):
                    meters[str(meter.event_name)] = meter
            if not page.has_more:
                self._meters = meters
                return
            after = str(page.data[-1].id)
        raise OperatorNeeded(f"this Stripe account has more than {PAGES_MAX * PAGE_ROWS} meters")

    def _remember_stored_error(self, digest: str) -> None:
        self._stored_errors[digest] = self._stored_errors.pop(digest, 0) + 1
        while len(self._stored_errors) > STORED_ERRORS_MAX:
            self._stored_errors.popitem(last=False)

    async def _read(self, call: Callable[[], Awaitable[Any]], *names: str) -> Any:
        """The answer to a call. Raises `Refused`, `InvalidInput`, `Transient` (also if an attribute is missing)."""
        try:
            answer = await call()
        except stripe.StripeError as error:
            _raise(_answer(error), error)
        missing = [name for name in names if not hasattr(answer, name)]
        if missing:
            raise Transient(f"not an answer of Stripe: it has no {', '.join(missing)}")
        return answer


def _answer(error: stripe.StripeError) -> Answer:
    detail = error.error
    status = error.http_status or 0
    return Answer(
        status=status,
        message=str((detail.message if detail else None) or error.user_message or ""),
        code=str((detail.code if detail else None) or error.code or ""),
        kind=str((detail.type if detail else None) or ""),
        headers={str(name).lower(): str(value) for name, value in (error.headers or {}).items()},
        is_foreign=isinstance(error, stripe.APIConnectionError),
    )


def _raise(answer: Answer, error: Exception) -> NoReturn:
    if is_refusal(answer):
        raise Refused(f"Stripe refuses the key, correct TIDEMARK_STRIPE_API_KEY: {describe(answer)}") from error
    if is_retryable(answer):
        raise Transient(f"Stripe: {describe(answer)}", classify(answer).retry_after_s or 1.0) from error
    raise InvalidInput(answer.code or "stripe", describe(answer)) from error


def _rejections(event: Any, names: Mapping[str, str]) -> list[Rejection]:
    data = event.data
    rows = []
    for kind in data.reason.error_types:
        requests = [sample.request for sample in kind.sample_errors]
        # Older reports contain the request's id and Idempotency-Key instead of the event's identifier.
        identifiers = [getattr(request, "identifier", None) for request in requests]
        rows.append(
            Rejection(
                report=str(event.id),
                event_name=names.get(str(event.related_object.id), ""),
                code=str(kind.code),
                errors=int(kind.error_count),
                identifiers=tuple(str(identifier) for identifier in identifiers if identifier),
                window_start_ms=_instant_ms(str(data.validation_start)),
                window_end_ms=_instant_ms(str(data.validation_end)),
            )
        )
    return rows


def _instant_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000)
