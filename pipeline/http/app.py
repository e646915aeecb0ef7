"""The gateway's ASGI app. The caller opens and closes the dependencies.

    app = create_gateway(GatewayDependencies(log=…, genesis=…, settings=…, clock=…, keys=KeyFile(path), meter_set=…))

docs/http-api.md describes every path; `/openapi.json` is made from the routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from copy import copy
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.http import models
from pipeline.http.access import CHECK_PATH, AccessEndpoints
from pipeline.http.accounts import AccountsEndpoint
from pipeline.http.api_keys import Role
from pipeline.http.appender import Appender
from pipeline.http.change_models import CheckoutAnswer, PlansAnswer, PortalAnswer, QuoteAnswer
from pipeline.http.changes import ChangeEndpoints
from pipeline.http.checkout import CheckoutEndpoints
from pipeline.http.correction_routes import add_corrections
from pipeline.http.credit_models import CreditGrantAnswer, CreditsAnswer, PurchaseAnswer
from pipeline.http.credits import CreditEndpoints
from pipeline.http.customer_page import GatewayBusiness
from pipeline.http.dashboard import GatewayBooks
from pipeline.http.dependencies import AnyKey, GatewayDependencies
from pipeline.http.dunning import BannersAnswer, CasesAnswer, DunningEndpoints
from pipeline.http.errors import Handler, answering, http_exception, json_answer
from pipeline.http.events import EventsEndpoint
from pipeline.http.explain import (
    EVENT_PATH,
    INVOICE_PATH,
    LINE_PATH,
    EventExplanationAnswer,
    ExplainEndpoints,
    InvoiceExplanationAnswer,
    LineExplanationAnswer,
)
from pipeline.http.finance import DashboardAnswer, FinanceEndpoints, JournalAnswer
from pipeline.http.flush import FlushEndpoint
from pipeline.http.health import Health
from pipeline.http.holds import HoldEndpoints
from pipeline.http.intents import IntentsEndpoint
from pipeline.http.notices import NoticesEndpoint
from pipeline.http.openapi import DESCRIPTION, HOLD_PATH, NO_TOP, NOT_READY, REFUSALS, document
from pipeline.http.operator_board import GatewayBoard
from pipeline.http.operator_links import OperatorLinkEndpoint, OperatorPageAnswer
from pipeline.http.override_models import OverridesAnswer
from pipeline.http.overrides import OverrideEndpoints
from pipeline.http.page_links import PageAnswer, PageLinkEndpoint, PageSecrets
from pipeline.http.pages import Pages
from pipeline.http.percent import SLASH, routed
from pipeline.http.periods import PeriodsEndpoint
from pipeline.http.queries import Parameters
from pipeline.http.redrives import REDRIVES_PATH, RedriveAnswer, RedriveEndpoint
from pipeline.http.revenue import RevenueEndpoints
from pipeline.http.seat_models import SeatAnswer, SeatsAnswer
from pipeline.http.seats import SeatEndpoints
from pipeline.http.timeline import TimelineAnswer, TimelineEndpoint
from pipeline.http.top import TopEndpoints
from pipeline.http.usage import UsageEndpoints
from pipeline.http.webhooks import WEBHOOK_PATH, WebhookEndpoint
from pipeline.metrics import Metrics
from portal.dashboard_router import Shown, dashboard_routes
from portal.operator_router import Operated, operator_routes
from portal.router import Noted, Served
from portal.router import routes as page_routes
from schemas.meters import Meter


class _Name(Convertor[str]):
    """A name in a path. It may contain everything, also line feeds, and slashes that are encoded."""

    regex = r"[^/]*"

    def convert(self, value: str) -> str:
        return value.replace(SLASH, "/")

    def to_string(self, value: str) -> str:
        return value


EVENTS_PATH: Final = "/v1/events"
# The pages of the runbook, where the documents are beside the code.
RUNBOOK: Final = Path(__file__).parents[2] / "docs" / "runbook"

register_url_convertor("name", _Name())


class _Gateway(FastAPI):
    """Hands some `POST` past FastAPI's layers, which cost a tenth of the request's time and do nothing for it."""

    def __init__(self, posts: Mapping[str, Handler], **more: Any) -> None:
        super().__init__(**more)
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = None
        if scope["type"] == "http":
            post = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
            path = routed(scope["raw_path"]) if b"%" in scope["raw_path"] else None
            # The server keeps its own scope, which it logs.
            scope = scope if path is None else {**scope, "path": path}
        if post is not None:
            response = await post(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_gateway(dependencies: GatewayDependencies, metrics: Metrics | None = None) -> FastAPI:
    """The app. Without `metrics` the app creates a registry.

    The end of the app's lifespan waits for all pending events. A server without lifespan may end such requests, and
    their senders send the events again.
    """
    counted = metrics or Metrics()
    appender = Appender(dependencies.log, dependencies.genesis.partitions, counted)
    events = EventsEndpoint(dependencies, appender, counted)

    async def exposition(_request: Request) -> Response:
        """The metrics of this process in Prometheus's text format."""
        content, media_type = counted.render()
        return Response(content, media_type=media_type)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await appender.close()

    webhooks = WebhookEndpoint(dependencies, counted)
    posts = {
        path: answering(path, handler, counted)
        for path, handler in (
            (EVENTS_PATH, events.post),
            (WEBHOOK_PATH, webhooks.post),
            (CHECK_PATH, AccessEndpoints(dependencies).check),
        )
    }
    app = _Gateway(
        posts,
        title="Tidemark",
        version=version("tidemark"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # The redirect would go to http:// behind a TLS proxy, and the client would send its key in the clear.
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: http_exception},
    )
    app.state.dependencies = dependencies
    app.router.route_class = _answering_route(counted)
    app.router.routes += [Route(path, post, methods=["POST"]) for path, post in posts.items()]

    _add_reads(app, dependencies, exposition)
    _add_flush(app, dependencies)
    _add_explain(app, ExplainEndpoints(dependencies))
    _add_access(app, dependencies)
    _add_changes(app, ChangeEndpoints(dependencies))
    _add_pages(app, CheckoutEndpoints(dependencies))
    _add_page(app, dependencies, counted)
    _add_finance(app, dependencies, counted)
    _add_operator(app, dependencies, counted)
    _add_seats(app, SeatEndpoints(dependencies))
    _add_credits(app, CreditEndpoints(dependencies))
    add_corrections(app, dependencies)
    # The last of the accounts' paths, because a name in a path may contain slashes.
    _add_accounts(app, dependencies)
    # Made at the first request, in a thread: the description takes as long as all the rest of the app.
    app.state.openapi = cache(partial(document, app, [copy(route) for route in app.routes]))
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            # Load balancers and link checkers ask with HEAD; the server leaves the body out.
            route.methods = {"GET", "HEAD"}
    return app


