"""The routes of the finance dashboard, below `/revenue`. The token in the address is the only login; it only reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aggregators.csv_lines import csv_line
from portal.dashboard import dashboard, why_page
from portal.figures import Figures, FinanceBooks, Table, csv_value, month_name, moves, tables
from portal.markup import STYLESHEET, h, page_response
from portal.render import frame
from portal.router import Noted, stylesheet, with_slash
from portal.tokens import FINANCE, account_of
from schemas.clock import Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, TidemarkError

# The figures of a large business take some seconds, once in a minute.
ANSWER_TIMEOUT_S: Final = 30.0
_BUSY: Final = "The figures are not available at the moment. Try again in a minute."
_NOT_THERE: Final = "There is no such page. Ask for another link with `tidemark revenue page`."

_log: Final = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What the routes need; `portal.router.Served` explains the fields."""

    books: FinanceBooks
    clock: Clock
    secrets: Callable[[], Sequence[str]]
    theme: Path | None = None
    noted: Noted = lambda _route, _status, _seconds: None


class _NotThere(Exception):
    """There is no such page, or the token opens none."""


class _Asked(NamedTuple):
    """One request: what the address names, the figures, and the currency that is shown, "" if there is none."""

    request: Request
    figures: Figures
    currency: str


def dashboard_routes(shown: Shown) -> list[Route]:
    """All routes of the dashboard. The order matters: the stylesheets are no tokens."""
    return [
        Route("/revenue/style.css", lambda _: stylesheet(STYLESHEET)),
        Route("/revenue/theme.css", lambda _: stylesheet(shown.theme)),
        Route("/revenue/{token}", with_slash),
        _route(shown, "/revenue/{token}/", _dashboard),
        _route(shown, "/revenue/{token}/months/{month}", _month),
        _route(shown, "/revenue/{token}/{name}.csv", _csv),
        _route(shown, "/revenue/{token}/{rest:path}", _nothing),
    ]


def _route(shown: Shown, path: str, run: Callable[[_Asked], Response]) -> Route:
    async def handle(request: Request) -> Response:
        now_s = asyncio.get_running_loop().time
        started_s = now_s()
        response = await _answered(shown, request, run)
        shown.noted(path, response.status_code, now_s() - started_s)
        return response

    return Route(path, handle, methods=["GET"])


async def _answered(shown: Shown, request: Request, run: Callable[[_Asked], Response]) -> Response:
    """The answer to a request; an error is a page in words."""
    if account_of(request.path_params["token"], shown.secrets(), shown.clock.now_ms(), FINANCE) is None:
        return _said(request, 404, "Page not found", _NOT_THERE)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            figures = await shown.books.figures()
        wanted = request.query_params.get("currency", "")
        if wanted and wanted not in figures.currencies:
            return _said(request, 404, "Page not found", f"There are no figures in {wanted[:20]}.")
        return run(_Asked(request, figures, wanted or _usual(figures)))
    except _NotThere:
        return _said(request, 404, "Page not found", _NOT_THERE)
    except InvalidInput as error:
        return _said(request, 503, "Not available", f"{error.field}: {error.message}")
    except (TidemarkError, TimeoutError) as error:
        level = logging.ERROR if isinstance(error, OperatorNeeded | Refused) else logging.WARNING
        _log.log(level, "the finance dashboard cannot be shown: %s", error)
        return _said(request, 503, "Not available", _BUSY)


def _said(request: Request, status: int, title: str, text: str) -> Response:
    root = "../" * (request.url.path.count("/") - 3)
    return page_response(frame(title, root, h("h1", title), h("p", text)), status)


def _usual(figures: Figures) -> str:
    """The currency with the most recurring accounts now, or else the first one; "" if there is none."""
    last = {each.currency: each.accounts for each in figures.months}
    return max(figures.currencies, key=lambda each: last.get(each, 0), default="")


def _dashboard(asked: _Asked) -> Response:
    return page_response(dashboard(asked.figures, asked.currency))


def _month(asked: _Asked) -> Response:
    start_ms = _start(asked.figures, asked.request.path_params["month"])
    return page_response(why_page(asked.figures, asked.currency, start_ms))


def _start(figures: Figures, month: str) -> int:
    """The start of a month of the dashboard. Raises `_NotThere`."""
    for start_ms in figures.starts_ms[:-1]:
        if month_name(start_ms) == month:
            return start_ms
    raise _NotThere


def _csv(asked: _Asked) -> Response:
    """A table as a CSV file; `movements` are those of a month, or else of all months."""
    name, figures = asked.request.path_params["name"], asked.figures
    if name == "movements":
        month = asked.request.query_params.get("month", "")
        start_ms = _start(figures, month) if month else figures.starts_ms[0]
        end_ms = figures.starts_ms[list(figures.starts_ms).index(start_ms) + 1] if month else figures.starts_ms[-1]
        return _file(moves(figures, asked.currency, start_ms, end_ms), f"{asked.currency}-{month or 'all'}")
    for table in tables(figures, asked.currency):
        if table.name == name:
            return _file(table, asked.currency)
    raise _NotThere


def _file(table: Table, about: str) -> Response:
    lines = [csv_line(name for name, _ in table.columns), *(csv_line(map(csv_value, row)) for row in table.rows)]
    headers = {
        "Content-Disposition": f'attachment; filename="{table.name}-{about}.csv"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response("".join(lines), 200, headers, "text/csv; charset=utf-8")


def _nothing(_asked: _Asked) -> Response:
    raise _NotThere
