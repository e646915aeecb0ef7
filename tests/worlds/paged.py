"""A business whose customers open their page: a gateway over a simulator of Stripe, with usage that is counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn

from pipeline.access.checks import AccessChecks
from pipeline.changes.parts import Parts
from pipeline.http.dependencies import CreditStores
from pipeline.http.operator_stores import OperatorStores, OperatorTables
from pipeline.http.serving import QuietServer
from pipeline.roles.operating import operator_tables
from pipeline.webhooks.walker import CURSOR
from portal.tokens import OPERATOR, signed
from schemas.account_records import AccountRecords
from schemas.catalog_changes import CatalogStore
from schemas.clock import DAY_MS
from schemas.entitlements import Entitlements
from schemas.meters import Meter
from schemas.periods import Period
from schemas.seats import Seats
from schemas.side_tables import Row
from schemas.usage_evidence import EventUsage, HourUsage
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from tests.services.stripe_requests import application
from tests.traffic.generate import METER_SET
from tests.worlds.billing import SCOPE
from tests.worlds.changing import Changing
from tests.worlds.credited import credit_stores
from tests.worlds.gateway import Gateway, running

# A machine may be slow; a browser may open a connection while the server stops, and keep it.
PATIENCE_S: Final = 120
STOP_S: Final = 2
SECRET: Final = "a-secret-of-the-page-with-forty-characters"
CATALOG: Final = """\
version: 1
meters:
  - {slug: api_requests, event_type: api.request, aggregation: count, unit: requests, stripe_event_name: api_requests}
  - {slug: tokens, event_type: completion.finished, aggregation: sum, value_path: $.usage.tokens, unit: tokens,
     stripe_event_name: tokens}
currencies: {usd: 2, eur: 2}
defaults: {plan: free, automatic_tax: false}
features:
  locations: {type: seat, merge: sum}
  calls: {type: limit, merge: sum, meter: api_requests}
plans:
  free:
    version: 1
    name: Free
    prices: none
    grants: {locations: 1, calls: 10}
  essential:
    version: 1
    name: Essential
    description: For one shop or two.
    rank: 10
    prices:
      - {component: location, quantity: locations, month: {usd: "79.00"}}
    grants: {locations: quantity, calls: 100}
    over_limit: {locations: read_only_excess}
  pro:
    version: 1
    name: Pro
    description: For every shop of a town.
    rank: 20
    prices:
      - {component: location, quantity: locations, month: {usd: "149.00"}, year: {usd: "1548.00"}}
    grants: {locations: quantity, calls: 1000}
    trial: {family: paid, days: 30}
  scale:
    version: 1
    name: Scale
    rank: 30
    prices:
      - {component: base, month: {usd: "200.00"}}
      - {component: tokens, meter: tokens, unit: tokens, month: {usd: "0.01"}}
    grants: {locations: unlimited, calls: unlimited}
dunning: {fallback_plan: free}
"""


class Archive:
    """`UsageEvidence` of one hour and one event."""

    async def hours(
        self, _account: str, _meter: Meter, span: Period, after_ms: int, _rows_max: int
    ) -> Sequence[HourUsage]:
        """The first hour of the span has the usage."""
        hour_ms = span.start_ms - span.start_ms % 3_600_000
        return [HourUsage(hour_ms, 25)] if hour_ms > after_ms else []

    async def events(
        self, _account: str, _meter: Meter, hour_ms: int, after: str, _rows_max: int, _span: Period | None = None
    ) -> Sequence[EventUsage]:
        """One event."""
        return [EventUsage("op <1>", hour_ms * 1_000 + 5, "25")] if after < "op <1>" else []


class PromptRecords:
    """What SQL has of an account, as if Stripe's webhooks came at once."""

    def __init__(self, business: Paged) -> None:
        self._business = business

    async def mirrored_of(self, account: str, now_ms: int) -> Mapping[str, Sequence[Row]]:
        """See `AccountRecords`."""
        await self._business.settle()
        return await self._business.sql.account_records.mirrored_of(account, now_ms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._business.sql.account_records, name)