def _add_reads(app: FastAPI, dependencies: GatewayDependencies, exposition: Callable[..., Any]) -> None:
    """Add the paths that only read."""
    usage = UsageEndpoints(dependencies)
    periods = PeriodsEndpoint(dependencies)
    tops = TopEndpoints(dependencies)
    health = Health(dependencies)
    pages = Pages(health)

    def get(path: str, handler: Callable[..., Any], summary: str, model: Any, *refusals: int, **more: Any) -> None:
        statuses: tuple[int | str, ...] = (*refusals, "default")
        responses = {status: REFUSALS[status] for status in statuses} | more.pop("responses", {})
        more |= {"responses": responses, "response_description": _meaning(model, summary)}
        app.add_api_route(path, handler, summary=summary, response_model=model, **more)

    get("/", pages.front, "What answers here, and whether it is well", models.Front)
    get("/v1/usage", usage.over_time, "Usage over time", models.UsageOverTime, 400, 401, 403, 404, 501, 503)
    get("/v1/usage/periods", periods.periods, "Billing periods", models.Periods, 400, 401, 403, 404, 501, 503)
    current = ("Usage of the current period", models.CurrentUsage, 400, 401, 403, 501, 503)
    get("/v1/usage/current", usage.current, *current)
    get("/v1/accounts/{account:name}/usage", usage.current_by_path, *current)
    top = ("The accounts with the greatest usage of a meter", models.Top, 400, 401, 403, 404, 501, 503)
    get("/v1/usage/top", tops.top, *top, responses=NO_TOP)
    get("/v1/meters/{meter:name}/top", tops.top_by_path, *top, responses=NO_TOP)
    intents = IntentsEndpoint(dependencies).listed
    get("/v1/billing/intents", intents, "Reports to Stripe", models.IntentsAnswer, 400, 401, 403, 501, 503)
    listed = NoticesEndpoint(dependencies).listed
    get("/v1/notices", listed, "Notices and their deliveries", models.NoticesAnswer, 400, 401, 403, 501, 503)
    dunning, refused = DunningEndpoints(dependencies), (400, 401, 403, 501, 503)
    get("/v1/dunning/cases", dunning.listed, "Dunning cases", CasesAnswer, *refused)
    banners = "/v1/accounts/{account:name}/banners"
    get(banners, dunning.banners, "What an account's users should be told", BannersAnswer, *refused)
    for name, handler, summary, model in RevenueEndpoints(dependencies).paths():
        get(name, handler, summary, model, *refused)
    timeline = TimelineEndpoint(dependencies).listed
    path = "/v1/accounts/{account:name}/timeline"
    get(path, timeline, "The past and the future of an account", TimelineAnswer, *refused)
    get("/v1/meters", meters, "The meters of the meter set", models.MetersAnswer, 401)
    get("/healthz", health.alive, "Whether the process answers", models.Alive)
    get("/readyz", health.ready, "Whether the gateway takes events", models.Readiness, responses=NOT_READY)
    get("/metrics", exposition, "Metrics in the format of Prometheus", None)
    get("/docs", pages.docs, "This description as a page", None)
    get("/openapi.json", pages.openapi, "This description as an OpenAPI document", dict[str, Any])


