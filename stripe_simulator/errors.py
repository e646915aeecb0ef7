"""Stripe's error answers, in the form of docs.stripe.com/api/errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 2xx; `fields` are further fields of the error.

    `stored`: the answer is stored under the request's Idempotency-Key if the error ends an executed request. Conflicts
    and rate limits are not stored (docs.stripe.com/api/idempotent_requests). `kept`: the changes that the request made
    before the error stay, as after a declined card.
    """

    status: int
    message: str
    _: KW_ONLY
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)
    stored: bool = True
    kept: bool = False

    def __str__(self) -> str:
        return self.message

    def details(self) -> dict[str, object]:
        """The error without fields that are not set, as at Stripe."""
        error: dict[str, object] = {"message": self.message, "type": self.kind, **self.fields}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return error


def not_simulated(what: str) -> ApiError:
    """Stripe has this route or parameter and the simulator has not."""
    message = f"The Stripe simulator does not implement {what}."
    return ApiError(501, message, kind="api_error", headers={"Stripe-Should-Retry": "false"}, stored=False)


def missing_parameter(name: str) -> ApiError:
    """A required parameter is missing."""
    return ApiError(400, f"Missing required param: {name}.", code="parameter_missing", param=name)


def require_one(params: Mapping[str, object], *names: str) -> str:
    """The one of these parameters that the request has. Raises `ApiError` if it has none or several."""
    present = [name for name in names if params.get(name) is not None]
    if len(present) > 1:
        message = f"You may only specify one of these parameters: {', '.join(present)}."
        raise ApiError(400, message, code="parameters_exclusive", param=present[0])
    if not present:
        raise missing_parameter(names[0])
    return present[0]


def require_positive(params: Mapping[str, int], *names: str, within: str = "") -> None:
    """Raises `ApiError` if one of these parameters, parts of the map `within`, is below 1."""
    for name in names:
        if params.get(name, 1) < 1:
            message = "This value must be greater than or equal to 1."
            raise ApiError(400, message, code="parameter_invalid_integer", param=_path(name, within))


def require_urls(params: Mapping[str, Any], *names: str, within: str = "") -> None:
    """Raises `ApiError` if one of these parameters, parts of the map `within`, is no `http` or `https` URL."""
    for name in names:
        try:
            parts = urlsplit(params.get(name) or "https://absent")
            is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            message = "Invalid URL: An explicit scheme (such as https) must be provided."
            raise ApiError(400, message, code="url_invalid", param=_path(name, within))


def _path(name: str, within: str) -> str:
    return f"{within}[{name}]" if within else name


def empty_parameter(name: str) -> ApiError:
    """The parameter is empty, and it cannot be cleared."""
    message = (
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; however "
        f"'{name}' cannot be unset. You should remove '{name}' from your request or supply a non-empty value."
    )
    return ApiError(400, message, code="parameter_invalid_empty", param=name)


def no_such(kind: str, identifier: str, param: str, status: int = 404) -> ApiError:
    """The object does not exist, or belongs to the other mode. 404 for an id in the path, 400 for a parameter."""
    return ApiError(status, f"No such {kind}: '{identifier}'", code="resource_missing", param=param)


def unauthorized(message: str) -> ApiError:
    """The API key is missing, malformed or unknown."""
    return ApiError(401, message)


def rate_limited(reason: str) -> ApiError:
    """429 with the header that names the exceeded limit (docs.stripe.com/rate-limits)."""
    message = "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/"
    is_lock = reason == "lock_timeout"
    headers = {} if is_lock else {"Stripe-Rate-Limited-Reason": reason}
    code = reason if is_lock else "rate_limit"
    return ApiError(429, f"{message}rate-limits.", code=code, headers=headers, stored=False)


def conflict() -> ApiError:
    """Another meter event of the same customer and meter is being executed."""
    message = "Too many concurrent requests for this customer and meter; send them one after the other."
    return ApiError(409, message, code="too_many_concurrent_requests", stored=False)