class Paged(Changing):
    """Accounts with a page. `door` is set while `opened` runs."""

    door: Gateway

    def __init__(self, now_ms: int) -> None:
        super().__init__(now_ms)
        self.records: Any = PromptRecords(self)
        self.redriven: list[tuple[str, str, str]] = []
        self.sql_is_away = False

    async def open(self) -> None:
        """Make the log with the meters of the gateway, and the tables."""
        await self.start(METER_SET)
        await self.tables.migrate(SCOPE, self.log_id)

    async def begin_selling(self, more: str = "") -> None:
        """Apply the catalog, with more of it, and link acme's new customer, who has a card."""
        await self.begin(CATALOG + more)

    @contextlib.asynccontextmanager
    async def opened(self, folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
        """A gateway that shows pages. `settings` replace those of the page."""
        secrets = folder / "page_secrets"
        secrets.write_text(f"{SECRET}\n")
        await self.checks.refresh()

        given: dict[str, Any] = {"page_url": "http://gateway", "page_secrets": secrets, **settings}
        async with running(folder, self, given, **self.dependencies()) as gateway:
            self.door = gateway
            await self.fold_all()
            yield gateway

    def dependencies(self) -> dict[str, Any]:
        """What the gateway asks for pages."""

        async def changes() -> Parts:
            return self.parts()

        async def catalog() -> CatalogStore:
            return self.sql.catalog

        async def records() -> AccountRecords:
            found: AccountRecords = self.records
            return found

        async def seats() -> Seats:
            return self.sql.seats

        def access() -> tuple[AccessChecks, Entitlements]:
            return self.checks, self.sql.entitlements

        async def credits_() -> CreditStores:
            return credit_stores(self)

        return {
            "changes": changes, "catalog": catalog, "records": records, "seats": seats, "access": access,
            "dunning": lambda: self.sql.dunning, "notices": lambda: self.sql.notices, "evidence": Archive(),
            "credits": credits_, "operator": self.operator(),
        }  # fmt: skip

    def operator(self) -> OperatorStores:
        """What the operator's page asks. `redriven` has the reports that it sent again; they are not sent."""

        async def tables() -> OperatorTables:
            if self.sql_is_away:
                await asyncio.sleep(60)
            return operator_tables(self.sql)

        async def redrive(identifier: str, by: str, reason: str) -> str:
            await asyncio.sleep(0)
            self.redriven.append((identifier, by, reason))
            return f"{identifier} is sent again, as {identifier}.1."

        return OperatorStores(tables, FakeReconciliations(), CURSOR, redrive)

    async def use(self, *events: Mapping[str, Any]) -> None:
        """Emit events and have them counted."""
        if events:
            answer = await self.door.post(list(events), "application/cloudevents-batch+json")
            assert answer.status_code == 202, answer.text
        await self.fold_all()

    def serve_pages_at(self, url: str) -> None:
        """Say where a browser finds Stripe's hosted pages."""
        for mode in (self.stripe.simulator.test, self.stripe.simulator.live):
            mode.settings = replace(mode.settings, pages_url=url)


class Open(NamedTuple):
    """A business that a browser reaches. `run` has the server's thread run something and returns the answer."""

    business: Paged
    url: str
    stripe_url: str
    run: Callable[[Callable[[], Awaitable[Any]]], Any]

    def link(self, account: str = "acme", days: int = 1) -> str:
        """A link to the page of an account."""
        token = signed(account, self.business.clock.now_ms() + days * DAY_MS, SECRET)
        return f"{self.url}/page/{token}/"

    def operator_link(self, who: str = "ann") -> str:
        """A link to the operator's page."""
        token = signed(who, self.business.clock.now_ms() + 366 * DAY_MS, SECRET, OPERATOR)
        return f"{self.url}/operator/{token}/"

    def pass_month(self) -> None:
        """Let 32 days pass, some at a time, with all that happens at Stripe meanwhile."""

        async def passed() -> None:
            for _ in range(4):
                self.business.clock.ms += 8 * DAY_MS
                self.business.stripe.simulator.catch_up()
                await self.business.settle()

        self.run(passed)


@contextlib.contextmanager
def open_to_browsers(
    folder: Path, now_ms: int, begin: Callable[[Any], Awaitable[None]], kind: type[Paged] = Paged, **settings: Any
) -> Iterator[Open]:
    """A gateway and the simulator's pages on ports of this machine, in a thread. `begin` makes accounts."""
    ready: Future[Open] = Future()

    async def main() -> None:
        business, stop = kind(now_ms), asyncio.Event()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        with _tcp() as ours, _tcp() as theirs:
            for each in (ours, theirs):
                each.bind(("127.0.0.1", 0))
            urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (ours, theirs)]
            business.serve_pages_at(urls[1])
            await begin(business)
            async with business.opened(folder, page_url=urls[0], **settings) as gateway:
                apps = (gateway.app, ours), (application(business.stripe.simulator), theirs)
                async with contextlib.AsyncExitStack() as stack:
                    for app, listening in apps:
                        await stack.enter_async_context(serving(app, listening))

                    def run(body: Callable[[], Awaitable[Any]]) -> Any:
                        async def whole() -> Any:
                            return await body()

                        return asyncio.run_coroutine_threadsafe(whole(), loop).result(PATIENCE_S)

                    ready.set_result(Open(business, urls[0], urls[1], run))
                    await stop.wait()

    def begun() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    stops: list[Callable[[], object]] = []
    thread = threading.Thread(target=begun, daemon=True)
    thread.start()
    try:
        yield ready.result(PATIENCE_S)
    finally:
        # The loop is closed already if the start failed.
        with contextlib.suppress(RuntimeError):
            for stop_it in stops:
                stop_it()
        thread.join(PATIENCE_S)


def _tcp() -> socket.socket:
    """A socket of which asyncio sees that it is TCP: otherwise each answer waits 40 ms for an acknowledgement."""
    return socket.socket(proto=socket.IPPROTO_TCP)


@contextlib.asynccontextmanager
async def serving(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    """Serve an application on a socket, in the loop that runs."""
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=STOP_S))
    task = asyncio.create_task(server.serve([listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
