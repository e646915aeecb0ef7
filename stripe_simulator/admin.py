"""Routes under `/_simulator/` for faults, inspection and injection. No other route controls the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_simulator import deliveries
from stripe_simulator.faults import Fault
from stripe_simulator.resources import meter_events
from stripe_simulator.simulator import Simulator


def routes(simulator: Simulator) -> list[Route]:
    """The admin routes of one simulator, below `/_simulator`."""

    def route(method: str, path: str, run: Callable[[Simulator, dict[str, Any]], object]) -> Route:
        async def handle(request: Request) -> Response:
            try:
                body = msgspec.json.decode(await request.body() or b"{}", type=dict[str, Any])
                simulator.catch_up()
                return JSONResponse(run(simulator, body))
            except (ValueError, KeyError, msgspec.MsgspecError) as error:
                return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)

        return Route(path, handle, methods=[method])

    return [
        route("GET", "/health", _health),
        route("GET", "/state", _state),
        route("GET", "/faults", _faults),
        route("POST", "/faults", _add_fault),
        route("DELETE", "/faults", _clear_faults),
        route("POST", "/meter_events", _repeat),
        route("POST", "/secrets", _roll),
        route("POST", "/customers", _customer),
    ]


def _health(simulator: Simulator, _: object) -> object:
    return {"checked": sorted(simulator.checked), "violations": simulator.violations}


def _state(simulator: Simulator, _: object) -> object:
    modes = (simulator.test, simulator.live)
    return {
        "faults_happened": simulator.faults.happened,
        "meter_events": [{**asdict(event), "livemode": mode.livemode} for mode in modes for event in mode.usage.events],
        "customers": [body for mode in modes for body in mode.store.newest("customer")],
        "meters": [body for mode in modes for body in mode.store.newest("billing.meter")],
    }


def _faults(simulator: Simulator, _: object) -> object:
    waiting = [{**msgspec.to_builtins(fault), "left": left} for fault, left in simulator.faults.waiting]
    return {"waiting": waiting, "happened": simulator.faults.happened}


def _add_fault(simulator: Simulator, body: dict[str, Any]) -> object:
    simulator.faults.add(msgspec.convert(body, Fault, strict=False))
    return _faults(simulator, body)


def _clear_faults(simulator: Simulator, body: object) -> object:
    simulator.faults.clear()
    return _faults(simulator, body)


def _repeat(simulator: Simulator, body: dict[str, Any]) -> object:
    """Count the test mode's last event with this `identifier`, however old, once more, as if Stripe had forgotten the
    identifier."""
    sent = reversed(simulator.test.usage.events)
    event = next((event for event in sent if event.identifier == body["identifier"]), None)
    if event is None:
        raise ValueError(f"there is no event {body['identifier']}")
    customer, value = str(event.customer), str(event.value)
    again = meter_events.inject(simulator.test, event.event_name, customer, value, event.timestamp_s)
    return {"seq": again.seq}


def _roll(simulator: Simulator, body: dict[str, Any]) -> object:
    """Roll the signing secret of a `target`. The old one stays valid for `keep_s`, as chosen in Stripe's dashboard."""
    target = body["target"]
    mode = next((mode for mode in (simulator.test, simulator.live) if mode.store.find(target)), None)
    if mode is None:
        raise ValueError(f"there is no {target}")
    return {"secret": deliveries.new_secret(mode, target, msgspec.convert(body.get("keep_s", 0), int))}


def _customer(simulator: Simulator, body: dict[str, Any]) -> object:
    """Create a customer of test mode with a given `id`, which Stripe's own API does not allow."""
    identifier, is_new = str(body["id"]), simulator.test.store.get("customer", str(body["id"])) is None
    if is_new:
        simulator.create_customer(False, {"name": body.get("name")}, identifier)
    return {"id": identifier, "created": is_new}
