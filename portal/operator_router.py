"""The routes of the operator's page, below `/operator`. The token in the address is the only login.

No page sets a cookie, so no other site can act for an operator: who sends a form must know the token. A form that is
sent twice acts once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from portal import operator_page as pages
from portal.markup import STYLESHEET, Html, h, page_response
from portal.operator_facts import Board
from portal.router import Noted, form_of, stylesheet, with_slash
from portal.tokens import OPERATOR, account_of
from schemas.clock import Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError

SCRIPT: Final = Path(__file__).parent / "live.js"
ANSWER_TIMEOUT_S: Final = 20.0
# Forms whose answer is kept, so that a second click gets the first one's.
FORMS_MAX: Final = 1_000
RUNBOOK_BYTES_MAX: Final = 200_000
_NOT_THERE: Final = "There is no such page. Ask for another link with `tidemark operator-page`."

_log: Final = logging.getLogger(__name__)


class Operated(NamedTuple):
    """What the routes need; `portal.router.Served` explains the fields. `runbook`: the folder of its pages."""

    board: Board
    clock: Clock
    secrets: Callable[[], Sequence[str]]
    runbook: Path
    noted: Noted = lambda _route, _status, _seconds: None


class _Asked(NamedTuple):
    """One request: who asked for the link, what names the page, the fields of the query or the form, and the way to the
    front."""

    who: str
    parts: Mapping[str, str]
    sent: Mapping[str, str]
    root: str


class _NotThere(Exception):
    """There is no such page, or the token opens none."""


def operator_routes(served: Operated) -> list[Route]:
    """All routes of the page. The order matters: stylesheet and script are no tokens."""
    page = _Pages(served)
    account, report, quarantine = "accounts/{account:name}", "reports/{report:name}", "quarantine/{cause:name}"
    gets: dict[str, Callable[[_Asked], Awaitable[Response]]] = {
        "": page.front, "boxes": page.boxes, "find": page.find, "runbook/{name}": page.runbook,
        report: page.report, quarantine: page.quarantine, f"{account}/": page.account, f"{account}/event": page.event,
        f"{account}/invoices/{{invoice:name}}": page.invoice, f"{account}/leave/{{what:name}}": page.leave,
    }  # fmt: skip
    posts: dict[str, Callable[[_Asked], Awaitable[Response]]] = {
        f"{report}/redrive": page.redriven, f"{quarantine}/redrive": page.redriven_events,
        f"{account}/leave/{{what:name}}": page.left,
    }  # fmt: skip
    return [
        Route("/operator/style.css", lambda _: stylesheet(STYLESHEET)),
        Route("/operator/live.js", lambda _: _script()),
        Route("/operator/{token}", with_slash),
        *(_route(served, f"/operator/{{token}}/{path}", run, "GET") for path, run in gets.items()),
        *(_route(served, f"/operator/{{token}}/{path}", run, "POST") for path, run in posts.items()),
        _route(served, "/operator/{token}/{rest:path}", page.nothing, "GET"),
    ]


def _script() -> Response:
    headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
    return FileResponse(SCRIPT, headers=headers, media_type="text/javascript")


def _route(served: Operated, path: str, run: Callable[[_Asked], Awaitable[Response]], method: str) -> Route:
    async def handle(request: Request) -> Response:
        now_s = asyncio.get_running_loop().time
        started_s = now_s()
        response = await _answered(served, request, run)
        served.noted(path.replace(":name", ""), response.status_code, now_s() - started_s)
        return response

    return Route(path, handle, methods=[method])


async def _answered(served: Operated, request: Request, run: Callable[[_Asked], Awaitable[Response]]) -> Response:
    """The answer to a request; an error is a page in words."""
    root = "../" * (request.url.path.count("/") - 3)
    parts = dict(request.path_params)
    who = account_of(parts.pop("token"), served.secrets(), served.clock.now_ms(), OPERATOR)
    if who is None:
        return _said(root, 404, "Page not found", _NOT_THERE)
    if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return _said(root, 403, "Not possible", "The form was sent from another site.")
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            sent = await form_of(request) if request.method == "POST" else dict(request.query_params)
            return await run(_Asked(who, parts, sent, root))
    except _NotThere:
        return _said(root, 404, "Page not found", _NOT_THERE)
    except InvalidInput as error:
        return _said(root, 400, "Not possible", f"{error.field}: {error.message}")
    except (TidemarkError, TimeoutError) as error:
        level = logging.ERROR if isinstance(error, OperatorNeeded | Refused) else logging.WARNING
        _log.log(level, "a page of the operator cannot be shown: %s", error)
        return _said(root, 503, "Not available", f"A store does not answer: {error or 'no answer in time'}.")


def _said(root: str, status: int, title: str, text: str) -> Response:
    return _page(pages.frame(title, root, h("h1", title), h("p", text)), status)


def _page(markup: Html, status: int = 200) -> Response:
    return page_response(markup, status, live=True)


class _Pages:
    """The pages, and the forms that were sent."""

    def __init__(self, served: Operated) -> None:
        self._served = served
        self._board = served.board
        # By its secret number: what the form is for, and the act.
        self._forms: OrderedDict[str, tuple[str, asyncio.Task[str]]] = OrderedDict()

    async def nothing(self, _asked: _Asked) -> Response:
        """No page."""
        raise _NotThere

    async def front(self, asked: _Asked) -> Response:
        """All boxes; behind a form, what became of it."""
        _, done = self._forms.get(asked.sent.get("done", ""), ("", None))
        said = done.result() if done is not None and done.done() and not done.exception() else ""
        return _page(pages.front(await self._board.facts(), said))

    async def boxes(self, _asked: _Asked) -> Response:
        """What changes, for the script."""
        return _page(pages.parts(await self._board.facts()))

    async def find(self, asked: _Asked) -> Response:
        """To the page of an account or an invoice."""
        name = asked.sent.get("name", "").strip()
        if not name:
            raise InvalidInput("name", "is empty: name an account or an invoice")
        if not name.startswith("in_"):
            return RedirectResponse(f"accounts/{quote(name, safe='')}/", 303)
        owners = await self._board.owners(name)
        if not owners:
            raise InvalidInput("name", f"no account has the invoice {name}")
        return RedirectResponse(f"accounts/{quote(owners[0], safe='')}/invoices/{quote(name, safe='')}", 303)

    async def account(self, asked: _Asked) -> Response:
        """One account."""
        before = asked.sent.get("before", "")
        place = int(before) if before.isascii() and before.isdigit() and len(before) <= 15 else None
        return _page(pages.account_page(await self._board.account(asked.parts["account"], place)))

    async def event(self, asked: _Asked) -> Response:
        """Where an event ended."""
        return _page(pages.event_explained(await self._board.event(asked.parts["account"], asked.sent.get("id", ""))))

    async def invoice(self, asked: _Asked) -> Response:
        """Why an invoice says what it says."""
        found = await self._board.invoice(asked.parts["account"], asked.parts["invoice"])
        if found is None:
            raise _NotThere
        return _page(pages.invoice_explained(found))

    async def report(self, asked: _Asked) -> Response:
        """A report that Stripe refused."""
        known = await self._board.report(asked.parts["report"])
        if known is None:
            raise _NotThere
        return _page(pages.report_page(known, secrets.token_urlsafe(18), secrets.token_urlsafe(18)))

    async def leave(self, asked: _Asked) -> Response:
        """The form that leaves a thing."""
        return _page(pages.leave_page(asked.parts["account"], asked.parts["what"], secrets.token_urlsafe(18)))

    async def redriven(self, asked: _Asked) -> Response:
        """Send a report again."""
        by, reason = _who_and_why(asked)
        report = asked.parts["report"]
        return await self._once(asked, f"redrive {report}", lambda: self._board.redrive(report, by, reason))

    async def quarantine(self, asked: _Asked) -> Response:
        """The quarantined events of one reason."""
        look = await self._board.quarantined(asked.parts["cause"])
        return _page(pages.quarantine_page(look, secrets.token_urlsafe(18)))

    async def redriven_events(self, asked: _Asked) -> Response:
        """Send quarantined events again."""
        by, reason = _who_and_why(asked)
        cause = asked.parts["cause"]
        return await self._once(asked, f"redrive {cause}", lambda: self._board.redrive_events(cause, by, reason))

    async def left(self, asked: _Asked) -> Response:
        """Leave a thing as it is."""
        by, reason = _who_and_why(asked)
        account, what = asked.parts["account"], asked.parts["what"]
        about = f"leave {what} of {account}"
        return await self._once(asked, about, lambda: self._board.acknowledge(account, what, by, reason))

    async def runbook(self, asked: _Asked) -> Response:
        """A page of the runbook, if this installation has it."""
        name = asked.parts["name"]
        if not name.replace("-", "").isalnum():
            raise _NotThere
        path = self._served.runbook / f"{name}.md"
        text = await asyncio.to_thread(_read, path)
        return _page(
            pages.text_page(f"Runbook: {name}", text or f"See docs/runbook/{name}.md of the repository.", "../")
        )

    async def _once(self, asked: _Asked, about: str, act: Callable[[], Awaitable[str]]) -> Response:
        """Act, or wait for the act of the first click, and go to the front. `about`: what the form is for."""
        once = asked.sent.get("once", "")
        if not 16 <= len(once) <= 64:
            raise InvalidInput("form", "is not one of this page")

        async def acting() -> str:
            return await act()

        sent_for, task = self._forms.get(once, (about, None))
        if sent_for != about:
            raise InvalidInput("form", "was sent for something else: open its page again")
        if task is None or (task.done() and task.exception() is not None):
            task = asyncio.create_task(acting())
            self._forms[once] = about, task
            while len(self._forms) > FORMS_MAX:
                self._forms.popitem(last=False)
        # A click that gives up does not end the act.
        await asyncio.shield(task)
        return RedirectResponse(f"{asked.root}?done={quote(once)}", 303)


def _who_and_why(asked: _Asked) -> tuple[str, str]:
    by, reason = asked.sent.get("by", "").strip(), asked.sent.get("reason", "").strip()
    if not by or not reason:
        raise InvalidInput("by and reason", "say who you are, and why: the audit keeps both")
    # Whose link it is stands in the audit whatever the name is.
    return f"{by[:200]} (link of {asked.who})", reason[:1000]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(RUNBOOK_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
