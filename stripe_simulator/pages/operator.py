"""The operator's pages of one mode: objects, the timeline of events and deliveries, faults, and test clocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from portal.markup import STYLESHEET
from stripe_simulator.deliveries import DELIVERY
from stripe_simulator.engine.periods import add_months
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.mode import Call, Mode
from stripe_simulator.pages import html as ui
from stripe_simulator.pages.html import ROOT, Html, Sent, h, join
from stripe_simulator.resources import test_clocks
from stripe_simulator.simulator import Simulator
from stripe_simulator.store import Object

ROWS: Final = 25
CLOCK: Final = "test_helpers.test_clock"
_STEPS_S: Final = {"hour": 3_600, "day": 86_400}
_NAMES: Final = ("number", "name", "display_name", "email", "lookup_key", "description", "type", "url")
_AMOUNTS: Final = ("amount_due", "amount", "unit_amount", "amount_total", "balance")
# An identifier in JSON that was escaped.
_ID: Final = re.compile(r"&quot;(\w+_\w+)&quot;")
_FAULT: Final = {
    "kind": "", "count": "1", "probability": "1", "method": "POST", "path": "/v1/", "contains": "", "reason": "",
}  # fmt: skip


def routes(simulator: Simulator) -> list[Route]:
    """The routes of the operator's pages, below `/_simulator`."""
    pages: dict[str, Callable[[Mode, Request, Sent], Response]] = {
        "": _overview, "objects/{kind}": _objects, "object/{id:path}": _object, "timeline": _timeline,
        "faults": _faults, "clocks": _clocks,
    }  # fmt: skip

    def route(mode: Mode, path: str) -> Route:
        run = pages[path]
        return ui.route(simulator, f"/{_name(mode)}/{path}", lambda request, sent: run(mode, request, sent))

    return [
        Route("/", lambda _: RedirectResponse(f"{ROOT}/test/")),
        Route("/style.css", lambda _: FileResponse(STYLESHEET)),
        *(route(mode, path) for mode in (simulator.test, simulator.live) for path in pages),
    ]


def _shown(mode: Mode, title: str, *children: object, problem: str = "") -> Response:
    """A page of the operator, with the navigation."""
    marks = dict.fromkeys(("Objects", "Timeline", "Faults", "Clocks", "test", "live"), Html())
    for current in (title if title in marks else "Objects", _name(mode)):
        marks[current] = Html('aria-current="page"')
    nav, status = ui.template("operator", mode=_name(mode), **marks), 400 if problem else 200
    heading = join(h("h1", title), ui.notice(problem))
    return ui.page(f"{title} – Stripe simulator", heading, *children, nav=nav, status=status)


def _name(mode: Mode) -> str:
    return "live" if mode.livemode else "test"


def _to(mode: Mode, identifier: object, text: str = "", page: str = "object") -> Html:
    """A link to an object or a kind of objects, or nothing."""
    target = f"{ROOT}/{_name(mode)}/{page}/{quote(str(identifier))}"
    return ui.link(text or identifier, target) if identifier else Html()


def _overview(mode: Mode, _request: Request, _sent: Sent) -> Response:
    kinds = sorted((kind, count) for kind, count in mode.store.kinds().items() if _is_public(kind))
    rows = [(_to(mode, kind, page="objects"), f"{count:,}") for kind, count in kinds]
    empty = ui.template("empty", url=mode.settings.pages_url, mode=_name(mode))
    now = h("p", f"It is {ui.time(mode.now_s())} UTC. {len(mode.faults.waiting)} faults are on.")
    return _shown(mode, "Objects", now, ui.table(("Kind", "Objects"), rows, empty))


def _is_public(kind: str) -> bool:
    return not kind.startswith("simulator.") and kind not in ("invoice_lines", "subscription.ledger")


def _objects(mode: Mode, request: Request, _sent: Sent) -> Response:
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
    before = re.fullmatch(r"[0-9]{1,15}", request.query_params.get("before", ""))
    rows = list(islice(mode.store.from_place(kind, place=int(before[0]) if before else None), ROWS + 1))
    newest = ui.link("Newest", request.url.path) if before else ""
    older = ui.link("Older", f"?before={rows[ROWS - 1][0]}") if len(rows) > ROWS else ""
    return rows[:ROWS], h("p", newest, older, class_="pages") if newest or older else Html()


