"""The frame of all pages, and the routes of forms. The markup is that of the customer's page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from portal import markup
from portal.markup import Html, badge, h, join, link, notice, table
from stripe_simulator.contract.parameters import BODY_BYTES_MAX
from stripe_simulator.engine.amounts import exponent
from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Mode
from stripe_simulator.simulator import Simulator

ROOT: Final = "/_simulator"
FOLDER: Final = Path(__file__).parent / "templates"
# The year 10000, which Python has no dates for.
SECONDS_MAX: Final = 253_402_300_800

__all__ = [
    "ROOT", "Html", "Sent", "attempt", "back", "badge", "h", "join", "link", "money", "notice", "page", "route",
    "table", "template", "time",
]  # fmt: skip

# The fields of a form; empty if the page is only read.
Sent = dict[str, str]


def template(name: str, /, **values: object) -> Html:
    """A file of `templates/` with its values."""
    return markup.template(FOLDER, name, **values)


def page(title: str, *children: object, nav: object = "", status: int = 200, form_to: str = "") -> Response:
    """A whole page. `form_to` is the URL to which a form of the page may redirect."""
    target = urlsplit(form_to)
    allowed = f"{target.scheme}://{target.netloc}" if target.netloc else ""
    frame = template("frame", title=title, nav=nav, body=join(*children))
    return markup.page_response(frame, status, form_to=allowed)


def money(amount: int | None, currency: str | None) -> str:
    """An amount of minor units, as in `1,234.50 USD`."""
    if amount is None or currency is None:
        return ""
    places = exponent(currency)
    whole, rest = divmod(abs(amount), 10**places)
    cents = f".{rest:0{places}}" if places else ""
    return f"{'−' if amount < 0 else ''}{whole:,}{cents} {currency.upper()}"


def time(at_s: object) -> str:
    """A UTC second, or the text of a time of API v2."""
    if not isinstance(at_s, int) or not 0 <= at_s < SECONDS_MAX:
        return str(at_s or "")
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S}"


def attempt(mode: Mode, run: Callable[[], Any], *, keep: bool = False) -> ApiError | None:
    """Run in one transaction. Returns the error, whose changes stay only with `keep`, and if the API keeps them too."""
    try:
        with mode.journal.transaction():
            try:
                run()
            except ApiError as error:
                if not (keep and error.kept):
                    raise
                return error
    except ApiError as error:
        return error
    return None


def route(simulator: Simulator, path: str, run: Callable[[Request, Sent], Response]) -> Route:
    """The route of a page below `/_simulator`: due jobs run first, and an error is a page."""

    async def handle(request: Request) -> Response:
        try:
            sent = await _fields(request) if request.method == "POST" else {}
            simulator.catch_up()
            return run(request, sent)
        except ApiError as error:
            return page("Not possible", h("h1", "Not possible"), notice(error.message), status=error.status)
        except Exception as error:
            simulator.violations.append(f"{request.method} {request.url.path} {error!r}")
            raise

    return Route(path, handle, methods=["GET", "POST"])


async def _fields(request: Request) -> Sent:
    """The fields of a form. Raises `ApiError` for a form of another site."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ApiError(403, "This form is of another site.")
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise ApiError(413, "The form is too large.")
    return {"action": "", **dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))}


def back(path: str) -> Response:
    """To another page after a form: a reload does not send the form again."""
    return RedirectResponse(path, 303)