def _add_flush(app: FastAPI, dependencies: GatewayDependencies) -> None:
    app.add_api_route(
        "/v1/accounts/{account:name}/flush",
        FlushEndpoint(dependencies).flush,
        methods=["POST"],
        status_code=202,
        summary="Report an account's usage up to now",
        response_model=models.Flushed,
        response_description=_meaning(models.Flushed, ""),
        responses={status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")},
    )


def _add_explain(app: FastAPI, explain: ExplainEndpoints) -> None:
    """Add the paths that explain an invoice, a line and an event."""
    responses = {status: REFUSALS[status] for status in (400, 401, 403, 404, 501, 503, "default")}
    for path, run, model, summary in (
        (LINE_PATH, explain.line, LineExplanationAnswer, "Explain a line of an invoice"),
        (INVOICE_PATH, explain.invoice, InvoiceExplanationAnswer, "Explain an invoice"),
        (EVENT_PATH, explain.event, EventExplanationAnswer, "Explain where an event ended"),
    ):
        more: dict[str, Any] = {"response_model": model, "response_description": model.__doc__, "summary": summary}
        app.add_api_route(path, run, responses=responses, **more)


def _add_accounts(app: FastAPI, dependencies: GatewayDependencies) -> None:
    """Add the paths that show and link accounts."""
    accounts = AccountsEndpoint(dependencies)
    path, statuses = "/v1/accounts/{account:name}", (400, 401, 403, 501, 503)
    refusals: dict[int | str, Any] = {status: REFUSALS[status] for status in (*statuses, "default")}
    more: dict[str, Any] = {"response_model": models.AccountAnswer, "responses": refusals}
    more |= {"response_description": models.AccountAnswer.__doc__}
    app.add_api_route(path, accounts.show, summary="The Stripe customer of an account", **more)
    more["responses"] = refusals | {status: REFUSALS[status] for status in (408, 413, 415)}
    app.add_api_route(path, accounts.put, methods=["PUT"], summary="Link an account to a Stripe customer", **more)


def _add_access(app: FastAPI, dependencies: GatewayDependencies) -> None:
    """Add the paths that show entitlements and end holds; checks are answered past FastAPI's layers."""
    statuses = (400, 401, 403, 404, 501, 503)
    app.add_api_route(
        "/v1/accounts/{account:name}/entitlements",
        AccessEndpoints(dependencies).entitlements,
        summary="What an account may do",
        response_model=models.EntitlementsAnswer,
        response_description=_meaning(models.EntitlementsAnswer, ""),
        responses={status: REFUSALS[status] for status in (*statuses, "default")},
    )
    holds, hold = HoldEndpoints(dependencies), HOLD_PATH.replace("{hold}", "{hold:name}")
    ends = (400, 401, 403, 404, 409, 501, 503)
    more: dict[str, Any] = {"methods": ["POST"], "response_model": models.HoldAnswer}
    more |= {"response_description": models.HoldAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (*ends, "default")}}
    app.add_api_route(f"{hold}/use", holds.use, summary="Say how much of a hold was used", **more)
    app.add_api_route(f"{hold}/release", holds.release, summary="Give a hold back", **more)
    _add_overrides(app, OverrideEndpoints(dependencies))


