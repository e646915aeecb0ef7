"""Stripe's error answers, in the form of docs.stripe.com/api/errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ApiError(Exception):
    """An answer other than 2xx.

    `stored`: the answer is stored under the request's Idempotency-Key if the error ends an executed request. Conflicts
    and rate limits are not stored (docs.stripe.com/api/idempotent_requests). `kept`: the changes that the request made
    before the error stay, as after a declined card.
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
        fields: Mapping[str, object] | None = None,
        stored: bool = True,
        kept: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})
        self.stored = stored
        self.kept = kept

    def details(self) -> dict[str, object]:
        """The error without fields that are not set, as at Stripe."""
        error: dict[str, object] = {"message": self.message, "type": self.kind, **self.fields}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return error

    def body(self) -> dict[str, object]:
        """The JSON body."""
        return {"error": self.details()}


def unrecognized(method: str, path: str) -> ApiError:
    """Stripe has no such route."""
    message = f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help at "
    return ApiError(404, f"{message}https://support.stripe.com/.")


def not_simulated(what: str) -> ApiError:
    """Stripe has this route or parameter and the simulator has not."""
    message = f"The Stripe simulator does not implement {what}."
    return ApiError(501, message, kind="api_error", headers={"Stripe-Should-Retry": "false"}, stored=False)


def unknown_parameters(names: Sequence[str]) -> ApiError:
    """The request has parameters that the route does not have."""
    message = f"Received unknown parameter{'s' if len(names) > 1 else ''}: {', '.join(names)}"
    return ApiError(400, message, code="parameter_unknown", param=names[0])


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
            param = f"{within}[{name}]" if within else name
            message = "This value must be greater than or equal to 1."
            raise ApiError(400, message, code="parameter_invalid_integer", param=param)


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


def forbidden() -> ApiError:
    """The API key does not have the permission."""
    return ApiError(403, "The provided key does not have the required permissions for this endpoint.")


def rate_limited(reason: str) -> ApiError:
    """429 with the header that names the exceeded limit (docs.stripe.com/rate-limits)."""
    return ApiError(
        429,
        "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/rate-limits.",
        code="lock_timeout" if reason == "lock_timeout" else "rate_limit",
        headers={} if reason == "lock_timeout" else {"Stripe-Rate-Limited-Reason": reason},
        stored=False,
    )


def conflict() -> ApiError:
    """Another meter event of the same customer and meter is being executed."""
    return ApiError(
        409,
        "Too many concurrent requests for this customer and meter; send them one after the other.",
        code="too_many_concurrent_requests",
        stored=False,
    )


def idempotency_key_in_use(key: str) -> ApiError:
    """Another request with the same Idempotency-Key is being executed."""
    message = f"There is currently another in-progress request using this Idempotent Key: {key}"
    return ApiError(409, message, kind="idempotency_error", code="idempotency_key_in_use")


def idempotency_mismatch(key: str) -> ApiError:
    """The Idempotency-Key was used before with other parameters."""
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return ApiError(400, message, kind="idempotency_error")


def server_error() -> ApiError:
    """500, stored under the Idempotency-Key like every answer of an executed request."""
    return ApiError(500, "An unknown error occurred", kind="api_error")
