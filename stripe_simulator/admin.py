"""Routes under `/_simulator/` for faults, inspection and injection. No other route controls the simulator."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_simulator import meters
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.simulator import Simulator
from stripe_simulator.validation import settle

ROWS_MAX = 100_000


def routes(simulator: Simulator) -> list[Route]:
    """The admin routes of one simulator."""

    def guarded(run: Callable[[dict[str, object]], object]) -> Callable[[Request], object]:
        async def handle(request: Request) -> Response:
            try:
                body = json.loads(await request.body() or b"{}")
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
        Route("/_simulator/meter_events", guarded(lambda body: _inject(simulator, body)), methods=["POST"]),
        Route("/_simulator/customers", guarded(lambda body: _customer(simulator, body)), methods=["POST"]),
    ]


def _health(simulator: Simulator) -> dict[str, object]:
    return {"status": "ok", "now_ms": simulator.now_ms(), "account": simulator.settings.account}


def _state(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """The whole state, or only the events of one `customer`, `event_name` or `identifier`."""
    settle(simulator)
    wanted = {name: str(body[name]) for name in ("customer", "event_name", "identifier") if name in body}
    where = "".join(f" AND {name} = ?" for name in wanted)
    events = simulator.database.rows(
        f"SELECT * FROM meter_events WHERE 1 = 1{where} ORDER BY seq LIMIT ?",  # noqa: S608 (names are ours)
        (*wanted.values(), ROWS_MAX),
    )
    counts = simulator.database.rows("SELECT status, count(*) AS events FROM meter_events GROUP BY status")
    return {
        "now_ms": simulator.now_ms(),
        "calls": simulator.calls,
        "faults_happened": simulator.faults.happened(),
        "meter_event_counts": {row["status"]: row["events"] for row in counts},
        "meter_events": [dict(event) for event in events],
        "customers": [json.loads(row["body"]) for row in simulator.database.rows("SELECT body FROM customers")],
        "meters": [json.loads(row["body"]) for row in simulator.database.rows("SELECT body FROM meters")],
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
    )
    if fields:
        raise ValueError(f"unknown fields: {', '.join(sorted(fields))}")
    simulator.faults.add(fault)
    return _faults(simulator)


def _clear_faults(simulator: Simulator) -> dict[str, object]:
    simulator.faults.clear()
    return _faults(simulator)


def _inject(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Add an unsent event: a copy of the event with this `identifier`, or one with the fields of the body."""
    livemode = str(body.get("livemode", "")).lower() in ("1", "true")
    source = {**body}
    copied = simulator.database.row(
        "SELECT * FROM meter_events WHERE identifier = ? ORDER BY seq", (str(body.get("identifier", "")),)
    )
    if copied is not None:
        livemode = bool(copied["livemode"])
        source = {name: copied[name] for name in ("event_name", "customer", "value", "timestamp_s")}
    meter = meters.active_meter(simulator, livemode, str(source["event_name"]))
    if meter is None:
        raise ValueError(f"no active meter of event name {source['event_name']}")
    customer_key, value_key = meters.payload_keys(meter)
    payload: dict[str, object] = {customer_key: str(source["customer"]), value_key: str(source["value"])}
    sequence = meters.insert_event(
        simulator,
        livemode,
        meter,
        f"injected_{simulator.database.next_seq('meter_events')}",
        payload,
        int(str(source["timestamp_s"])),
        injected=True,
    )
    return {"seq": sequence}


def _customer(simulator: Simulator, body: dict[str, object]) -> dict[str, object]:
    """Create a customer with a given id, which Stripe's own API does not allow."""
    livemode = str(body.get("livemode", "")).lower() in ("1", "true")
    identifier = str(body["id"])
    if simulator.customer_exists(livemode, identifier):
        return {"id": identifier, "created": False}
    simulator.create_customer(livemode, {"name": body.get("name")}, identifier)
    return {"id": identifier, "created": True}
