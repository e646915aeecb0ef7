"""The operator's pages of one mode: objects, the timeline of events and deliveries, faults, and test clocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stripe_simulator.deliveries import DELIVERY
from stripe_simulator.engine.periods import add_months
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.mode import Call, Mode
from stripe_simulator.pages import html as ui
from stripe_simulator.pages.html import ROOT, Html, attempt, h, join
from stripe_simulator.resources import test_clocks
from stripe_simulator.simulator import Simulator
from stripe_simulator.store import Object

ROWS: Final = 25
CLOCK: Final = "test_helpers.test_clock"
_STEPS_S: Final = {"hour": 3_600, "day": 86_400}
_NAMES: Final = (
    "number", "name", "display_name", "nickname", "email", "code", "lookup_key", "description", "event_name", "type",
    "billing_reason", "url",
)  # fmt: skip
_AMOUNTS: Final = ("amount_due", "amount", "unit_amount", "amount_total", "balance")
# An identifier in JSON that was escaped.
_ID: Final = re.compile(r"&quot;(\w+_\w+)&quot;")
_FAULT: Final = {
    "kind": "", "count": "1", "probability": "1", "method": "POST", "path": "/v1/", "contains": "", "reason": "",
}  # fmt: skip


def routes(simulator: Simulator) -> list[Route]:
    """The routes of the operator's pages."""
    pages: Mapping[str, Callable[[Simulator, Mode, Request, dict[str, str]], Response]] = {
        "": _overview, "objects/{kind}": _objects, "object/{id:path}": _object, "timeline": _timeline,
        "faults": _faults, "clocks": _clocks,
    }  # fmt: skip
    styles = {"Cache-Control": "max-age=60"}
    return [
        Route("/", lambda _: RedirectResponse(f"{ROOT}/test/")),
        Route("/style.css", lambda _: Response(ui.stylesheet(), media_type="text/css", headers=styles)),
        *(
            Route(f"/{name}/{path}", ui.handler(simulator, _bound(run, simulator, name)), methods=["GET", "POST"])
            for name in ("test", "live")
            for path, run in pages.items()
        ),
    ]


def _bound(run: Callable[..., Response], simulator: Simulator, name: str) -> Callable[..., Response]:
    return lambda request, sent: run(simulator, simulator.mode(name == "live"), request, sent)


def _shown(mode: Mode, title: str, *children: object, status: int = 200) -> Response:
    """A page of the operator, with the navigation."""
    marks = dict.fromkeys(("Objects", "Timeline", "Faults", "Clocks", "test", "live"), Html())
    for current in (title if title in marks else "Objects", _name(mode)):
        marks[current] = Html('aria-current="page"')
    nav = ui.template("operator", mode=_name(mode), **marks)
    return ui.page(f"{title} – Stripe simulator", h("h1", title), *children, nav=nav, status=status)


def _name(mode: Mode) -> str:
    return "live" if mode.livemode else "test"


def _path(mode: Mode, path: str) -> str:
    return f"{ROOT}/{_name(mode)}/{path}"


def _to(mode: Mode, identifier: object) -> Html:
    """A link to an object, or nothing."""
    text = str(identifier or "")
    return ui.link(text, _path(mode, f"object/{quote(text)}")) if text else Html()


def _overview(simulator: Simulator, mode: Mode, _request: Request, _sent: object) -> Response:
    kinds = [(kind, count) for kind, count in mode.store.kinds().items() if _is_public(kind)]
    rows = [(ui.link(kind, _path(mode, f"objects/{kind}")), f"{count:,}") for kind, count in sorted(kinds)]
    empty = ui.template("empty", url=simulator.settings.pages_url, mode=_name(mode))
    events = ui.table(*_event_rows(mode, islice(mode.store.from_place("event"), 5)), "No event yet.")
    now = h("p", f"It is {ui.time(simulator.now_ms() // 1_000)} UTC. {len(simulator.faults.waiting)} faults are on.")
    latest = join(h("h2", "Latest events"), events) if kinds else ""
    return _shown(mode, "Objects", now, ui.table(("Kind", "Objects"), rows, empty), latest)


