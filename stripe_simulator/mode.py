"""One mode of the account, live or test: what a resource works on, and the form of a resource's tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from stripe_simulator.clock import Clock
from stripe_simulator.clockwork import REAL, Clockwork
from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.faults import FaultPlan
from stripe_simulator.journal import Journal
from stripe_simulator.metadata import merged
from stripe_simulator.settings import SimulatorSettings
from stripe_simulator.store import Object, Store
from stripe_simulator.usage import Usage, UsageTiming


@dataclass(frozen=True, slots=True)
class Call:
    """One request with a valid API key and checked parameters.

    `ids` are the ids in the path, in order. `rejection` is the code of a fault that rejects a meter event later.
    """

    path: str
    params: Params
    ids: tuple[str, ...] = ()
    rejection: str = ""

    @property
    def id(self) -> str:
        """The first id in the path."""
        return self.ids[0]


class Route(NamedTuple):
    """A route of a resource. `path` is as in the SDK, `takes` are the parameters that `run` implements.

    `lock` names what only one request at a time may execute; a second one gets 409. `authenticate` finds the mode of a
    bearer token that is no API key; such a route has no Idempotency-Keys.
    """

    method: str
    path: str
    run: Callable[[Mode, Call], Object]
    takes: Sequence[str] = ()
    lock: Callable[[Mode, Call], tuple[str, ...]] | None = None
    authenticate: Callable[[Sequence[Mode], str], Mode] | None = None

    @property
    def name(self) -> str:
        """`METHOD PATH`, the key of the contract."""
        return f"{self.method} {self.path}"


Job = Callable[["Mode", dict[str, Any]], None]
Subscriber = Callable[["Mode", Object], None]


class Mode:
    """The objects, the usage and the due jobs of one mode.

    `outbox` has the ids of the deliveries to attempt, `running` the locks and Idempotency-Keys of requests in
    execution. `subscribers` get every snapshot event in its transaction.
    """

    def __init__(
        self,
        settings: SimulatorSettings,
        clock: Clock,
        journal: Journal,
        livemode: bool,
        jobs: Mapping[str, Job],
        indexed: Mapping[str, Sequence[str]],
        subscribers: Sequence[Subscriber],
        faults: FaultPlan,
    ) -> None:
        name = "live" if livemode else "test"
        seed = f"{settings.seed}:{name}"
        self.settings = settings
        self.livemode = livemode
        self.journal = journal
        self.faults = faults
        self.outbox: asyncio.Queue[str] = asyncio.Queue()
        self.running: set[object] = set()
        handlers = {kind: partial(job, self) for kind, job in jobs.items()}
        self.clockwork = Clockwork(clock, journal, seed, handlers, name)
        self.store = Store(journal, name, livemode, seed, self.now_s, indexed)
        self.store.subscribers += [partial(subscriber, self) for subscriber in subscribers]
        times_s = (settings.summary_lag_s, settings.validation_window_s, settings.validation_delay_s)
        lag_ms, window_ms, delay_ms = (round(1_000 * time_s) for time_s in times_s)
        timing = UsageTiming(lag_ms, max(1, window_ms), delay_ms)
        self.usage = Usage(journal, self.clockwork, name, lambda it: self.store.get("customer", it) is not None, timing)

    def now_ms(self, clock: str = REAL) -> int:
        """The time of the real clock or of a test clock, in milliseconds; inside a job the time of the job."""
        return self.clockwork.now_ms(clock)

    def now_s(self, clock: str = REAL) -> int:
        """The same in whole seconds, Stripe's unit."""
        return self.clockwork.now_ms(clock) // 1_000

    def now_of(self, body: Object) -> int:
        """The time of an object's clock, a test clock or the real one, in seconds."""
        return self.now_s(body["test_clock"] or REAL)

    def clock_of(self, customer: str) -> str:
        """The test clock of a customer, or the real clock."""
        return (self.store.get("customer", customer) or {}).get("test_clock") or REAL

    def fetch(self, kind: str, identifier: str, label: str = "", param: str = "id") -> Object:
        """A copy of an object to change and `store.save`. Raises `ApiError` if the mode has no such object: 404 for the
        id of a path, 400 for another parameter. `label` is what Stripe calls the kind in the message."""
        body = self.store.edit(kind, identifier)
        if body is None:
            raise no_such(label or kind.replace("_", " "), identifier, param, 404 if param == "id" else 400)
        return body


def new_object(mode: Mode, kind: str, prefix: str, params: Params, clock: str = REAL) -> Object:
    """The fields that a new object of every kind has; a given `id` wins. Raises `ApiError` if the id exists."""
    identifier = params.get("id") or mode.store.new_id(prefix)
    if mode.store.get(kind, identifier):
        message = f"{kind.capitalize()} already exists."
        raise ApiError(400, message, code="resource_already_exists", param="id")
    return {
        "id": identifier,
        "object": kind,
        "created": mode.now_s(clock),
        "livemode": mode.livemode,
        "metadata": merged({}, params.get("metadata")),
    }


def retrieve(kind: str, label: str = "") -> Callable[[Mode, Call], Object]:
    """The `run` of a route that answers with the object whose id is in the path."""
    return lambda mode, call: mode.fetch(kind, call.id, label)