def _add_overrides(app: FastAPI, overrides: OverrideEndpoints) -> None:
    """Add the paths by which people grant things to accounts."""
    more: dict[str, Any] = {"response_model": OverridesAnswer}
    more |= {"response_description": OverridesAnswer.__doc__}
    refusals = {status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")}
    all_, one = "/v1/accounts/{account:name}/overrides", "/v1/accounts/{account:name}/overrides/{feature:name}"
    app.add_api_route(all_, overrides.listed, summary="What people granted", responses=refusals, **more)
    app.add_api_route(
        one, overrides.delete, methods=["DELETE"], summary="Take overrides back", responses=refusals, **more
    )
    more["responses"] = refusals | {status: REFUSALS[status] for status in (404, 408, 413, 415)}
    app.add_api_route(one, overrides.put, methods=["PUT"], summary="Override a feature", **more)
    contracts = "/v1/accounts/{account:name}/contracts"
    app.add_api_route(contracts, overrides.contract, methods=["POST"], summary="Grant a contract's terms", **more)


def _add_changes(app: FastAPI, changes: ChangeEndpoints) -> None:
    """Add the paths that quote and change plans."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 501, 503)
    more: dict[str, Any] = {"response_model": QuoteAnswer, "response_description": QuoteAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (*statuses, "default")}}
    quotes, one = "/v1/accounts/{account:name}/quotes", "/v1/accounts/{account:name}/quotes/{quote:name}/accept"
    app.add_api_route(quotes, changes.quote, methods=["POST"], status_code=201, summary="Quote a change", **more)
    app.add_api_route(one, changes.accept, methods=["POST"], summary="Accept a quote", **more)
    pending = "/v1/accounts/{account:name}/changes/pending"
    app.add_api_route(pending, changes.undo, methods=["DELETE"], summary="Take a pending change back", **more)
    more |= {"response_model": PlansAnswer, "response_description": PlansAnswer.__doc__}
    more["responses"] = {status: REFUSALS[status] for status in (401, 403, 501, 503, "default")}
    app.add_api_route("/v1/plans", changes.plans, summary="The plans that are sold", **more)


def _add_pages(app: FastAPI, pages: CheckoutEndpoints) -> None:
    """Add the paths that make pages of Stripe."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 501, 503)
    more: dict[str, Any] = {"methods": ["POST"], "status_code": 201}
    more |= {"responses": {status: REFUSALS[status] for status in (*statuses, "default")}}
    for name, run, model, summary in (
        ("checkout", pages.checkout, CheckoutAnswer, "Have a customer pay at Stripe's page"),
        ("portal", pages.portal, PortalAnswer, "Have a customer replace the card"),
    ):
        more |= {"response_model": model, "response_description": model.__doc__, "summary": summary}
        app.add_api_route(f"/v1/accounts/{{account:name}}/{name}", run, **more)


def _add_page(app: FastAPI, dependencies: GatewayDependencies, metrics: Metrics) -> None:
    """Add the customer's page, and the path that makes links to it."""
    secrets, settings = PageSecrets(dependencies.settings), dependencies.settings
    statuses = (400, 401, 403, 408, 413, 501)
    app.add_api_route(
        "/v1/accounts/{account:name}/page",
        PageLinkEndpoint(dependencies, secrets).make,
        methods=["POST"],
        status_code=201,
        summary="Make a link to an account's page",
        response_model=PageAnswer,
        response_description=_meaning(PageAnswer, ""),
        responses={status: REFUSALS[status] for status in (*statuses, "default")},
    )

    business = GatewayBusiness(dependencies)
    frames, theme = settings.page_frames, settings.page_theme
    served = Served(business, dependencies.clock, secrets, settings.page_url, frames, theme, _noted(metrics))
    app.router.routes += page_routes(served)


def _noted(metrics: Metrics) -> Noted:
    """Counts the answers of pages."""

    def noted(route: str, status: int, seconds: float) -> None:
        metrics.add("tidemark_gateway_requests_total", route=route, status=str(status))
        metrics.observe("tidemark_gateway_request_seconds", seconds, route=route)

    return noted


def _add_finance(app: FastAPI, dependencies: GatewayDependencies, metrics: Metrics) -> None:
    """Add the journal, the dashboard of revenue, and the path that makes links to it."""
    secrets = PageSecrets(dependencies.settings)
    finance = FinanceEndpoints(dependencies, secrets)
    more: dict[str, Any] = {"response_model": JournalAnswer, "response_description": JournalAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")}}
    app.add_api_route("/v1/revenue/journal", finance.journal, summary="The journal for the finance system", **more)
    more |= {"response_model": DashboardAnswer, "response_description": DashboardAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (400, 401, 403, 408, 413, 501, "default")}}
    more |= {"methods": ["POST"], "status_code": 201, "summary": "Make a link to the dashboard of revenue"}
    app.add_api_route("/v1/revenue/page", finance.page, **more)
    books, theme = GatewayBooks(dependencies), dependencies.settings.page_theme
    app.router.routes += dashboard_routes(Shown(books, dependencies.clock, secrets, theme, _noted(metrics)))


def _add_operator(app: FastAPI, dependencies: GatewayDependencies, metrics: Metrics) -> None:
    """Add the operator's page, and the path that makes links to it."""
    secrets = PageSecrets(dependencies.settings)
    more: dict[str, Any] = {"response_model": OperatorPageAnswer, "response_description": OperatorPageAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (400, 401, 403, 408, 413, 501, "default")}}
    more |= {"methods": ["POST"], "status_code": 201, "summary": "Make a link to the operator's page"}
    app.add_api_route("/v1/operator/page", OperatorLinkEndpoint(dependencies, secrets).make, **more)
    more |= {"response_model": RedriveAnswer, "response_description": RedriveAnswer.__doc__}
    more |= {"responses": more["responses"] | {status: REFUSALS[status] for status in (409, 503)}}
    more |= {"status_code": 200, "summary": "Send quarantined events again"}
    app.add_api_route(REDRIVES_PATH, RedriveEndpoint(dependencies).post, **more)
    board = GatewayBoard(dependencies)
    app.router.routes += operator_routes(Operated(board, dependencies.clock, secrets, RUNBOOK, _noted(metrics)))


