"""Routes under `/_simulator/` for faults, inspection and injection. No other route controls the simulator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_simulator import deliveries
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.resources import meter_events
from stripe_simulator.simulator import Simulator

ROWS_MAX = 100_000


def routes(simulator: Simulator) -> list[Route]:
    """The admin routes of one simulator."""

    def guarded(run: Callable[[dict[str, object]], object]) -> Callable[[Request], object]:
        async def handle(request: Request) -> Response:
            try:
                body = json.loads(await request.body() or b"{}")
                simulator.catch_up()
                return JSONResponse(run({**request.query_params, **body}))
            except (ValueError, TypeError, KeyError) as error:
                return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)

        return handle

    return [
        Route("/_simulator/health", guarded(lambda _: _health(simulator)), methods=["GET"]),
        Route("/_simulator/state", guarded(lambda body: _state(simulator, body)), methods=["GET"]),
        Route("/_simulator/faults", guarded(lambda _: _faults(simulator)), methods=["GET"]),
        Route("/_simulator/faults", guarded(lambda body: _add_fault(simulator, body)), methods=["POST"]),
        Route("/_simulator/faults", guarded(lambda _: _clear_faults(simulator)), methods=["DELETE"]),
        Route("/_simulator/settings", guarded(lambda body: _set(simulator, body)), methods=["POST"]),
        Route("/_simulator/meter_events", guarded(lambda body: _inject(simulator, body)), methods=["POST"]),
        Route("/_simulator/deliveries", guarded(lambda body: _deliveries(simulator, body)), methods=["GET"]),
        Route("/_simulator/secrets", guarded(lambda body: _roll(simulator, body)), methods=["POST"]),
        Route("/_simulator/customers", guarded(lambda body: _customer(simulator, body)), methods=["POST"]),
    ]


def _health(simulator: Simulator) -> dict[str, object]:
    return {
        "status": "ok",
        "now_ms": simulator.now_ms(),
        "account": simulator.settings.account,
        "checked": sorted(simulator.checked),
        "violations": simulator.violations,
    }


def _state(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """The whole state, or only the events of one `customer`, `event_name` or `identifier`."""
    wanted = {name: str(body[name]) for name in ("customer", "event_name", "identifier") if name in body}
    modes = (simulator.test, simulator.live)
    events = [
        {**asdict(event), "livemode": int(mode.livemode)}
        for mode in modes
        for event in mode.usage.events
        if all(getattr(event, name) == value for name, value in wanted.items())
    ]
    return {
        "now_ms": simulator.now_ms(),
        "calls": simulator.calls,
        "faults_happened": simulator.faults.happened(),
        "meter_event_counts": Counter(event.status for mode in modes for event in mode.usage.events),
        "meter_events": events[:ROWS_MAX],
        "customers": [body for mode in modes for body in mode.store.newest("customer")],
        "meters": [body for mode in modes for body in mode.store.newest("billing.meter")],
    }


def _faults(simulator: Simulator) -> dict[str, object]:
    waiting = [
        {"kind": fault.kind, "left": left, "method": fault.method, "path": fault.path, "contains": fault.contains}
        for fault, left in simulator.faults.waiting()
    ]
    return {"waiting": waiting, "happened": simulator.faults.happened()}


def _add_fault(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    fields = dict(body)
    fault = Fault(
        kind=FaultKind(str(fields.pop("kind"))),
        count=int(str(fields.pop("count", 1))),
        probability=float(str(fields.pop("probability", 1.0))),
        method=str(fields.pop("method", "POST")),
        path=str(fields.pop("path", "/v1/billing/meter_events")),
        contains=str(fields.pop("contains", "")),
        reason=str(fields.pop("reason", "")),
        until_ms=int(str(fields.pop("until_ms", 0))),
    )
    _refuse_others(fields)
    simulator.faults.add(fault)
    return _faults(simulator)


def _clear_faults(simulator: Simulator) -> dict[str, object]:
    simulator.faults.clear()
    return _faults(simulator)


def _set(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Change the lag of the summaries, or the rate limits, of the running simulator."""
    fields = dict(body)
    if "summary_lag_s" in fields:
        lag_ms = round(float(str(fields.pop("summary_lag_s"))) * 1_000)
        for mode in (simulator.test, simulator.live):
            mode.usage.set_lag(lag_ms)
    if "rate_per_s" in fields or "meter_event_rate_per_s" in fields:
        rates = (int(str(fields.pop(name, 0))) for name in ("rate_per_s", "meter_event_rate_per_s"))
        simulator.limits.set(*rates)
    _refuse_others(fields)
    return {"set": list(body)}


def _refuse_others(fields: dict[str, object]) -> None:
    if fields:
        raise ValueError(f"unknown fields: {', '.join(sorted(fields))}")


def _inject(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Add an unsent event: a copy of the event with this `identifier`, or one with the fields of the body."""
    mode = simulator.mode(_is_live(body))
    copied = mode.usage.latest_of(str(body.get("identifier", "")))
    source = body if copied is None else asdict(copied)
    event = meter_events.inject(
        mode,
        str(source["event_name"]),
        str(source["customer"]),
        str(source["value"]),
        int(str(source["timestamp_s"])),
    )
    return {"seq": event.seq}


def _customer(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Create a customer with a given id, which Stripe's own API does not allow."""
    livemode, identifier = _is_live(body), str(body["id"])
    if simulator.customer_exists(livemode, identifier):
        return {"id": identifier, "created": False}
    simulator.create_customer(livemode, {"name": body.get("name")}, identifier)
    return {"id": identifier, "created": True}


def _deliveries(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """The deliveries of a mode, newest first, or those of one `event`."""
    where = ("event", body["event"]) if "event" in body else ()
    rows = simulator.mode(_is_live(body)).store.newest(deliveries.DELIVERY, *where)
    return {"deliveries": list(islice(rows, ROWS_MAX))}


def _roll(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Roll the signing secret of a `target`. The old one stays valid for `keep_s`, as chosen in Stripe's dashboard."""
    mode, target = simulator.mode(_is_live(body)), str(body["target"])
    if mode.store.find(target) is None:
        raise ValueError(f"there is no {target}")
    return {"secret": deliveries.new_secret(mode, target, int(str(body.get("keep_s", 0))))}


def _is_live(body: dict[str, object]) -> bool:
    return str(body.get("livemode", "")).lower() in ("1", "true")
