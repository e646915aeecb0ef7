"""Snapshot events (docs.stripe.com/api/events). `Store.save` creates them."""

from __future__ import annotations

from typing import Final

from stripe_simulator.deliveries import pending
from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.store import Object

RETENTION_S: Final = 30 * 86_400
TYPES_MAX: Final = 20


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/events/{id}`, for 30 days."""
    event = mode.fetch("event", call.id)
    if not _is_kept(mode, event):
        raise ApiError(404, f"No such event: '{call.id}'", code="resource_missing", param="id")
    return _shown(mode, event)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/events`, for 30 days, newest first. A type may end with `*`. `delivery_success` is whether no webhook of
    the event is pending or given up."""
    types = list(call.params.get("types", ()))
    if len(types) > TYPES_MAX:
        raise ApiError(400, f"You may pass at most {TYPES_MAX} types.", param="types")
    if "type" in call.params:
        if types:
            message = "You may only specify one of these parameters: type, types."
            raise ApiError(400, message, param="type", code="parameters_exclusive")
        types = [call.params["type"]]
    wanted = call.params.get("delivery_success")

    def keep(event: Object) -> bool:
        is_wanted = _is_kept(mode, event) and is_of(event["type"], types)
        return is_wanted and (wanted is None or (pending(mode, event["id"]) == 0) == wanted)

    listed = page(mode, call, "event", keep=keep)
    return {**listed, "data": [_shown(mode, event) for event in listed["data"]]}


def is_of(event_type: str, types: list[str]) -> bool:
    """Whether a type is one of the wanted types, all if there are none."""
    return not types or any(
        event_type == wanted or (wanted.endswith("*") and event_type.startswith(wanted[:-1])) for wanted in types
    )


def _shown(mode: Mode, event: Object) -> Object:
    return {**event, "pending_webhooks": pending(mode, event["id"])}


def _is_kept(mode: Mode, event: Object) -> bool:
    return bool(event["created"] >= mode.now_s() - RETENTION_S)


ROUTES = (
    Route("GET", "/v1/events", list_all, (*LIST, "created", "delivery_success", "type", "types")),
    Route("GET", "/v1/events/{id}", retrieve),
)
