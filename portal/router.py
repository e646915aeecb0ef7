"""The routes of the customer's page, below `/page`. The token in the address is the only login.

No page sets a cookie, so no other site can act for a customer: who sends a form must know the token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from portal import change, evidence
from portal import credits as credits_
from portal.account import Business
from portal.markup import STYLESHEET, Html, h, page_response
from portal.render import frame, overview
from portal.tokens import account_of
from portal.view import invoice_view, page_view
from schemas.account_records import InvoiceRecord
from schemas.clock import Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError
from schemas.meters import Meter
from schemas.packs import PurchaseState
from schemas.plan_changes import Refusal

FORM_BYTES_MAX: Final = 16 * 1024
FORM_FIELDS_MAX: Final = 100
# A customer waits for a page; a store that hangs delays it no longer than this.
ANSWER_TIMEOUT_S: Final = 20.0

_log: Final = logging.getLogger(__name__)
Noted = Callable[[str, int, float], None]


class Served(NamedTuple):
    """What the routes need.

    `secrets` are read for each request. `url`: where a browser finds the routes. `frames`: the origins whose pages may
    embed the page, separated by spaces. `theme`: a stylesheet of the business. `noted` hears of each answer: the route,
    the status, and the seconds.
    """

    business: Business
    clock: Clock
    secrets: Callable[[], Sequence[str]]
    url: str
    frames: str = ""
    theme: Path | None = None
    noted: Noted = lambda _route, _status, _seconds: None


class _Asked(NamedTuple):
    """One request of a customer: the account, what names the page, the fields of the query or the form, and the whole
    address of the account's page."""

    account: str
    parts: Mapping[str, str]
    sent: Mapping[str, str]
    home: str


class _NotThere(Exception):
    """There is no such page, or the token opens none: the answer is the same."""


def routes(served: Served) -> list[Route]:
    """All routes of the page. The order matters: the stylesheets are no tokens."""
    pages = _Pages(served)
    gets: dict[str, Callable[[_Asked], Awaitable[Response]]] = {
        "": pages.account, "card": pages.card, "plans": pages.plans, "quotes/{quote:name}": pages.quote,
        "invoices": pages.invoices, "invoices/{invoice:name}": pages.invoice,
        "invoices/{invoice:name}/lines/{line:name}": pages.hours,
        "invoices/{invoice:name}/lines/{line:name}/hours/{hour:int}": pages.events,
    }  # fmt: skip
    posts: dict[str, Callable[[_Asked], Awaitable[Response]]] = {
        "quotes": pages.ask, "quotes/{quote:name}/accept": pages.accept, "credits": pages.buy,
    }  # fmt: skip
    return [
        Route("/page/style.css", lambda _: stylesheet(STYLESHEET)),
        Route("/page/theme.css", lambda _: stylesheet(served.theme)),
        Route("/page/{token}", with_slash),
        *(_route(served, f"/page/{{token}}/{path}", run, "GET") for path, run in gets.items()),
        *(_route(served, f"/page/{{token}}/{path}", run, "POST") for path, run in posts.items()),
        _route(served, "/page/{token}/{rest:path}", pages.nothing, "GET"),
    ]


def stylesheet(path: Path | None) -> Response:
    """The answer with a stylesheet; an empty one if there is none."""
    headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
    if path is None or not path.is_file():
        return Response("", 200, headers, "text/css")
    return FileResponse(path, headers=headers, media_type="text/css")


def with_slash(request: Request) -> Response:
    """To the page of a token whose last slash is missing."""
    # What is no token may have a character that no text has.
    return RedirectResponse(f"{quote(request.path_params['token'], errors='replace')}/", 307)


def _route(served: Served, path: str, run: Callable[[_Asked], Awaitable[Response]], method: str) -> Route:
    async def handle(request: Request) -> Response:
        now_s = asyncio.get_running_loop().time
        started_s = now_s()
        response = await _answered(served, request, run)
        served.noted(path, response.status_code, now_s() - started_s)
        return response

    return Route(path, handle, methods=[method])


