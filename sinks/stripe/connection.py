"""How the clients reach Stripe: the library without its retries, over an HTTP client with limits.

Only this package imports `stripe`. The library's retries are off, because callers know what may be repeated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

import httpx
import stripe

from schemas.errors import InvalidInput, Refused, Transient
from sinks.stripe.answers import Malformed
from sinks.stripe.errors import Answer, describe, is_refusal, is_retryable, retry_after_s

# As many as calls run at once at Stripe's highest rate.
CONNECTIONS_MAX: Final = 200
FOREIGN_SHOWN_MAX: Final = 200
_ERROR_NAMES: Final = ("type", "code")
# What the library raises for JSON of another shape than Stripe's.
SHAPE_ERRORS: Final = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)
T = TypeVar("T")

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


class Transport(stripe.HTTPClient):
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


def connected(api_key: str, api_base: str | None, timeout_s: float) -> tuple[stripe.StripeClient, Transport]:
    """The library's client, and the transport to close. `api_base` is the URL of a simulator; None means Stripe.

    `timeout_s` bounds each call; Stripe may have executed a call that timed out. Raises `InvalidInput` for a key that
    names no mode.
    """
    if "_live_" not in api_key and "_test_" not in api_key:
        raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "use a key that starts with sk_test_, sk_live_ or rk_…")
    transport = Transport(timeout_s, environment=api_base is None)
    options: dict[str, Any] = {"http_client": transport, "max_network_retries": 0}
    if api_base is not None:
        base = api_base.rstrip("/")
        options["base_addresses"] = {"api": base, "connect": base, "files": base, "meter_events": base}
    return stripe.StripeClient(api_key, **options), transport


async def read(call: Callable[[], Awaitable[Any]], parse: Callable[[Any], T]) -> T:
    """What `parse` reads from the answer. Raises `Refused`, `InvalidInput`, and `Transient` also for an answer that
    does not have Stripe's form."""
    try:
        return parse(await call())
    except stripe.StripeError as error:
        _raise(answer_of(error), error)
    except SHAPE_ERRORS as error:
        raise Transient(f"not an answer of Stripe: {error}") from error


async def stored(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call with an Idempotency-Key. If Stripe repeats a stored refusal, it is the answer of this call.

    Raises `InvalidInput` then. `read` would take the repetition for an answer about another request.
    """
    try:
        return await call()
    except stripe.StripeError as error:
        answer = answer_of(error)
        is_repeated = answer.headers.get("idempotent-replayed") == "true" and not answer.is_foreign
        if is_repeated and 400 <= answer.status < 500 and answer.status not in (401, 403, 409, 429):
            raise InvalidInput(answer.code or "stripe", describe(answer)) from error
        raise


def is_stored_failure(error: stripe.StripeError) -> bool:
    """Whether Stripe repeats a stored failure of its own (5xx): the same key will get no other answer."""
    answer = answer_of(error)
    return answer.headers.get("idempotent-replayed") == "true" and not answer.is_foreign and answer.status >= 500


def answer_of(error: stripe.StripeError) -> Answer:
    """What Stripe answered, or that no answer came, of an error of the library."""
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
        raise Transient(f"Stripe: {describe(answer)}", retry_after_s(answer) or 1.0) from error
    raise InvalidInput(answer.code or "stripe", describe(answer)) from error


def json_of(response: Any) -> dict[str, Any]:
    """The JSON object of a raw response. Raises `Malformed` for another value."""
    document = json.loads(response.body)
    if not isinstance(document, dict):
        raise Malformed("not a JSON object")
    return document
