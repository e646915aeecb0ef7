"""Billing meters (docs.stripe.com/api/billing/meter)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.store import Object

INDEXED = {"billing.meter": ("event_name",)}
CREATE: Final = (
    "customer_mapping", "default_aggregation", "display_name", "event_name", "event_time_window", "value_settings",
)  # fmt: skip
_CUSTOMER_MAPPING: Final = {"event_payload_key": "stripe_customer_id", "type": "by_id"}
_LABEL: Final = "billing meter"


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meters`. One event name has at most one active meter."""
    params = call.params
    _check_free(mode, params["event_name"])
    now_s = mode.now_s()
    return mode.store.save(
        {
            "id": mode.store.new_id("mtr" if mode.livemode else "mtr_test", 20),
            "object": "billing.meter",
            "created": now_s,
            "customer_mapping": params.get("customer_mapping", _CUSTOMER_MAPPING),
            "default_aggregation": params["default_aggregation"],
            "display_name": params["display_name"],
            "event_name": params["event_name"],
            "event_time_window": params.get("event_time_window"),
            "livemode": mode.livemode,
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "updated": now_s,
            "value_settings": params.get("value_settings", {"event_payload_key": "value"}),
        }
    )


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/meters/{id}`."""
    return mode.fetch("billing.meter", call.id, _LABEL)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meters/{id}`: only the display name can change."""
    meter = mode.fetch("billing.meter", call.id, _LABEL)
    if call.params.get("display_name", meter["display_name"]) == meter["display_name"]:
        return meter
    return mode.store.save({**meter, "display_name": call.params["display_name"], "updated": mode.now_s()})


def deactivate(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meters/{id}/deactivate`."""
    meter = mode.fetch("billing.meter", call.id, _LABEL)
    return _turn(mode, meter, "inactive", {"deactivated_at": mode.now_s()}, "billing.meter.deactivated")


def reactivate(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meters/{id}/reactivate`."""
    meter = mode.fetch("billing.meter", call.id, _LABEL)
    if meter["status"] == "inactive":
        _check_free(mode, meter["event_name"])
    return _turn(mode, meter, "active", {"deactivated_at": None}, "billing.meter.reactivated")


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/meters`."""
    return page(mode, call, "billing.meter", {"status": call.params.get("status")})


def active(mode: Mode, event_name: str) -> Object | None:
    """The active meter with this event name, or None; do not change it."""
    meters = mode.store.newest("billing.meter", "event_name", event_name)
    return next((meter for meter in meters if meter["status"] == "active"), None)


def _turn(mode: Mode, meter: Object, status: str, transitions: Object, event_type: str) -> Object:
    if meter["status"] == status:
        raise ApiError(400, f"The meter {meter['id']} is already {status}.")
    meter |= {"status": status, "status_transitions": transitions, "updated": mode.now_s()}
    return mode.store.save(meter, event_type)


def _check_free(mode: Mode, event_name: str) -> None:
    if active(mode, event_name) is not None:
        message = f"An active meter already exists for event name {event_name}."
        raise ApiError(400, message, param="event_name")


ROUTES = (
    Route("POST", "/v1/billing/meters", create, CREATE),
    Route("GET", "/v1/billing/meters", list_all, (*LIST, "status")),
    Route("GET", "/v1/billing/meters/{id}", retrieve),
    Route("POST", "/v1/billing/meters/{id}", update, ("display_name",)),
    Route("POST", "/v1/billing/meters/{id}/deactivate", deactivate),
    Route("POST", "/v1/billing/meters/{id}/reactivate", reactivate),
)
