"""The gateway's error answers: JSON with a code, a message and the field, never a stack trace."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.metrics import Metrics
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError, Transient

JSON: Final = "application/json"

_log: Final = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class ApiError(TidemarkError):
    """An error answer. `message` tells the client what to do."""

    def __init__(
        self, status: int, code: str, message: str, field: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.headers = headers


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(document) + b"\n", status, headers, JSON)


def error_answer(error: ApiError) -> Response:
    """The response with the body `{"error": {"code", "message", "field"?}}`."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.field:
        body["field"] = error.field
    return json_answer({"error": body}, error.status, error.headers)


def overloaded(message: str, retry_after_s: float = 1.0) -> ApiError:
    """503. No event was written, and the client may send the request again after `retry_after_s`."""
    return ApiError(503, "overloaded", message, headers=retry_after(retry_after_s))


def retry_after(wait_s: float) -> dict[str, str]:
    """The `Retry-After` header, in whole seconds (RFC 9110, 10.2.3)."""
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def answering(route: str, handler: Handler, metrics: Metrics) -> Handler:
    """Wrap a handler: turn each exception into an error answer, and count and time each request."""

    async def answer(request: Request) -> Response:
        now_s = asyncio.get_running_loop().time
        started_s = now_s()
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = error_answer(ApiError(400, "disconnected", "the request ended before its body did"))
        except Exception as error:  # noqa: BLE001  # for any error the client gets an answer
            response = error_answer(_api_error(error))
        metrics.add("tidemark_gateway_requests_total", route=route, status=str(response.status_code))
        metrics.observe("tidemark_gateway_request_seconds", now_s() - started_s, route=route)
        return response

    return answer


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidInput):
        return ApiError(400, "invalid_input", error.message, error.field)
    if isinstance(error, Refused):
        return ApiError(403, "forbidden", str(error))
    if isinstance(error, Transient):
        _log.warning("a dependency did not answer: %s", error)
        return ApiError(
            503, "unavailable", "a store did not answer; try again", headers=retry_after(error.retry_after_s)
        )
    if isinstance(error, OperatorNeeded):
        _log.error("an operator is needed: %s", error)
        return ApiError(503, "unavailable", "this deployment needs its operator; see the gateway's log")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "internal", "the gateway failed; its log says why. Sending the request again is safe")


async def http_exception(_request: Request, error: Exception) -> Response:
    """Turn Starlette's errors, such as an unknown path, into the gateway's error answers."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    code, message = {
        404: ("not_found", "no such path; the API is described in docs/http-api.md"),
        405: ("method_not_allowed", "this path does not take that method"),
    }.get(status, ("refused", "the request was refused"))
    return error_answer(ApiError(status, code, message, headers=headers))