async def _answered(served: Served, request: Request, run: Callable[[_Asked], Awaitable[Response]]) -> Response:
    """The answer to a request; an error is a page in words."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            sent = await form_of(request) if request.method == "POST" else dict(request.query_params)
            parts = dict(request.path_params)
            token = parts.pop("token")
            account = account_of(token, served.secrets(), served.clock.now_ms())
            if account is None:
                return await _not_there(served, request)
            home = f"{served.url.rstrip('/')}/page/{quote(token)}/"
            return await run(_Asked(account, parts, sent, home))
    except _NotThere:
        return await _not_there(served, request)
    except InvalidInput as error:
        return _said(served, request, 400, "Not possible", f"{error.field}: {error.message}")
    except (TidemarkError, TimeoutError) as error:
        level = logging.ERROR if isinstance(error, OperatorNeeded | Refused) else logging.WARNING
        _log.log(level, "the customer's page cannot be shown: %s", error)
        return _said(
            served, request, 503, "Not available", "This page is not available at the moment. Try again in a minute."
        )
    except Exception:  # noqa: BLE001  # for any error the customer gets a page
        _log.exception("the customer's page failed")
        # A change may have been made before the error.
        text = "Something went wrong here. Open your page again to see what holds now."
        return _said(served, request, 500, "Not available", text)


async def _not_there(served: Served, request: Request) -> Response:
    """The same answer whether a token is none, has ended, or opens another account's page."""
    return _said(served, request, 404, "Page not found", "There is no such page. Open it again from where you came.")