def _is_public(kind: str) -> bool:
    return not kind.startswith("simulator.") and kind not in ("invoice_lines", "subscription.ledger")


def _objects(_simulator: Simulator, mode: Mode, request: Request, _sent: object) -> Response:
    kind = request.path_params["kind"]
    if not _is_public(kind):
        raise no_such("kind of object", kind, "id")
    found, more = _slice(mode, kind, request)
    rows = [
        (_to(mode, body["id"]), next((str(body[name]) for name in _NAMES if body.get(name)), ""),
         ui.badge(body["status"]) if isinstance(body.get("status"), str) else "",
         next((ui.money(body[name], body.get("currency")) for name in _AMOUNTS if isinstance(body.get(name), int)), ""),
         _to(mode, body.get("customer")), ui.time(body.get("created")))
        for _, body in found
    ]  # fmt: skip
    heads = ("Id", "Name", "Status", "Amount", "Customer", "Created")
    return _shown(mode, kind, ui.table(heads, rows, f"There is no object of the kind {kind} yet."), more)


def _slice(mode: Mode, kind: str, request: Request) -> tuple[list[tuple[int, Object]], Html]:
    """One page of objects, newest first, and the links to the next and the newest page."""
    before = request.query_params.get("before", "")
    place = int(before) if before.isascii() and before.isdigit() and len(before) < 16 else None
    rows = list(islice(mode.store.from_place(kind, place=place), ROWS + 1))
    newest = ui.link("Newest", request.url.path) if place is not None else ""
    older = ui.link("Older", f"?before={rows[ROWS - 1][0]}") if len(rows) > ROWS else ""
    return rows[:ROWS], h("p", newest, older, class_="pages") if newest or older else Html()


def _object(_simulator: Simulator, mode: Mode, request: Request, _sent: object) -> Response:
    identifier = request.path_params["id"]
    body = mode.store.find(identifier)
    if body is None or not _is_public(body["object"]):
        raise no_such("object", identifier, "id")
    text = msgspec.json.format(msgspec.json.encode(body), indent=2).decode()

    def linked(match: re.Match[str]) -> str:
        name = match[1]
        return f'"{_to(mode, name)}"' if name != identifier and mode.store.find(name) else match[0]

    shown = Html(_ID.sub(linked, join(text)))
    about = ((place, event) for place, event in mode.store.from_place("event") if _subject(event) == identifier)
    events = ui.table(*_event_rows(mode, islice(about, ROWS)), "No event is about this object.")
    pages = (body.get(name) or "" for name in ("hosted_invoice_url", "url"))
    links = [h("p", ui.link("Open the page of the payer", url)) for url in pages if f"{ROOT}/" in url]
    title = body["object"]
    deliveries = h("section", h("h2", "Deliveries"), _deliveries(mode, identifier)) if "event" in title else ""
    events = Html() if title == "event" else h("section", h("h2", "Events"), events)
    subtitle = h("p", ui.link(title, _path(mode, f"objects/{title}")))
    return _shown(mode, identifier, subtitle, *links, deliveries, events, h("h2", "JSON"), h("pre", shown, tabindex=0))


def _subject(event: Object) -> object:
    return event["data"]["object"].get("id")


