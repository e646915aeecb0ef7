"""Test clocks (docs.stripe.com/api/test_clocks): time that a caller advances, for the customers of a clock."""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator.engine.periods import Recurrence, boundary
from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources import customers
from stripe_simulator.resources.conventions import Object, check, reads
from stripe_simulator.resources.prices import recurrence_of
from stripe_simulator.resources.subscription_changes import ENDED, items_of

ADVANCE: Final = "test_clock.advance"
KEPT_S: Final = 30 * 86_400
_KIND: Final = "test_helpers.test_clock"
_LABEL: Final = "test clock"
_READY: Final = {"status": "ready", "status_details": {}}


def create(mode: Mode, call: Call) -> Object:
    """A clock that stands at `frozen_time`."""
    check(not mode.livemode, "Test clocks are only available in test mode.")
    body = new_object(mode, _KIND, "clock", {}) | {"frozen_time": call.params["frozen_time"], **_READY}
    del body["metadata"]
    body |= {"deletes_after": mode.now_s() + KEPT_S, "name": call.params.get("name")}
    mode.clockwork.set_time(body["id"], body["frozen_time"] * 1_000)
    return mode.store.save(body)


def advance(mode: Mode, call: Call) -> Object:
    """Answers `advancing`; the clock is `ready` soon after."""
    clock, target = mode.fetch(_KIND, call.id, _LABEL), call.params["frozen_time"]
    if clock["status"] != "ready":
        raise ApiError(429, "Test clock advancement underway - cannot perform modifications.", code="lock_timeout")
    check(target > clock["frozen_time"], "The frozen_time must be later than the current one.", "frozen_time")
    message = "You cannot advance a test clock by more than two intervals of its shortest subscription."
    check(target <= _latest(mode, clock), message, "frozen_time")
    mode.clockwork.schedule(mode.now_ms(), ADVANCE, {"clock": call.id, "until_s": target})
    clock |= {"status": "advancing", "status_details": {"advancing": {"target_frozen_time": target}}}
    return mode.store.save(clock, "test_helpers.test_clock.advancing")


def _delete(mode: Mode, call: Call) -> Object:
    """With the customers of the clock."""
    clock = mode.fetch(_KIND, call.id, _LABEL)
    for customer in list(mode.store.newest("customer")):
        if customer["test_clock"] == call.id:
            customers.delete(mode, Call(call.path, {}, (customer["id"],)))
    return mode.store.delete(clock)


def _latest(mode: Mode, clock: Object) -> int:
    """Two intervals of the shortest subscription ahead, or two years."""
    start = clock["frozen_time"]
    recurrences = {Recurrence("year")}
    for subscription in mode.store.newest("subscription", "test_clock", clock["id"]):
        if subscription["status"] not in ENDED:
            recurrences |= {recurrence_of(item["price"]) for item in items_of(mode, subscription["id"])}
    return min(boundary(start, recurrence, 2) for recurrence in recurrences)


def _run(mode: Mode, arguments: dict[str, Any]) -> None:
    """Run the jobs of the clock in order until the target."""
    identifier, until_s = arguments["clock"], arguments["until_s"]
    mode.clockwork.run(identifier, until_s * 1_000)
    clock = mode.store.edit(_KIND, identifier)
    if clock is not None:
        mode.store.save({**clock, "frozen_time": until_s, **_READY}, "test_helpers.test_clock.ready")


JOBS = {ADVANCE: _run}
_PATH: Final = "/v1/test_helpers/test_clocks"
ROUTES = (
    Route("POST", _PATH, create, ("frozen_time", "name")),
    *reads(f"{_PATH}/{{test_clock}}", _KIND, label=_LABEL),
    Route("DELETE", f"{_PATH}/{{test_clock}}", _delete),
    Route("POST", f"{_PATH}/{{test_clock}}/advance", advance, ("frozen_time",)),
)