def _object(mode: Mode, request: Request, _sent: Sent) -> Response:
    identifier = request.path_params["id"]
    body = mode.store.find(identifier)
    if body is None or not _is_public(body["object"]):
        raise no_such("object", identifier, "id")

    def linked(match: re.Match[str]) -> str:
        return f'"{_to(mode, match[1])}"' if match[1] != identifier and mode.store.find(match[1]) else match[0]

    kind, text = body["object"], msgspec.json.format(msgspec.json.encode(body), indent=2).decode()
    children: list[object] = [h("p", _to(mode, kind, page="objects"))]
    urls = (str(body.get(name)) for name in ("hosted_invoice_url", "url"))
    children += [h("p", ui.link("Open the page of the payer", url)) for url in urls if f"{ROOT}/" in url]
    if "event" in kind:
        children.append(h("section", h("h2", "Deliveries"), _deliveries(mode, identifier)))
    if kind != "event":
        about = (entry for entry in mode.store.from_place("event") if _subject(entry[1]) == identifier)
        events = _events(mode, islice(about, ROWS), "No event is about this object.")
        children.append(h("section", h("h2", "Events"), events))
    shown = h("pre", Html(_ID.sub(linked, join(text))), tabindex=0)
    return _shown(mode, identifier, *children, h("h2", "JSON"), shown)


def _subject(event: Object) -> object:
    return event["data"]["object"].get("id")


def _events(mode: Mode, events: Iterable[tuple[int, Object]], empty: str) -> Html:
    rows = [
        (ui.time(event["created"]), _to(mode, event["id"], event["type"]), _to(mode, _subject(event)),
         _deliveries(mode, event["id"]))
        for _, event in events
    ]  # fmt: skip
    return ui.table(("Time (UTC)", "Event", "Object", "Deliveries"), rows, empty)


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


def _timeline(mode: Mode, request: Request, _sent: Sent) -> Response:
    events, more = _slice(mode, "event", request)
    empty = "Nothing has happened yet. Each change of an object and each delivery of a webhook appears here."
    return _shown(mode, "Timeline", _events(mode, events, empty), more)


def _faults(mode: Mode, request: Request, sent: Sent) -> Response:
    problem, values = "", _FAULT | {name: value for name, value in sent.items() if name in _FAULT}
    if sent:
        try:
            if sent.pop("action") == "off":
                mode.faults.clear(FaultKind(sent.get("kind", "")))
            else:
                mode.faults.add(msgspec.convert(sent, Fault, strict=False))
            return ui.back(request.url.path)
        except (ValueError, msgspec.ValidationError) as error:
            problem = f"This fault cannot be switched: {error}"
    for key, name, options in (("kinds", "kind", [*FaultKind]), ("methods", "method", ["POST", "GET", "DELETE"])):
        values[key] = join(*(h("option", option, selected=option == values[name]) for option in options))
    rows = [
        (fault.kind, "for ever" if left < 0 else f"{left:,} ×", f"{fault.probability:.0%}",
         "webhooks" if fault.is_of_deliveries() else f"{fault.method} {fault.path}", fault.contains,
         ui.template("action", label="Switch off", action="off", field="kind", value=fault.kind))
        for fault, left in mode.faults.waiting
    ]  # fmt: skip
    heads = ("Fault", "Left", "Probability", "Requests", "Contains", "")
    happened = [(kind, f"{count:,}") for kind, count in sorted(mode.faults.happened.items())]
    return _shown(
        mode, "Faults", h("p", "A fault hits requests or webhooks of both modes."),
        ui.table(heads, rows, "No fault is on: every request is answered."), h("h2", "Switch a fault on"),
        ui.template("fault", **values), h("h2", "What has happened"),
        ui.table(("Fault", "Times"), happened, "No fault has happened yet."), problem=problem,
    )  # fmt: skip


def _clocks(mode: Mode, request: Request, sent: Sent) -> Response:
    problem = ""
    if sent:
        error = ui.attempt(mode, lambda: _advance(mode, sent))
        if error is None:
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
    return _shown(mode, "Clocks", ui.table(heads, rows, empty), problem=problem)


def _advance(mode: Mode, sent: Sent) -> None:
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