def _add_seats(app: FastAPI, seats: SeatEndpoints) -> None:
    """Add the paths that give seats and take them back."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 501, 503)
    all_, one = "/v1/accounts/{account:name}/seats", "/v1/accounts/{account:name}/seats/{seat:name}"
    more: dict[str, Any] = {"response_model": SeatsAnswer, "response_description": SeatsAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")}}
    app.add_api_route(all_, seats.listed, summary="The seats of an account", **more)
    more |= {"methods": ["POST"], "response_model": SeatAnswer, "response_description": SeatAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (*statuses, "default")}}
    app.add_api_route(all_, seats.post, status_code=201, summary="Give or reserve a seat", **more)
    app.add_api_route(f"{one}/activate", seats.activate, summary="Accept a reserved seat", **more)
    app.add_api_route(f"{one}/release", seats.release, summary="Release a seat", **more)


def _add_credits(app: FastAPI, credits_: CreditEndpoints) -> None:
    """Add the paths of credits."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 501, 503)
    all_ = "/v1/accounts/{account:name}/credits"
    grant: dict[str, Any] = {"response_model": CreditGrantAnswer, "response_description": CreditGrantAnswer.__doc__}
    bought: dict[str, Any] = {"response_model": PurchaseAnswer, "response_description": PurchaseAnswer.__doc__}
    asked: dict[str, Any] = {"methods": ["POST"]}
    asked |= {"responses": {status: REFUSALS[status] for status in (*statuses, "default")}}
    app.add_api_route(
        all_,
        credits_.balance,
        summary="The credits of an account",
        response_model=CreditsAnswer,
        response_description=CreditsAnswer.__doc__ or "",
        responses={status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")},
    )
    app.add_api_route(
        f"{all_}/top-ups", credits_.top_up, status_code=201, summary="Buy a pack of credits", **bought, **asked
    )
    app.add_api_route(
        f"{all_}/grants", credits_.grant, status_code=201, summary="Give credits to an account", **grant, **asked
    )
    app.add_api_route(
        f"{all_}/grants/{{grant:name}}/void", credits_.void, summary="Take credits back", **grant, **asked
    )


def _meaning(model: Any, summary: str) -> str:
    """What an answer is, in a sentence."""
    described = isinstance(model, type) and issubclass(model, models.Answer)
    return (model.__doc__ if described else "") or f"{summary}."


async def meters(request: Request, _key: AnyKey) -> Response:
    """The meters of the meter set in force, for any key."""
    meter_set = await request.app.state.dependencies.meter_set()
    return json_answer(
        models.MetersAnswer(
            version=meter_set.version if meter_set else None,
            meters=[_described(meter) for meter in meter_set.meters] if meter_set else [],
        )
    )


def _described(meter: Meter) -> models.MeterAnswer:
    rule = meter.aggregation.rule
    return models.MeterAnswer(
        slug=meter.slug,
        event_type=meter.event_type,
        aggregation=meter.aggregation.value,
        value_path=meter.value_path,
        dimensions=sorted(meter.dimensions),
        filters=[models.FilterAnswer.model_validate(filter_.model_dump(mode="json")) for filter_ in meter.filters],
        unit=meter.unit,
        scale=meter.scale,
        late=meter.late.value,
        on_bad=meter.on_bad.value,
        per=meter.per.value if rule.measured and not rule.greatest else None,
        series_path=meter.series_path,
        stands_s_max=meter.stands_s_max,
        start_path=meter.start_path,
        session_path=meter.session_path,
        session_gap_s_max=meter.session_gap_s_max if meter.session_path else None,
        description=meter.description,
    )


def _answering_route(metrics: Metrics) -> type[APIRoute]:
    class AnsweringRoute(APIRoute):
        """A route whose exceptions become the gateway's error answers, and whose requests are counted and timed."""

        def get_route_handler(self) -> Handler:
            queries = [parameter.field_info.annotation for parameter in self.dependant.query_params]
            parameters = [
                field.alias or name
                for query in queries
                if isinstance(query, type) and issubclass(query, Parameters)
                for name, field in query.model_fields.items()
            ]
            return answering(self.path_format, super().get_route_handler(), metrics, parameters)

    return AnsweringRoute


__all__ = ["GatewayDependencies", "Role", "create_gateway"]