def _said(served: Served, request: Request, status: int, title: str, text: str) -> Response:
    # These pages have any address below `/page/TOKEN/`.
    root = "../" * (request.url.path.count("/") - 3)
    return page_response(frame(title, root, h("h1", title), h("p", text)), status, frames=served.frames)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form. Raises `InvalidInput` for a form that none of the pages has."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise InvalidInput("form", f"has more than {FORM_BYTES_MAX} bytes")
    try:
        found = parse_qsl(bytes(body).decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        raise InvalidInput("form", "is not one of this page") from None
    return dict(found)


class _Pages:
    """The pages of one account."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._business = served.business

    def _page(self, markup: Html, status: int = 200) -> Response:
        return page_response(markup, status, frames=self._served.frames)

    async def account(self, asked: _Asked) -> Response:
        """The account at a glance; after a change also what became of it."""
        kept = await self._business.kept(asked.account, asked.sent["quote"]) if "quote" in asked.sent else None
        changed, problem = change.outcome_words(*kept, self._served.clock.now_ms()) if kept else ("", "")
        if kept and kept[1] and kept[1].session:
            await self._business.awaited(asked.account, kept[1].made_ms)
        bought = await self._business.bought(asked.account, asked.sent["bought"]) if "bought" in asked.sent else None
        if bought:
            changed, problem = credits_.outcome_words(bought[0], has_arrived=bought[1])
        view = page_view(await self._business.facts(asked.account))
        shown = credits_.credits_card(view.pools) if view.pools else Html()
        return self._page(overview(view, changed, problem, credits_card=shown))

    async def nothing(self, _asked: _Asked) -> Response:
        """No page."""
        raise _NotThere

    async def plans(self, asked: _Asked) -> Response:
        """What is sold."""
        return self._page(change.plans_page(change.offers_of(await self._business.facts(asked.account))))

    async def ask(self, asked: _Asked) -> Response:
        """Quote a change, and go to the quote. A change that is refused is said in words."""
        try:
            found = await self._business.quote(asked.account, change.requested(asked.sent))
            problem = found.message if isinstance(found, Refusal) else ""
        except InvalidInput as error:
            found, problem = None, f"{error.field}: {error.message}"
        if found is not None and not isinstance(found, Refusal):
            return RedirectResponse(f"quotes/{found.id}", 303)
        offers = change.offers_of(await self._business.facts(asked.account))
        return self._page(change.plans_page(offers, f"This change cannot be made: {problem}"), 409)

    async def quote(self, asked: _Asked) -> Response:
        """A quote before it is confirmed."""
        kept = await self._business.kept(asked.account, asked.parts["quote"])
        if kept is None:
            raise _NotThere
        if kept[1] is not None:
            return RedirectResponse(f"../?quote={kept[0].id}", 303)
        return self._page(change.quote_page(kept[0], self._served.clock.now_ms(), "../"))

    async def accept(self, asked: _Asked) -> Response:
        """Carry a quote out, or show the way to Stripe's page on which it is paid."""
        identifier = asked.parts["quote"]
        home = f"{asked.home}?quote={quote(identifier)}"
        found = await self._business.accept(asked.account, identifier, home)
        if not found:
            return RedirectResponse(f"../../?quote={quote(identifier)}", 303)
        kept = await self._business.kept(asked.account, identifier)
        if kept is None:
            raise _NotThere
        if isinstance(found, str):
            return self._page(change.payment_page(kept[0], found, "../../"))
        return self._page(change.quote_page(kept[0], self._served.clock.now_ms(), "../../", found.message), 409)

    async def buy(self, asked: _Asked) -> Response:
        """The way to Stripe's page on which a pack is paid."""
        purchase = await self._business.buy_pack(asked.account, asked.sent, f"{asked.home}?bought=")
        if purchase.state is not PurchaseState.OPEN:
            return RedirectResponse(f"./?bought={quote(purchase.id)}", 303)
        return self._page(credits_.payment_page(purchase, "./"))

    async def card(self, asked: _Asked) -> Response:
        """To Stripe's page of the card."""
        found = await self._business.card_page(asked.account, asked.home)
        if isinstance(found, Refusal):
            raise InvalidInput(found.field, found.message)
        return RedirectResponse(found, 303)

    async def invoices(self, asked: _Asked) -> Response:
        """All invoices, page by page."""
        rows, older = await self._business.invoices(asked.account, asked.sent.get("cursor", ""))
        now_ms = self._served.clock.now_ms()
        return self._page(evidence.invoices_page(tuple(invoice_view(row, now_ms) for row in rows), quote(older)))

    async def invoice(self, asked: _Asked) -> Response:
        """One invoice."""
        record, lines, _ = await self._lines(asked)
        return self._page(evidence.invoice_page(record, lines, self._served.clock.now_ms()))

    async def hours(self, asked: _Asked) -> Response:
        """The hours of a line of usage."""
        line, meter = await self._line(asked)
        after, most = evidence.as_after(asked.sent), evidence.HOURS_MAX
        hours = await self._business.hours(asked.account, meter, line.span, after, most + 1)
        later = str(hours[most - 1].start_ms) if len(hours) > most else ""
        found = await self._business.explained(asked.account, line.invoice, line.id) if after < 0 else None
        now_ms = self._served.clock.now_ms()
        return self._page(evidence.hours_page(line, meter, hours[:most], later, now_ms, found))

    async def events(self, asked: _Asked) -> Response:
        """The events of an hour."""
        line, meter = await self._line(asked)
        hour_ms, most = int(asked.parts["hour"]), evidence.EVENTS_MAX
        if not evidence.is_hour(hour_ms):
            raise _NotThere
        after = asked.sent.get("after", "")
        found = await self._business.events(asked.account, meter, hour_ms, after, most + 1, line.span)
        later = quote(found[most - 1].id, safe="") if len(found) > most else ""
        now_ms = self._served.clock.now_ms()
        return self._page(evidence.events_page(line, meter, hour_ms, found[:most], later, now_ms))

    async def _lines(self, asked: _Asked) -> tuple[InvoiceRecord, Sequence[evidence.LineView], Sequence[Meter]]:
        found = await self._business.invoice(asked.account, asked.parts["invoice"], evidence.LINES_MAX)
        if found is None:
            raise _NotThere
        record, shop, meters = found
        return record, evidence.line_views(shop, record, self._served.clock.now_ms()), meters

    async def _line(self, asked: _Asked) -> tuple[evidence.LineView, Meter]:
        _, lines, meters = await self._lines(asked)
        line = next((each for each in lines if each.id == asked.parts["line"] and each.meter), None)
        meter = next((each for each in meters if line and each.slug == line.meter), None)
        if line is None or meter is None:
            raise _NotThere
        return line, meter
