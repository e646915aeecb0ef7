"""Markup that escapes every text, and the frame of all pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stripe_simulator.contract.parameters import BODY_BYTES_MAX
from stripe_simulator.engine.amounts import exponent
from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Mode
from stripe_simulator.simulator import Simulator

ROOT: Final = "/_simulator"
FOLDER: Final = Path(__file__).parent
# The year 10000, which Python has no dates for.
SECONDS_MAX: Final = 253_402_300_800

# The fields of a form; empty if the page is only read.
Sent = dict[str, str]


class Html(str):
    """Markup; every other text is escaped."""

    __slots__ = ()


def h(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` is the attribute `class`; an attribute that is False is left out, and True has no value."""
    names = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not False
    )
    return Html(f"<{tag}{names}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Markup and texts, one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def template(name: str, /, **values: object) -> Html:
    """A file of `templates/` with its values."""
    return Html(_template(name).substitute({key: join(value) for key, value in values.items()}))


@cache
def _template(name: str) -> Template:
    return Template((FOLDER / "templates" / f"{name}.html").read_text("utf-8"))


def page(title: str, *children: object, nav: object = "", status: int = 200, form_to: str = "") -> Response:
    """A whole page. `form_to` is the URL to which a form of the page may redirect."""
    target = urlsplit(form_to)
    allowed = f" {target.scheme}://{target.netloc}" if target.netloc else ""
    policy = f"default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'self'{allowed}"
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    frame = template("frame", title=title, nav=nav, body=join(*children))
    return Response(frame, status, headers, "text/html; charset=utf-8")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], empty: object) -> Html:
    """A table, or `empty` without rows. A narrow screen shows each row as a card with the heads as labels."""
    lines = [h("tr", *(h("td", cell, data_head=head) for head, cell in zip(heads, row, strict=True))) for row in rows]
    if not lines:
        return h("p", empty, class_="empty")
    return h("table", h("thead", h("tr", *(h("th", name, scope="col") for name in heads))), h("tbody", *lines))


def link(text: object, target: str) -> Html:
    """A link."""
    return h("a", text, href=target)


def badge(status: str) -> Html:
    """A status; the stylesheet knows the good and the bad ones."""
    return h("span", status, class_=f"badge is-{status.replace(' ', '-')}")


def notice(text: str, kind: str = "bad") -> Html:
    """A message above the page, or nothing without a text."""
    return h("p", text, class_=f"notice {kind}", role="alert" if kind == "bad" else "status") if text else Html()


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
