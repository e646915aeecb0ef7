"""Webhook endpoints (docs.stripe.com/api/webhook_endpoints), and API v2's event destinations for thin events."""

from __future__ import annotations

from typing import Final

from stripe_simulator.contract.parameters import Params, api_version
from stripe_simulator.deliveries import DELIVERY, DESTINATION, SEND, new_secret
from stripe_simulator.errors import not_simulated, require_urls
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources.conventions import Object, changed, reads, require
from stripe_simulator.times import rfc3339

INDEXED = {DELIVERY: ("event",)}
FIELDS: Final = ("description", "enabled_events", "metadata", "url")
DESTINATION_CREATE: Final = ("enabled_events", "event_payload", "include", "name", "type", "webhook_endpoint")
_KIND: Final = "webhook_endpoint"


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/webhook_endpoints`. Only this answer has the secret."""
    version = call.params.get("api_version")
    if version not in (None, api_version()):
        raise not_simulated(f"events of the API version {version}")
    body = new_object(mode, _KIND, "we", {}) | {"api_version": version, "application": None, "status": "enabled"}
    body = mode.store.put(_changed({**body, "description": None}, call.params))
    return {**body, "secret": new_secret(mode, body["id"])}


def _update(mode: Mode, call: Call) -> Object:
    return mode.store.put(_changed(mode.fetch(_KIND, call.id), call.params))


def _delete(mode: Mode, call: Call) -> Object:
    """Its deliveries fail at their next attempt."""
    return mode.store.remove(_KIND, mode.fetch(_KIND, call.id)["id"])


def _create_destination(mode: Mode, call: Call) -> Object:
    """Of the type `webhook_endpoint` only."""
    params, now = call.params, rfc3339(mode.now_ms())
    if params["type"] != "webhook_endpoint":
        raise not_simulated(f"event destinations of type {params['type']}")
    require(params, "webhook_endpoint")
    require_urls(params["webhook_endpoint"], "url", within="webhook_endpoint")
    url, payload = params["webhook_endpoint"]["url"], params["event_payload"]
    body: Object = {
        "id": mode.store.new_id("ed_live" if mode.livemode else "ed_test", 24), "object": DESTINATION, "created": now,
        "description": "", "enabled_events": params["enabled_events"], "event_payload": payload,
        "events_from": ["self"], "livemode": mode.livemode, "metadata": {}, "name": params["name"],
        "snapshot_api_version": api_version() if payload == "snapshot" else None, "status": "enabled",
        "status_details": None, "type": "webhook_endpoint", "updated": now,
    }  # fmt: skip
    mode.store.put({**body, "url": url})
    answer = {"signing_secret": new_secret(mode, body["id"]), "url": url}
    include = params.get("include", ())
    shown = {name: answer[name] if f"webhook_endpoint.{name}" in include else None for name in answer}
    return {**body, "webhook_endpoint": shown}


def _changed(body: Object, params: Params) -> Object:
    after = changed(body, params, ("description", "enabled_events", "url"))
    require_urls(after, "url")
    return after | ({"status": "disabled" if params["disabled"] else "enabled"} if "disabled" in params else {})


JOBS = {SEND: lambda mode, arguments: mode.outbox.put_nowait(arguments["delivery"])}
_PATH: Final = "/v1/webhook_endpoints"
ROUTES = (
    Route("POST", _PATH, create, (*FIELDS, "api_version")),
    *reads(f"{_PATH}/{{webhook_endpoint}}", _KIND),
    Route("POST", f"{_PATH}/{{webhook_endpoint}}", _update, (*FIELDS, "disabled")),
    Route("DELETE", f"{_PATH}/{{webhook_endpoint}}", _delete),
    Route("POST", "/v2/core/event_destinations", _create_destination, DESTINATION_CREATE),
)
