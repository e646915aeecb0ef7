"""The conventions of most resources: how objects are read, how parameters are checked, and how they change objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Route, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.store import Object

__all__ = ["Object", "Params", "changed", "check", "reads", "require"]


def reads(path: str, kind: str, *filters: str, label: str = "") -> tuple[Route, Route]:
    """The routes that retrieve an object by `path`, as in `/v1/coupons/{coupon}`, and list all of its kind.

    `filters` are fields of the objects. `label` is what Stripe calls the kind in an error.
    """
    return (
        Route("GET", path, retrieve(kind, label)),
        Route("GET", path.rpartition("/")[0], listed(kind, *filters), (*LIST, *filters)),
    )


def check(is_right: bool, message: str, param: str | None = None, code: str | None = None) -> None:
    """Raises `ApiError` (400) with a message unless a condition holds."""
    if not is_right:
        raise ApiError(400, message, param=param, code=code)


def require(params: Mapping[str, object], *names: str, within: str = "") -> None:
    """Raises `ApiError` (400) if one of these parameters, parts of the map `within`, is missing or cleared."""
    for name in names:
        if params.get(name) in (None, ""):
            raise missing_parameter(f"{within}[{name}]" if within else name)


def changed(body: Object, params: Params, fields: Sequence[str]) -> Object:
    """The object with those of `fields` and of the metadata that the parameters have. The object itself stays."""
    after = {**body, **{name: params[name] for name in fields if name in params}}
    return after | ({"metadata": merged(body["metadata"], params["metadata"])} if "metadata" in params else {})
