"""Stripe's error answers, in the shape of docs.stripe.com/api/errors."""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """An answer other than 2xx.

    `stored` says whether the answer is kept under the request's Idempotency-Key: failed validation, conflicts
    and rate limits are not (docs.stripe.com/api/idempotent_requests).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        stored: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.stored = stored

    def body(self) -> dict[str, object]:
        """The JSON body; absent fields are left out, as Stripe does."""
        error: dict[str, object] = {"message": self.message, "type": self.kind}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def unknown_parameter(name: str) -> ApiError:
    """A parameter the endpoint does not have."""
    return ApiError(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def missing_parameter(name: str) -> ApiError:
    """A required parameter that was not sent."""
    return ApiError(400, f"Missing required param: {name}.", code="parameter_missing", param=name)


def no_such(kind: str, identifier: str, param: str) -> ApiError:
    """An object that does not exist (or is of the other mode)."""
    return ApiError(404, f"No such {kind}: '{identifier}'", code="resource_missing", param=param)


def unauthorized(message: str) -> ApiError:
    """A key that is missing, malformed or unknown."""
    return ApiError(401, message)


def forbidden() -> ApiError:
    """A key without the permission."""
    return ApiError(403, "The provided key does not have the required permissions for this endpoint.")


def rate_limited(reason: str) -> ApiError:
    """429, with the header that names the limit (docs.stripe.com/rate-limits)."""
    return ApiError(
        429,
        "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/rate-limits.",
        code="lock_timeout" if reason == "lock_timeout" else "rate_limit",
        headers={} if reason == "lock_timeout" else {"Stripe-Rate-Limited-Reason": reason},
    )


def conflict() -> ApiError:
    """Two concurrent meter events of one customer and meter."""
    return ApiError(
        409,
        "Too many concurrent requests for this customer and meter; send them one after the other.",
        code="too_many_concurrent_requests",
    )


def idempotency_key_in_use(key: str) -> ApiError:
    """The same Idempotency-Key is being executed at this moment."""
    message = f"There is currently another in-progress request using this Idempotent Key: {key}"
    return ApiError(409, message, kind="idempotency_error", code="idempotency_key_in_use")


def idempotency_mismatch(key: str) -> ApiError:
    """The Idempotency-Key was used with other parameters."""
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return ApiError(400, message, kind="idempotency_error")


def server_error() -> ApiError:
    """500; kept under the Idempotency-Key like any executed answer."""
    return ApiError(500, "An unknown error occurred", kind="api_error", stored=True)