def _event_rows(mode: Mode, events: Iterable[tuple[int, Object]]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = [
        (ui.time(event["created"]), ui.link(event["type"], _path(mode, f"object/{event['id']}")),
         _to(mode, _subject(event)), _deliveries(mode, event["id"]))
        for _, event in events
    ]  # fmt: skip
    return ("Time (UTC)", "Event", "Object", "Deliveries"), rows


def _deliveries(mode: Mode, event: str) -> Html:
    """The deliveries of an event, with each attempt."""
    rows = []
    for delivery in mode.store.newest(DELIVERY, "event", event):
        url = (mode.store.find(delivery["target"]) or {"url": "deleted endpoint"})["url"]
        tries = (
            h("small", f"{ui.time(tried['at_ms'] // 1_000)}: {tried['status'] or tried['failure']}")
            for tried in delivery["attempts"]
        )
        rows.append(h("li", ui.badge(delivery["status"]), " ", url, *tries))
    return h("ul", *rows, class_="plain") if rows else Html()


def _timeline(_simulator: Simulator, mode: Mode, request: Request, _sent: object) -> Response:
    events, more = _slice(mode, "event", request)
    empty = "Nothing has happened yet. Each change of an object and each delivery of a webhook appears here."
    return _shown(mode, "Timeline", ui.table(*_event_rows(mode, events), empty), more)


def _faults(simulator: Simulator, mode: Mode, request: Request, sent: dict[str, str]) -> Response:
    problem = ""
    if request.method == "POST":
        action = sent.pop("action", "")
        try:
            if action == "off":
                simulator.faults.clear(FaultKind(sent["kind"]))
            else:
                simulator.faults.add(msgspec.convert(sent, Fault, strict=False))
            return ui.back(request.url.path)
        except (ValueError, KeyError, msgspec.ValidationError) as error:
            problem = f"This fault cannot be switched: {error}"
    values = _FAULT | {name: value for name, value in sent.items() if name in _FAULT}
    for key, name, options in (("kinds", "kind", [*FaultKind]), ("methods", "method", ["POST", "GET", "DELETE"])):
        values[key] = join(*(h("option", option, selected=option == values[name]) for option in options))
    rows = [
        (fault.kind, "for ever" if left < 0 else f"{left:,} ×", f"{fault.probability:.0%}",
         "webhooks" if fault.kind.startswith("delivery_") else f"{fault.method} {fault.path}", fault.contains or "",
         ui.action("Switch off", "off", kind=fault.kind))
        for fault, left in simulator.faults.waiting
    ]  # fmt: skip
    heads = ("Fault", "Left", "Probability", "Requests", "Contains", "")
    happened = [(kind, f"{count:,}") for kind, count in sorted(simulator.faults.happened.items())]
    return _shown(
        mode, "Faults", ui.notice(problem), h("p", "A fault hits requests or webhooks of both modes."),
        ui.table(heads, rows, "No fault is on: every request is answered."), h("h2", "Switch a fault on"),
        ui.template("fault", **values), h("h2", "What has happened"),
        ui.table(("Fault", "Times"), happened, "No fault has happened yet."), status=400 if problem else 200,
    )  # fmt: skip


def _clocks(simulator: Simulator, mode: Mode, request: Request, sent: dict[str, str]) -> Response:
    problem = ""
    if request.method == "POST":
        error = attempt(mode, lambda: _advance(mode, sent))
        if error is None:
            simulator.catch_up()
            return ui.back(request.url.path)
        problem = error.message
    rows = [
        (_to(mode, clock["id"]), clock["name"] or "",
         join(ui.time(clock["frozen_time"]), " ", ui.badge(clock["status"])),
         ui.time((mode.clockwork.next_due_ms(clock["id"]) or 0) // 1_000 or None),
         ui.template("clock", clock=clock["id"], now=ui.time(clock["frozen_time"])[:16].replace(" ", "T")))
        for clock in islice(mode.store.newest(CLOCK), 100)
    ]  # fmt: skip
    empty = "There is no test clock. POST /v1/test_helpers/test_clocks creates one, and customers live on it."
    heads = ("Clock", "Name", "Time (UTC)", "Next job", "Advance")
    return _shown(mode, "Clocks", ui.notice(problem), ui.table(heads, rows, empty), status=400 if problem else 200)


def _advance(mode: Mode, sent: dict[str, Any]) -> None:
    clock, by = mode.fetch(CLOCK, sent.get("clock", ""), "test clock"), sent.get("by", "")
    try:
        target = clock["frozen_time"] + _STEPS_S.get(by, 0)
        if by == "month":
            target = add_months(clock["frozen_time"], 1)
        elif by == "until":
            target = int(datetime.fromisoformat(sent.get("until", "")).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise ApiError(400, "This is no time: use the form 2027-01-31T12:00.") from error
    test_clocks.advance(mode, Call("", {"frozen_time": target}, (clock["id"],)))
