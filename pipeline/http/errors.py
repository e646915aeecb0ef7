"""The gateway's error answers: JSON with a code, a message and the field, never a stack trace."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from pipeline.http.percent import decoded
from pipeline.http.queries import query_problem
from pipeline.metrics import Metrics
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError, Transient

JSON: Final = "application/json"
PARAMETERS_MAX: Final = 100
NO_SUCH_PATH: Final = "no such path; /docs and docs/http-api.md list the paths"

_STORE: Final = re.compile("Redis|ClickHouse|Kafka|PostgreSQL|Stripe")

_log: Final = logging.getLogger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


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
    """A JSON response with a model, whose unset fields are absent, or with anything that msgspec encodes."""
    if isinstance(document, BaseModel):
        content = document.model_dump_json(exclude_unset=True, by_alias=True).encode()
    else:
        content = msgspec.json.encode(document)
    return Response(content + b"\n", status, headers, JSON)


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


def answering(route: str, handler: Handler, metrics: Metrics, parameters: Sequence[str] = ()) -> Handler:
    """Wrap a handler: turn each exception into an error answer, and count and time each request.

    `parameters` are the names of the route's query parameters, for the messages about them.
    """

    async def answer(request: Request) -> Response:
        now_s = asyncio.get_running_loop().time
        started_s = now_s()
        try:
            check_encoding(request.scope)
            response = await handler(request)
        except ClientDisconnect:
            response = error_answer(ApiError(400, "disconnected", "the request ended before its body did"))
        except Exception as error:  # noqa: BLE001  # for any error the client gets an answer
            response = error_answer(_api_error(error, parameters))
        metrics.add("tidemark_gateway_requests_total", route=route, status=str(response.status_code))
        metrics.observe("tidemark_gateway_request_seconds", now_s() - started_s, route=route)
        return response

    return answer


def _api_error(error: Exception, parameters: Sequence[str]) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        field, problem = query_problem(error.errors(), parameters)
        return ApiError(400, "bad_parameter", f"{field}: {problem}", field)
    if isinstance(error, InvalidInput):
        return ApiError(400, "invalid_input", error.message, error.field)
    if isinstance(error, Refused):
        return ApiError(403, "forbidden", str(error))
    if isinstance(error, Transient):
        _log.warning("a dependency did not answer: %s", error)
        store = _STORE.search(str(error))
        # The error's own text has addresses, which are no business of an application.
        message = f"{store[0] if store else 'a store'} did not answer; send the request again"
        return ApiError(503, "unavailable", message, headers=retry_after(error.retry_after_s))
    if isinstance(error, OperatorNeeded):
        _log.error("an operator is needed: %s", error)
        return ApiError(503, "unavailable", "this deployment needs its operator; see the gateway's log")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "internal", "the gateway failed; its log says why. Sending the request again is safe")


def check_encoding(scope: Mapping[str, Any]) -> None:
    """Raises `ApiError` if the path or the query is not percent-encoded UTF-8, or gives a parameter twice.

    A server replaces the broken bytes of a name by other characters. The answer would then be about another account.
    """
    raw_path, query = scope.get("raw_path") or b"", scope["query_string"]
    if scope["path"].endswith("\n"):
        # The router ignores a line feed at the end of a path.
        raise ApiError(404, "not_found", NO_SUCH_PATH)
    if b"%" in raw_path and decoded(raw_path) is None:
        raise ApiError(400, "bad_path", "the path is not percent-encoded UTF-8")
    if not query:
        return
    names = set[str]()
    parts = query.split(b"&", PARAMETERS_MAX)
    if len(parts) > PARAMETERS_MAX:
        raise ApiError(400, "bad_parameter", f"the query has more than {PARAMETERS_MAX} parameters")
    for part in parts:
        raw_name, _, raw_value = part.partition(b"=")
        name, value = decoded(raw_name), decoded(raw_value)
        if name is None or value is None:
            field = (name or raw_name.decode("ascii", "replace"))[:100]
            raise ApiError(400, "bad_parameter", f"{field}: is not percent-encoded UTF-8", field)
        if name in names and part:
            raise ApiError(400, "bad_parameter", f"{name[:100]}: is given twice", name[:100])
        names.add(name)


def _methods(request: Request) -> list[str]:
    """The methods that a path takes. A route of Starlette knows only its own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fit = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in fit for method in route.methods or ()})


async def http_exception(request: Request, error: Exception) -> Response:
    """Turn Starlette's errors, such as an unknown path, into the gateway's error answers."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    code, message = {404: ("not_found", NO_SUCH_PATH)}.get(status, ("refused", "the request was refused"))
    if status == 405:
        allowed = ", ".join(_methods(request))
        code, message = "method_not_allowed", f"this path does not take {request.method[:20]}; it takes {allowed}"
        headers = {"Allow": allowed}
    return error_answer(ApiError(status, code, message, headers=headers))
